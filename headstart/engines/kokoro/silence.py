"""Where speech begins and ends in a clause: every clause of Kokoro starts with 0.3 s of nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000
"""Of everything that Kokoro speaks, in Hz."""

LEAD_IN_MS = 6
"""Kept before the first sound: soft consonants begin before they can be measured.

Of 16 clauses by as many voices, 6 to 9 ms before it the level was 40 to 85 dB below the loudest
(median 59), 12 to 15 ms before it 43 to 106 dB (64)."""

USUAL_PEAK = 0.15
"""Level (RMS) of the loudest 5 ms of a clause: 0.11 to 0.23, measured on six voices."""

_WINDOW = SAMPLE_RATE // 200
_FLOOR = 0.012
"""Of the clause's loudest 5 ms; quieter than this is silence (about -38 dB)."""

_FADE_IN = SAMPLE_RATE * 4 // 1000
_FADE_OUT = SAMPLE_RATE * 12 // 1000


def loudest(audio: NDArray[np.float32]) -> float:
    """Level (RMS) of the loudest 5 ms."""
    return float(_levels(audio).max(initial=0.0))


def speech_bounds(audio: NDArray[np.float32], peak: float | None = None) -> tuple[int, int]:
    """First and one past the last sample that is speech; (0, 0) where all is silent.

    Args:
        audio: Shape (samples,).
        peak: Level of the loudest 5 ms of the speech, where `audio` is only a part of it.
    """
    levels = _levels(audio)
    peak = float(levels.max(initial=0.0)) if peak is None else peak
    loud = np.flatnonzero(levels > max(_FLOOR * peak, 1e-4))
    if not len(loud):
        return 0, 0
    return int(loud[0]) * _WINDOW, min(len(audio), (int(loud[-1]) + 1) * _WINDOW)


def pause_after(phonemes: str) -> int:
    """How many samples of silence may follow a clause, by the mark that ends it."""
    mark = phonemes.rstrip(' )”"')[-1:]
    if mark in tuple(".!?…"):
        pause_ms = 220
    elif mark in tuple(",;:—"):
        pause_ms = 130
    else:
        pause_ms = 40
    return SAMPLE_RATE * pause_ms // 1000


def trimmed(audio: NDArray[np.float32], pause: int) -> tuple[NDArray[np.float32], int]:
    """A clause without its long silences, and how many samples were cut from its start.

    Args:
        audio: Shape (samples,).
        pause: Silence that may stay at the end, in samples.
    """
    begin, end = speech_bounds(audio)
    begin = max(0, begin - SAMPLE_RATE * LEAD_IN_MS // 1000)
    end = min(len(audio), end + pause)
    return faded(audio[begin:end], start=begin > 0, end=end < len(audio)), begin


def faded(audio: NDArray[np.float32], *, start: bool, end: bool) -> NDArray[np.float32]:
    """A copy that comes from and goes to silence where asked, so that cuts do not click."""
    audio = audio.copy()
    if start:
        ramp = min(_FADE_IN, len(audio))
        audio[:ramp] *= np.linspace(0, 1, ramp, dtype=np.float32)
    if end:
        ramp = min(_FADE_OUT, len(audio))
        audio[len(audio) - ramp :] *= np.linspace(1, 0, ramp, dtype=np.float32)
    return audio


class Tail:
    """Holds back the silence at the end of what came, until it is known whether speech follows.

    Kokoro ends a clause with up to 0.7 s of silence, which cannot be told from a pause inside
    it before the rest is there.
    """

    def __init__(self) -> None:
        self._peak = USUAL_PEAK
        self._held = np.zeros(0, np.float32)

    @property
    def held(self) -> int:
        """Samples of silence that are held back."""
        return len(self._held)

    def pass_on(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """What may be heard now: up to the last sound, with the silence held back before."""
        self._peak = max(self._peak, float(_levels(audio).max(initial=0.0)))
        _, last = speech_bounds(audio, self._peak)
        if not last:
            self._held = np.concatenate([self._held, audio])
            return audio[:0]
        heard = np.concatenate([self._held, audio[:last]])
        self._held = audio[last:]
        return heard

    def end(self, pause: int) -> NDArray[np.float32]:
        """The silence after the last sound, at most `pause` samples of it."""
        return faded(self._held[:pause], start=False, end=True)


def _levels(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    windows = len(audio) // _WINDOW
    parts = audio[: windows * _WINDOW].reshape(windows, _WINDOW)
    levels: NDArray[np.float32] = np.sqrt(np.mean(parts**2, axis=1))
    return levels
