"""Deepgram Flux: the real SDK over a real socket, against a server that hears with Whisper."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from itertools import repeat
from typing import Any

import numpy as np
import pytest
from conftest import words
from deepgram.listen.v2.types import (
    ListenV2ConfigureFailure,
    ListenV2ConfigureSuccess,
    ListenV2FatalError,
    ListenV2TurnInfo,
)
from deepgram_session import (
    KEY,
    RATE,
    TONE,
    UTTERANCES,
    Provider,
    Session,
    frames,
    heard,
    log,
    samples,
    server,
    session_with,
    streams,
)
from hypothesis import given
from hypothesis import settings as explore
from hypothesis import strategies as st
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.transcriptions.language import Language
from pydantic import SecretStr, ValidationError
from scripted import World

from headstart.engines import hub
from headstart.frames import (
    ProgressiveTranscriptionFrame,
    SpeculationEndedFrame,
    SpeculationFiredFrame,
)
from headstart.processors.stt.deepgram_flux import DeepgramFluxSTT, FluxSegments
from headstart.processors.stt.deepgram_settings import FluxSettings
from headstart.processors.stt.streaming.link import Destination, Link, RefusedError, pool
from headstart.processors.stt.streaming.replay import ReplayRing
from headstart.processors.turn.trigger.machine import Action, TriggerPolicy, TriggerSettings
from headstart.processors.turn.trigger.policies import Reason
from headstart.testing.deepgram import DeepgramServer, Faults

pytestmark = pytest.mark.models

__all__ = ["log", "server"]  # fixtures


def flux(server: DeepgramServer, **options: Any) -> AbstractAsyncContextManager[Session]:
    return session_with(server, DeepgramFluxSTT, FluxSettings, **options)


def speech(*utterances: str, pause_secs: float) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Utterances with silence between them, then two seconds of it; and where speech is."""
    audio = np.zeros(0, np.int16)
    spans: list[tuple[float, float]] = []
    for utterance in utterances:
        if spans:
            audio = np.concatenate((audio, np.zeros(int(pause_secs * RATE), np.int16)))
        row, at = UTTERANCES[utterance], len(audio) / RATE
        spans.append((at + row["speech_start_s"], at + row["speech_end_s"]))
        audio = np.concatenate((audio, samples(utterance)[: int(RATE * row["speech_end_s"])]))
    return np.concatenate((audio, np.zeros(2 * RATE, np.int16))), spans


def turn(*utterances: str, pause_secs: float = 0.0) -> list[Frame]:
    audio, spans = speech(*utterances, pause_secs=pause_secs)
    return list(frames(audio, *spans))


async def hear(agent: Session, *utterances: str) -> TranscriptionFrame:
    await agent.say(*turn(*utterances))
    return (await agent.final())[0]


# -- segments and turns


def test_a_turn_with_a_pause_in_it_closes_all_its_segments_at_once() -> None:
    segments = FluxSegments()
    first = segments.begin(0.0)
    segments.hear(heard("What is", 0.0, 1.0))
    first.end_secs = 1.2
    segments.stopped(first, 0.2)
    segments.hear(heard("What is", 0.0, 1.5))
    second = segments.begin(1.8)
    segments.hear(heard("What is the time?", 0.0, 2.6))
    second.end_secs = 2.8
    segments.stopped(second, 0.2)
    assert not (first.closed or second.closed)
    assert segments.hear(heard("What is the time?", 0.0, 2.9, final=True)) == [first, second]
    assert [first.hypothesis.text, second.hypothesis.text] == ["What is the time?", ""]
    assert segments.open == ()


def test_a_turn_that_ends_before_the_vad_stops_is_final_when_it_does() -> None:
    segments = FluxSegments()
    segment = segments.begin(0.0)
    segments.hear(heard("Yes.", 0.0, 1.3, final=True))
    assert not segment.closed
    segment.end_secs = 1.8
    segments.stopped(segment, 0.8)
    assert segment.closed
    assert segment.hypothesis.text == "Yes."


def test_words_after_an_end_of_turn_that_came_too_early_belong_to_the_segment_too() -> None:
    segments = FluxSegments()
    segment = segments.begin(0.0)
    segments.hear(heard("Tell me", 0.0, 1.0, final=True))
    segments.hear(heard("a joke.", 1.0, 2.0))
    segment.end_secs = 2.2
    segments.stopped(segment, 0.2)
    assert not segment.closed
    segments.hear(heard("a joke.", 1.0, 2.4, final=True))
    assert segment.closed
    assert segment.hypothesis.text == "Tell me a joke."


def test_a_sound_without_words_is_over_once_flux_has_heard_the_silence_after_it() -> None:
    segments = FluxSegments()
    segment = segments.begin(0.0)
    segment.end_secs = 1.0
    segments.stopped(segment, 0.2)
    segments.hear(heard("", 0.0, 1.25))
    assert not segment.closed
    segments.hear(heard("", 0.0, 1.5))
    assert segment.closed
    assert segment.hypothesis.text == ""


@explore(max_examples=150)
@given(data=st.data())
def test_whatever_drops_every_word_comes_exactly_once(data: st.DataObject) -> None:
    ring, segments = ReplayRing(100, 600.0), FluxSegments()
    provider = Provider(ring, repeat(0.0))
    halves, spoken = 0, []

    def pass_on(numbers: list[int]) -> None:
        nonlocal provider
        ring.push(np.array(numbers, np.int16).tobytes())
        provider.hear()
        match data.draw(st.sampled_from(["nothing", "update", "end", "drop"])):
            case "update":
                segments.hear(provider.result(final=False))
            case "end":
                segments.hear(provider.result(final=True))
                ring.finalise(segments.final_until_secs)
            case "drop":
                provider = Provider(ring, repeat(0.0))
                provider.hear()

    for _ in range(data.draw(st.integers(1, 4))):
        segment = segments.begin(ring.end_secs)
        spoken.append(segment)
        for _ in range(data.draw(st.integers(1, 5))):
            # Of each half second, a word takes the samples whose values end in 5 to 9.
            pass_on([10 * halves + at // 5 for at in range(50)])
            halves += 1
        pass_on([0] * 20)
        segment.end_secs = ring.end_secs
        segments.stopped(segment, 0.2)
        while bool(segments.open) and data.draw(st.booleans()):
            pass_on([0] * 25)
    ring.push(bytes(2 * 50))
    provider.hear()
    segments.hear(provider.result(final=True))
    said = " ".join(segment.hypothesis.text for segment in spoken)
    assert all(segment.closed for segment in spoken)
    assert said.split() == [f"w{number}" for number in range(halves)]


# -- what the trigger makes of it


def test_an_eager_end_of_turn_is_enough_and_taking_it_back_aborts() -> None:
    trigger = TriggerPolicy(TriggerSettings())
    trigger.turn_started()
    trigger.voice_began()
    text = "I would like to"  # neither quiet, nor stable, nor closed by punctuation
    assert trigger.partial(text, 0.9, 1.0, ends_turn=False).action is Action.WAIT
    fired = trigger.partial(text, 0.9, 1.1, ends_turn=True)
    assert fired.action is Action.FIRE
    withdrawn = trigger.partial(text, 0.9, 1.3, ends_turn=False)
    assert (withdrawn.action, withdrawn.reason) == (Action.ABORT, Reason.RESUMED)
    assert withdrawn.attempt == fired.attempt
    trigger.voice_ended(1.4)
    # Now even what looks finished waits for the recogniser to say so again.
    waiting = trigger.partial("I would like to go.", 0.9, 1.5, ends_turn=False)
    assert (waiting.action, waiting.reason) == (Action.WAIT, Reason.INCOMPLETE)
    assert trigger.partial("I would like to go.", 0.9, 1.6, ends_turn=True).action is Action.FIRE


# -- a session


async def test_speech_gives_partials_and_one_final_transcript(server: DeepgramServer) -> None:
    async with flux(server, keyterms=("France",)) as agent:
        await agent.say(*turn("medium-france"))
        final, partials = await agent.final()
    assert words(final.text) == words(UTTERANCES["medium-france"]["text"])
    assert (final.result.path, final.result.connections) == ("stream", 1)
    assert final.result.setup_secs > 0
    assert all(0.5 < partial.confidence <= 1 for partial in partials)
    ends = [bool(partial.ends_turn) for partial in partials]
    assert ends == sorted(ends)  # not over, then over
    assert ends[-1]
    query = streams(server)[0].query
    assert query["keyterm"] == ["France"]
    assert query["eager_eot_threshold"] == ["0.5"]


@pytest.mark.parametrize("utterances", [("short-joke",), ("short-joke", "medium-france")])
async def test_a_drop_anywhere_neither_loses_nor_doubles_a_word(
    server: DeepgramServer, utterances: tuple[str, ...]
) -> None:
    """Two utterances are one turn here: only silence that takes too long ends it."""
    patient = {"eot_threshold": 1.0, "eot_timeout_ms": 1200}

    async def said() -> list[TranscriptionFrame]:
        async with flux(server, **patient) as agent:
            await agent.say(*turn(*utterances, pause_secs=0.6))
            return [(await agent.final())[0] for _ in utterances]

    undisturbed = await said()
    expected = [word for name in utterances for word in words(UTTERANCES[name]["text"])]
    assert words(undisturbed[0].text) == expected
    assert all(final.text == "" for final in undisturbed[1:])
    length = streams(server)[0].audio_secs
    for drop_at in np.arange(0.5, length, 1.0 if len(utterances) == 1 else 2.1):
        await pool.close()
        server.fail(Faults(drop_at_secs=float(drop_at)))
        finals = await said()
        assert [words(one.text) for one in finals] == [words(one.text) for one in undisturbed]
        assert finals[0].result.path == "replayed", f"dropped at {drop_at} s"


async def test_a_slow_handshake_loses_nothing(server: DeepgramServer) -> None:
    server.fail(Faults(handshake_delay_secs=0.6))
    async with flux(server) as agent:
        final = await hear(agent, "medium-france")
    assert words(final.text) == words(UTTERANCES["medium-france"]["text"])
    assert final.result.path == "stream"
    assert final.result.setup_secs >= 0.6


async def test_the_next_turn_and_the_next_session_go_on_with_the_connection(
    server: DeepgramServer,
) -> None:
    async with flux(server) as agent:
        first = await hear(agent, "short-joke")
        second = await hear(agent, "medium-france")
    assert len(pool) == 1
    async with flux(server) as agent:
        third = await hear(agent, "short-joke")
    assert len(streams(server)) == 1
    assert words(second.text) == words(UTTERANCES["medium-france"]["text"])
    assert words(first.text) == words(third.text) == words(UTTERANCES["short-joke"]["text"])
    assert second.result.path == third.result.path == "stream"


async def test_a_tone_gives_one_empty_transcript_and_no_partials(server: DeepgramServer) -> None:
    async with flux(server) as agent:
        await agent.say(*frames(np.concatenate((TONE, np.zeros(RATE, np.int16))), (0.1, 1.8)))
        final, partials = await agent.final()
    assert (final.text, final.result.path) == ("", "stream")
    assert partials == []


async def test_a_bad_key_stops_at_once_and_is_never_logged(log: list[str]) -> None:
    async with DeepgramServer(key="another") as server:
        async with flux(server) as agent:
            error = await agent.error()
            final = await hear(agent, "short-joke")
        assert error.error == "Deepgram refused the request (401): Invalid credentials."
        assert not error.processor.is_usable
        assert (final.text, final.result.path) == ("", "none")
        assert len(server.served) == 1
    assert not any(KEY in line for line in log)


async def test_without_a_stream_the_segment_goes_to_the_prerecorded_api(
    server: DeepgramServer,
) -> None:
    server.fail(Faults(status=503), times=1000)
    async with flux(server, retry_min_secs=0.01) as agent:
        final = await hear(agent, "short-joke")
    assert final.result.path == "rest"
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])
    rest = next(served for served in server.served if served.on == "rest")
    assert rest.query == {"model": ["nova-3"], "language": ["en"], "punctuate": ["true"]}


async def test_a_connection_that_falls_silent_is_replaced(server: DeepgramServer) -> None:
    server.fail(Faults(stall_after_secs=0.5))
    async with flux(server, stall_secs=1.0) as agent:
        for frame in turn("short-joke"):
            await agent.say(frame)
            await asyncio.sleep(0.02)  # that nothing comes back is told by time that passes
        final, _ = await agent.final()
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])
    assert final.result.path == "replayed"


async def test_a_connection_that_closes_instead_of_ending_the_turn_is_replaced(
    server: DeepgramServer,
) -> None:
    server.fail(Faults(close_before_answer=True))
    async with flux(server) as agent:
        final = await hear(agent, "short-joke")
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])
    assert final.result.path == "replayed"


@pytest.mark.parametrize("greeting", ["hello", "[]", '{"type": "Welcome"}', '{"type": "Error"}'])
async def test_a_greeting_that_is_none_is_not_the_end_of_the_stream(
    server: DeepgramServer, greeting: str
) -> None:
    server.fail(Faults(greeting=greeting))
    async with flux(server) as agent:
        final = await hear(agent, "short-joke")
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])
    assert final.result.path == "stream"
    assert len(streams(server)) == 2


@pytest.mark.parametrize(
    "instead",
    [
        '{"type": "TurnInfo", "event": "Update"}',
        '{"type": "TurnInfo", "event": "EndOfTurn", "audio_window_start": 0,'
        ' "audio_window_end": 1, "transcript": null, "words": []}',
        "hello",
    ],
)
async def test_a_server_that_is_not_understood_is_left_alone_after_a_few_attempts(
    server: DeepgramServer, instead: str
) -> None:
    server.fail(Faults(instead=instead), times=1000)
    async with flux(server, retry_min_secs=0.05) as agent:
        final = await hear(agent, "short-joke")
        assert len(streams(server)) <= 5
    assert final.result.path == "rest"
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])


async def test_partials_say_how_far_they_lag_behind_what_was_heard(server: DeepgramServer) -> None:
    server.fail(Faults(slow_secs=0.1))
    async with flux(server) as agent:

        async def speak() -> None:
            for frame in turn("medium-france"):
                await agent.say(frame)
                await asyncio.sleep(0.02)  # the server skips what has been overtaken

        speaking = asyncio.create_task(speak())
        passed = started_at = 0.0
        async with asyncio.timeout(60):
            while not isinstance(frame := await agent.down.get(), ProgressiveTranscriptionFrame):
                if isinstance(frame, InputAudioRawFrame):
                    passed += frame.num_frames / RATE
                elif isinstance(frame, VADUserStartedSpeakingFrame):
                    started_at = passed
        speaking.cancel()
    covered = max(0.0, started_at - 0.5) + frame.audio_secs
    assert frame.behind_secs >= 0.1
    assert frame.behind_secs == pytest.approx(passed - covered, abs=0.05)


@pytest.mark.parametrize(
    ("options", "language", "spoken"),
    [
        ({}, "en", Language.EN),
        ({"model": "flux-general-multi"}, "multi", None),
        ({"model": "flux-general-multi", "languages": ("de",)}, "de", Language.DE),
        ({"model": "flux-general-multi", "languages": ("de", "en")}, "multi", None),
    ],
)
def test_the_prerecorded_api_is_asked_for_the_languages_that_are_expected(
    options: dict[str, Any], language: str, spoken: Language | None
) -> None:
    settings = FluxSettings(api_key=SecretStr(KEY), **options)
    assert settings.prerecorded(RATE).query()["language"] == language
    assert settings.spoken_language == spoken


def test_the_local_fallback_is_refused_where_it_would_hear_english_only() -> None:
    for options in ({}, {"languages": ("de",)}, {"languages": ("en", "de")}):
        with pytest.raises(ValidationError, match="knows English only"):
            FluxSettings(model="flux-general-multi", fallback=("rest", "local"), **options)
    assert FluxSettings(fallback=("rest", "local")).local_understands


async def test_the_end_of_the_session_is_silence_to_flux(server: DeepgramServer) -> None:
    spoken = turn("short-joke")
    stops = [isinstance(frame, VADUserStoppedSpeakingFrame) for frame in spoken]
    async with flux(server) as agent:
        await agent.say(*spoken[: stops.index(True) + 1], EndFrame())
        final, _ = await agent.final()
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])


async def test_a_session_that_stops_mid_turn_leaves_no_task_and_no_socket(
    server: DeepgramServer,
) -> None:
    before = asyncio.all_tasks()
    async with flux(server) as agent:
        await agent.say(*turn("short-joke")[:40])
        await server.until(lambda: any(served.audio_secs for served in server.served))
    await server.until(lambda: not any(served.open for served in streams(server)))
    assert len(pool) == 0
    left = {task for task in asyncio.all_tasks() - before if "RequestHandler" not in repr(task)}
    assert left == set()


def test_an_eager_threshold_above_the_other_is_no_setting() -> None:
    with pytest.raises(ValidationError, match="must not be above"):
        FluxSettings(eager_eot_threshold=0.8, eot_threshold=0.7)


# -- a conversation


@pytest.fixture
def world(server: DeepgramServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    stt = {"api_key": KEY, "base_url": server.url, "eager_eot_threshold": 0.4}
    world = World(
        vad={},
        stt={**stt, "eot_threshold": 1.0, "eot_timeout_ms": 1500, "stall_secs": 30.0},
        trigger={"threshold": 0.5, "min_silence_secs": 0.0},
        turn={"smart_turn": False, "final_timeout_secs": 60.0},
    )
    monkeypatch.setattr(hub, "shared", world.hub)
    yield world


async def converse(world: World, *utterances: str, pause_secs: float = 0.0) -> None:
    """Speak in real time, then be silent until the turn has ended and something was heard."""
    audio, _ = speech(*utterances, pause_secs=pause_secs)

    async def script() -> None:
        for at in range(0, len(audio), 320):
            await world.send(InputAudioRawFrame(audio[at : at + 320].tobytes(), RATE, 1))
            await asyncio.sleep(0.02)
        async with asyncio.timeout(30):
            while not world.heard:
                await world.send(InputAudioRawFrame(bytes(640), RATE, 1))
                await asyncio.sleep(0.02)

    await world.run(script)


async def test_the_answer_begins_at_the_eager_end_of_turn_and_is_heard_after_its_end(
    world: World,
) -> None:
    await converse(world, "medium-france")
    (fired_at, fired), (ended_at, ended) = world.of(SpeculationFiredFrame, SpeculationEndedFrame)
    (final_at, final), *_ = world.of(TranscriptionFrame)
    assert words(fired.text) == words(UTTERANCES["medium-france"]["text"])
    assert fired_at < final_at <= ended_at
    assert ended.committed
    assert [request.attempt for request in world.llm.requests] == [1]
    assert world.heard[0].at_s >= final_at
    assert words(world.messages[0]["content"]) == words(final.text)


async def test_a_turn_that_is_resumed_withdraws_the_answer_to_its_beginning(world: World) -> None:
    await converse(world, "short-joke", "medium-france", pause_secs=0.7)
    said = [words(UTTERANCES[name]["text"]) for name in ("short-joke", "medium-france")]
    fired = [frame for _, frame in world.of(SpeculationFiredFrame)]
    ended = [frame for _, frame in world.of(SpeculationEndedFrame)]
    assert [words(frame.text) for frame in fired] == [said[0], said[0] + said[1]]
    assert [(frame.committed, frame.reason) for frame in ended] == [
        (False, Reason.RESUMED),
        (True, Reason.SAME_WORDS),
    ]
    assert [heard.reply for heard in world.heard] == [2]
    assert words(world.messages[0]["content"]) == said[0] + said[1]


async def test_a_turn_waits_for_the_words_of_the_fallback(
    server: DeepgramServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flux says nothing: its patience and the fallback take longer than the turn's own."""
    server.fail(Faults(stall_after_secs=0.0), times=1000)
    server.fail(Faults(on="rest", slow_secs=3.0))
    stt = {"api_key": KEY, "base_url": server.url, "stall_secs": 30.0, "rest_timeout_secs": 60.0}
    world = World(vad={}, stt=stt, turn={"smart_turn": False})  # as in flux-claude
    monkeypatch.setattr(hub, "shared", world.hub)
    await converse(world, "short-joke")
    (question,) = (request.question for request in world.llm.requests)
    assert words(question) == words(UTTERANCES["short-joke"]["text"])
    assert len(world.of(UserStoppedSpeakingFrame)) == 1


# -- the server


def where(server: DeepgramServer, **options: Any) -> Destination:
    return FluxSettings(api_key=SecretStr(KEY), base_url=server.url, **options).destination(RATE)


async def test_the_server_tells_what_flux_tells(server: DeepgramServer) -> None:
    """Every message is what the SDK's own types demand, in the order of the state machine."""
    audio, _ = speech("short-joke", "medium-france", pause_secs=0.0)
    link = await Link.open(where(server, eager_eot_threshold=0.35, eot_threshold=0.9), 5.0)
    for at in range(0, len(audio), 4000):
        await link.send(audio[at : at + 4000].tobytes(), 0.25)
        await asyncio.sleep(0.02)
    turns: list[ListenV2TurnInfo] = []
    async with asyncio.timeout(60):
        async for message in link._connection:  # as the SDK reads it
            turns.append(ListenV2TurnInfo.model_validate(message.model_dump(), strict=True))
            if turns[-1].event == "EndOfTurn":
                break
    await link.close()
    assert [turn.sequence_id for turn in turns] == list(range(1, len(turns) + 1))
    events = [turn.event for turn in turns if turn.event != "Update"]
    assert events == ["StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EagerEndOfTurn", "EndOfTurn"]
    begun = next(n for n, turn in enumerate(turns) if turn.event == "StartOfTurn")
    assert all(bool(turn.transcript) == (n >= begun) for n, turn in enumerate(turns))
    last = turns[-1]
    eager = next(turn for turn in reversed(turns) if turn.event == "EagerEndOfTurn")
    assert last.transcript == eager.transcript == " ".join(word.word for word in last.words)
    assert 0.35 <= eager.end_of_turn_confidence < 0.9 <= last.end_of_turn_confidence
    assert (last.trigger, eager.trigger, last.turn_index) == ("model", None, 0)
    times = [(word.start, word.end) for word in last.words]
    assert all(
        last.audio_window_start <= start < end <= last.audio_window_end for start, end in times
    )


async def test_thresholds_can_be_changed_and_a_turn_can_be_ended_by_hand(
    server: DeepgramServer,
) -> None:
    link = await Link.open(where(server, eot_threshold=1.0, eager_eot_threshold=None), 5.0)
    client: Any = link._connection
    said = aiter(client)
    configure = {"type": "Configure", "thresholds": {"eot_timeout_ms": 9000}, "keyterms": ["joke"]}
    await client.send_configure(configure)
    accepted = await anext(said)
    assert isinstance(accepted, ListenV2ConfigureSuccess)
    assert accepted.thresholds.eot_timeout_ms == 9000
    assert accepted.keyterms == ["joke"]
    await client.send_configure({"type": "Configure", "thresholds": {"eot_threshold": 2.0}})
    assert isinstance(await anext(said), ListenV2ConfigureFailure)
    audio, _ = speech("short-joke", pause_secs=0.0)
    await link.send(audio.tobytes(), len(audio) / RATE)
    await client.send_force_end_turn()
    async with asyncio.timeout(60):
        while (turn := await anext(said)).event != "EndOfTurn":
            pass
    assert turn.trigger == "manual"
    assert words(turn.transcript) == words(UTTERANCES["short-joke"]["text"])
    await client._send({"type": "KeepAlive"})
    while not isinstance(message := await anext(said), ListenV2FatalError):
        pass
    assert message.code == "UNPARSABLE_CLIENT_MESSAGE"
    await link.close()


async def test_what_is_no_flux_stream_is_refused_with_the_reason(server: DeepgramServer) -> None:
    with pytest.raises(RefusedError, match=r"\(400\): model must be a Flux model"):
        await Link.open(where(server, model="nova-3"), 5.0)
    with pytest.raises(RefusedError, match=r"\(400\): eot_timeout_ms must be between 500 and"):
        await Link.open(where(server, extra={"eot_timeout_ms": 1}), 5.0)
