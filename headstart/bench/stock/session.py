"""A conversation run as Pipecat's documentation runs one: the yardstick of `bench load`."""

from __future__ import annotations

from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker

from headstart.config.spec import PipelineSpec
from headstart.pipeline.build import Built
from headstart.pipeline.session import Session
from headstart.processors.audio_end import InputAudioEnd

_MODULES = (
    "pipecat.",
    "headstart.bench.stock.services:",
    "headstart.bench.stock.voice:",
    "headstart.bench.load.no_op:",
)


def is_stock(spec: PipelineSpec) -> bool:
    """Whether no stage of the pipeline is Headstart's; those that say nothing are nobody's."""
    return all(stage.target.startswith(_MODULES) for stage in spec.stages)


class StockSession(Session):
    """Pipecat's pipeline and worker with their defaults; ours is the transport.

    That is with RTVI, turn tracking and idle detection, which Pipecat switches on by itself, and
    with the timeline, which knows when an answer is over, as one more observer of Pipecat's.
    """

    def _make_worker(self, built: Built) -> PipelineWorker:
        linked = built.pipeline.processors[1:-1]
        stages = [stage for stage in linked if not isinstance(stage, InputAudioEnd)]
        return PipelineWorker(
            Pipeline(stages), params=self._params(), observers=[self.timeline, *self._observers]
        )
