"""Deepgram: the real SDK over a real socket, against a server that hears with real Whisper."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import words
from deepgram_session import (
    KEY,
    RATE,
    SPEECH,
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
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    MetricsFrame,
    STTUpdateSettingsFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.metrics.metrics import STTUsageMetricsData, TTFBMetricsData
from pipecat.services.settings import STTSettings
from pydantic import SecretStr, ValidationError

from headstart.bench.drops import try_drops
from headstart.config.load import load_config
from headstart.errors import ConfigError, HeadstartError, UsageError
from headstart.frames import ProgressiveTranscriptionFrame
from headstart.processors.stt.deepgram import DeepgramSTT
from headstart.processors.stt.deepgram_settings import DeepgramSettings
from headstart.processors.stt.streaming.fallback import Local, Prerecorded
from headstart.processors.stt.streaming.link import (
    Destination,
    Link,
    LinkLostError,
    LinkPool,
    options,
    pool,
)
from headstart.processors.stt.streaming.replay import ReplayRing
from headstart.processors.stt.streaming.segments import Heard, Segments
from headstart.testing.deepgram import DeepgramServer, Faults

pytestmark = pytest.mark.models

__all__ = ["log", "server"]  # fixtures

# -- the ring


class Replay(RuleBasedStateMachine):
    """Any drops, chunk sizes and final results, against a plain list of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = ReplayRing(RATE, 60.0)
        self.pushed = 0
        self.final = 0
        self.sent: list[int] = []  # on this connection, by sample number
        self.origin = 0.0
        self.connected = False

    @rule(samples=st.integers(0, 9000))
    def speak(self, samples: int) -> None:
        # A sample's value tells its number, modulo what 16 bits hold.
        numbers = np.arange(self.pushed, self.pushed + samples) % 30011
        self.ring.push(numbers.astype(np.int16).tobytes())
        self.pushed += samples

    @rule(origin=st.integers(0, 5 * RATE))
    def drop_and_reconnect(self, origin: int) -> None:
        self.origin = origin / RATE
        self.ring.connect(self.origin)
        self.sent = []
        self.replay_from = self.final
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule(samples=st.integers(1, 8000))
    def send(self, samples: int) -> None:
        self.sent += np.frombuffer(self.ring.take(samples / RATE), np.int16).tolist()

    @precondition(lambda self: self.connected)
    @rule(share=st.floats(0, 1))
    def a_final_result_comes(self, share: float) -> None:
        until = self.replay_from + int(share * len(self.sent))
        self.final = max(self.final, until)
        self.ring.finalise(until / RATE)

    @invariant()
    def every_sample_after_the_last_final_word_is_sent_once_and_in_order(self) -> None:
        if self.connected:
            first = self.replay_from
            numbers = np.arange(first, first + len(self.sent)) % 30011
            assert self.sent == numbers.tolist()
            unsent = self.pushed - first - len(self.sent)
            assert self.ring.unsent_secs() == pytest.approx(unsent / RATE)

    @invariant()
    def nothing_unfinal_is_given_up(self) -> None:
        assert self.ring.start_secs == pytest.approx(self.final / RATE)
        assert self.ring.end_secs == pytest.approx(self.pushed / RATE)
        assert self.ring.lost_secs == 0

    @precondition(lambda self: self.connected and self.sent)
    @rule(share=st.floats(0, 1))
    def provider_times_map_to_the_stream(self, share: float) -> None:
        sample = int(share * len(self.sent))
        at = self.ring.stream_secs(self.origin + sample / RATE)
        assert at == pytest.approx((self.replay_from + sample) / RATE)


TestReplay = Replay.TestCase
TestReplay.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(sent=st.integers(0, 200), skipped=st.integers(1, 150))
def test_times_stay_right_when_audio_is_given_up_unsent(sent: int, skipped: int) -> None:
    ring = ReplayRing(100, 4.0)
    ring.connect()
    ring.push(bytes(2 * 400))
    ring.take(sent / 100)
    ring.finalise((sent + skipped) / 100)
    ring.take(1.0)
    assert ring.stream_secs(sent / 100 + 0.5) == pytest.approx((sent + skipped) / 100 + 0.5)


def test_a_full_ring_gives_up_the_oldest_audio_and_says_so() -> None:
    ring = ReplayRing(100, 1.0)
    ring.push(bytes(2 * 130))
    assert (ring.start_secs, ring.end_secs, ring.lost_secs) == (0.3, 1.3, 0.3)


# -- segments


def test_a_late_answer_to_an_earlier_finalize_does_not_end_the_segment() -> None:
    segments = Segments()
    first = segments.begin(0.0)
    first.end_secs = 1.0
    first.close("rest")
    segments.settle(first)
    second = segments.begin(1.0)
    second.end_secs = 2.0
    assert segments.hear(heard("late", 0.0, 1.0, final=True, finalize=True)) == []
    assert segments.hear(heard("mine", 1.0, 2.0, final=True, finalize=True)) == [second]
    assert second.closed
    assert second.hypothesis.text == "mine"


def test_a_result_that_spans_two_segments_is_divided_by_its_words() -> None:
    segments = Segments()
    first = segments.begin(0.0)
    first.end_secs = 1.0
    second = segments.begin(1.0)
    segments.hear(heard("one two three four", 0.0, 2.0, final=False))
    assert first.hypothesis.text == "one two"
    assert second.hypothesis.text == ""


def test_a_segment_is_over_when_the_provider_goes_on_without_answering_finalize() -> None:
    segments = Segments()
    first = segments.begin(0.0)
    segments.hear(heard("hello", 0.0, 0.8, final=True))
    first.end_secs = 1.0
    second = segments.begin(1.0)
    assert segments.hear(heard("again", 1.0, 1.5, final=False)) == [first, second]
    assert first.closed
    assert first.hypothesis.text == "hello"


def test_words_are_stable_once_two_results_agree_on_them() -> None:
    segments = Segments()
    segment = segments.begin(0.0)
    segments.hear(heard("What is it?", 0.0, 0.5, final=False))
    assert segment.stable_text == ""
    segments.hear(heard("What is the cap", 0.0, 1.0, final=False))
    assert segment.stable_text == "What is"
    segments.hear(heard("What is the capital?", 0.0, 1.5, final=True))
    assert segment.stable_text == "What is the capital?"


def test_confidence_is_none_when_the_provider_gives_none() -> None:
    segments = Segments()
    segment = segments.begin(0.0)
    segments.hear(Heard("hello", (), 0.0, 0.0, 1.0, is_final=False, from_finalize=False))
    assert segment.hypothesis.text == "hello"
    assert segment.hypothesis.confidence is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_drops_every_word_comes_exactly_once(data: st.DataObject) -> None:
    def slips() -> Iterator[float]:
        while True:
            yield data.draw(st.floats(-0.05, 0.05))

    ring, segments = ReplayRing(100, 60.0), Segments()
    provider = Provider(ring, slips())
    halves = 0
    spoken = []
    for _ in range(data.draw(st.integers(1, 4))):
        segment = segments.begin(ring.end_secs)
        spoken.append(segment)
        for _ in range(data.draw(st.integers(1, 6))):
            # Of each half second, a word takes the samples whose values end in 5 to 9.
            numbers = [10 * halves + at // 5 for at in range(50)]
            ring.push(np.array(numbers, np.int16).tobytes())
            halves += 1
            provider.hear()
            match data.draw(st.sampled_from(["nothing", "interim", "final", "drop"])):
                case "interim":
                    segments.hear(provider.result(final=False))
                case "final":
                    segments.hear(provider.result(final=True))
                    ring.finalise(segments.final_until_secs)
                case "drop":
                    provider = Provider(ring, slips())
                    provider.hear()
        segment.end_secs = ring.end_secs
        segments.hear(provider.result(final=True, finalize=True))
        ring.finalise(segments.final_until_secs)
    said = " ".join(segment.hypothesis.text for segment in spoken)
    assert all(segment.closed for segment in spoken)
    assert said.split() == [f"w{number}" for number in range(halves)]


# -- a session


def turn(utterance: str) -> list[Frame]:
    row = UTTERANCES[utterance]
    return list(frames(samples(utterance), (row["speech_start_s"], row["speech_end_s"])))


def session(server: DeepgramServer, **options: object) -> AbstractAsyncContextManager[Session]:
    return session_with(server, DeepgramSTT, DeepgramSettings, **options)


async def hear(agent: Session, utterance: str) -> TranscriptionFrame:
    await agent.say(*turn(utterance))
    return (await agent.final())[0]


async def test_speech_gives_partials_with_confidence_and_one_final_transcript(
    server: DeepgramServer,
) -> None:
    async with session(server) as agent:
        spoken = turn("medium-france")
        await agent.say(*spoken[:75])
        partials = [await agent.partial()]
        await agent.say(*spoken[75:100])  # half a second more, after which there is an answer
        partials.append(await agent.partial())
        await agent.say(*spoken[100:])
        final, more = await agent.final()
        partials += more
        assert words(final.text) == words(UTTERANCES["medium-france"]["text"])
        assert final.result.path == "stream"
        assert final.result.setup_secs > 0
        assert 0.5 < final.result.confidence <= 1
        assert all(0 < partial.confidence <= 1 for partial in partials)
        assert [p.audio_secs for p in partials] == sorted(p.audio_secs for p in partials)


async def test_partials_say_how_far_they_lag_behind_what_was_heard(server: DeepgramServer) -> None:
    """The first half second of the segment is answered; more has passed by then."""
    server.fail(Faults(slow_secs=0.2))
    async with session(server) as agent:
        await agent.say(*turn("medium-france")[:75])
        passed = stopped_at = 0.0
        async with asyncio.timeout(60):
            while not isinstance(frame := await agent.down.get(), ProgressiveTranscriptionFrame):
                if isinstance(frame, InputAudioRawFrame):
                    passed += frame.num_frames / RATE
                elif isinstance(frame, VADUserStartedSpeakingFrame):
                    stopped_at = passed
        segment_start = max(0.0, stopped_at - 0.5)
        assert 0 < frame.audio_secs < passed - segment_start
        covered = segment_start + frame.audio_secs
        assert frame.behind_secs == pytest.approx(passed - covered, abs=0.03)


async def test_only_speech_is_sent_and_billed(server: DeepgramServer) -> None:
    row = UTTERANCES["short-joke"]
    speech_secs = row["speech_end_s"] - row["speech_start_s"]
    silence = [InputAudioRawFrame(bytes(640), RATE, 1)] * 500
    async with session(server) as agent:
        await agent.say(*silence, *turn("short-joke"), *silence)
        await agent.final()
        sent_secs = streams(server)[0].audio_secs
        # The pre-roll reaches 500 ms back from the VAD's start, the end is the VAD's stop.
        assert sent_secs == pytest.approx(speech_secs + 0.5, abs=0.05)


async def test_usage_and_the_time_to_the_final_text_are_reported(server: DeepgramServer) -> None:
    async with session(server) as agent:
        await agent.say(*turn("short-joke"))
        figures: list[object] = []
        async with asyncio.timeout(60):
            while {type(figure) for figure in figures} < {TTFBMetricsData, STTUsageMetricsData}:
                frame = await agent.down.get()
                if isinstance(frame, MetricsFrame):
                    figures += [data for data in frame.data if getattr(data, "value", 1)]
    usage = next(data for data in figures if isinstance(data, STTUsageMetricsData))
    assert usage.value.audio_seconds == pytest.approx(streams(server)[0].audio_secs, abs=0.001)


@pytest.mark.parametrize("utterance", ["short-joke", "pause-moon"])
async def test_a_drop_anywhere_neither_loses_nor_doubles_a_word(
    server: DeepgramServer, utterance: str
) -> None:
    row = UTTERANCES[utterance]
    async with session(server) as agent:
        undisturbed = await hear(agent, utterance)
    assert words(undisturbed.text)
    for drop_at in np.arange(0.5, row["speech_end_s"] - row["speech_start_s"] + 0.5, 0.5):
        await pool.close()
        server.fail(Faults(drop_at_secs=float(drop_at)))
        async with session(server) as agent:
            final = await hear(agent, utterance)
        assert words(final.text) == words(undisturbed.text), f"dropped at {drop_at} s"
        assert final.result.path == "replayed"
        assert final.result.connections == 2


async def test_the_command_that_tries_drops_hears_what_a_user_would() -> None:
    outcomes = [outcome async for outcome in try_drops(SPEECH, only=["short-joke"])]
    assert [(one.fault, one.paths) for one in outcomes] == [
        ("handshake 0.6 s", ("stream",)),
        ("drop at 0.5 s", ("replayed",)),
        ("drop at 1 s", ("replayed",)),
    ]
    assert not any(one.differs for one in outcomes)
    assert words(outcomes[0].text) == words(UTTERANCES["short-joke"]["text"])


async def test_only_the_segment_that_a_drop_hits_is_sent_again(server: DeepgramServer) -> None:
    row = UTTERANCES["short-joke"]
    first_secs = row["speech_end_s"] - row["speech_start_s"] + 0.5
    server.fail(Faults(drop_at_secs=first_secs + 1.0))
    async with session(server) as agent:
        first = await hear(agent, "short-joke")
        second = await hear(agent, "medium-france")
    assert (first.result.path, first.result.connections) == ("stream", 1)
    assert (second.result.path, second.result.connections) == ("replayed", 2)
    assert words(second.text) == words(UTTERANCES["medium-france"]["text"])
    assert streams(server)[1].audio_secs < streams(server)[0].audio_secs + 1.0


async def test_a_slow_handshake_loses_nothing(server: DeepgramServer) -> None:
    server.fail(Faults(handshake_delay_secs=0.6))
    async with session(server) as agent:
        final = await hear(agent, "medium-france")
    assert words(final.text) == words(UTTERANCES["medium-france"]["text"])
    assert final.result.path == "stream"
    assert final.result.setup_secs >= 0.6


async def test_two_segments_in_quick_succession_each_get_their_own_words(
    server: DeepgramServer,
) -> None:
    (pause,) = UTTERANCES["pause-moon"]["pauses_s"]
    row = UTTERANCES["pause-moon"]
    server.fail(Faults(drop_at_secs=1.0))
    async with session(server) as agent:
        await agent.say(
            *frames(
                samples("pause-moon"),
                (row["speech_start_s"], pause[0]),
                (pause[1], row["speech_end_s"]),
            )
        )
        first, _ = await agent.final()
        second, _ = await agent.final()
    assert "could you tell me" in first.text.lower()
    assert "moon" not in first.text
    assert words(second.text) == words("how far away the moon is")


async def test_a_bad_key_stops_at_once_and_is_never_logged(log: list[str]) -> None:
    async with DeepgramServer(key="another") as server:
        async with session(server) as agent:
            error = await agent.error()
            final = await hear(agent, "short-joke")
        assert error.error == "Deepgram refused the request (401): Invalid credentials."
        assert not error.processor.is_usable
        assert (final.text, final.result.path) == ("", "none")
        assert len(server.served) == 1
    assert not any(KEY in line for line in log)


async def test_a_bad_option_is_refused_with_its_reason(server: DeepgramServer) -> None:
    async with session(server, extra={"encoding": "opus"}) as agent:
        error = await agent.error()
    assert "(400)" in error.error
    assert "opus" in error.error
    assert "\n" not in error.error


async def test_too_many_requests_is_tried_again(server: DeepgramServer) -> None:
    server.fail(Faults(status=429), times=2)
    async with session(server, retry_min_secs=0.01) as agent:
        final = await hear(agent, "short-joke")
    assert final.result.path == "stream"
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])


async def test_without_a_stream_the_segment_goes_to_the_prerecorded_api(
    server: DeepgramServer,
) -> None:
    server.fail(Faults(status=503), times=1000)
    async with session(server, retry_min_secs=0.01, final_timeout_secs=0.1) as agent:
        final = await hear(agent, "short-joke")
        assert final.result.path == "rest"
        assert words(final.text) == words(UTTERANCES["short-joke"]["text"])
    rest = next(served for served in server.served if served.on == "rest")
    assert "interim_results" not in rest.query
    assert rest.query["model"] == ["nova-3"]


async def test_after_a_fallback_the_stream_is_tried_again(server: DeepgramServer) -> None:
    server.fail(Faults(status=503), times=1000)
    async with session(server, retry_min_secs=0.01, retry_max_secs=0.05) as agent:
        first = await hear(agent, "short-joke")
        server.heal()
        await server.until(lambda: any(served.open for served in streams(server)))
        second = await hear(agent, "short-joke")
    assert first.result.path == "rest"
    assert second.result.path == "stream"
    assert second.text == first.text


async def test_the_local_recogniser_is_the_last_resort(server: DeepgramServer) -> None:
    server.fail(Faults(refuse=True), times=1000)
    server.fail(Faults(on="rest", status=500), times=1000)
    async with session(
        server, fallback=("rest", "local"), retry_min_secs=0.01, final_timeout_secs=0.1
    ) as agent:
        final = await hear(agent, "short-joke")
    assert final.result.path == "local"
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])


@pytest.mark.parametrize(
    "faults",
    [Faults(half_open=True), Faults(stall_after_secs=0.5), Faults(close_before_answer=True)],
)
async def test_a_connection_that_goes_dead_is_replaced(
    server: DeepgramServer, faults: Faults
) -> None:
    server.fail(faults)
    async with session(server, final_timeout_secs=0.5, fallback=(), give_up_secs=30.0) as agent:
        final = await hear(agent, "short-joke")
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])
    assert final.result.path == "replayed"


async def test_a_tone_noise_and_silence_give_empty_transcripts_and_no_partials(
    server: DeepgramServer,
) -> None:
    noise = np.random.default_rng(2).normal(0, 500, 2 * RATE).astype(np.int16)
    async with session(server) as agent:
        for sound in (TONE, noise, np.zeros(2 * RATE, np.int16)):
            # As if the VAD had been fooled.
            await agent.say(*frames(sound, (0.1, 1.8)))
            final, partials = await agent.final()
            assert (final.text, final.result.path, partials) == ("", "stream", [])


async def test_an_unexpected_failure_ends_its_segment_only(
    server: DeepgramServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("no reason")

    server.fail(Faults(close_before_answer=True), times=2)
    monkeypatch.setattr(Prerecorded, "transcribe", fail)
    async with session(server, final_timeout_secs=0.1, give_up_secs=0.0) as agent:
        await agent.say(*turn("short-joke"))
        error = await agent.error()
        first, _ = await agent.final()
        server.heal()
        monkeypatch.undo()
        second = await hear(agent, "medium-france")
    assert "no reason" in error.error
    assert first.result.path == "none"
    assert words(second.text) == words(UTTERANCES["medium-france"]["text"])


async def test_a_stream_that_breaks_in_an_unforeseen_way_is_reported_and_begun_anew(
    server: DeepgramServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, calls = Link.send, iter(range(1_000_000))

    async def fail_once(link: Link, pcm: bytes, secs: float) -> None:
        if next(calls) == 1:
            raise ValueError("no reason")
        await send(link, pcm, secs)

    monkeypatch.setattr(Link, "send", fail_once)
    async with session(server) as agent:
        final = await hear(agent, "medium-france")
        error = await agent.error()
        await server.until(lambda: not streams(server)[0].open)
        listeners = [task for task in asyncio.all_tasks() if task.get_name().endswith("::listen")]
        assert len(listeners) == 1
    assert error.error == "background task 'stream' failed: no reason"
    assert words(final.text) == words(UTTERANCES["medium-france"]["text"])
    assert final.result.path == "replayed"


async def test_the_final_texts_still_come_after_one_could_not_be_pushed(
    server: DeepgramServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("no reason")

    async with session(server) as agent:
        monkeypatch.setattr(DeepgramSTT, "_push_final", fail)
        await agent.say(*turn("short-joke"))
        error = await agent.error()
        monkeypatch.undo()
        second = await hear(agent, "medium-france")
    assert error.error == "background task 'settle' failed: no reason"
    assert words(second.text) == words(UTTERANCES["medium-france"]["text"])


NULL = (
    '{"type": "Results", "start": 0, "duration": 1, "is_final": true, "from_finalize": true,'
    ' "channel": {"alternatives": [{"transcript": null, "confidence": 0.9, "words": []}]}}'
)
MALFORMED = [
    NULL,
    NULL.replace("null", '"yes"').replace('"start": 0', '"start": "soon"'),
    NULL.replace("null", '"yes"').replace('"start": 0', '"start": NaN'),
    NULL.replace("null", '"yes"').replace("[]", '"words"'),
    '{"type": "Results"}',
    '{"type": "Results", "channel": 7}',
    '["Results"]',
    '{"type": ["Results"]}',
    "hello",
]


@pytest.mark.parametrize("instead", MALFORMED)
async def test_a_server_that_is_not_understood_is_left_alone_after_a_few_attempts(
    server: DeepgramServer, instead: str
) -> None:
    row = UTTERANCES["short-joke"]
    secs = row["speech_end_s"] - row["speech_start_s"] + 0.5
    server.fail(Faults(instead=instead), times=1000)
    async with session(server, retry_min_secs=0.05) as agent:
        final = await hear(agent, "short-joke")
        tried = list(streams(server))
    assert final.result.path == "rest"
    assert words(final.text) == words(row["text"])
    assert 1 <= len(tried) <= 5
    assert sum(served.audio_secs for served in tried) <= 5 * (secs + 0.1)


async def test_a_segment_is_sent_five_times_at_most_however_long_it_grows(
    server: DeepgramServer,
) -> None:
    server.fail(Faults(instead=NULL), times=1000)
    spoken = turn("medium-france")
    async with session(server, retry_min_secs=0.001, retry_max_secs=0.001) as agent:
        await agent.say(*spoken[:75])
        async with asyncio.timeout(60):
            await server.until(
                lambda: len(streams(server)) == 5 and not any(s.open for s in streams(server))
            )
        await agent.say(*spoken[75:])
        final, _ = await agent.final()
        assert len(streams(server)) == 5
        server.heal()
        again = await hear(agent, "short-joke")
    assert final.result.path == "rest"
    assert words(final.text) == words(UTTERANCES["medium-france"]["text"])
    assert again.result.path == "stream"


def test_a_result_about_audio_that_was_never_sent_gives_up_no_audio() -> None:
    ring = ReplayRing(100, 60.0)
    ring.connect()
    ring.push(bytes(2 * 400))
    ring.take(1.0)
    segments = Segments()
    segments.begin(0.0)
    segments.hear(heard("hello", 0.0, ring.stream_secs(1e9), final=True))
    ring.finalise(segments.final_until_secs)
    assert ring.unsent_secs() == 3.0


async def test_an_answer_of_the_prerecorded_api_that_is_not_understood_is_none(
    server: DeepgramServer,
) -> None:
    answers = [
        "null",
        "7",
        "no json",
        "{}",
        '{"results": 7}',
        '{"results": {"channels": []}}',
        '{"results": {"channels": [{"alternatives": []}]}}',
        '{"results": {"channels": [{"alternatives": [{"transcript": null}]}]}}',
        '{"results": {"channels": [{"alternatives": [{"transcript": "a", "words": [7]}]}]}}',
    ]
    for answer in answers:
        server.fail(Faults(on="rest", instead=answer))
        with pytest.raises(HeadstartError):
            await Prerecorded(destination(server), 30.0).transcribe(bytes(2 * RATE), RATE)
    server.fail(Faults(refuse=True), times=1000)
    async with session(
        server, fallback=("rest", "local"), retry_min_secs=0.01, final_timeout_secs=0.1
    ) as agent:
        server.fail(Faults(on="rest", instead=answers[5]))
        final = await hear(agent, "short-joke")
    assert final.result.path == "local"
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])


async def test_whatever_one_fallback_raises_the_next_one_is_asked(
    server: DeepgramServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Prerecorded, "transcribe", fail)
    server.fail(Faults(refuse=True), times=1000)
    async with session(
        server, fallback=("rest", "local"), retry_min_secs=0.01, final_timeout_secs=0.1
    ) as agent:
        final = await hear(agent, "short-joke")
    assert final.result.path == "local"


async def test_words_that_nobody_recognised_are_an_error(server: DeepgramServer) -> None:
    server.fail(Faults(refuse=True), times=1000)
    server.fail(Faults(on="rest", status=500), times=1000)
    async with session(
        server, retry_min_secs=0.01, final_timeout_secs=0.1, give_up_secs=0.1
    ) as agent:
        await agent.say(*turn("short-joke"))
        error = await agent.error()
        final, _ = await agent.final()
    assert (final.text, final.result.path) == ("", "none")
    assert error.error.startswith("no final words from Deepgram's stream; rest: ")
    assert "500" in error.error
    assert error.processor.is_usable


# -- languages


@pytest.mark.parametrize("language", ["de", "multi", "pt-BR", "ende"])
def test_the_local_fallback_is_refused_where_it_would_hear_english_only(language: str) -> None:
    with pytest.raises(ValidationError, match="knows English only"):
        DeepgramSettings(language=language, fallback=("rest", "local"))
    assert DeepgramSettings(language=language).language == language


@pytest.mark.parametrize("language", ["en", "en-GB", "EN_us"])
def test_the_local_fallback_takes_any_english(language: str) -> None:
    assert DeepgramSettings(language=language, fallback=("local",)).local_understands


def test_a_language_cannot_be_hidden_among_the_other_parameters() -> None:
    with pytest.raises(ValidationError, match="extra must not hold 'language'"):
        DeepgramSettings(extra={"language": "de"}, fallback=("local",))


async def test_a_language_that_the_local_fallback_does_not_know_puts_it_out_of_use(
    server: DeepgramServer, log: list[str]
) -> None:
    server.fail(Faults(on="rest", status=500), times=1000)
    async with session(
        server,
        fallback=("rest", "local"),
        retry_min_secs=0.01,
        final_timeout_secs=0.1,
        give_up_secs=0.1,
    ) as agent:
        await agent.say(STTUpdateSettingsFrame(delta=STTSettings(language="de")))
        await server.until(lambda: any(s.query["language"] == ["de"] for s in streams(server)))
        await agent.say(STTUpdateSettingsFrame(delta=STTSettings(language="fr")))
        await server.until(lambda: any(s.query["language"] == ["fr"] for s in streams(server)))
        server.fail(Faults(close_before_answer=True), times=1000)
        await pool.close()
        foreign = await hear(agent, "short-joke")
        server.heal()
        server.fail(Faults(on="rest", status=500), times=1000)
        server.fail(Faults(refuse=True), times=1000)
        await agent.say(STTUpdateSettingsFrame(delta=STTSettings(language="en")))
        english = await hear(agent, "short-joke")
    assert foreign.result.path != "local"
    assert english.result.path == "local"
    assert sum("knows English only" in line for line in log) == 1


async def test_model_and_language_can_be_changed_while_the_session_runs(
    server: DeepgramServer,
) -> None:
    async with session(server) as agent:
        first = await hear(agent, "short-joke")
        change = STTUpdateSettingsFrame(delta=STTSettings(model="nova-2", language="en-GB"))
        await agent.say(change)
        second = await hear(agent, "medium-france")
    asked = [(s.query["model"], s.query["language"]) for s in streams(server)]
    assert asked == [(["nova-3"], ["en"]), (["nova-2"], ["en-GB"])]
    assert words(first.text) == words(UTTERANCES["short-joke"]["text"])
    assert words(second.text) == words(UTTERANCES["medium-france"]["text"])


async def test_a_segment_longer_than_the_local_recogniser_hears_at_once_is_not_cut_short() -> None:
    long = np.concatenate([samples(name) for name in UTTERANCES for _ in range(4)])
    assert len(long) > 30 * RATE
    said = [word for row in UTTERANCES.values() for _ in range(4) for word in words(row["text"])]
    heard = await (await Local.load()).transcribe(long.tobytes(), RATE)
    assert abs(len(words(heard.text)) - len(said)) < 0.1 * len(said)
    assert words(heard.text)[-3:-1] == said[-3:-1]


async def test_a_session_that_stops_mid_utterance_leaves_no_task_and_no_socket(
    server: DeepgramServer,
) -> None:
    before = asyncio.all_tasks()
    async with session(server) as agent:
        await agent.say(*turn("short-joke")[:40])
        await server.until(lambda: any(served.audio_secs for served in server.served))
    await server.until(lambda: not any(served.open for served in streams(server)))
    assert len(pool) == 0
    # The server, which is in this process too, keeps a task for each HTTP connection a while.
    left = {task for task in asyncio.all_tasks() - before if "RequestHandler" not in repr(task)}
    assert left == set()


async def test_a_warm_connection_is_passed_on_to_the_next_session(server: DeepgramServer) -> None:
    async with session(server) as agent:
        first = await hear(agent, "short-joke")
    assert len(pool) == 1
    async with session(server) as agent:
        second = await hear(agent, "medium-france")
    assert len(streams(server)) == 1
    assert words(first.text) == words(UTTERANCES["short-joke"]["text"])
    assert words(second.text) == words(UTTERANCES["medium-france"]["text"])


async def test_a_warm_connection_with_other_options_is_not_taken(server: DeepgramServer) -> None:
    async with session(server) as agent:
        await hear(agent, "short-joke")
    async with session(server, keyterms=("Headstart", "Kokoro")) as agent:
        await hear(agent, "short-joke")
    assert [served.query.get("keyterm") for served in streams(server)] == [
        None,
        ["Headstart", "Kokoro"],
    ]


async def test_a_pooled_connection_that_has_died_is_not_taken(server: DeepgramServer) -> None:
    async with session(server) as agent:
        await hear(agent, "short-joke")
    pool._idle[0].link.abort()
    async with session(server) as agent:
        final = await hear(agent, "short-joke")
    assert words(final.text) == words(UTTERANCES["short-joke"]["text"])
    assert len(streams(server)) == 2


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_take_leaves_no_socket_behind(server: DeepgramServer, steps: int) -> None:
    """Cancelled at every step: while the keeper stops, during the probe, just before the end."""
    pool = LinkPool()
    pool.give(await Link.open(destination(server), 5.0))
    await asyncio.sleep(0)
    taking = asyncio.create_task(pool.take(destination(server), 5.0))
    for _ in range(steps):
        await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    if not taking.cancelled():
        pool.give(taking.result())
    assert len(pool) == 1
    await pool.close()
    await server.until(lambda: not any(served.open for served in server.served))
    assert len(server.served) == 1


@pytest.mark.parametrize("steps", range(4))
async def test_a_cancelled_goodbye_leaves_no_socket_behind(
    server: DeepgramServer, steps: int
) -> None:
    server.fail(Faults(half_open=True))
    link = await Link.open(destination(server), 5.0)
    closing = asyncio.create_task(link.close())
    for _ in range(steps):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    if not steps:  # cancelled before it began
        link.abort()
    with pytest.raises(LinkLostError):
        await link.keep_alive()


async def test_a_connection_that_the_pool_gives_up_while_it_opens_is_lost_and_no_cancellation(
    server: DeepgramServer,
) -> None:
    server.fail(Faults(handshake_delay_secs=30.0))
    pool = LinkPool()
    taking = asyncio.create_task(pool.take(destination(server), 60.0))
    await server.until(lambda: bool(server.served))
    await pool.close()
    with pytest.raises(LinkLostError, match="given up while it opened"):
        await taking


async def test_closing_the_pool_waits_for_a_connection_that_is_just_being_closed(
    server: DeepgramServer,
) -> None:
    pool = LinkPool(idle_secs=0.0)
    pool.give(await Link.open(destination(server), 5.0))
    await asyncio.sleep(0)  # its time is up, and its goodbye takes a while
    assert len(pool) == 0
    await pool.close()
    assert "deepgram-idle" not in {task.get_name() for task in asyncio.all_tasks()}


def test_without_a_key_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
    monkeypatch.delenv("DEEPGRAM_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="DEEPGRAM_API_KEY is not set"):
        DeepgramSTT()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8090", "localhost:8090", "https://", "ftp://host", "ws://host:99999", "host"]
)
def test_a_base_url_that_is_none_is_refused_with_the_settings(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="must be like ws://host:port or https://host"):
        DeepgramSettings(base_url=url)
    monkeypatch.setenv("DEEPGRAM_BASE_URL", url)
    with pytest.raises(ValidationError, match="the environment's DEEPGRAM_BASE_URL must be like"):
        DeepgramSettings()
    assert DeepgramSettings(base_url="wss://host/path").base_url == "wss://host/path"


def test_check_refuses_a_base_url_without_a_scheme_and_does_not_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPGRAM_BASE_URL", "user:secret@host:8090")
    with pytest.raises(ConfigError, match="DEEPGRAM_BASE_URL must be like") as refused:
        load_config("deepgram-claude")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("WHERE", "user:secret@host:8090")
    monkeypatch.delenv("DEEPGRAM_BASE_URL")
    config = tmp_path / "ours.yaml"
    config.write_text("extends: deepgram-claude\noverride:\n  stt: {base_url: '${WHERE}'}\n")
    with pytest.raises(ConfigError, match="base_url: must be like") as refused:
        load_config(config)
    assert "secret" not in str(refused.value)


def test_every_option_of_the_api_can_be_given() -> None:
    given = DeepgramSettings(
        api_key=SecretStr(KEY),
        endpointing=False,
        extra={"redact": ("pci", "ssn"), "mip_opt_out": True, "utterance_end_ms": 1000},
    )
    query = given.destination(RATE).query()
    assert query["endpointing"] == "false"
    assert query["redact"] == ["pci", "ssn"]
    assert query["mip_opt_out"] == "true"
    assert query["utterance_end_ms"] == "1000"
    assert KEY not in repr(given)


# -- the server


def destination(server: DeepgramServer, **query: object) -> Destination:
    audio = {"encoding": "linear16", "sample_rate": RATE}
    return Destination(server.url, SecretStr(KEY), options({"model": "nova-3", **audio, **query}))


async def test_the_server_tells_what_deepgram_tells(server: DeepgramServer) -> None:
    link = await Link.open(
        destination(server, interim_results=True, vad_events=True, utterance_end_ms=1000), 5.0
    )
    audio = np.concatenate((samples("medium-france"), np.zeros(2 * RATE, np.int16)))
    await link.send(audio.tobytes(), len(audio) / RATE)
    await link._connection.send_close_stream()
    said = [message async for message in link._connection]  # as the SDK reads it
    await link.close()
    kinds = [message.type for message in said]
    assert kinds[0] == "SpeechStarted"
    assert kinds[-1] == "Metadata"
    assert "UtteranceEnd" in kinds
    finals = [message for message in said if message.type == "Results" and message.is_final]
    spans = [(message.start, message.start + message.duration) for message in finals]
    assert spans[0][0] == 0
    assert all(one[1] == pytest.approx(two[0]) for one, two in pairwise(spans))
    best = finals[0].channel.alternatives[0]
    assert finals[0].speech_final
    assert not finals[0].from_finalize
    # Without `punctuate` there is none, as in the real service.
    assert best.transcript == " ".join(words(UTTERANCES["medium-france"]["text"]))
    assert [word.word for word in best.words] == best.transcript.split()
    assert all(0 <= one.start < one.end <= spans[0][1] for one in best.words)


async def test_the_server_closes_a_connection_that_says_nothing() -> None:
    async with DeepgramServer(idle_timeout_secs=0.1) as server:
        link = await Link.open(destination(server), 5.0)
        with pytest.raises(LinkLostError, match="NET-0001"):
            async for _ in link.messages():
                pass
        await link.close()


async def test_the_server_answers_a_message_it_does_not_know(server: DeepgramServer) -> None:
    link = await Link.open(destination(server), 5.0)
    await link._connection._send({"type": "Sing"})
    message = await link._connection.recv()
    assert (message.type, message.variant) == ("Error", "SchemaError")
    await link.close()


async def test_the_prerecorded_api_says_what_the_stream_says(server: DeepgramServer) -> None:
    batch = Prerecorded(destination(server, punctuate=True), 30.0)
    part = await batch.transcribe(samples("medium-france").tobytes(), RATE)
    assert words(part.text) == words(UTTERANCES["medium-france"]["text"])
    assert part.text.endswith("?")
    assert 0.5 < part.confidence <= 1
