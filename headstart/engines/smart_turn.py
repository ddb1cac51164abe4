"""Smart Turn v3: whether someone who fell silent has said all they wanted to say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headstart import assets
from headstart.engines.hub import Engine
from headstart.engines.log_mel import SAMPLE_RATE, log_mel
from headstart.engines.queue import InferenceQueue, QueueStatistics, Ticket
from headstart.engines.silero import onnx_session

LONGEST_SECS = 8.0
"""How much of the audio's end the model looks at."""

_SAMPLES = int(LONGEST_SECS * SAMPLE_RATE)
_VARIANCE_FLOOR = 1e-7


@dataclass(frozen=True)
class SmartTurnOptions:
    """Which weights, and how they run."""

    asset: str = "smart-turn-v3"
    """Folder that holds `smart-turn-v3.2-cpu.onnx`."""
    threads: int = 1
    """Cores one verdict uses."""
    workers: int = 1
    """Verdicts at the same time."""


class SmartTurnEngine(Engine):
    """Pipecat's end-of-turn model, which listens to the audio and not to the words."""

    def __init__(self, session: Any, options: SmartTurnOptions) -> None:
        """Take over a loaded model. Use `load`."""
        self._session = session
        self._queue = InferenceQueue("smart-turn", threads=options.workers)

    @classmethod
    def load(cls, options: SmartTurnOptions) -> Self:
        """Load the weights and ask once.

        Raises:
            AssetError: The weights are missing.
            EngineError: They do not load.
        """
        model = assets.path(options.asset) / "smart-turn-v3.2-cpu.onnx"
        engine = cls(onnx_session(str(model), options.threads), options)
        engine._probability(np.zeros(SAMPLE_RATE, dtype=np.float32))
        return engine

    async def probability(self, audio: NDArray[np.float32], ticket: Ticket | None = None) -> float:
        """How likely it is, 0..1, that the speaker has finished.

        Args:
            audio: What was said, the silence after it included: samples at 16 kHz in -1..1,
                shape (n,). The last 8 s count.
            ticket: Standing of the work in the queue.

        Raises:
            EngineBusyError: The queue is full.
            EngineError: The engine is closed.
        """
        return await self._queue.run(partial(self._probability, audio), ticket)

    def statistics(self) -> QueueStatistics:
        """What the queue is doing and has done."""
        return self._queue.statistics()

    def close(self) -> None:
        """End the worker threads."""
        self._queue.close()

    def _probability(self, audio: NDArray[np.float32]) -> float:
        heard = np.zeros(_SAMPLES, dtype=np.float32)
        last = audio[-_SAMPLES:]
        heard[_SAMPLES - len(last) :] = last
        heard = (heard - heard.mean()) / np.sqrt(heard.var() + _VARIANCE_FLOOR)
        output = self._session.run(None, {"input_features": log_mel(heard)[None]})[0]
        return float(output[0].item())
