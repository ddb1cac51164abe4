"""What a progressive recogniser has heard and understood of one segment; no I/O, no clock."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.engines.hypothesis import Hypothesis, Word, joined

RATE = 16000
"""Samples a second of all audio here."""

_BLOCK = RATE // 50
_SILENCE_DB = -60.0
_SPEECH_RANGE_DB = 30.0
_ABOVE_FLOOR_DB = 8.0
_CLEAR_DB = 14.0
_TAIL = RATE // 25
"""Soft sound after the last loud one, 40 ms, that a decode must cover to be the last."""


class Loudness:
    """Where the voice was last loud, judged against the quietest and the loudest so far.

    A short-term energy detector with a threshold between noise floor and peak, as in Rabiner
    and Sambur 1975, "An Algorithm for Determining the Endpoints of Isolated Utterances". It is
    no VAD; it only says early that the VAD is likely to stop soon.
    """

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._rest = np.zeros(0, dtype=np.int16)
        self._blocks = 0
        self._floor = 0.0
        self._peak = _SILENCE_DB
        self._loud_block = 0

    def hear(self, samples: NDArray[np.int16]) -> None:
        """Take in the next samples."""
        audio = np.concatenate((self._rest, samples))
        whole = len(audio) // _BLOCK
        self._rest = audio[whole * _BLOCK :]
        for block in audio[: whole * _BLOCK].reshape(whole, _BLOCK).astype(np.float32):
            power = float(block @ block) / _BLOCK / 32768.0**2
            level = max(_SILENCE_DB, 10 * math.log10(power + 1e-12))
            self._floor = min(self._floor, level)
            self._peak = max(self._peak, level)
            self._blocks += 1
            threshold = max(self._peak - _SPEECH_RANGE_DB, self._floor + _ABOVE_FLOOR_DB)
            if level >= threshold or self._peak - self._floor < _CLEAR_DB:
                self._loud_block = self._blocks

    @property
    def loud_until(self) -> int:
        """Samples up to the end of the last loud block; all of them if noise drowns the voice."""
        return self._loud_block * _BLOCK


@dataclass(frozen=True)
class Decode:
    """A stretch of a segment that is to be recognised."""

    start: int
    """In samples of the segment."""
    end: int
    commits: bool = False
    """Its text is settled, and what follows is recognised on its own."""


class Segment:
    """One segment: speech from shortly before a VAD start to the VAD's stop.

    The caller feeds it audio (`hear`), recognises what it `wants`, one stretch at a time, and
    hands back what was `understood`, until it is `final`. Each decode covers all of the
    segment, up to `window_secs`; beyond that the beginning is cut off in a pause and settled,
    so that a decode's cost stays bounded.
    """

    def __init__(
        self,
        pre_roll: NDArray[np.int16],
        *,
        chunk_ms: int = 250,
        quiet_ms: int = 80,
        window_secs: float = 20.0,
    ) -> None:
        """Begin a segment.

        Args:
            pre_roll: Audio before the VAD's start.
            chunk_ms: New audio that makes another decode worth while.
            quiet_ms: Quiet after the last loud sound at which the end of speech is expected:
                the last decode then starts before the VAD stops.
            window_secs: The most audio in a decode while the segment goes on.
        """
        self._chunk = chunk_ms * RATE // 1000
        self._quiet = quiet_ms * RATE // 1000
        self._window = int(window_secs * RATE)
        self._audio = np.zeros(self._window, dtype=np.int16)
        self._length = 0
        self._loudness = Loudness()
        self._settled: list[Hypothesis] = []
        self._settled_until = 0
        self._latest = Hypothesis()
        self._before_latest = Hypothesis()
        self._covered = 0
        self._tried = 0
        self._speech_end: int | None = None
        self._given_up = False
        self.hear(pre_roll)
        self._tried = self._length

    def hear(self, samples: NDArray[np.int16]) -> None:
        """Take in the next samples."""
        end = self._length + len(samples)
        if end > len(self._audio):
            grown = np.zeros(max(end, 2 * len(self._audio)), dtype=np.int16)
            grown[: self._length] = self._audio[: self._length]
            self._audio = grown
        self._audio[self._length : end] = samples
        self._length = end
        self._loudness.hear(samples)

    def close(self, stop_secs: float) -> None:
        """The VAD has stopped, after `stop_secs` of silence. No more audio belongs here."""
        self._speech_end = max(0, self._length - int(stop_secs * RATE))

    def wants(self) -> Decode | None:
        """What should be recognised now, or None if that would teach nothing new."""
        if self.final() is not None:
            return None
        if self._length - self._settled_until > self._window:
            if self._closed or self._length - self._tried >= self._chunk:
                return Decode(self._settled_until, self._pause(), commits=True)
            return None
        decode = Decode(self._settled_until, self._length)
        if self._closed:
            return decode
        if max(self._covered, self._tried) >= self._needed:
            return None
        seems_over = self._length >= self._loudness.loud_until + self._quiet
        return decode if seems_over or self._length - self._tried >= self._chunk else None

    def audio(self, decode: Decode) -> NDArray[np.int16]:
        """The audio of a stretch."""
        return self._audio[decode.start : decode.end]

    def understood(self, decode: Decode, hypothesis: Hypothesis) -> None:
        """Take in what was recognised in a stretch."""
        if decode.commits:
            self._settled.append(hypothesis)
            self._settled_until = decode.end
            self._covered = decode.end
            self._latest = self._before_latest = Hypothesis()
        else:
            self._before_latest, self._latest = self._latest, hypothesis
            self._covered = self._tried = decode.end

    def failed(self, decode: Decode) -> None:
        """The recogniser could not recognise a stretch. A closed segment ends as it stands."""
        self._tried = self._length
        self._given_up = self._closed

    def final(self) -> Hypothesis | None:
        """What was said, once the segment is closed and all of its speech is recognised."""
        if self._closed and (self._given_up or self._covered >= self._needed):
            return self.hypothesis
        return None

    @property
    def hypothesis(self) -> Hypothesis:
        """What is believed so far."""
        return joined([*self._settled, self._latest])

    @property
    def stable_text(self) -> str:
        """The leading words on which the last two hypotheses agree, as the last writes them.

        LocalAgreement-2 of Machacek, Dabre and Bojar 2023, "Turning Whisper into Real-Time
        Transcription System".
        """
        settled = [part.text for part in self._settled if part.text]
        agreed = agreement(self._before_latest.words, self._latest.words)
        return " ".join([*settled, *(word.text for word in agreed)])

    @property
    def covered_secs(self) -> float:
        """Length of the audio that the hypothesis covers, in seconds."""
        return self._covered / RATE

    @property
    def heard_secs(self) -> float:
        """Length of the audio heard, in seconds."""
        return self._length / RATE

    @property
    def _closed(self) -> bool:
        return self._speech_end is not None

    @property
    def _needed(self) -> int:
        """Samples that a decode must cover so that no later one is needed."""
        needed = self._loudness.loud_until + _TAIL
        return needed if self._speech_end is None else min(needed, self._speech_end)

    def _pause(self) -> int:
        """The quietest place in the third quarter of the window."""
        start = self._settled_until + self._window // 2
        blocks = self._audio[start : start + self._window // 4]
        blocks = blocks[: len(blocks) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
        power = (blocks.astype(np.float32) ** 2).mean(axis=1)
        smooth = np.convolve(power, np.ones(5), mode="same")
        return start + int(np.argmin(smooth)) * _BLOCK + _BLOCK // 2


def agreement(before: Sequence[Word], after: Sequence[Word]) -> Sequence[Word]:
    """The leading words of `after` that `before` has too, whatever their case and punctuation."""
    agreed = 0
    for old, new in zip(before, after, strict=False):
        if _plain(old.text) != _plain(new.text):
            break
        agreed += 1
    return after[:agreed]


def _plain(word: str) -> str:
    return word.casefold().strip(string.punctuation)
