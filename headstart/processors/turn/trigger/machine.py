"""When to begin an answer before the turn has ended, and when to throw it away.

A pure, synchronous state machine: no I/O and no clock; time comes from the audio. The turn
stage (`processors/turn.py`) turns frames into calls and decisions into frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from headstart.processors.settings import StageSettings
from headstart.processors.turn.trigger.budget import Breaker, SpendingLimit
from headstart.processors.turn.trigger.match import Change, Tier, TieredMatch, primary_subtag
from headstart.processors.turn.trigger.policies import POLICY, Evidence, Policy, Reason, load_policy

_SENTENCE_ENDS = (".", "?", "!", "。", "？", "！", "؟", "۔", "।", "։")
_TRAILS_OFF = ("...", "…")


class TriggerSettings(StageSettings):
    """Settings of `trigger.early`."""

    enabled: bool = True
    """Off: the pipeline behaves as if the stage were not there."""
    policy: Annotated[str | Mapping[str, Any], POLICY] = "confident"
    """When words are trusted: `confident` (sure, complete, and the voice has fallen silent),
    `eager` (sure and stable while the voice goes on), `final` (the recogniser has finished with
    them), or a class of your own: `package.module:Class`, `./file.py:Class`, or
    `{class: ./file.py:Class}` with its settings beside `class`."""
    threshold: float = Field(default=0.8, ge=0, le=1)
    """Least confidence (0..1) of the recogniser in its words."""
    stable_updates: int = Field(default=2, ge=1)
    """How many updates in a row must bring the same words: where the recogniser gives no
    confidence, and always for `eager`."""
    tail_ms: int = Field(default=200, ge=0)
    """Voice, in ms, that the words need not cover at the end: less than another word takes."""
    min_words: int = Field(default=2, ge=1)
    """Fewer words than this are never answered early."""
    require_complete: bool = True
    """Whether the words must look finished: closed by punctuation, or by Smart Turn."""
    completeness: float = Field(default=0.5, ge=0, le=1)
    """Least score (0..1) of Smart Turn that counts as finished."""
    min_silence_secs: float = Field(default=0.8, ge=0)
    """Silence, in seconds, before which no early answer is let out, so that it does not cut in
    when the user only takes a breath. A turn without one ends when it ends, unless the
    `turn` stage has a `min_silence_secs`, too."""
    keep_extended: bool = True
    """Whether fillers and closers ("um", "please") that come later leave the answer valid. Which
    words these are is known for German, English, Spanish, French, Italian, Dutch and
    Portuguese, if the recogniser says which language it heard."""
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
    reason: str
    """A `Reason`, or what a policy of somebody else's says."""
    attempt: Attempt | None = None


@dataclass
class _Turn:
    """What is known of the turn being spoken."""

    attempts: int = 0
    pending: Attempt | None = None
    given_up: str = ""
    """The words of the attempt that was cancelled last."""
    finals: str = ""
    """The words of its finished segments."""
    heard: str = ""
    """All its words so far, the unfinished segment's included."""
    is_final: bool = False
    confidence: float | None = None
    repeats: int = 0
    """How many updates in a row brought `heard`."""
    covered_secs: float = 0.0
    """Where the audio ends that `heard` covers."""
    quiet_since_secs: float | None = None
    """None while a voice is heard."""
    ends_turn: bool | None = None
    """Whether the recogniser itself takes the turn for over; None if it does not say."""
    score: float | None = None
    """Smart Turn's, since the user last spoke; None where it has not been asked."""
    languages: frozenset[str | None] = frozenset()
    """Of its words; None stands for one that the recogniser did not name."""


class TriggerPolicy:
    """Decides for one conversation. At most one attempt is pending at any time."""

    def __init__(
        self,
        settings: TriggerSettings,
        policy: Policy | None = None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin with nothing heard.

        Args:
            settings: When an answer may begin early, and what that may cost.
            policy: Says which words are trusted; by default the one that the settings name.
            is_busy: Whether the models work for somebody who waits.

        Raises:
            UsageError: The settings name no policy that there is.
        """
        self._settings = settings
        self._policy = policy or load_policy(settings.policy)
        self._is_busy = is_busy
        self._match = TieredMatch(keep_extended=settings.keep_extended)
        self._limit = SpendingLimit(settings.tokens_per_minute)
        self._breaker = Breaker(settings.max_discard_rate)
        self._turn = _Turn()
        self._begun = 0
        self._interrupting = False
        self._was_busy = False
        self._is_over = False
        self._ended_in: frozenset[str | None] = frozenset()
        """The languages of the last turn that had words."""

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
        self._match.language = None

    def turn_reopened(self, text: str) -> None:
        """The turn that has just begun goes on with one that had ended on these words."""
        self._turn.finals = _join(text, self._turn.finals)
        self._add_languages(self._ended_in)

    def spoken_in(self, language: str | None) -> None:
        """The words that come next are in this language (BCP 47); None if nobody knows.

        Of a turn in several languages no word is taken for a filler.
        """
        self._add_languages(frozenset({primary_subtag(language)}))

    def partial(
        self,
        text: str,
        confidence: float | None,
        at_secs: float,
        *,
        behind_secs: float = 0.0,
        ends_turn: bool | None = None,
    ) -> Decision:
        """The recogniser's newest hypothesis for the segment being spoken.

        Args:
            text: Of this segment; earlier segments of the turn came by `final`.
            confidence: 0..1; None or 0.0 where the provider gives none.
            at_secs: On the audio's clock.
            behind_secs: Audio up to then that the text does not cover.
            ends_turn: Whether the recogniser takes the turn for over; None from one that does
                not predict that.
        """
        turn = self._turn
        resumed, turn.ends_turn = turn.ends_turn and ends_turn is False, ends_turn
        whole = _join(turn.finals, text)
        turn.repeats = turn.repeats + 1 if self._is_repeat(whole) else 1
        turn.heard, turn.covered_secs, turn.is_final = whole, at_secs - behind_secs, False
        turn.confidence = confidence or None
        if resumed and turn.pending is not None:
            return self._abort(Reason.RESUMED)
        return self._abort_if_changed() or self._consider(at_secs)

    def completeness(self, score: float, at_secs: float) -> Decision:
        """Smart Turn's score (0..1) for the audio up to now."""
        self._turn.score = score
        return self._consider(at_secs)

    def voice_ended(self, at_secs: float) -> Decision:
        """The user has fallen silent, perhaps only for a moment."""
        if self._turn.quiet_since_secs is None:
            self._turn.quiet_since_secs = at_secs
        return self._consider(at_secs)

    def voice_began(self) -> None:
        """The user speaks (again): what looked finished no longer does."""
        self._turn.quiet_since_secs = None
        self._turn.score = None

    def interrupted(self) -> None:
        """An answer is cut off; until `settled`, the context lacks what was heard of it."""
        self._interrupting = True

    def settled(self, at_secs: float) -> Decision:
        """The context says what was heard of the answer that was cut off."""
        self._interrupting = False
        return self._consider(at_secs)

    def time_passed(self, at_secs: float) -> Decision:
        """Look again, if nothing but busy models was in the way."""
        if self._was_busy:
            return self._consider(at_secs)
        return Decision(Action.WAIT, Reason.NOTHING_PENDING)

    def final(self, text: str, at_secs: float) -> Decision:
        """A segment's final words. More segments may follow within the turn."""
        turn = self._turn
        turn.finals = turn.heard = _join(turn.finals, text)
        turn.covered_secs, turn.is_final, turn.ends_turn = at_secs, True, None
        turn.confidence = None
        return self._abort_if_changed() or self._consider(at_secs)

    def keeps(self, text: str) -> bool:
        """Whether the pending attempt answers these words."""
        pending = self._turn.pending
        return pending is not None and self._match.matches(pending.text, text)

    def turn_ended(self, text: str) -> Decision:
        """The turn is over with these words: what is pending is committed or aborted."""
        attempt = self._turn.pending
        if attempt is None:
            decision = Decision(Action.WAIT, Reason.NOTHING_PENDING)
        elif self.keeps(text):
            tier = self._match.compare(attempt.text, text).tier
            reason = Reason.SAME_WORDS if tier is Tier.SAME else Reason.ONLY_FILLERS
            self._breaker.note(discarded=False)
            decision = Decision(Action.COMMIT, reason, attempt)
        else:
            decision = self._abort(_CHANGED[self._match.compare(attempt.text, text).change])
        self._forget_turn()
        return decision

    def cancel(self) -> Decision:
        """Something outside voids what is pending; the turn goes on."""
        if self._turn.pending is None:
            return Decision(Action.WAIT, Reason.NOTHING_PENDING)
        self._turn.given_up = self._turn.pending.text
        return self._abort(Reason.CANCELLED)

    def session_ended(self) -> Decision:
        """The conversation is over: what is pending is aborted, and nothing begins any more."""
        self._is_over = True
        decision = Decision(Action.WAIT, Reason.NOTHING_PENDING)
        if self._turn.pending is not None:
            decision = self._abort(Reason.SESSION_ENDED)
        self._turn = _Turn()
        return decision

    def turn_dropped(self) -> Decision:
        """The turn is over, perhaps without `turn_ended`: nothing that was heard of it counts."""
        decision = self.cancel()
        self._forget_turn()
        return decision

    def spent(self, tokens: int, at_secs: float) -> None:
        """A speculation has cost this many tokens, input and output."""
        self._limit.spend(tokens, at_secs)

    def _forget_turn(self) -> None:
        self._ended_in = self._turn.languages or self._ended_in
        self._turn = _Turn()

    def _add_languages(self, languages: frozenset[str | None]) -> None:
        known = self._turn.languages = self._turn.languages | languages
        self._match.language = next(iter(known)) if len(known) == 1 else None

    def _is_repeat(self, whole: str) -> bool:
        return (
            bool(self._turn.heard)
            and self._match.compare(self._turn.heard, whole).tier is Tier.SAME
        )

    def _abort_if_changed(self) -> Decision | None:
        pending = self._turn.pending
        if pending is None or self.keeps(self._turn.heard):
            return None
        return self._abort(_CHANGED[self._match.compare(pending.text, self._turn.heard).change])

    def _abort(self, reason: Reason) -> Decision:
        attempt, self._turn.pending = self._turn.pending, None
        self._breaker.note(discarded=True)
        return Decision(Action.ABORT, reason, attempt)

    def _consider(self, at_secs: float) -> Decision:
        turn = self._turn
        reason = self._obstacle(at_secs)
        self._was_busy = reason is Reason.BUSY
        if reason is not None:
            return Decision(Action.WAIT, reason)
        turn.attempts += 1
        self._begun += 1
        turn.pending = Attempt(self._begun, turn.heard, turn.confidence, at_secs)
        if turn.is_final:
            why = Reason.FINAL
        else:
            why = Reason.STABLE if turn.confidence is None else Reason.CONFIDENT
        return Decision(Action.FIRE, why, turn.pending)

    def _obstacle(self, at_secs: float) -> str | None:
        settings, turn = self._settings, self._turn
        if not settings.enabled:
            return Reason.OFF
        if self._is_over:
            return Reason.SESSION_ENDED
        if turn.pending is not None:
            return Reason.ALREADY_FIRED
        if len(turn.heard.split()) < settings.min_words:
            return Reason.TOO_FEW_WORDS
        if turn.given_up and self._match.matches(turn.given_up, turn.heard):
            return Reason.GIVEN_UP
        if (untrusted := self._policy.obstacle(self._evidence())) is not None:
            return untrusted
        if turn.attempts >= settings.max_per_turn:
            return Reason.NO_ATTEMPTS_LEFT
        if not self._limit.allows(at_secs):
            return Reason.OVER_BUDGET
        if self._interrupting:
            return Reason.INTERRUPTING
        return Reason.BUSY if self._is_busy() else None

    def _evidence(self) -> Evidence:
        settings, turn = self._settings, self._turn
        quiet_since, tail_secs = turn.quiet_since_secs, settings.tail_ms / 1000
        return Evidence(
            text=turn.heard,
            is_final=turn.is_final,
            confidence=turn.confidence,
            threshold=self._breaker.threshold(settings.threshold),
            repeats=settings.stable_updates if turn.ends_turn else turn.repeats,
            stable_updates=settings.stable_updates,
            is_quiet=bool(turn.ends_turn)
            or (quiet_since is not None and quiet_since <= turn.covered_secs + tail_secs),
            looks_complete=not settings.require_complete or self._looks_complete(),
        )

    def _looks_complete(self) -> bool:
        if self._turn.ends_turn is not None:
            return self._turn.ends_turn
        if self._turn.score is not None:
            return self._turn.score >= self._settings.completeness
        heard = self._turn.heard
        return heard.endswith(_SENTENCE_ENDS) and not heard.endswith(_TRAILS_OFF)


def _join(before: str, text: str) -> str:
    return f"{before} {text}".strip()
