"""Silero VAD: whether a window of audio holds a voice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headstart import assets
from headstart.engines.hub import Engine
from headstart.engines.queue import InferenceQueue, QueueStatistics
from headstart.errors import EngineError

T = TypeVar("T")

SAMPLE_RATE = 16000
WINDOW = 512
"""Samples the model looks at: 32 ms."""

_CONTEXT = 64
_RESET_WINDOWS = 63
"""About 2 s."""
_SILENT = 0.1
_SILENT_WINDOWS = 5


@dataclass(frozen=True)
class SileroOptions:
    """Which weights, and how they run."""

    asset: str = "silero-vad"
    """Folder that holds `silero_vad.onnx`."""
    workers: int = 1
    """Windows at the same time. One takes 0.2 ms, so one worker serves about 100 sessions."""


class SileroEngine(Engine):
    """The model, shared; what it remembers of each stream is kept in the stream."""

    def __init__(self, session: Any, options: SileroOptions) -> None:
        """Take over a loaded model. Use `load`."""
        self._session = session
        self._queue = InferenceQueue("silero", threads=options.workers, capacity=1024)

    @classmethod
    def load(cls, options: SileroOptions) -> Self:
        """Load the weights.

        Raises:
            AssetError: The weights are missing.
            EngineError: They do not load.
        """
        session = onnx_session(str(assets.path(options.asset) / "silero_vad.onnx"))
        engine = cls(session, options)
        engine.stream().probability(np.zeros(WINDOW, dtype=np.float32))
        return engine

    def stream(self) -> SileroStream:
        """A new stream, which has heard nothing yet."""
        return SileroStream(self._session)

    async def run(self, work: Callable[[], T]) -> T:
        """Do work that asks streams for probabilities on the engine's thread.

        Raises:
            EngineBusyError: The queue is full.
            EngineError: The engine is closed.
        """
        return await self._queue.run(work)

    def statistics(self) -> QueueStatistics:
        """What the queue is doing and has done."""
        return self._queue.statistics()

    def close(self) -> None:
        """End the worker threads."""
        self._queue.close()


class SileroStream:
    """One stream of audio, window after window. Not for several threads at a time."""

    def __init__(self, session: Any) -> None:
        """Begin. Use `SileroEngine.stream`."""
        self._session = session
        self._rate = np.array(SAMPLE_RATE, dtype=np.int64)
        self._silent_windows = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._state = np.zeros((2, 1, 128), dtype=np.float32)
        self._context = np.zeros((1, _CONTEXT), dtype=np.float32)
        self._windows = 0

    def probability(self, window: NDArray[np.float32], *, quiet: bool = False) -> float:
        """How likely it is, 0..1, that the window holds a voice.

        The model's memory of music or of long silence makes it deaf for the speech that
        follows. So it forgets about every two seconds, but only while nobody speaks: a reset
        amid a word would look like the word's end.

        Args:
            window: 512 samples at 16 kHz in -1..1, the next ones of the stream.
            quiet: Nobody is speaking, as far as the caller knows.
        """
        audio = np.concatenate((self._context, window[None]), axis=1)
        output, self._state = self._session.run(
            None, {"input": audio, "state": self._state, "sr": self._rate}
        )
        self._context = audio[:, -_CONTEXT:]
        probability = float(output[0, 0])
        self._windows += 1
        self._silent_windows = self._silent_windows + 1 if probability < _SILENT else 0
        if quiet and self._windows >= _RESET_WINDOWS and self._silent_windows >= _SILENT_WINDOWS:
            self.reset()
        return probability


def onnx_session(path: str, threads: int = 1) -> Any:
    """A session of onnxruntime on the CPU.

    Raises:
        EngineError: The model does not load.
    """
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen classes without a common base
        raise EngineError(f"{path} did not load: {error}") from error
