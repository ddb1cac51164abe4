"""Which of Deepgram's words belong to which segment, and when a segment has all of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from headstart.engines.hypothesis import Hypothesis, Word, joined
from headstart.processors.stt.recognised import Path
from headstart.processors.stt.segment import agreement

_REACHED_SECS = 0.05
"""A result that ends this close to a segment's end covers it: providers round."""

_TAIL_SECS = 0.3
"""Deepgram need not answer `Finalize` if next to nothing is left; a VAD's stop delay is not."""

_MOST_FRUITLESS = 5
"""On so many connections in a row a segment's audio is sent without any final result; then it is
not sent again. What is sent is billed."""

_LEAD_IN_SECS = 0.2
"""Audio before the end of a final result that is sent again after a drop (never past its last
word), so that a recogniser which starts there hears the next word's onset whole."""


@dataclass(frozen=True)
class TimedWord(Word):
    """A word and where it is, on the stream's clock."""

    start_secs: float
    end_secs: float


@dataclass(frozen=True)
class Heard:
    """One `Results` message, on the stream's clock."""

    text: str
    words: tuple[TimedWord, ...]
    confidence: float
    """0..1, or 0.0 where the provider gives none."""
    start_secs: float
    end_secs: float
    is_final: bool
    from_finalize: bool
    """It answers `Finalize`: nothing sent before that is left."""

    @property
    def settled_secs(self) -> float:
        """Time before which no audio is needed again, if it is final."""
        last_word = max((word.end_secs for word in self.words), default=0.0)
        return min(max(last_word, self.end_secs - _LEAD_IN_SECS), self.end_secs)


@dataclass(eq=False)
class Segment:
    """What the user said between a VAD start and the VAD stop, as far as it is understood."""

    start_secs: float
    """Stream time of its first sample, the pre-roll included."""
    end_secs: float | None = None
    """Stream time of its end; None while the user speaks."""
    path: Path = "none"
    closed: bool = False
    """Its text is final; nothing that comes later changes it."""
    connections: int = 0
    """How many connections its audio was sent on."""
    fruitless: int = 0
    """How many of them in a row, up to now, have brought no final result."""
    lag_secs: float = 0.0
    """Audio before it that was not sent: the session's clock is so far ahead of the stream's."""
    heard_secs: float = 0.0
    """Stream time up to which results have come."""
    covered_secs: float = 0.0
    """Stream time up to which final results have come."""
    final: list[Hypothesis] = field(default_factory=list)
    interim: Hypothesis = field(default_factory=Hypothesis)
    """What is believed of the rest."""
    before: Hypothesis = field(default_factory=Hypothesis)
    """What was believed of it one result earlier."""

    @property
    def hypothesis(self) -> Hypothesis:
        """What is believed of all of it."""
        return joined([*self.final, self.interim])

    @property
    def given_up(self) -> bool:
        """Whether the stream has had chances enough."""
        return self.fruitless >= _MOST_FRUITLESS and not self.closed

    @property
    def stable_text(self) -> str:
        """The final words, and those of the rest on which the last two results agree."""
        agreed = agreement(self.before.words, self.interim.words)
        return " ".join([*(part.text for part in self.final), *(word.text for word in agreed)])

    def hear(self, heard: Heard) -> None:
        """Take in a result about this segment."""
        hypothesis = _part(heard, self)
        self.heard_secs = max(self.heard_secs, heard.end_secs)
        if not heard.is_final:
            self.before, self.interim = self.interim, hypothesis
            return
        self.before = self.interim = Hypothesis()
        if heard.end_secs > self.covered_secs:
            self.fruitless = 0
        self.covered_secs = heard.end_secs
        if hypothesis.text:
            self.final.append(hypothesis)

    def close(self, path: Path, rest: Hypothesis | None = None) -> None:
        """The text is final: the final words, and `rest` for what they do not cover."""
        if self.closed:
            return
        self.before = self.interim = Hypothesis()
        if rest is not None and rest.text:
            self.final.append(rest)
        self.path = path
        self.closed = True


class Segments:
    """The segments of a session that are not closed yet, oldest first.

    Results are told apart by time. A connection's results do not overlap, and a new one is sent
    only what is not final yet, so no word can come twice.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._open: list[Segment] = []
        self._final_until = 0.0

    @property
    def open(self) -> Sequence[Segment]:
        """Those not closed yet; only the last one may still be growing."""
        return tuple(self._open)

    @property
    def speaking(self) -> Segment | None:
        """The one that is growing."""
        return self._open[-1] if self._open and self._open[-1].end_secs is None else None

    @property
    def final_until_secs(self) -> float:
        """Stream time before which no audio is needed any more."""
        return self._final_until

    def begin(self, start_secs: float) -> Segment:
        """The user has begun to speak."""
        segment = Segment(start_secs)
        self._open.append(segment)
        return segment

    def hear(self, heard: Heard) -> list[Segment]:
        """Take in a result.

        Returns:
            The segments that it changed or closed, oldest first.
        """
        passed = [
            segment
            for segment in self._open
            if segment.end_secs is not None and heard.start_secs >= segment.end_secs
        ]
        for segment in passed:  # the provider has gone on: nothing more will come for it
            self._close(segment)
        if not self._open:
            return passed
        segment = self._open[0]
        if heard.end_secs <= segment.start_secs + _REACHED_SECS:
            return passed  # a late answer for a segment that was closed without it
        segment.hear(heard)
        if heard.is_final:
            self._final_until = max(self._final_until, heard.settled_secs)
            if segment.end_secs is not None and (
                heard.from_finalize or heard.end_secs >= segment.end_secs - _REACHED_SECS
            ):
                self._close(segment)
        return [*passed, segment]

    def close_covered(self, segment: Segment) -> bool:
        """Close a segment of which no more than silence can be missing; False if more is."""
        assert segment.end_secs is not None
        if segment.end_secs - segment.covered_secs <= _TAIL_SECS and not segment.interim.text:
            self._close(segment)
        return segment.closed

    def settle(self, segment: Segment) -> None:
        """A segment was closed: forget it, and whatever may still come for it."""
        if segment in self._open:
            self._open.remove(segment)
        self._final_until = max(self._final_until, segment.end_secs or 0.0)

    def _close(self, segment: Segment) -> None:
        segment.close("replayed" if segment.connections > 1 else "stream")
        self.settle(segment)


def understood(text: str, confidence: float, words: tuple[Word, ...]) -> Hypothesis:
    """A hypothesis as Deepgram words it; a confidence of 0.0 stands for none."""
    if not text.strip():
        return Hypothesis()
    avg_logprob = math.log(confidence) if confidence else 0.0
    return Hypothesis(text.strip(), confidence or None, words, avg_logprob)


def _part(heard: Heard, segment: Segment) -> Hypothesis:
    """What a result says about a segment: all of it, but for a result that spans two."""
    end_secs = math.inf if segment.end_secs is None else segment.end_secs
    if (
        heard.start_secs >= segment.start_secs - _REACHED_SECS
        and heard.end_secs <= end_secs + _REACHED_SECS
    ):
        return understood(heard.text, heard.confidence, heard.words)
    words = tuple(
        word
        for word in heard.words
        if segment.start_secs <= (word.start_secs + word.end_secs) / 2 <= end_secs
    )
    return understood(" ".join(word.text for word in words), heard.confidence, words)
