"""What makes the words heard so far trustworthy enough to be answered; policies by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from headstart.config import registry
from headstart.config.choice import Choice


class Reason(StrEnum):
    """Why an answer was begun, or not, or what has become of it."""

    OFF = "off"
    NOTHING_PENDING = "nothing pending"
    ALREADY_FIRED = "already fired"
    TOO_FEW_WORDS = "too few words"
    LOW_CONFIDENCE = "low confidence"
    UNSTABLE = "unstable"
    STILL_SPEAKING = "still speaking"
    """A voice is heard, or was after the words had been recognised."""
    NOT_FINAL = "not final"
    INCOMPLETE = "incomplete"
    INTERRUPTING = "interrupting"
    """What was heard of the answer that the user has cut off is not in the context yet."""
    GIVEN_UP = "given up"
    """An answer to these words has been cancelled already."""
    NO_ATTEMPTS_LEFT = "no attempts left"
    OVER_BUDGET = "over budget"
    BUSY = "busy"
    """The models work for somebody who waits."""
    CONFIDENT = "confident"
    STABLE = "stable"
    """No confidence is given; stability took its place."""
    FINAL = "final"
    WORDS_CHANGED = "words changed"
    NUMBER_CHANGED = "number changed"
    NEGATION_CHANGED = "negation changed"
    NAME_CHANGED = "name changed"
    RESUMED = "resumed"
    """The recogniser had taken the turn for over, and no longer does."""
    CANCELLED = "cancelled"
    """From outside: a barge-in, an empty or failed answer."""
    SESSION_ENDED = "session ended"
    SAME_WORDS = "same words"
    ONLY_FILLERS = "only fillers"


@dataclass(frozen=True)
class Evidence:
    """What is known of the words that might be answered now."""

    text: str
    """All words of the turn so far."""
    is_final: bool
    """The recogniser has finished with them."""
    confidence: float | None
    """0..1, the recogniser's; None where it gives none."""
    threshold: float
    """The confidence to ask for: the configured one, or more while too much is discarded."""
    repeats: int
    """How many updates in a row brought these words, this one included."""
    stable_updates: int
    """How many are asked for."""
    is_quiet: bool
    """The voice has fallen silent, and the words cover it, but for a rest shorter than a word;
    or the recogniser, if it is one that predicts the end of the turn, takes it for over."""
    looks_complete: bool
    """Such a recogniser says so, or Smart Turn of the audio, or else the punctuation; True if it
    is not to matter."""


@runtime_checkable
class Policy(Protocol):
    """Says whether words are to be answered before the turn has ended.

    Limits (attempts, tokens, least words, busy models) are not its business.
    """

    def obstacle(self, evidence: Evidence) -> str | None:
        """What is in the way, in a word or two; None if the answer may begin."""
        ...


class Confident:
    """The voice has fallen silent, and the recogniser is sure of words that look finished.

    While a voice is heard more words may come, however sure the recogniser is of those before.
    In the first silence after them, tens of milliseconds long, no more can: all of the audio
    has been recognised.
    """

    def obstacle(self, evidence: Evidence) -> str | None:
        """What is in the way."""
        if not evidence.is_final:
            if not evidence.is_quiet:
                return Reason.STILL_SPEAKING
            if evidence.confidence is None:
                if evidence.repeats < evidence.stable_updates:
                    return Reason.UNSTABLE
            elif evidence.confidence < evidence.threshold:
                return Reason.LOW_CONFIDENCE
        return None if evidence.looks_complete else Reason.INCOMPLETE


class Eager:
    """The recogniser has said the same, and surely, several times; the voice may go on."""

    def obstacle(self, evidence: Evidence) -> str | None:
        """What is in the way."""
        if not evidence.is_final:
            if evidence.confidence is not None and evidence.confidence < evidence.threshold:
                return Reason.LOW_CONFIDENCE
            if evidence.repeats < evidence.stable_updates:
                return Reason.UNSTABLE
        return None if evidence.looks_complete else Reason.INCOMPLETE


class Final:
    """The recogniser has finished with the words; only the end of the turn is in doubt."""

    def obstacle(self, evidence: Evidence) -> str | None:
        """What is in the way."""
        return None if evidence.is_final else Reason.NOT_FINAL


POLICIES: dict[str, type[Policy]] = {"confident": Confident, "eager": Eager, "final": Final}

POLICY = Choice(
    noun="policy",
    base=Policy,
    builtin={name: f"{__name__}:{cls.__name__}" for name, cls in POLICIES.items()},
    group="headstart.policies",
)
"""What the trigger's setting `policy` chooses from."""


def load_policy(chosen: str | Mapping[str, Any]) -> Policy:
    """A policy by its name, or by its class path.

    Args:
        chosen: `confident`, `eager`, `final`, the name of an installed one, or
            `package.module:Class`; or a mapping with that as `class`, and its settings.

    Raises:
        UsageError: There is no such policy, or it cannot be made.
    """
    policy: Policy = registry.make(POLICY, chosen)
    return policy
