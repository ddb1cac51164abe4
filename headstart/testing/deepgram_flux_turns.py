"""When a Flux turn begins and ends: decided by the audio and its words, so every run is alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

_FRAME_SECS = 0.02
_LOUD = 10 ** (-45 / 20)
"""Root mean square above which a frame counts as sound."""
_UPDATE_SECS = 0.25
_PAUSE_SECS = 0.2
"""Quiet after which the words so far are looked at as those of a whole turn."""
_BEFORE_SOUND_SECS = 0.5
"""Quiet that is kept for when a sound begins."""
_SURE_SECS = 0.6
"""Quiet after which a sentence that is whole is surely over."""
_MOST_UNSURE = 0.45
"""Confidence, at most, that one that is not whole is over."""


@dataclass(frozen=True)
class Thresholds:
    """What ends a turn, as the client has set it."""

    eot: float = 0.7
    eager: float | None = None
    timeout_ms: int = 5000


class Step(StrEnum):
    """What is due; those that are events of the protocol go by their names there."""

    UPDATE = "Update"
    RECOGNISE = "recognise"
    """The user pauses: what the turn says up to here decides what follows (`understood`)."""
    EAGER_END = "EagerEndOfTurn"
    RESUMED = "TurnResumed"
    END = "EndOfTurn"


class Turns:
    """The audio of the turn that goes on, and what is due for it."""

    def __init__(self, sample_rate: int, thresholds: Thresholds) -> None:
        """Begin at time 0.

        Args:
            sample_rate: Of the audio, in Hz.
            thresholds: What ends a turn; may be replaced at any time.
        """
        self.thresholds = thresholds
        self.index = 0
        """Of the turn, from 0."""
        self._rate = sample_rate
        self._frame = int(_FRAME_SECS * sample_rate)
        self._samples = np.zeros(0, dtype=np.float32)
        self._start = 0
        self._heard = 0  # of the samples held
        self._update_at = 0.0
        self._first_sound: float | None = None
        self._last_sound = 0.0
        self._pausing = False
        self._text = ""
        self._eager = False

    @property
    def start_secs(self) -> float:
        """Where the turn's audio begins."""
        return self._start / self._rate

    @property
    def now_secs(self) -> float:
        """Up to where the audio has been looked at."""
        return (self._start + self._heard) / self._rate

    @property
    def audio(self) -> NDArray[np.float32]:
        """The turn's audio so far."""
        return self._samples[: self._heard]

    @property
    def sounds(self) -> bool:
        """Whether the turn's words may have grown since they were looked at."""
        return self._first_sound is not None and not self._pausing

    @property
    def sound(self) -> tuple[float, float]:
        """Where the sound in it begins and ends, in seconds."""
        first = self.start_secs if self._first_sound is None else self._first_sound
        return first, max(first, self._last_sound)

    @property
    def confidence(self) -> float:
        """How likely it is, 0..1, that the turn is over."""
        if not self._pausing or not self._text:
            return 0.0
        sure = (self.now_secs - self._last_sound) / _SURE_SECS
        return min(sure, 0.99 if self._text.endswith((".", "?", "!")) else _MOST_UNSURE)

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Take in audio in -1..1."""
        self._samples = np.concatenate((self._samples, samples))

    def step(self) -> Step | None:
        """Go on to what is due next; None when there is no more audio."""
        while self._heard + self._frame <= len(self._samples):
            frame = self._samples[self._heard : self._heard + self._frame]
            self._heard += self._frame
            loud = float(np.sqrt(np.mean(frame * frame))) > _LOUD
            if (due := self._look(loud)) is not None:
                return due
            if self.now_secs - self._update_at >= _UPDATE_SECS:
                self._update_at = self.now_secs
                return Step.UPDATE
        return None

    def understood(self, text: str) -> None:
        """What the turn says up to the pause; without words, it has not begun."""
        self._pausing, self._text = True, text
        if not text:
            self._forget()

    def end(self) -> None:
        """The turn has ended; the next one's audio begins here."""
        self.index += 1
        self._forget()

    def _look(self, loud: bool) -> Step | None:
        now = self.now_secs
        if loud:
            self._first_sound = now if self._first_sound is None else self._first_sound
            self._last_sound = now
            self._pausing = False
            resumed, self._eager = self._eager, False
            return Step.RESUMED if resumed else None
        if self._first_sound is None:
            self._drop(self._heard - int(_BEFORE_SOUND_SECS * self._rate))
            return None
        quiet = now - self._last_sound
        if not self._pausing:
            return Step.RECOGNISE if quiet >= _PAUSE_SECS else None
        if self.confidence >= self.thresholds.eot or 1000 * quiet >= self.thresholds.timeout_ms:
            return Step.END
        eager = self.thresholds.eager
        if eager is not None and not self._eager and self.confidence >= eager:
            self._eager = True
            return Step.EAGER_END
        return None

    def _forget(self) -> None:
        self._drop(self._heard)
        self._first_sound = None
        self._pausing = self._eager = False
        self._text = ""

    def _drop(self, samples: int) -> None:
        if samples > 0:
            self._samples = self._samples[samples:]
            self._start += samples
            self._heard -= samples
