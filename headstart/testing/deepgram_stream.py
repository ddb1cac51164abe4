"""When a stream is due an answer: decided by the audio alone, so that every run is alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

_FRAME_SECS = 0.02
_LOUD = 10 ** (-45 / 20)
"""Root mean square above which a frame counts as sound."""
FADE_SECS = 0.06
"""Silence after which all that is needed for the last word has probably been heard."""
_LEAST_ENDPOINTING_SECS = 0.2
"""A gate on loudness cannot tell a pause from a stop consonant faster than that; the real
service can, and takes 10 ms."""


class Kind(Enum):
    """What an answer is."""

    SPEECH_STARTED = "speech started"
    INTERIM = "interim"
    FINAL = "final"
    UTTERANCE_END = "utterance end"


@dataclass(frozen=True)
class Due:
    """An answer that is due, about the audio from the last final one to `until_secs`."""

    kind: Kind
    start_secs: float
    until_secs: float
    speech: bool
    """There was sound; without, there is nothing to decode."""
    last_sound_secs: float = 0.0
    speech_final: bool = False
    """Silence says that the phrase is over."""
    from_finalize: bool = False
    """The client asked."""


@dataclass(frozen=True)
class Pace:
    """How often a stream is answered, in seconds of audio."""

    interim_secs: float = 0.5
    endpointing_secs: float | None = 0.3
    """Silence that ends a phrase; None: only `Finalize` and length do."""
    utterance_end_secs: float | None = None
    """Silence after which `UtteranceEnd` is said."""
    longest_secs: float = 12.0
    """A phrase without a pause is cut about here, at its quietest moment of the last two
    seconds."""
    silence_secs: float = 4.0
    """Silence is declared final in pieces of this length."""


class Stream:
    """The audio of one connection that is not final yet, and what is due for it."""

    def __init__(self, sample_rate: int, pace: Pace) -> None:
        """Begin at time 0.

        Args:
            sample_rate: Of the audio, in Hz.
            pace: How often to answer.
        """
        self._rate = sample_rate
        self._pace = pace
        self._frame = int(_FRAME_SECS * sample_rate)
        self._samples = np.zeros(0, dtype=np.float32)
        self._levels: list[float] = []
        self._start = 0
        self._heard = 0
        self._first_sound: float | None = None
        self._last_sound: float | None = None
        self._interim_at = 0.0
        self._utterance_open = False

    @property
    def heard_secs(self) -> float:
        """How much audio has come."""
        return (self._start + len(self._samples)) / self._rate

    @property
    def start_secs(self) -> float:
        """Where what is not final begins."""
        return self._start / self._rate

    @property
    def fading(self) -> bool:
        """There was a voice, and it has just gone."""
        silent_since = self._last_sound or 0.0
        return self._first_sound is not None and self.heard_secs - silent_since >= FADE_SECS

    def audio(self, until_secs: float) -> NDArray[np.float32]:
        """What is not final, up to a time."""
        return self._samples[: round(until_secs * self._rate) - self._start]

    def sound(self) -> tuple[float, float]:
        """Where the sound in what is not final begins and ends, in seconds."""
        first = self.start_secs if self._first_sound is None else self._first_sound
        last = self.heard_secs if self._last_sound is None else self._last_sound
        return first, last

    def feed(self, samples: NDArray[np.float32]) -> list[Due]:
        """Take in audio in -1..1; returns what is due, in order.

        A final one is settled with `settle` before the next is looked at, so the list ends
        with it; call again with no audio for what is left.
        """
        self._samples = np.concatenate((self._samples, samples))
        due: list[Due] = []
        while (len(self._levels) + 1) * self._frame <= len(self._samples):
            at = len(self._levels) * self._frame
            frame = self._samples[at : at + self._frame]
            self._levels.append(float(np.sqrt(np.mean(frame * frame))))
            now = self.start_secs + len(self._levels) * _FRAME_SECS
            due += self._look(now)
            if due and due[-1].kind is Kind.FINAL:
                break
        return due

    def interim(self) -> Due:
        """What is believed of all that has come."""
        return self._due(Kind.INTERIM, self.heard_secs)

    def finalize(self) -> Due:
        """The client asks for whatever is left."""
        return self._due(Kind.FINAL, self.heard_secs, from_finalize=True)

    def settle(self, due: Due) -> None:
        """A final answer was given: what it is about is done with."""
        done = round(due.until_secs * self._rate) - self._start
        self._samples = self._samples[done:]
        self._levels = []
        self._start += done
        self._interim_at = self.start_secs
        self._first_sound = None
        if not self._utterance_open:
            self._last_sound = None

    def _look(self, now: float) -> list[Due]:
        pace, due = self._pace, []
        if self._levels[-1] > _LOUD:
            if self._first_sound is None:
                self._first_sound = now - _FRAME_SECS
                due.append(self._due(Kind.SPEECH_STARTED, now))
            self._last_sound = now
            self._utterance_open = True
        quiet = now - self._last_sound if self._last_sound is not None else None
        if (
            pace.utterance_end_secs is not None
            and self._utterance_open
            and quiet is not None
            and quiet >= pace.utterance_end_secs
        ):
            self._utterance_open = False
            due.append(self._due(Kind.UTTERANCE_END, now))
        if self._first_sound is None:
            if now - self.start_secs >= pace.silence_secs:
                due.append(self._due(Kind.FINAL, now))
        elif (
            pace.endpointing_secs is not None
            and quiet is not None
            and quiet >= max(pace.endpointing_secs, _LEAST_ENDPOINTING_SECS)
        ):
            due.append(self._due(Kind.FINAL, now, speech_final=True))
        elif now - self.start_secs >= pace.longest_secs:
            due.append(self._due(Kind.FINAL, self._quietest(now)))
        elif now - self._interim_at >= pace.interim_secs:
            # A decode of nothing but more silence would only hold up what comes next.
            if self._last_sound is not None and self._last_sound > self._interim_at:
                due.append(self._due(Kind.INTERIM, now))
            self._interim_at = now
        return due

    def _due(self, kind: Kind, until_secs: float, **more: bool) -> Due:
        return Due(
            kind,
            self.start_secs,
            until_secs,
            self._first_sound is not None,
            self._last_sound or 0.0,
            **more,
        )

    def _quietest(self, now: float) -> float:
        recent = self._levels[-int(2.0 / _FRAME_SECS) :]
        behind = len(recent) - int(np.argmin(recent))
        return now - behind * _FRAME_SECS
