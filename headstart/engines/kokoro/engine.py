"""The voice as an engine: one model a process, one queue, speech in pieces."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from kokoro_onnx.config import DEFAULT_VOCAB
from loguru import logger
from numpy.typing import NDArray

from headstart import assets
from headstart.engines.hub import Engine
from headstart.engines.kokoro.backend import FRAME, Abort, Backend
from headstart.engines.kokoro.choose import load, load_best
from headstart.engines.kokoro.silence import SAMPLE_RATE, pause_after
from headstart.engines.kokoro.text.phonemes import Clause, Phonemizer
from headstart.engines.kokoro.voices import Voices
from headstart.engines.queue import InferenceQueue, QueueStatistics, Ticket
from headstart.engines.workload import Workload
from headstart.errors import EngineError, UsageError
from headstart.text.clauses import ClauseSplitter

MODEL = "kokoro-v1.0"
VOICES = "kokoro-voices"

_SLOWEST, _FASTEST = 0.5, 2.0
_CAPACITY = 256
"""Clauses that may wait: a hundred sessions that all speak at once, and then some."""
_HISTORY = 512
"""Texts over which the real-time factor is told."""


@dataclass(frozen=True)
class KokoroOptions:
    """What a Kokoro engine is loaded with."""

    engine: Literal["auto", "onnx", "torch", "kmodel"] = "auto"
    """What runs the network; `auto` takes the faster one of onnx and torch. `kmodel` is the
    authors' package, a whole clause at a time; torch means it where there is a CUDA card."""
    threads: int = 2
    """Of one clause's computation; no more than there are cores."""


@dataclass(frozen=True)
class WordTime:
    """When a word is spoken."""

    text: str
    """As it was written."""
    start_secs: float
    """From the first sample of the piece that carries it."""


@dataclass(frozen=True)
class Speech:
    """A piece of speech."""

    samples: NDArray[np.float32]
    """Mono, 24 kHz, -1..1; shape (samples,)."""
    words: tuple[WordTime, ...] = ()
    """Of the whole clause that begins with this piece; empty in its later pieces."""


@dataclass(frozen=True)
class KokoroStatistics(QueueStatistics):
    """What the queue is doing and has done, and how fast the voice is."""

    real_time_factor: float | None
    """Seconds of work for a second of speech, over the last 512 texts; None before the first."""


class KokoroEngine(Engine):
    """Speaks for all sessions, one clause at a time, committed text first."""

    def __init__(self, backend: Backend, voices: Voices) -> None:
        """Use a loaded backend; `load` makes one."""
        self._backend = backend
        self._voices = voices
        self._phonemizer = Phonemizer()
        self._queue = InferenceQueue("kokoro", capacity=_CAPACITY)
        self._effort: deque[tuple[float, float]] = deque(maxlen=_HISTORY)
        """Seconds of work and of speech, by text."""
        self.workload = Workload()

    @classmethod
    def load(cls, options: KokoroOptions) -> Self:
        """Load model and voices and speak one word to nobody.

        Raises:
            AssetError: The weights are not there.
            EngineError: The model did not load.
        """
        model = model_file(assets.path(MODEL))
        voices = Voices(assets.path(VOICES))
        begun = time.monotonic()
        engine = cls(_backend(options, model, voices), voices)
        voice = voices.names[0]
        for _ in engine._spoken(engine._clauses("Ready.", voice, False), voice, 1.0, Abort()):
            pass
        logger.info(
            f"Kokoro speaks through {engine._backend.name}, ready in "
            f"{time.monotonic() - begun:.1f} s"
        )
        return engine

    @property
    def backend(self) -> str:
        """What runs the network: `onnx` or `torch`."""
        return self._backend.name

    def voices(self) -> tuple[str, ...]:
        """The names of all voices, alphabetically."""
        return self._voices.names

    def check(self, voice: object, speed: object = 1.0) -> None:
        """Make sure that the engine can speak so.

        Raises:
            UsageError: No such voice, or a speed that is no number from 0.5 to 2.
        """
        self._voices.check(voice)
        # Not `speed < _SLOWEST or speed > _FASTEST`, which is false for NaN.
        if not isinstance(speed, (int, float)) or not _SLOWEST <= speed <= _FASTEST:
            raise UsageError(f"speed is {speed!r}; Kokoro speaks at {_SLOWEST} to {_FASTEST:g}")

    async def prepare(self, voice: str, speed: float = 1.0) -> None:
        """As `check`, and have what the voice's language needs at hand before the first sentence.

        Raises:
            UsageError: As `check`.
            EngineError: The language needs a package that is not installed.
        """
        self.check(voice, speed)
        await asyncio.to_thread(self._phonemizer.prepare, voice)

    async def speak(
        self,
        text: str,
        *,
        voice: str = "af_heart",
        speed: float = 1.0,
        ticket: Ticket | None = None,
        cut: bool = True,
    ) -> AsyncGenerator[NDArray[np.float32]]:
        """Speak `text`; yields audio (mono, 24 kHz, shape (samples,)) as it is made.

        Text without a letter or digit yields nothing. Leaving the loop early, or cancelling
        the ticket, stops the computation inside the clause.

        Args:
            text: Plain text; tags, emoji and fenced code are left out.
            voice: Whose voice, see `voices`.
            speed: 0.5 to 2; 1 is the voice's own.
            ticket: Priority, and a way to cancel.
            cut: Whether a sentence is cut into clauses, of which the first is short, so that
                something is heard soon. Not to be done to what is one such clause already.

        Raises:
            UsageError: No such voice, a bad speed, or text in a foreign script.
            EngineBusyError: The queue is full.
            EngineError: The model failed or is closed, or the voice's language needs a
                package that is not installed.
        """
        async with aclosing(
            self.speak_words(text, voice=voice, speed=speed, ticket=ticket, cut=cut)
        ) as pieces:
            async for piece in pieces:
                yield piece.samples

    async def speak_words(
        self,
        text: str,
        *,
        voice: str = "af_heart",
        speed: float = 1.0,
        ticket: Ticket | None = None,
        cut: bool = True,
    ) -> AsyncGenerator[Speech]:
        """As `speak`, with the times of the words. Raises the same."""
        self.check(voice, speed)
        abort, ticket = Abort(), ticket or Ticket()
        try:
            with self.workload.holding(ticket), ticket.on_cancel(abort.request):
                async with aclosing(
                    self._queue.stream(lambda: self._pieces(text, voice, speed, abort, cut), ticket)
                ) as pieces:
                    async for piece in pieces:
                        yield piece
        finally:
            abort.request()

    def statistics(self) -> KokoroStatistics:
        """What the queue is doing and has done, and how fast the voice is."""
        worked, spoken = (sum(secs) for secs in zip((0.0, 0.0), *self._effort, strict=True))
        factor = worked / spoken if spoken else None
        return KokoroStatistics(**vars(self._queue.statistics()), real_time_factor=factor)

    def close(self) -> None:
        """End the queue and release the model."""
        self._queue.close()
        self._backend.close()

    def _pieces(
        self, text: str, voice: str, speed: float, abort: Abort, cut: bool
    ) -> Iterator[Speech]:
        """The speech of a text, timed; runs on the queue's thread."""
        worked, samples, begun = 0.0, 0, time.monotonic()
        for piece in self._spoken(self._clauses(text, voice, cut), voice, speed, abort):
            worked += time.monotonic() - begun
            samples += len(piece.samples)
            yield piece
            begun = time.monotonic()
        if samples and not abort.requested:
            worked += time.monotonic() - begun
            self._effort.append((worked, samples / SAMPLE_RATE))

    def _clauses(self, text: str, voice: str, cut: bool) -> Iterator[Clause]:
        if cut:
            return self._phonemizer.clauses(text, voice, ClauseSplitter().cut)
        return self._phonemizer.clauses(text, voice)

    def _spoken(
        self, clauses: Iterable[Clause], voice: str, speed: float, abort: Abort
    ) -> Iterator[Speech]:
        for clause in clauses:
            tokens = np.array([DEFAULT_VOCAB[phoneme] for phoneme in clause.phonemes], np.int64)
            rendering = self._backend.render(
                tokens,
                self._voices.style(voice, len(tokens)),
                voice=voice,
                speed=speed,
                pause=pause_after(clause.phonemes),
                abort=abort,
            )
            if rendering is None:
                return
            words = _times(clause, rendering.durations, rendering.skipped)
            for samples in rendering.pieces:
                if len(samples):
                    yield Speech(samples, words)
                    words = ()
                if abort.requested:
                    return


def _times(clause: Clause, durations: NDArray[np.int64], skipped: int) -> tuple[WordTime, ...]:
    """When each word begins, from the first sample that is heard."""
    # Phoneme n begins after the start mark and the n phonemes before it.
    begins = np.cumsum(durations) * FRAME - skipped
    return tuple(
        WordTime(word.text, max(0.0, float(begins[word.start])) / SAMPLE_RATE)
        for word in clause.words
    )


def _backend(options: KokoroOptions, model: Path, voices: Voices) -> Backend:
    threads = min(options.threads, _cores())
    if options.engine == "auto":
        memory = assets.cache().root / "kokoro-engine.json"
        return load_best(model, voices, threads=threads, memory=memory)
    return load(options.engine, model, threads=threads)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def model_file(folder: Path) -> Path:
    """The ONNX export in the folder of its asset.

    Raises:
        EngineError: There is none.
    """
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise EngineError(f"no Kokoro model (.onnx) in {folder}")
    return files[0]
