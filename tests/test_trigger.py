"""When an answer begins early, when it is thrown away, and what that may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.errors import UsageError
from headstart.processors.turn.trigger.budget import Breaker, SpendingLimit
from headstart.processors.turn.trigger.machine import (
    Action,
    Attempt,
    Decision,
    TriggerPolicy,
    TriggerSettings,
)
from headstart.processors.turn.trigger.match import Change, Tier, TieredMatch
from headstart.processors.turn.trigger.policies import POLICIES, Evidence, Reason
from headstart.processors.turn.trigger.settings import EarlyTrigger


@pytest.mark.parametrize(
    ("eager", "final", "tier", "change"),
    [
        ("what time is it", "What time is it?", Tier.SAME, Change.NONE),
        ("It's late", "its late.", Tier.SAME, Change.NONE),
        ("What time is it?", "Um, what time is it, please?", Tier.EXTENDED, Change.NONE),
        ("Book a table.", "Book a table. Thank you.", Tier.EXTENDED, Change.NONE),
        ("Set it to ten", "Set it to twenty", Tier.CHANGED, Change.NUMBER),
        ("My number is 7429", "My number is 7428", Tier.CHANGED, Change.NUMBER),
        ("Dial seven four", "Dial seven oh four", Tier.CHANGED, Change.WORDS),
        ("I like it", "I don't like it", Tier.CHANGED, Change.NEGATION),
        ("Fly to Boston", "Fly to Chicago", Tier.CHANGED, Change.NAME),
        ("Tell me a joke", "Tell me a story", Tier.CHANGED, Change.WORDS),
        ("Please book it", "book it", Tier.CHANGED, Change.WORDS),
        ("Are you", "Are you okay?", Tier.CHANGED, Change.WORDS),
        ("", "please", Tier.CHANGED, Change.WORDS),
    ],
)
def test_texts_are_the_same_extended_or_changed(
    eager: str, final: str, tier: Tier, change: Change
) -> None:
    comparison = TieredMatch(language="en").compare(eager, final)
    assert (comparison.tier, comparison.change) == (tier, change)


def test_fillers_can_be_taken_seriously() -> None:
    texts = "what time is it", "um what time is it"
    assert TieredMatch(language="en").matches(*texts)
    assert not TieredMatch(keep_extended=False, language="en").matches(*texts)


@pytest.mark.parametrize(
    ("language", "eager", "final", "stands"),
    [
        ("de", "Wie alt ist", "Wie alt ist er?", False),
        ("pt", "Quero café", "Quero um café", False),
        ("fr", "Le chat er", "Le chat", False),
        (None, "What time is it?", "Um, what time is it?", False),
        ("tr", "Saat kaç?", "Um, saat kaç?", False),
        ("hi", "यह क्या है", "यह क्या हो", False),  # the words differ in a combining mark
        ("th", "ไปใกล", "ไปใกล้", False),
        ("en-GB", "What time is it?", "Er, what time is it, please?", True),
        ("de-CH", "Ein Kaffee.", "Ähm, ein Kaffee, bitte.", True),
        ("es", "Un café.", "Un café, por favor.", True),
        ("fr", "Un café.", "Euh, un café, s'il vous plaît.", True),
        ("it", "Un caffè.", "Ehm, un caffè, per favore.", True),
        ("nl", "Een koffie.", "Een koffie, alstublieft.", True),
        ("pt-BR", "Quero um café.", "Quero um café, por favor.", True),
        (None, "wie alt ist er", "Wie alt ist er?", True),
    ],
)
def test_a_filler_of_one_language_is_a_word_of_another(
    language: str | None, eager: str, final: str, stands: bool
) -> None:
    assert TieredMatch(language=language).matches(eager, final) is stands


@pytest.mark.parametrize(
    ("spoken_in", "stands"),
    [
        (["en", "en-US"], True),
        (["de", "de"], False),
        (["en", "de"], False),
        (["en", None], False),
        ([None], False),
    ],
)
def test_the_trigger_takes_for_fillers_what_is_one_in_the_language_of_the_turn(
    spoken_in: list[str | None], stands: bool
) -> None:
    policy = TriggerPolicy(TriggerSettings())
    for language in spoken_in:
        policy.spoken_in(language)
    assert heard(policy, "Wie alt ist Thomas?").action is Action.FIRE
    assert (policy.turn_ended("Er, wie alt ist Thomas?").action is Action.COMMIT) is stands
    policy.turn_started()
    policy.turn_reopened("Er, wie alt ist Thomas?")
    assert policy.final("Thomas.", 1.0).action is Action.FIRE
    assert policy.keeps("Wie alt ist Thomas? Thomas.") is stands, "and after a cut in between"


def heard(policy: TriggerPolicy, text: str, confidence: float | None = 0.95) -> Decision:
    policy.voice_ended(0.0)
    return policy.partial(text, confidence, 0.0)


def test_what_is_sure_and_complete_is_answered_once_when_the_voice_falls_silent() -> None:
    policy = TriggerPolicy(TriggerSettings())
    assert policy.partial("What time is it?", 0.95, 1.0).reason is Reason.STILL_SPEAKING
    fired = policy.voice_ended(1.05)
    assert fired.action is Action.FIRE
    assert fired.attempt == Attempt(1, "What time is it?", 0.95, 1.05)
    assert policy.partial("What time is it?", 0.95, 1.1).reason is Reason.ALREADY_FIRED


def test_words_after_which_the_voice_went_on_have_to_be_heard_to_the_end() -> None:
    policy = TriggerPolicy(TriggerSettings(tail_ms=200))
    policy.partial("What time is it?", 0.95, 1.1, behind_secs=0.3)
    assert policy.voice_ended(1.1).reason is Reason.STILL_SPEAKING
    assert policy.partial("What time is it now?", 0.95, 1.3).action is Action.FIRE


def test_a_voice_that_goes_on_makes_the_words_wait_again() -> None:
    policy = TriggerPolicy(TriggerSettings())
    policy.voice_ended(1.0)
    policy.voice_began()
    assert policy.partial("What time is it?", 0.95, 1.1).reason is Reason.STILL_SPEAKING


def test_words_that_trail_off_are_not_complete() -> None:
    assert heard(TriggerPolicy(TriggerSettings()), "Could you...").reason is Reason.INCOMPLETE


def test_the_eager_policy_waits_for_repetition_and_not_for_silence() -> None:
    policy = TriggerPolicy(TriggerSettings(policy="eager"))
    assert policy.partial("What time is it?", 0.95, 1.0).reason is Reason.UNSTABLE
    assert policy.partial("what time is it?", 0.95, 1.2).action is Action.FIRE


def test_the_final_policy_waits_for_final_words_alone() -> None:
    policy = TriggerPolicy(TriggerSettings(policy="final"))
    assert heard(policy, "What time is it?").reason is Reason.NOT_FINAL
    assert policy.final("I would like to book", 1.0).reason is Reason.FINAL


class Shouted:
    """A policy of somebody else's."""

    def obstacle(self, evidence: Evidence) -> str | None:
        """Only what is shouted is answered."""
        return None if evidence.text.isupper() else "not loud enough"


def test_a_policy_may_be_a_class_of_ones_own() -> None:
    policy = TriggerPolicy(TriggerSettings(policy=f"{__name__}:Shouted"))
    assert heard(policy, "What time is it?").reason == "not loud enough"
    assert heard(policy, "WHAT TIME IS IT").action is Action.FIRE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("confidant", "there is no policy 'confidant'; did you mean 'confident'?"),
        (
            "sure",
            "there is no policy 'sure': name confident, eager, final, or package.module:Class",
        ),
        ("nowhere:Policy", "there is no module 'nowhere'"),
        ("pathlib:Path", "pathlib:Path is no Policy"),
        ("pathlib:nothing", "pathlib has no class 'nothing'"),
    ],
)
def test_a_policy_that_is_none_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        EarlyTrigger(TriggerSettings(policy=name))


def test_nothing_begins_while_the_models_work_for_others_or_the_context_is_behind() -> None:
    busy = [True]
    policy = TriggerPolicy(TriggerSettings(), is_busy=lambda: busy[0])
    policy.interrupted()
    assert heard(policy, "What time is it?").reason is Reason.INTERRUPTING
    assert policy.settled(0.1).reason is Reason.BUSY
    assert policy.time_passed(0.2).reason is Reason.BUSY
    busy.clear()
    busy.append(False)
    assert policy.time_passed(0.3).action is Action.FIRE


def test_what_was_cancelled_is_not_tried_again_with_the_same_words() -> None:
    policy = TriggerPolicy(TriggerSettings())
    heard(policy, "What time is it?")
    policy.cancel()
    assert heard(policy, "What time is it?").reason is Reason.GIVEN_UP
    assert heard(policy, "What time is it in Rome?").action is Action.FIRE


@pytest.mark.parametrize(
    ("text", "confidence", "reason"),
    [
        ("Hello.", 0.99, Reason.TOO_FEW_WORDS),
        ("What time is it?", 0.5, Reason.LOW_CONFIDENCE),
        ("another big", 0.96, Reason.INCOMPLETE),
    ],
)
def test_what_is_not_trustworthy_does_not_fire(
    text: str, confidence: float, reason: Reason
) -> None:
    policy = TriggerPolicy(TriggerSettings())
    for _ in range(4):
        decision = heard(policy, text, confidence)
    assert decision == Decision(Action.WAIT, reason)


def test_smart_turn_overrules_punctuation_until_speech_resumes() -> None:
    policy = TriggerPolicy(TriggerSettings(stable_updates=1))
    policy.completeness(0.1, 0.0)
    assert heard(policy, "I would like to book a table.").reason is Reason.INCOMPLETE
    assert policy.completeness(0.9, 0.1).action is Action.FIRE

    policy = TriggerPolicy(TriggerSettings(stable_updates=1))
    policy.completeness(0.9, 0.0)
    policy.voice_began()
    assert heard(policy, "I would like to book").reason is Reason.INCOMPLETE


@pytest.mark.parametrize("absent", [None, 0.0])
def test_stability_takes_the_place_of_a_confidence_that_is_not_given(absent: float | None) -> None:
    policy = TriggerPolicy(TriggerSettings())
    heard(policy, "What time is it?", absent)
    assert heard(policy, "What time is it?", absent).reason is Reason.STABLE


def test_a_changed_mind_aborts_and_the_answer_is_to_the_final_words() -> None:
    policy = TriggerPolicy(TriggerSettings(stable_updates=1))
    heard(policy, "Set a timer for ten minutes.")
    policy.final("Set a timer for ten minutes.", 1.0)
    aborted = heard(policy, "Actually, make it twenty.")
    assert (aborted.action, aborted.reason) == (Action.ABORT, Reason.NUMBER_CHANGED)
    whole = "Set a timer for ten minutes. Actually, make it twenty."
    fired = policy.final("Actually, make it twenty.", 2.0)
    assert fired.attempt is not None
    assert fired.attempt.text == whole
    assert policy.turn_ended(whole).reason is Reason.SAME_WORDS


def test_attempts_within_a_turn_are_limited_and_come_back_with_the_next() -> None:
    policy = TriggerPolicy(TriggerSettings(stable_updates=1, max_per_turn=2))
    for text in ("One or two?", "Three or four?", "Five or six?"):
        policy.cancel()
        decision = heard(policy, text)
    assert decision.reason is Reason.NO_ATTEMPTS_LEFT
    policy.turn_ended("Five or six?")
    assert heard(policy, "Seven or eight?").action is Action.FIRE


def test_spending_is_limited_by_the_minute_of_audio() -> None:
    limit = SpendingLimit(100)
    limit.spend(100, 0.0)
    assert not limit.allows(59.9)
    assert limit.allows(60.0)


def test_the_threshold_rises_while_too_much_is_discarded() -> None:
    breaker = Breaker(0.5, window=6, least=3)
    for _ in range(3):
        breaker.note(discarded=True)
    assert breaker.threshold(0.8) == pytest.approx(0.9)
    for _ in range(3):
        breaker.note(discarded=False)
    assert breaker.threshold(0.8) == 0.8


@dataclass
class Ledger:
    """Every speculation ends exactly once, with a reason, within its turn."""

    open: Attempt | None = None
    fired: list[Attempt] = field(default_factory=list)
    turn_began_with: int = 0
    committed: list[Attempt] = field(default_factory=list)

    def note(self, decision: Decision) -> None:
        if decision.action is Action.FIRE:
            assert self.open is None
            assert decision.attempt is not None
            self.open = decision.attempt
            self.fired.append(self.open)
            assert self.open.number == len(self.fired)
        elif decision.action in (Action.ABORT, Action.COMMIT):
            assert decision.attempt == self.open
            if decision.action is Action.COMMIT:
                assert self.open is not None
                self.committed.append(self.open)
            self.open = None
        else:
            assert decision.attempt is None


TEXTS = st.sampled_from(
    ["", "Um.", "What time", "What time is it?", "what time is it", "What time is it? Thanks.",
     "Set it to ten.", "Set it to twenty.", "No wait.", "Fly to Boston."]
)  # fmt: skip
CALLS = st.one_of(
    st.tuples(st.just("partial"), TEXTS, st.sampled_from([None, 0.0, 0.5, 0.79, 0.8, 1.0])),
    st.tuples(st.just("final"), TEXTS),
    st.tuples(st.just("turn_ended"), TEXTS),
    st.tuples(st.just("completeness"), st.floats(0, 1)),
    st.tuples(st.just("voice_began")),
    st.tuples(st.just("voice_ended")),
    st.tuples(st.just("interrupted")),
    st.tuples(st.just("settled")),
    st.tuples(st.just("time_passed")),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("spent"), st.integers(0, 500)),
)


@settings(max_examples=examples(1000))
@given(
    st.lists(CALLS, max_size=40),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(["en", "de", None]),
)
def test_every_speculation_ends_once_and_is_committed_only_to_its_own_words(
    calls: list[tuple[object, ...]],
    enabled: bool,
    stable: int,
    most: int,
    keep: bool,
    name_of_policy: str,
    language: str | None,
) -> None:
    policy = TriggerPolicy(
        TriggerSettings(
            enabled=enabled,
            policy=name_of_policy,
            stable_updates=stable,
            max_per_turn=most,
            keep_extended=keep,
            tokens_per_minute=1000,
        )
    )
    ledger = Ledger()
    for at, (name, *arguments) in enumerate(calls):
        timed = name not in ("voice_began", "interrupted", "cancel", "turn_started", "turn_ended")
        before = len(ledger.committed)
        policy.spoken_in(language)
        result = getattr(policy, str(name))(*arguments, *([float(at)] if timed else []))
        if isinstance(result, Decision):
            ledger.note(result)
        assert policy.pending == ledger.open
        assert len(ledger.fired) - ledger.turn_began_with <= most
        if name == "turn_ended":
            assert ledger.open is None
            ledger.turn_began_with = len(ledger.fired)
        if len(ledger.committed) > before:
            attempt = ledger.committed[-1]
            match = TieredMatch(keep_extended=keep, language=language)
            assert match.matches(attempt.text, str(arguments[0]))
    assert enabled or not ledger.fired
