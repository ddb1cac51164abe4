"""How soon and how fast a runtime of Kokoro speaks on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from kokoro_onnx.config import DEFAULT_VOCAB

from headstart.engines.kokoro.backend import Abort, Backend
from headstart.engines.kokoro.silence import SAMPLE_RATE, pause_after
from headstart.engines.kokoro.text.phonemes import Phonemizer
from headstart.engines.kokoro.voices import Voices
from headstart.errors import EngineError

SENTENCE = "The train leaves at nine tomorrow."

_ENOUGH_SECS = 4.0


@dataclass(frozen=True)
class Measurement:
    """A sentence of six words, spoken with nothing else in the queue."""

    first_ms: float
    """Until its first piece was there."""
    real_time_factor: float
    """Seconds of computing for a second of audio."""


def measure(
    backend: Backend, voices: Voices, *, voice: str = "af_heart", times: int = 4
) -> Measurement:
    """The best of several times, after one to warm up; of fewer where they take long."""
    clause = next(Phonemizer().clauses(SENTENCE, voice))
    tokens = np.array([DEFAULT_VOCAB[phoneme] for phoneme in clause.phonemes], np.int64)
    style = voices.style(voice, len(tokens))
    runs: list[Measurement] = []
    started = time.perf_counter()
    for _ in range(times + 1):
        begun = time.perf_counter()
        if len(runs) > 1 and begun - started > _ENOUGH_SECS:
            break
        rendering = backend.render(
            tokens,
            style,
            voice=voice,
            speed=1.0,
            pause=pause_after(clause.phonemes),
            abort=Abort(),
        )
        if rendering is None:
            raise EngineError("Kokoro ended a clause that nobody stopped")
        samples = len(next(rendering.pieces))
        first_ms = 1000 * (time.perf_counter() - begun)
        samples += sum(len(piece) for piece in rendering.pieces)
        factor = (time.perf_counter() - begun) * SAMPLE_RATE / samples
        runs.append(Measurement(first_ms, factor))
    return min(runs[1:], key=lambda run: run.first_ms)
