"""From a spec to a Pipecat pipeline between a transport's two ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregator
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.services.tts_service import TTSService
from pipecat.transports.base_transport import BaseTransport

from headstart.config.registry import create
from headstart.config.registry import required_assets as stage_assets
from headstart.config.spec import PipelineSpec
from headstart.errors import ConfigError
from headstart.pipeline.watch import WatchedPipeline
from headstart.processors.audio_end import InputAudioEnd
from headstart.processors.speculation.attempts import SharesModel, WorksAhead
from headstart.processors.speculation.gate import ReleaseGate
from headstart.processors.turn.aggregator import AssistantTurn, TurnSettings, UserTurn
from headstart.processors.turn.trigger.settings import EarlyTrigger

P = TypeVar("P", bound=FrameProcessor)

_DEAF = (WorksAhead, TTSService, ReleaseGate)
"""Stages that have no use for the user's audio; of others one cannot know."""


@dataclass(frozen=True)
class Built:
    """A pipeline that is ready to run."""

    pipeline: WatchedPipeline
    context: LLMContext
    """The conversation, still empty; the prompt is with the language model."""


def build(spec: PipelineSpec, transport: BaseTransport) -> Built:
    """Make the stages and link them between the transport's input and output.

    A pipeline with a language model needs somebody to collect the user's words into turns and
    the bot's into the conversation. Where the spec names no `turn` stage, the default one is
    put before the language model; the assistant's is always put after the output, where only
    what was heard arrives.

    Raises:
        ConfigError: A stage cannot be made from its settings, or misses another one.
    """
    context = LLMContext()
    stages = [create(stage, {LLMContext: context}) for stage in spec.stages]
    after_output: list[FrameProcessor] = []
    if any(isinstance(stage, LLMService) for stage in stages):
        _join_conversation(stages, spec.prompt, context)
        after_output.append(AssistantTurn(context))
    elif (unanswered := _first(stages, UserTurn)) is not None:
        unanswered.is_answered = False
    trigger = _first(stages, EarlyTrigger)
    if trigger is not None:
        stages.remove(trigger)
        turn = _first(stages, UserTurn)
        if turn is None:
            place = next(stage.position for stage in spec.stages if stage.kind == "trigger")
            raise ConfigError(
                [
                    place.problem(
                        "trigger needs an llm stage, and a turn stage that is `turn: smart`"
                    )
                ]
            )
        if trigger.settings.enabled:
            makers = [stage for stage in stages if isinstance(stage, SharesModel)]
            gate = ReleaseGate()
            turn.speculate(
                trigger, lambda: any(maker.model_is_busy for maker in makers), gate.confirm
            )
            for stage in stages:
                if isinstance(stage, WorksAhead):
                    stage.work_ahead()
            stages.append(gate)
    listeners = [at for at, stage in enumerate(stages) if not isinstance(stage, _DEAF)]
    stages.insert(listeners[-1] + 1 if listeners else 0, InputAudioEnd())
    processors = [transport.input(), *stages, transport.output(), *after_output]
    return Built(WatchedPipeline(processors), context)


def _join_conversation(stages: list[FrameProcessor], prompt: str, context: LLMContext) -> None:
    for stage in stages:
        if isinstance(stage, LLMService):
            stage.append_system_instruction(prompt)
    if _first(stages, LLMUserAggregator) is None:
        llm = next(at for at, stage in enumerate(stages) if isinstance(stage, LLMService))
        stages.insert(llm, UserTurn(context))


def _first(stages: Sequence[FrameProcessor], kind: type[P]) -> P | None:
    return next((stage for stage in stages if isinstance(stage, kind)), None)


def required_assets(spec: PipelineSpec) -> tuple[str, ...]:
    """The weights that the spec's stages need, each once, in the order of the stages.

    Raises:
        UsageError: A stage's class cannot be imported.
    """
    names = [name for stage in spec.stages for name in stage_assets(stage)]
    kinds = [stage.kind for stage in spec.stages]
    if "llm" in kinds and "turn" not in kinds:
        names += UserTurn.required_assets(TurnSettings())
    return tuple(dict.fromkeys(names))
