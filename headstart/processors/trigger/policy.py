"""When to begin an answer before the turn has ended, and when to throw it away.

A pure, synchronous state machine: no I/O and no clock; time comes from the audio. The turn
stage (`processors/turn.py`) turns frames into calls and decisions into frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from headstart.processors.settings import StageSettings
from headstart.processors.trigger.budget import Breaker, SpendingLimit
from headstart.processors.trigger.match import Change, Tier, TieredMatch

_SENTENCE_ENDS = (".", "?", "!", "…")


class TriggerSettings(StageSettings):
    """Settings of `trigger.early`."""

    enabled: bool = True
    """Off: the pipeline behaves as if the stage were not there."""
    threshold: float = Field(default=0.8, ge=0, le=1)
    """Least confidence (0..1) of the recogniser in its words."""
    stable_updates: int = Field(default=2, ge=1)
    """How many updates in a row must bring the same words."""
    min_words: int = Field(default=2, ge=1)
    """Fewer words than this are never answered early."""
    require_complete: bool = True
    """Whether the words must look finished: closed by punctuation, or by Smart Turn."""
    completeness: float = Field(default=0.5, ge=0, le=1)
    """Least score (0..1) of Smart Turn that counts as finished."""
    keep_extended: bool = True
    """Whether fillers and closers ("um", "please") that come later leave the answer valid."""
    max_per_turn: int = Field(default=3, ge=1)
    """Attempts within one turn."""
    tokens_per_minute: int = Field(default=6000, ge=0)
    """Speculative tokens, input and output, spent in a minute at most."""
    max_discard_rate: float = Field(default=0.5, ge=0, le=1)
    """Above this rate of discarded attempts (of the last 20), the threshold rises."""


class Action(StrEnum):
    """What to do now."""

    WAIT = "wait"
    FIRE = "fire"
    ABORT = "abort"
    COMMIT = "commit"


class Reason(StrEnum):
    """Why."""

    OFF = "off"
    NOTHING_PENDING = "nothing pending"
    ALREADY_FIRED = "already fired"
    TOO_FEW_WORDS = "too few words"
    LOW_CONFIDENCE = "low confidence"
    UNSTABLE = "unstable"
    INCOMPLETE = "incomplete"
    NO_ATTEMPTS_LEFT = "no attempts left"
    OVER_BUDGET = "over budget"
    CONFIDENT = "confident"
    STABLE = "stable"
    """No confidence is given; stability took its place."""
    WORDS_CHANGED = "words changed"
    NUMBER_CHANGED = "number changed"
    NEGATION_CHANGED = "negation changed"
    NAME_CHANGED = "name changed"
    CANCELLED = "cancelled"
    """From outside: a barge-in, a tool call, the end of the session."""
    SAME_WORDS = "same words"
    ONLY_FILLERS = "only fillers"


_CHANGED = {
    Change.NONE: Reason.WORDS_CHANGED,  # fillers only, where they are not to be overlooked
    Change.WORDS: Reason.WORDS_CHANGED,
    Change.NUMBER: Reason.NUMBER_CHANGED,
    Change.NEGATION: Reason.NEGATION_CHANGED,
    Change.NAME: Reason.NAME_CHANGED,
}


@dataclass(frozen=True)
class Attempt:
    """A speculative answer under way."""

    number: int
    """Counted over the conversation, from 1: it stands for this attempt and no other."""
    text: str
    """The words of the whole turn that it answers."""
    confidence: float | None
    fired_at_secs: float


@dataclass(frozen=True)
class Decision:
    """What to do, why, and with which attempt (none while waiting)."""

    action: Action
    reason: Reason
    attempt: Attempt | None = None


@dataclass
class _Turn:
    """What is known of the turn being spoken."""

    attempts: int = 0
    pending: Attempt | None = None
    finals: str = ""
    """The words of its finished segments."""
    heard: str = ""
    """All its words so far, the unfinished segment's included."""
    confidence: float | None = None
    repeats: int = 0
    """How many updates in a row brought `heard`."""
    score: float | None = None
    """Smart Turn's, since the user last spoke; None where it has not been asked."""


class TriggerPolicy:
    """Decides for one conversation. At most one attempt is pending at any time."""

    def __init__(self, settings: TriggerSettings) -> None:
        """Begin with nothing heard."""
        self._settings = settings
        self._match = TieredMatch(keep_extended=settings.keep_extended)
        self._limit = SpendingLimit(settings.tokens_per_minute)
        self._breaker = Breaker(settings.max_discard_rate)
        self._turn = _Turn()
        self._begun = 0

    @property
    def pending(self) -> Attempt | None:
        """The attempt that is neither committed nor aborted yet."""
        return self._turn.pending

    @property
    def latest(self) -> int:
        """The number of the attempt that was begun last; 0 before the first."""
        return self._begun

    def turn_started(self) -> None:
        """A turn begins: what is left of one that ended without `turn_ended` is forgotten."""
        self._turn = _Turn(pending=self._turn.pending)

    def turn_reopened(self, text: str) -> None:
        """The turn that has just begun goes on with one that had ended on these words."""
        self._turn.finals = _join(text, self._turn.finals)

    def partial(self, text: str, confidence: float | None, at_secs: float) -> Decision:
        """The recogniser's newest hypothesis for the segment being spoken.

        Args:
            text: Of this segment; earlier segments of the turn came by `final`.
            confidence: 0..1; None or 0.0 where the provider gives none.
            at_secs: On the audio's clock.
        """
        whole = _join(self._turn.finals, text)
        self._turn.confidence = confidence or None
        self._turn.repeats = self._turn.repeats + 1 if self._is_repeat(whole) else 1
        self._turn.heard = whole
        return self._abort_if_changed() or self._consider(at_secs)

    def completeness(self, score: float, at_secs: float) -> Decision:
        """Smart Turn's score (0..1) for the audio up to now."""
        self._turn.score = score
        return self._consider(at_secs)

    def speech_resumed(self) -> None:
        """The user speaks again: what looked finished no longer does."""
        self._turn.score = None

    def final(self, text: str, at_secs: float) -> Decision:
        """A segment's final words. More segments may follow within the turn.

        A final text needs no repetition to be believed.
        """
        whole = _join(self._turn.finals, text)
        self._turn.finals = whole
        self._turn.repeats = self._settings.stable_updates
        self._turn.confidence = None
        self._turn.heard = whole
        return self._abort_if_changed() or self._consider(at_secs)

    def turn_ended(self, text: str) -> Decision:
        """The turn is over with these words: what is pending is committed or aborted."""
        attempt = self._turn.pending
        if attempt is None:
            decision = Decision(Action.WAIT, Reason.NOTHING_PENDING)
        elif self._match.matches(attempt.text, text):
            tier = self._match.compare(attempt.text, text).tier
            reason = Reason.SAME_WORDS if tier is Tier.SAME else Reason.ONLY_FILLERS
            self._breaker.note(discarded=False)
            decision = Decision(Action.COMMIT, reason, attempt)
        else:
            decision = self._abort(_CHANGED[self._match.compare(attempt.text, text).change])
        self._turn = _Turn()
        return decision

    def cancel(self) -> Decision:
        """Something outside voids what is pending; the turn goes on."""
        if self._turn.pending is None:
            return Decision(Action.WAIT, Reason.NOTHING_PENDING)
        return self._abort(Reason.CANCELLED)

    def spent(self, tokens: int, at_secs: float) -> None:
        """A speculation has cost this many tokens, input and output."""
        self._limit.spend(tokens, at_secs)

    def _is_repeat(self, whole: str) -> bool:
        return (
            bool(self._turn.heard)
            and self._match.compare(self._turn.heard, whole).tier is Tier.SAME
        )

    def _abort_if_changed(self) -> Decision | None:
        if self._turn.pending is None or self._match.matches(
            self._turn.pending.text, self._turn.heard
        ):
            return None
        return self._abort(
            _CHANGED[self._match.compare(self._turn.pending.text, self._turn.heard).change]
        )

    def _abort(self, reason: Reason) -> Decision:
        attempt, self._turn.pending = self._turn.pending, None
        self._breaker.note(discarded=True)
        return Decision(Action.ABORT, reason, attempt)

    def _consider(self, at_secs: float) -> Decision:
        reason = self._obstacle(at_secs)
        if reason is not None:
            return Decision(Action.WAIT, reason)
        self._turn.attempts += 1
        self._begun += 1
        self._turn.pending = Attempt(self._begun, self._turn.heard, self._turn.confidence, at_secs)
        why = Reason.STABLE if self._turn.confidence is None else Reason.CONFIDENT
        return Decision(Action.FIRE, why, self._turn.pending)

    def _obstacle(self, at_secs: float) -> Reason | None:
        settings = self._settings
        if not settings.enabled:
            return Reason.OFF
        if self._turn.pending is not None:
            return Reason.ALREADY_FIRED
        if len(self._turn.heard.split()) < settings.min_words:
            return Reason.TOO_FEW_WORDS
        threshold = self._breaker.threshold(settings.threshold)
        if self._turn.confidence is not None and self._turn.confidence < threshold:
            return Reason.LOW_CONFIDENCE
        if self._turn.repeats < settings.stable_updates:
            return Reason.UNSTABLE
        if settings.require_complete and not self._looks_complete():
            return Reason.INCOMPLETE
        if self._turn.attempts >= settings.max_per_turn:
            return Reason.NO_ATTEMPTS_LEFT
        if not self._limit.allows(at_secs):
            return Reason.OVER_BUDGET
        return None

    def _looks_complete(self) -> bool:
        if self._turn.score is not None:
            return self._turn.score >= self._settings.completeness
        return self._turn.heard.endswith(_SENTENCE_ENDS)


def _join(before: str, text: str) -> str:
    return f"{before} {text}".strip()
