"""What holds of every speculation, whatever comes when: the invariants of the design."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Sample, examples, words
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from loguru import logger
from pipecat.frames.frames import (
    DataFrame,
    EagerEndOfTurnCancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMContextUserTurnFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    SystemFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.transcriptions.language import Language
from scripted import Asked, Heard, Model, OnTime, World, play
from test_speaking import reply, running

from headstart.config.load import load_config
from headstart.engines.queue import InferenceQueue, Priority, Ticket
from headstart.engines.silero import SileroEngine, SileroOptions
from headstart.engines.smart_turn import SmartTurnEngine, SmartTurnOptions
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.frames import SpeculationEndedFrame, SpeculationFiredFrame, mark_attempt
from headstart.pipeline.converse import converse as hold_dialogue
from headstart.processors.speculation.gate import Hold
from headstart.processors.tts import KokoroSettings, KokoroTTS
from headstart.processors.turn.aggregator import AssistantTurn, UserTurn
from headstart.processors.turn.end import TurnEnd
from headstart.processors.turn.trigger.machine import TriggerSettings
from headstart.processors.turn.trigger.match import TieredMatch
from headstart.transports.memory import MemoryOutput
from headstart.transports.wav import read_audio

EAGER: Any = {"policy": "eager", "stable_updates": 1, "max_per_turn": 9, "min_silence_secs": 0.0}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Pipecat tells a story of every frame, which takes longer than playing it."""
    logger.disable("pipecat")
    logger.disable("headstart")
    yield
    logger.enable("pipecat")
    logger.enable("headstart")


Step = tuple[Any, ...]

TEXTS = st.sampled_from(
    [
        "What time is it?",
        "what time is it",
        "Set it to ten.",
        "Set it to twenty.",
        "Please.",
        "Um.",
        "",
    ]
)
# The scripted models take 0.05, 0.07, 0.13 or 0.17 s: that much later, two things meet.
SHORT = st.sampled_from([0.0, 0.02, 0.05, 0.07, 0.13, 0.17, 0.25])
LONG = st.sampled_from([0.5, 1.0, 3.0, 6.0])
MOMENT = st.one_of(
    st.tuples(st.just("wait"), SHORT),
    # The loop runs a few of the tasks that are ready, and no time passes.
    st.tuples(st.just("turns"), st.integers(0, 60)),
)
STEPS = st.one_of(
    st.tuples(st.just("start_speaking")),
    st.tuples(st.just("stop_speaking")),
    st.tuples(st.just("partial"), TEXTS),
    st.tuples(st.just("final"), TEXTS),
    st.tuples(st.just("seems"), st.booleans()),
    st.tuples(st.just("silence"), SHORT | LONG),
    st.tuples(st.just("wait"), LONG),
    MOMENT,
    st.tuples(st.just("interrupt")),
)


MOMENTS = st.lists(MOMENT, max_size=2)


# A voice that the VAD may take for one, before an answer that waits for enough silence is let out.
BREATHS = st.sampled_from(
    [[], [("silence", 0.3), ("seems", True), ("silence", 0.3), ("seems", False)]]
)


@st.composite
def utterances(draw: st.DrawFn) -> list[Step]:
    """A turn as it should be: partials that grow, a stop, a final, and some time between."""
    text = draw(TEXTS)
    steps: list[Step] = [("start_speaking",), *draw(MOMENTS)]
    for _ in range(draw(st.integers(0, 3))):
        heard = draw(st.sampled_from([text, text, "What time", "Set it to ten."]))
        steps += [("partial", heard), *draw(MOMENTS)]
    if draw(st.booleans()):
        steps += [("seems", False), *draw(MOMENTS)]
    ends: list[Step] = [("stop_speaking",), ("final", text)]
    if draw(st.booleans()):
        ends.reverse()
    return [*steps, ends[0], *draw(MOMENTS), ends[1], *draw(BREATHS), ("silence", draw(LONG))]


@st.composite
def duels(draw: st.DrawFn) -> list[Step]:
    """The end of a turn, and something that voids its answer at nearly the same moment."""
    text = "What time is it?"
    steps: list[Step] = [("start_speaking",), ("partial", text), *draw(MOMENTS)]
    other = draw(
        st.sampled_from([(), ("interrupt",), ("partial", "Set it to ten."), ("partial", text)])
    )
    if other:
        steps += [other, *draw(MOMENTS)]
    return [*steps, ("stop_speaking",), *draw(MOMENTS), ("final", text), ("silence", 3.0)]


SCRIPTS = st.lists(st.one_of(utterances(), duels(), st.lists(STEPS, max_size=4)), max_size=5).map(
    lambda parts: [step for part in parts for step in part]
)
MODELS = st.lists(st.sampled_from([Model.FAST, Model.FAST, *Model]), max_size=8)


async def perform(world: World, steps: list[Step]) -> None:
    for name, *arguments in steps:
        if name == "wait":
            await asyncio.sleep(arguments[0])
        elif name == "turns":
            for _ in range(arguments[0]):
                await asyncio.sleep(0)
        else:
            await getattr(world, name)(*arguments)


CLOSING = "Is there anything else?"


def converse(
    steps: list[Step],
    models: list[Model],
    verdicts: list[float],
    lag: int,
    *,
    plain: bool = False,
    **stages: Any,
) -> World:
    """Play the steps, then one more turn with everything in order."""
    world = World(plain=plain, **stages)
    world.llm.lag = lag
    world.llm.script.extend(models)
    world.judge.verdicts.extend(verdicts)

    async def script() -> None:
        await perform(world, steps)
        await world.stop_speaking()
        await world.silence(4)
        await asyncio.sleep(25)
        world.llm.script.clear()
        world.judge.verdicts.clear()
        await world.start_speaking()
        await world.partial(CLOSING)
        await asyncio.sleep(1)
        await world.stop_speaking()
        await world.final(CLOSING)
        await world.silence(3)
        await asyncio.sleep(10)

    return play(world, script)


_WORD_SECS = 0.2
"""Of an answer of which less was heard, the context may have no word."""
_ANSWER_SECS = 3.0
"""By when a model that is neither slow nor failing has spoken."""


def check(world: World) -> None:
    """The invariants, from what came out of the conversation."""
    asked: dict[int, Asked] = {request.number: request for request in world.llm.requests}
    committed: dict[int, float] = {}
    pending: list[int] = []
    fired = 0
    for at, frame in world.of(
        SpeculationFiredFrame, SpeculationEndedFrame, UserStartedSpeakingFrame
    ):
        if isinstance(frame, SpeculationFiredFrame):
            fired += 1
            assert frame.attempt == fired
            assert not pending
            pending.append(fired)
        elif isinstance(frame, SpeculationEndedFrame):
            assert pending == [frame.attempt], "I3: every attempt ends once"
            assert frame.reason
            pending.clear()
            if frame.committed:
                committed[frame.attempt] = at
        else:
            assert not pending, "I3: no attempt outlives its turn"
    assert not pending

    def allowed(number: int, at: float) -> bool:
        attempt = asked[number].attempt
        return attempt is None or (attempt in committed and committed[attempt] <= at)

    for heard in world.heard:
        assert allowed(heard.reply, heard.at_s), "I1: nothing unconfirmed is heard"
        assert heard.pieces == list(range(1, len(heard.pieces) + 1)), "I6: in order"
    for at, number in world.llm.called:
        assert allowed(number, at), "I1: nothing unconfirmed calls a tool"
    for request in asked.values():
        began = max(at for at, _ in world.of(UserStartedSpeakingFrame) if at <= request.at_s)
        known = words(" ".join(request.answers))
        for heard in world.heard:
            if heard.at_s + _WORD_SECS < began:
                assert f"reply{heard.reply}" in known, "asked with all that was heard before"
    replies = [heard.reply for heard in world.heard]
    assert len(set(replies)) == len(replies), "I6: an answer is heard once"
    contents = [m["content"] for m in world.messages if m["role"] == "assistant" and "content" in m]
    kept = {content.split()[0]: len(content.split()) for content in contents}
    assert len(kept) == len(contents), "an answer is kept once"
    for heard in world.heard:
        # One piece is one word; the last may have been heard in part.
        missing = len(heard.pieces) - kept.pop(f"reply{heard.reply}", 0)
        assert missing in (0, 1), "the context keeps what was heard"
    assert not kept, "the context keeps nothing else"

    ends = [at for at, _ in world.of(UserStoppedSpeakingFrame)]
    texts = {at: frame.text for at, frame in world.of(LLMContextUserTurnFrame)}
    for end, after in zip(ends, [*ends[1:], float("inf")], strict=True):
        answers = [
            asked[heard.reply]
            for heard in world.heard
            if end <= heard.at_s < after and not asked[heard.reply].after_tool
        ]
        assert len(answers) <= 1, "I2: a turn has one answer"
        for answer in answers:
            assert TieredMatch(language="en").matches(answer.question, texts[end]), (
                "I2: to all its words"
            )
    disturbed = [at for at, _ in world.of(UserStartedSpeakingFrame, InterruptionFrame)]
    for end in ends:
        if end in texts and not any(end <= at < end + _ANSWER_SECS for at in disturbed):
            answer = max(
                (
                    request
                    for request in asked.values()
                    if end <= request.at_s < end + _ANSWER_SECS
                    or committed.get(request.attempt or 0) == end
                ),
                key=lambda request: request.number,
            )
            if answer.gave_up_at_s is not None and answer.attempt is not None:
                assert answer.gave_up_at_s >= end, "I2: what was given up is not confirmed"
            if answer.model is Model.FAST:
                heard = next(heard for heard in world.heard if heard.reply == answer.number)
                assert (heard.at_s >= end, len(heard.pieces)) == (True, 6), "I2: it is heard"

    said = [m["content"] for m in world.messages if m["role"] == "user"]
    assert words(" ".join(said)) == words(" ".join(world.said)), "I4: no word is lost"
    given_up = [
        request.question
        for request in asked.values()
        if request.gave_up_at_s is not None or request.model is Model.SLOW  # it timed out
    ]
    for before, after in pairwise(world.messages):
        if before["role"] == after["role"] == "user":
            assert any(
                TieredMatch(language="en").matches(question, before["content"])
                for question in given_up
            ), "words that were not answered are joined with those that follow"


@settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=SCRIPTS,
    models=MODELS,
    verdicts=st.none() | st.lists(st.sampled_from([0.0, 0.3, 0.9]), max_size=5),
    complete=st.booleans(),
    lag=st.just(0) | st.integers(0, 40),
    policy=st.sampled_from(["eager", "eager", "confident", "final"]),
    min_silence_secs=st.sampled_from([0.0, 0.8]),
    turn_silence_secs=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
)
def test_the_invariants_hold_whatever_happens_when(
    steps: list[Step],
    models: list[Model],
    verdicts: list[float] | None,
    complete: bool,
    lag: int,
    policy: str,
    min_silence_secs: float,
    turn_silence_secs: float,
) -> None:
    trigger = {"policy": policy, "min_silence_secs": min_silence_secs}
    check(
        converse(
            steps,
            models,
            verdicts or [],
            lag,
            trigger=EAGER | {"require_complete": complete} | trigger,
            turn={"smart_turn": verdicts is not None, "min_silence_secs": turn_silence_secs},
        )
    )


ASK = "What time is it?"
ASKED: list[Step] = [("start_speaking",), ("partial", ASK), ("wait", 1.0)]
ENDED: list[Step] = [("stop_speaking",), ("final", ASK), ("silence", 3.0)]


def talk(steps: list[Step], *models: Model, lag: int = 0, **stages: Any) -> World:
    """Play the steps on a pipeline that speculates, and check what always holds."""
    stages = {"trigger": EAGER, "turn": {"smart_turn": False}, **stages}
    world = converse(steps, list(models), [], lag, **stages)
    check(world)
    return world


def outcomes(world: World) -> list[tuple[bool, str]]:
    return [(frame.committed, frame.reason) for _, frame in world.of(SpeculationEndedFrame)]


def test_what_is_ready_is_heard_in_the_moment_in_which_the_turn_ends() -> None:
    world = talk([*ASKED, *ENDED])
    (end, _), *_ = world.of(UserStoppedSpeakingFrame)
    assert (world.heard[0].reply, world.heard[0].at_s) == (1, end)
    assert world.messages[:2] == [
        {"role": "user", "content": ASK},
        {"role": "assistant", "content": "reply1 says one. And two more."},
    ]


def test_the_gate_lets_go_within_the_event_loop_turn_and_the_transport_writes_within_a_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, float, int]] = []

    def note(owner: type[Any], method: str, kind: type[Frame]) -> None:
        original = getattr(owner, method)

        async def noting(stage: Any, frame: Frame, *rest: Any) -> Any:
            if isinstance(frame, kind):
                loop: Any = asyncio.get_running_loop()
                seen.append((method, loop.time(), loop.turns))
            return await original(stage, frame, *rest)

        monkeypatch.setattr(owner, method, noting)

    note(UserTurn, "push_frame", UserStoppedSpeakingFrame)
    note(MemoryOutput, "queue_frame", TTSAudioRawFrame)
    note(MemoryOutput, "write_audio_frame", TTSAudioRawFrame)
    world = talk([*ASKED, *ENDED])
    (end, _), *_ = world.of(UserStoppedSpeakingFrame)
    verdict, passed, *_ = seen
    written = next(one for one in seen if one[0] == "write_audio_frame")
    assert verdict[:2] == ("push_frame", end)
    assert passed == ("queue_frame", *verdict[1:]), "in the call that ends the turn"
    assert written[1] == end, "nothing on the way to the loudspeaker waits"
    assert written[2] - verdict[2] < 15


def test_an_answer_held_for_long_is_whole_when_it_is_let_go() -> None:
    world = talk([*ASKED, ("wait", 20.0), *ENDED])
    assert world.heard[0].pieces == [1, 2, 3, 4, 5, 6]


def test_the_context_keeps_what_was_heard_of_an_answer_that_was_held() -> None:
    # Each word takes 0.1 s; the user comes in during the third.
    barge_in: list[Step] = [("stop_speaking",), ("final", ASK), ("wait", 0.25), *ASKED, *ENDED]
    world = talk([*ASKED, *barge_in])
    assert world.heard[0].pieces == [1, 2, 3]
    assert world.messages[1]["content"] == "reply1 says one."


def test_the_context_keeps_what_was_heard_of_an_answer_to_a_tool_of_one_that_was_held() -> None:
    # Its last sentence, complete when the tool is called, was not made before the turn's end.
    held: list[Step] = [*ASKED, ("wait", 1.0), *ENDED[:2], ("wait", 1.5)]
    world = talk([*held, *ASKED, *ENDED], Model.SPEAKS_AND_CALLS, Model.LONG)
    assert world.heard[1].reply == 2
    assert world.messages[4]["content"].startswith("reply2 is one of")


def test_the_voice_stops_when_the_user_comes_in_whatever_the_connection_does() -> None:
    # It is still open, and takes 0.3 s to close; each piece of the answer takes 0.1 s.
    world = talk([*ASKED[:1], *ENDED[:2], ("wait", 0.55), *ASKED, *ENDED], Model.LONG)
    assert (world.heard[0].reply, world.heard[0].pieces) == (1, [1, 2, 3])


def test_an_attempt_knows_what_was_heard_of_the_answer_that_it_interrupts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = AssistantTurn.push_aggregation

    async def write_later(turn: AssistantTurn) -> str:
        await asyncio.sleep(0.1)
        return await write(turn)

    monkeypatch.setattr(AssistantTurn, "push_aggregation", write_later)
    interrupting: list[Step] = [("wait", 0.35), *ASKED[:2], ("wait", 1.0), *ENDED]
    world = talk([*ASKED, *ENDED[:2], *interrupting], Model.LONG)
    assert world.llm.requests[1].attempt == 2
    assert world.llm.requests[1].answers == [world.messages[1]["content"]]
    assert world.messages[1]["content"].startswith("reply1 is one of")


@pytest.mark.models
@pytest.mark.parametrize("name", ["pause-moon", "change-timer"])
def test_an_answer_that_is_ready_does_not_cut_into_a_pause_of_real_speech(
    name: str, samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_time = OnTime({"silero": 0.001, "smart-turn": 0.07, "whisper": 0.09})

    async def run(queue: Any, work: Any, ticket: object = None) -> Any:
        return await on_time.run(queue._name, work)

    monkeypatch.setattr(InferenceQueue, "run", run)
    models: dict[type, Any] = {
        SileroEngine: SileroEngine.load(SileroOptions()),
        SmartTurnEngine: SmartTurnEngine.load(SmartTurnOptions()),
        WhisperEngine: WhisperEngine.load(WhisperOptions()),
    }
    world = World(heard_with=models, trigger={}, vad={}, stt={})
    silence = np.zeros(16_000, np.int16)
    speech = read_audio(samples[name].path, 16_000)
    try:
        play(world, lambda: world.speak(np.concatenate([silence, speech, silence, silence])))
    finally:
        for model in models.values():
            model.close()
    (answer,) = world.heard
    question = world.llm.requests[answer.reply - 1].question
    assert len(words(question)) == len(words(samples[name].text)), "to all of the words"
    assert outcomes(world)[-1] == (True, "same words")


@pytest.mark.parametrize(("language", "committed"), [(Language.DE, False), (Language.EN, True)])
def test_an_early_answer_stands_when_what_came_later_is_a_filler_in_the_users_language(
    language: Language, committed: bool
) -> None:
    world = World(trigger=EAGER, turn={"smart_turn": False})
    world.language = language
    steps: list[Step] = [("start_speaking",), ("partial", "Wie alt ist?"), ("wait", 1.0)]
    ends: list[Step] = [("stop_speaking",), ("final", "Wie alt ist er?"), ("silence", 3.0)]
    play(world, lambda: perform(world, [*steps, *ends]))
    assert outcomes(world)[0][0] is committed
    asked = world.llm.requests[world.heard[0].reply - 1].question
    assert asked == ("Wie alt ist?" if committed else "Wie alt ist er?")


PAUSE = {"trigger": EAGER | {"min_silence_secs": 0.7}}


def test_an_early_answer_does_not_cut_in_when_the_user_takes_a_breath() -> None:
    more = f"{ASK} {ASK}"
    breath: list[Step] = [*ENDED[:2], ("silence", 0.4), ("seems", True), ("silence", 0.4)]
    world = talk([*ASKED, *breath, *ASKED, *ENDED], **PAUSE)
    assert outcomes(world)[0] == (False, "words changed")
    assert world.messages[0] == {"role": "user", "content": more}
    assert world.llm.requests[world.heard[0].reply - 1].question == more


def test_an_early_answer_is_let_out_after_enough_silence_and_no_later() -> None:
    for silence in (("silence", 3.0), ("wait", 3.0)):  # a muted microphone sends none
        world = talk([*ASKED, *ENDED[:2], silence], **PAUSE)
        (stop, _), *_ = world.of(VADUserStoppedSpeakingFrame)
        assert world.heard[0].at_s == pytest.approx(stop + 0.5)  # 0.2 s had passed by then
        (_, ended), *_ = world.of(SpeculationEndedFrame)
        assert isinstance(ended, SpeculationEndedFrame)
        assert ended.committed
        assert ended.waited_secs == pytest.approx(0.5)


def test_work_on_an_early_answer_counts_as_waited_for_when_nothing_but_silence_is_missing() -> None:
    world = World(trigger=EAGER | {"min_silence_secs": 2.0}, turn={"smart_turn": False})
    world.llm.script.append(Model.LONG)
    waited_for: list[bool] = []

    async def script() -> None:
        for steps in ([*ASKED[:2], ("wait", 0.5)], [*ENDED[:2], ("wait", 0.1)]):
            await perform(world, steps)
            waited_for.append(world.voice.workload.is_committed)
        await perform(world, [("silence", 5.0)])

    play(world, script)
    assert waited_for == [False, True]
    assert outcomes(world) == [(True, "same words")]


def test_an_early_answer_that_cannot_be_spoken_is_withdrawn_and_the_turn_answered_whole() -> None:
    world = World(trigger=EAGER, turn={"smart_turn": False})
    world.voice.fails = 1
    play(world, lambda: perform(world, [*ASKED, *ENDED]))
    assert outcomes(world) == [(False, "cancelled")]
    assert [heard.reply for heard in world.heard] == [2]
    assert not world.of(ErrorFrame)


def test_a_turn_without_an_early_answer_does_not_wait() -> None:
    world = talk([*ASKED, *ENDED], Model.FAILS, **PAUSE)
    (stop, _), *_ = world.of(VADUserStoppedSpeakingFrame)
    (end, _), *_ = world.of(UserStoppedSpeakingFrame)
    assert end == stop


def test_a_turn_may_be_asked_to_wait_for_silence_whether_it_is_answered_early_or_not() -> None:
    """An answer begun while it waits, of which the trigger asks more, is not let out sooner."""
    patient = {"turn": {"smart_turn": False, "min_silence_secs": 0.5}}
    final_only = PAUSE["trigger"] | {"policy": "final"}
    for stages, model, waited in (
        ({"trigger": None}, Model.FAST, 0.5),
        (PAUSE, Model.FAILS, 0.5),
        (PAUSE, Model.FAST, 0.7),
        ({"trigger": final_only}, Model.FAST, 0.7),
    ):
        for silence in (("silence", 3.0), ("wait", 3.0)):
            world = talk([*ASKED, *ENDED[:2], silence], model, **(patient | stages))
            (stop, _), *_ = world.of(VADUserStoppedSpeakingFrame)
            (end, _), *_ = world.of(UserStoppedSpeakingFrame)
            assert end == pytest.approx(stop + waited - 0.2), (stages, silence)


def test_a_turn_that_waits_for_silence_goes_on_when_the_user_does() -> None:
    turn = {"smart_turn": False, "min_silence_secs": 0.7}
    breath: list[Step] = [*ENDED[:2], ("silence", 0.4)]
    world = talk([*ASKED, *breath, *ASKED, *ENDED], trigger=None, turn=turn)
    assert world.llm.requests[0].question == f"{ASK} {ASK}"


def test_no_answer_begins_early_while_another_session_waits_for_the_models() -> None:
    world = World(trigger=EAGER, turn={"smart_turn": False})
    begun: list[list[float]] = []

    def fired() -> list[float]:
        return [at for at, _ in world.of(SpeculationFiredFrame)]

    async def script() -> None:
        with world.voice.workload.holding(Ticket(Priority.COMMITTED)):
            await perform(world, [*ASKED, ("silence", 1.0)])
            begun.append(fired())
        with world.voice.workload.holding(Ticket(Priority.SPECULATIVE)):
            await perform(world, [("silence", 0.1)])
            begun.append(fired())
        await perform(world, [*ENDED, ("wait", 5.0)])

    play(world, script)
    assert [len(times) for times in begun] == [0, 1]
    assert world.heard[0].reply == 1


def test_words_that_change_at_once_are_never_asked() -> None:
    other = ("partial", "Set it to ten.")
    world = talk([*ASKED[:2], other, other, ("wait", 1.0), *ENDED[:1], ("final", "Set it to ten.")])
    assert outcomes(world)[:2] == [(False, "number changed"), (True, "same words")]
    assert [request.attempt for request in world.llm.requests] == [2, 3]


def test_the_voice_works_ahead_a_little_and_goes_on_when_the_turn_has_ended() -> None:
    world = World(trigger=EAGER, turn={"smart_turn": False})
    world.llm.script.append(Model.LONG)

    async def script() -> None:
        await perform(world, [*ASKED, ("wait", 8.0)])
        # A first sentence of one second, and the one in which the limit of 1.5 s lies.
        assert len(world.voice.started) == 2
        await perform(world, [*ENDED, ("wait", 5.0)])

    play(world, script)
    assert world.heard[0].pieces == list(range(1, 41))


def test_a_withdrawn_answer_leaves_the_voice_to_the_next_at_once() -> None:
    other = ("partial", "Set it to ten.")
    world = talk(
        [*ASKED, other, other, ("wait", 0.2), ENDED[0], ("final", "Set it to ten.")], Model.LONG
    )
    assert outcomes(world)[:2] == [(False, "number changed"), (True, "same words")]
    assert [text.split()[0] for text in world.voice.started[:4]] == [
        "reply1",
        "And",
        "reply2",
        "And",
    ]


@pytest.mark.parametrize("model", [Model.FAILS, Model.BREAKS_OFF, Model.EMPTY])
def test_an_answer_given_up_before_the_turn_ends_is_asked_for_again(model: Model) -> None:
    world = talk([*ASKED, *ENDED], model)
    assert outcomes(world)[0] == (False, "cancelled")
    assert [request.attempt for request in world.llm.requests] == [1, None, 2]
    assert world.heard[0].reply == 2


def test_a_turn_that_ends_while_its_answer_is_given_up_is_answered_once() -> None:
    kinds = set()
    for lag in range(10):
        world = talk([*ASKED[:2], ("wait", 0.05), *ENDED], Model.FAILS, lag=lag)
        asked_again = world.llm.requests[1].question == ASK
        kinds.add((outcomes(world)[0][0], asked_again))
    # Given up in time, while the turn ended, and too late (then it failed like any other).
    assert kinds == {(False, True), (True, True), (True, False)}


@pytest.mark.parametrize("safe_tools", [(), ("look",)])
def test_a_tool_is_called_when_the_turn_has_ended_unless_it_is_safe(
    safe_tools: tuple[str, ...],
) -> None:
    stages: dict[str, Any] = {"trigger": EAGER, "turn": {"smart_turn": False}}
    stages["llm"] = {"safe_tools": safe_tools}
    world = converse([*ASKED, *ENDED], [Model.CALLS], [], 0, **stages)
    (end, _), *_ = world.of(UserStoppedSpeakingFrame)
    assert len(world.llm.called) == 1, "once"
    assert (world.llm.called[0][0] < end) == bool(safe_tools)
    assert [request.attempt for request in world.llm.requests] == [1, None, 2]
    assert world.heard[0].reply == 2
    assert [message["role"] for message in world.messages[:4]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_a_tool_of_an_answer_that_is_withdrawn_is_not_called() -> None:
    other = ("partial", "Set it to ten.")
    world = talk([*ASKED, other, ENDED[0], ("final", "Set it to ten.")], Model.CALLS)
    assert outcomes(world)[0] == (False, "number changed")
    assert not world.llm.called


def test_a_safe_tool_that_ignores_its_cancellation_holds_nothing_up_and_is_named() -> None:
    async def stubborn(_: Any) -> None:
        while True:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                ignored.append(asyncio.get_running_loop().time())

    ignored: list[float] = []
    warnings: list[str] = []
    world = World(trigger=EAGER, turn={"smart_turn": False}, llm={"safe_tools": ("look",)})
    world.llm.script.append(Model.CALLS)
    world.llm.register_function("look", stubborn)
    other = ("partial", "Set it to ten.")
    logger.enable("headstart")
    sink = logger.add(lambda message: warnings.append(message.record["message"]), level="WARNING")
    try:
        final = ("final", "Set it to ten.")
        play(world, lambda: perform(world, [*ASKED, other, ENDED[0], final, ("silence", 3.0)]))
    finally:
        logger.remove(sink)
        logger.disable("headstart")
    assert [heard.reply for heard in world.heard] == [2]
    assert len(ignored) == 2, "when the answer was withdrawn, and when the session closed"
    assert any("early look ignores its cancellation" in warning for warning in warnings)


def test_the_language_model_pauses_before_it_has_spent_too_much() -> None:
    world = World(trigger=EAGER, turn={"smart_turn": False}, llm={"max_speculative_tokens": 8})
    world.llm.script.append(Model.LONG)
    paused: list[int] = []

    async def script() -> None:
        await perform(world, [*ASKED, ("wait", 8.0)])
        paused.append(sum(len(frame.text) for _, frame in world.of(LLMTextFrame)))
        await perform(world, [*ENDED, ("wait", 5.0)])

    play(world, script)
    assert 32 <= paused[0] < 40
    assert world.heard[0].pieces == list(range(1, 41)), "and says all of it when it may"


def test_a_turn_that_is_ended_over_the_strategys_head_takes_its_attempt_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TurnEnd, "silent_for", lambda *_: None)
    world = talk([*ASKED, ("stop_speaking",), ("wait", 6.0), *ASKED, *ENDED])
    assert outcomes(world)[0] == (False, "cancelled")


@pytest.mark.parametrize("pause", ["wait", "silence"])
def test_silence_passes_by_the_clock_where_no_audio_comes(pause: str) -> None:
    """With push-to-talk the audio ends with the speech; with DTX it does whenever one is silent."""
    unfinished: dict[str, Any] = {"turn": {"smart_turn": True, "silence_secs": 6.0}}
    for stages, steps, verdict, secs in (
        ({}, ENDED[:2], 0.0, 2.0),
        ({}, ENDED[:2], 0.25, 1.0),
        (unfinished, ENDED[:2], 0.0, 6.0),  # and nothing else ends it sooner
        ({}, ENDED[:1], 1.0, 2.0),  # the final transcript never comes
    ):
        world = World(**stages)
        world.judge.verdicts.append(verdict)
        steps = [("start_speaking",), ("silence", 0.4), *steps, (pause, 8.0)]
        play(world, partial(perform, world, steps))
        (stop, _), *_ = world.of(VADUserStoppedSpeakingFrame)
        (end, _), *_ = world.of(UserStoppedSpeakingFrame)
        assert end - stop + 0.2 == pytest.approx(secs, abs=0.11), (stages, steps)


def test_audio_that_comes_late_is_not_silence_twice() -> None:
    world = World()
    world.judge.verdicts.append(0.0)
    late: list[Step] = [("wait", 1.0), *[("pushed", 0.1)] * 10]
    steps: list[Step] = [("start_speaking",), ("silence", 0.4), *ENDED[:2], *late, ("silence", 3.0)]
    play(world, lambda: perform(world, steps))
    (stop, _), *_ = world.of(VADUserStoppedSpeakingFrame)
    (end, _), *_ = world.of(UserStoppedSpeakingFrame)
    assert end - stop + 0.2 == pytest.approx(2.0, abs=0.11)


def test_an_interruption_after_the_turn_begins_no_answer_to_it() -> None:
    late: Step = ("partial", "Set it to ten.")
    ends: list[Step] = [("stop_speaking",), late, ("wait", 6.0)]  # by the watchdog
    world = talk([*ASKED, *ends, ("interrupt",), ("wait", 1.0), *ASKED, *ENDED])
    assert outcomes(world)[:2] == [(False, "number changed"), (True, "same words")]


def test_words_cut_off_from_their_answer_belong_to_the_turn_that_goes_on() -> None:
    half: list[Step] = [("start_speaking",), ("stop_speaking",), ("final", "Could you tell me.")]
    world = talk([*half, ("wait", 0.1), *ASKED, *ENDED])
    assert world.messages[0] == {"role": "user", "content": f"Could you tell me. {ASK}"}
    assert world.llm.requests[1].question == f"Could you tell me. {ASK}"
    assert (world.llm.requests[1].attempt, outcomes(world)[0]) == (1, (True, "same words"))
    assert [heard.reply for heard in world.heard] == [2, 3]


def test_a_turn_taken_up_again_in_the_moment_in_which_it_ends_is_answered_once() -> None:
    # 2 s after its stop, the turn ends without a final transcript; its context is on the way to
    # the language model when the interruption by the next words overtakes it.
    silence: list[Step] = [("silence", 0.9), ("silence", 0.9)]
    ends: list[Step] = [("final", "Um."), ("wait", 0.1), ("stop_speaking",), *silence]
    again: list[Step] = [("start_speaking",), ("wait", 0.07), ("stop_speaking",), ("final", ASK)]
    world = talk([("start_speaking",), *ends, *again, ("silence", 3.0)])
    assert world.llm.requests[0].question == f"Um. {ASK}"


def test_words_that_come_after_their_turn_was_given_up_are_answered() -> None:
    voice: list[Step] = [("start_speaking",), ("wait", 1.0), ("stop_speaking",), ("silence", 4.0)]
    world = talk([*voice, ("final", ASK), ("silence", 3.0)])
    assert world.messages[0] == {"role": "user", "content": ASK}
    assert [heard.reply for heard in world.heard] == [1, 2]


def test_a_cough_before_the_answer_does_not_cost_the_user_the_answer() -> None:
    cough: list[Step] = [("start_speaking",), ("stop_speaking",), ("final", ""), ("silence", 3.0)]
    world = talk([*ASKED[:1], *ENDED[:2], ("wait", 0.1), *cough])
    assert [request.question for request in world.llm.requests][:2] == [ASK, ASK]
    assert world.heard[0].reply == 2


@pytest.mark.parametrize("trigger", [None, EAGER])
@pytest.mark.parametrize("model", [Model.FAILS, Model.EMPTY])
def test_the_words_of_a_turn_whose_answer_failed_are_not_those_of_the_next(
    model: Model, trigger: dict[str, Any] | None
) -> None:
    turns: list[Step] = []
    texts = ["Set it to ten.", "Set it to twenty.", "Please stop it now."]
    for text in texts:
        turns += [("start_speaking",), ("wait", 0.1), ("stop_speaking",), ("final", text)]
        turns += [("silence", 3.0)]
    world = talk(turns, model, model, trigger=trigger)
    told = [frame.text for _, frame in world.of(LLMContextUserTurnFrame)]
    assert told == [*texts, CLOSING], "each turn has its own words"
    contents = [message["content"] for message in world.messages]
    assert contents[:3] == texts, "and the context keeps all of them"
    third = next(request for request in world.llm.requests if request.question == texts[2])
    assert third.unanswered == texts[:2], "so that the model knows them, too"


def test_the_words_of_a_turn_whose_answer_was_never_spoken_are_not_those_of_the_next() -> None:
    world = World(turn={"smart_turn": False})
    world.voice.fails = 2  # both of its clauses
    other = [("start_speaking",), ("stop_speaking",), ("final", "Set it to ten."), ("silence", 3.0)]
    play(world, lambda: perform(world, [*ASKED, *ENDED, *other]))
    told = [frame.text for _, frame in world.of(LLMContextUserTurnFrame)]
    assert told == [ASK, "Set it to ten."]
    kept = [message["content"] for message in world.messages if message["role"] == "user"]
    assert kept == told


def test_words_go_on_while_their_answer_is_still_awaited_however_it_ends() -> None:
    half: list[Step] = [("start_speaking",), ("stop_speaking",), ("final", "Could you tell me.")]
    world = talk([*half, ("wait", 0.02), *ASKED, *ENDED], Model.FAILS)
    assert world.messages[0] == {"role": "user", "content": f"Could you tell me. {ASK}"}


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=SCRIPTS, models=MODELS)
def test_without_attempts_the_pipeline_is_the_one_without_a_trigger(
    steps: list[Step], models: list[Model]
) -> None:
    plain, off, silent = (
        converse(steps, models, [], 0, trigger=trigger, turn={"smart_turn": False})
        for trigger in (None, {"enabled": False}, {"min_words": 99})
    )
    pairs = zip_longest(map(shape, plain.frames), map(shape, off.frames))
    assert not [pair for pair in pairs if pair[0] != pair[1]]
    assert (plain.heard, plain.messages) == (silent.heard, silent.messages)


OFF: dict[str, Any] = {"turn": {"smart_turn": False}}
PLAIN_TURNS = st.lists(
    st.tuples(TEXTS.filter(str), SHORT, st.sampled_from([0.5, 3.0])), max_size=4
).map(
    lambda turns: [
        step
        for text, pause, silence in turns
        for step in [
            ("start_speaking",),
            ("partial", text),
            ("wait", pause),
            ("stop_speaking",),
            ("wait", pause),
            ("final", text),
            ("wait", silence),
        ]
    ]
)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=PLAIN_TURNS, models=st.lists(st.sampled_from([Model.FAST, Model.LONG]), max_size=4))
def test_without_a_trigger_turns_are_those_of_plain_pipecat(
    steps: list[Step], models: list[Model]
) -> None:
    ours, plain = converse(steps, models, [], 0, **OFF), converse(steps, models, [], 0, plain=True)
    assert ours.messages == plain.messages
    assert list(map(played, ours.heard)) == list(map(played, plain.heard))


def test_a_late_transcript_does_not_end_a_turn_that_goes_on_as_it_does_in_plain_pipecat() -> None:
    first, second = "Could you tell me.", ASK
    steps: list[Step] = [
        *[("start_speaking",), ("wait", 0.5), ("stop_speaking",), ("wait", 0.3)],
        *[("start_speaking",), ("wait", 0.1), ("final", first), ("wait", 0.5)],
        *[("stop_speaking",), ("final", second), ("wait", 3.0)],
    ]
    ours, plain = converse(steps, [], [], 0, **OFF), converse(steps, [], [], 0, plain=True)
    assert [request.question for request in ours.llm.requests][:1] == [f"{first} {second}"]
    assert len(ours.heard) == len(ours.llm.requests) == 2, "this and the closing one"
    assert plain.llm.requests[0].question == first, "half of it is answered"


def played(heard: Heard) -> tuple[object, ...]:
    return heard.reply, heard.pieces, round(heard.at_s, 6)


def shape(seen: tuple[float, Frame]) -> tuple[object, ...]:
    at, frame = seen
    return at, type(frame), getattr(frame, "text", None), getattr(frame, "audio", None)


# The gate alone


@dataclass
class Kept(DataFrame):
    """Must never be lost."""

    interruptible: bool = field(default=False, init=False)


def numbered(frame: Frame, attempt: int | None) -> Frame:
    if attempt is not None:
        mark_attempt(frame, attempt)
    return frame


ARRIVALS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.none() | st.integers(1, 4)),
        st.tuples(st.just("audio")),
        st.tuples(st.just("end")),
        st.tuples(st.just("kept")),
        st.tuples(st.just("confirm"), st.none() | st.integers(1, 4)),
        st.tuples(st.just("release"), st.integers(1, 4)),
        st.tuples(st.just("withdraw"), st.integers(1, 4)),
        st.tuples(st.just("interrupt")),
        st.tuples(st.just("last")),
    ),
    max_size=25,
)


@settings(max_examples=examples(2000), deadline=None)
@given(ARRIVALS)
def test_the_gate_lets_out_all_of_a_confirmed_answer_and_nothing_else(
    arrivals: list[tuple[Any, ...]],
) -> None:
    makers: dict[str, Any] = {
        "start": LLMFullResponseStartFrame,
        "audio": lambda: TTSAudioRawFrame(bytes(20), 24_000, 1),
        "end": LLMFullResponseEndFrame,
        "kept": Kept,
        "confirm": UserStoppedSpeakingFrame,
        "release": UserStoppedSpeakingFrame,
        "withdraw": EagerEndOfTurnCancelFrame,
        "interrupt": InterruptionFrame,
        "last": EndFrame,
    }
    begun = [number for name, *number in arrivals if name == "start" and number != [None]]
    assume(all(begun.count(number) == 1 for number in begun))
    hold = Hold()
    frames = [numbered(makers[name](), *(number or [None])) for name, *number in arrivals]
    passed: list[Frame] = []
    verdicts: dict[int, str] = {}
    belongs: dict[int, int | None] = {}
    inside: int | None = None
    for (name, *number), frame in zip(arrivals, frames, strict=True):
        if name in ("confirm", "release", "withdraw") and number[0] is not None:
            # The first verdict counts, and it counts for all attempts before, too.
            verdict = "withdraw" if name == "withdraw" else "confirm"
            for earlier in range(1, number[0] + 1):
                verdicts.setdefault(earlier, verdict if earlier == number[0] else "withdraw")
        if name == "start":
            inside = number[0]
        belongs[frame.id] = inside
        is_told = name == "release"  # and does not see the frame
        leaving = [frame, *hold.confirm(number[0])] if is_told else hold.process(frame)
        for out in leaving:
            attempt = belongs[out.id]
            if out.interruptible and not isinstance(out, SystemFrame | EndFrame):
                assert attempt is None or verdicts.get(attempt) == "confirm"
        passed += leaving
        if name == "end":
            inside = None
        if isinstance(frame, SystemFrame | EndFrame):
            assert frame in leaving
    in_order = [frame for frame in passed if not isinstance(frame, SystemFrame)]
    assert in_order == [frame for frame in frames if frame in in_order]
    if not hold.is_holding:
        assert all(frame in passed for frame in frames if isinstance(frame, Kept))
        audio = [frame for frame in frames if isinstance(frame, TTSAudioRawFrame)]
        lost = [frame for frame in audio if frame not in passed]
        assert hold.take_dropped_samples() == 10 * len(lost)
    if not {"interrupt", "last"} & {name for name, *_ in arrivals}:
        for attempt in (n for n, verdict in verdicts.items() if verdict == "confirm"):
            mine = [frame for frame in frames if belongs[frame.id] == attempt]
            late = [frame for frame in mine if frame not in passed]
            assert not late or superseded(attempt, arrivals)


def superseded(attempt: int, arrivals: list[tuple[Any, ...]]) -> bool:
    """Whether another response began before the verdict on this one, or it came too late."""
    confirmed = min(
        arrivals.index(verdict)
        for verdict in (("confirm", attempt), ("release", attempt))
        if verdict in arrivals
    )
    begun = arrivals.index(("start", attempt))
    return any(name == "start" for name, *_ in arrivals[begun + 1 : confirmed]) or any(
        name in ("confirm", "release", "withdraw") and (number[0] or 0) > attempt
        for name, *number in arrivals[confirmed:begun]
    )


# With real models


@pytest.mark.models
async def test_kokoro_drops_what_is_withdrawn_and_says_all_that_is_confirmed() -> None:
    def answer(attempt: int, text: str) -> list[Frame]:
        start, *rest = reply(text)
        return [numbered(start, attempt), *rest]

    kept = "Sure. It is the capital of France. And it is a very old town on the river."
    async with running(KokoroTTS(KokoroSettings(engine="onnx"))) as (worker, out):
        await worker.queue_frames(answer(1, "Sorry. " + "This goes on and on. " * 40))
        await out.wait_for(TTSAudioRawFrame)
        await worker.queue_frame(numbered(EagerEndOfTurnCancelFrame(), 1))
        await out.wait_for(EagerEndOfTurnCancelFrame)
        said = len(out.all(TTSTextFrame))
        # What comes of the first answer after its withdrawal is not spoken any more.
        await worker.queue_frames(answer(1, "This neither."))
        await worker.queue_frames(answer(2, kept))
        await out.wait_for(TTSAudioRawFrame, len(out.all(TTSAudioRawFrame)) + 1)
        await worker.queue_frame(numbered(UserStoppedSpeakingFrame(), 2))
        await out.wait_for(LLMFullResponseEndFrame)
        assert [frame.text for frame in out.all(TTSTextFrame)[said:]] == kept.split()
        assert not out.all(ErrorFrame)


@pytest.mark.models
async def test_early_answers_on_real_speech_are_to_the_final_words(
    samples: dict[str, Sample],
) -> None:
    chosen = [samples["medium-france"], samples["change-timer"]]
    dialogue = await hold_dialogue(
        load_config("early"), [read_audio(sample.path, 16_000) for sample in chosen]
    )
    assert any(record.speculation.committed for record in dialogue.records)
    heard = [record for record in dialogue.records if record.first_audio_out_s is not None]
    assert len(heard) == len(chosen), "no utterance has two audible answers"
    for record, sample in zip(heard, chosen, strict=True):
        assert len(words(record.user_text)) == len(words(sample.text)), "to all its words"
        for attempt in record.speculation.attempts:
            assert attempt.reason
        if record.speculation.committed:
            final = record.speculation.attempts[-1]
            assert TieredMatch(language="en").matches(final.text, record.user_text)
            ready, end = record.first_audio_ready_s, record.turn_end_s
            assert ready is not None
            assert end is not None
            assert (record.speculation.left_ms is not None) == (ready <= end)


def test_the_documentation_names_every_setting_with_its_default() -> None:
    document = (Path(__file__).parent.parent / "docs" / "speculation.md").read_text()
    for name, setting in TriggerSettings.model_fields.items():
        default = str(setting.default).lower()
        meaning = " ".join((setting.description or "").split())
        assert f"| `{name}` | `{default}` | {meaning} |" in document
