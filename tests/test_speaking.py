"""Kokoro speaks: the engine, the clause splitter, and the Pipecat service."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import soxr
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipecat.frames.frames import (
    AggregatedTextFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    TTSUpdateSettingsFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from headstart import assets
from headstart.engines.kokoro import SAMPLE_RATE, KokoroEngine, KokoroOptions
from headstart.engines.kokoro.backend import Abort, Rendering
from headstart.engines.kokoro.engine import VOICES
from headstart.engines.kokoro.text.phonemes import MAX_PHONEMES, Phonemizer
from headstart.engines.kokoro.voices import Voices
from headstart.engines.queue import Priority, Ticket
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.errors import EngineError, UsageError
from headstart.processors.tts import KokoroSettings, KokoroTTS
from headstart.processors.tts.settings import KokoroLiveSettings
from headstart.processors.tts.spoken import as_spoken
from headstart.text.clauses import MOST_CHARACTERS, ClauseSplitter

pytestmark = pytest.mark.models

SENTENCE = "The capital of France is Paris, and it is a very old town."

F = TypeVar("F", bound=Frame)


@pytest.fixture(scope="module")
def kokoro() -> Iterator[KokoroEngine]:
    engine = KokoroEngine.load(KokoroOptions(engine="onnx"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def whisper() -> Iterator[WhisperEngine]:
    engine = WhisperEngine.load(WhisperOptions())
    yield engine
    engine.close()


async def spoken(engine: KokoroEngine, text: str, **how: Any) -> NDArray[np.float32]:
    pieces = [piece async for piece in engine.speak(text, **how)]
    return np.concatenate([np.zeros(0, np.float32), *pieces])


async def heard(whisper: WhisperEngine, audio: NDArray[np.float32], rate: int = SAMPLE_RATE) -> str:
    """What a recogniser understands, without punctuation."""
    hypothesis = await whisper.transcribe(soxr.resample(audio, rate, 16_000).astype(np.float32))
    return "".join(c for c in hypothesis.text.lower() if c.isalnum() or c == " ").strip()


# Phonemes


def phonemes(text: str, voice: str = "af_heart") -> str:
    return " ".join(clause.phonemes for clause in Phonemizer().clauses(text, voice))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("It costs $3.50.", "It costs 3 dollars and 50 cents."),
        ("$3 million was paid.", "three million dollars was paid."),
        ("1,000 or 3.14", "one thousand or three point one four"),
        ("at 10:30, at 9:05, at 7:00", "at ten thirty, at nine oh five, at seven o'clock"),
        ("Dr. Smith & Mrs. Jones", "Doctor Smith and missus Jones"),
        ("bob@example.com", "bob at example dot com"),
        ("See https://example.com/a.", "See example dot com slash a."),
        ("-5°, 50% more", "minus five degrees, fifty percent more"),
        ("the U.S. navy", "the U S navy"),
        ("on 2024-05-01", "on May 1 2024"),
        ('<speak>Hi <break time="1s"/> there</speak>', "Hi there"),
        ("Tom &amp; Ann 😀", "Tom and Ann"),
    ],
)
def test_written_things_are_said_as_a_person_would(written: str, said: str) -> None:
    assert phonemes(written) == phonemes(said)


def test_punctuation_stays_because_it_shapes_the_melody() -> None:
    assert [c for c in phonemes("Well, no! Is it — (really) so; no?") if c in ",!—();?"] == list(
        ",!—();?"
    )


def test_american_and_british_voices_speak_differently() -> None:
    assert phonemes("The bath is near the car.") != phonemes(
        "The bath is near the car.", "bm_lewis"
    )


@pytest.mark.parametrize("text", ["word " * 1000, "a" * 5000, "one, two, " * 500, "Yes. " * 1000])
def test_long_text_comes_in_clauses_that_the_model_can_take(text: str) -> None:
    clauses = list(Phonemizer().clauses(text, "af_heart"))
    assert all(0 < len(clause.phonemes) <= MAX_PHONEMES for clause in clauses)
    assert [word.text for clause in clauses for word in clause.words] == text.split()


@given(st.text(max_size=80))
@example("\U00011136")  # a digit that espeak has no word for
def test_any_text_is_phonemised_or_refused_in_one_line(text: str) -> None:
    try:
        clauses = list(PHONEMIZER.clauses(text, "af_heart"))
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        for clause in clauses:
            for word in clause.words:
                assert 0 <= word.start <= word.end <= len(clause.phonemes)


PHONEMIZER = Phonemizer()


# The engine


async def test_what_is_spoken_is_understood(kokoro: KokoroEngine, whisper: WhisperEngine) -> None:
    audio = await spoken(kokoro, SENTENCE, voice="bm_george")
    assert await heard(whisper, audio) == "the capital of france is paris and it is a very old town"


async def test_speech_begins_at_once_and_ends_soon(kokoro: KokoroEngine) -> None:
    audio = await spoken(kokoro, "Sure.")
    loud = np.flatnonzero(np.abs(audio) > 0.05 * np.abs(audio).max())
    assert loud[0] < 0.12 * SAMPLE_RATE
    assert len(audio) - loud[-1] < 0.4 * SAMPLE_RATE
    assert abs(audio[0]) < 1e-3
    assert abs(audio[-1]) < 1e-3


async def test_words_are_timed_in_order_within_the_audio(kokoro: KokoroEngine) -> None:
    times, words, secs = [], [], 0.0
    async for piece in kokoro.speak_words(SENTENCE):
        times += [secs + word.start_secs for word in piece.words]
        words += [word.text for word in piece.words]
        secs += len(piece.samples) / SAMPLE_RATE
    assert words == SENTENCE.split()
    assert times == sorted(times)
    assert 0 <= times[0] < 0.2
    assert times[-1] < secs


async def test_a_long_sentence_is_heard_from_its_first_clause_on_unless_it_shall_stay_whole(
    kokoro: KokoroEngine,
) -> None:
    async def clauses(**how: Any) -> list[list[str]]:
        pieces = kokoro.speak_words(f'<speak rate="slow, or so">{SENTENCE}</speak>', **how)
        return [[word.text for word in piece.words] async for piece in pieces]

    words = SENTENCE.split()
    assert await clauses() == [words[:6], words[6:]]
    assert await clauses(cut=False) == [words]


async def test_a_faster_voice_takes_less_time(kokoro: KokoroEngine) -> None:
    assert len(await spoken(kokoro, "Yes, of course.", speed=1.5)) < 0.85 * len(
        await spoken(kokoro, "Yes, of course.")
    )


@pytest.mark.parametrize("text", ["", " \n", "...", "?!", "😀", "<break/>", "—", "*"])
async def test_nothing_to_say_is_silence_and_no_error(kokoro: KokoroEngine, text: str) -> None:
    assert len(await spoken(kokoro, text)) == 0


async def test_a_wrong_voice_gets_the_nearest_right_ones(kokoro: KokoroEngine) -> None:
    with pytest.raises(UsageError, match="'af_hart'; did you mean af_heart"):
        await spoken(kokoro, "Hello.", voice="af_hart")
    with pytest.raises(UsageError, match="speed is 9"):
        await spoken(kokoro, "Hello.", speed=9)


async def test_a_foreign_script_is_refused_with_the_reason(kokoro: KokoroEngine) -> None:
    with pytest.raises(UsageError, match="af_heart speaks American English and cannot read"):
        await spoken(kokoro, "Привет, мир")


async def test_single_foreign_words_are_left_out_wherever_the_text_is_cut(
    kokoro: KokoroEngine,
) -> None:
    pieces = kokoro.speak_words("Say it to him now:\nпривет\nand then go home.")
    assert [word.text async for piece in pieces for word in piece.words] == (
        "Say it to him now: and then go home.".split()
    )


async def test_leaving_early_frees_the_engine_for_the_next(kokoro: KokoroEngine) -> None:
    cancelled = kokoro.statistics().cancelled
    pieces = kokoro.speak("This goes on. " * 350)
    async for _ in pieces:
        break
    await pieces.aclose()
    assert len(await spoken(kokoro, "Next.")) > 0
    assert kokoro.statistics().cancelled > cancelled or kokoro.statistics().depth == 0


async def test_the_real_time_factor_counts_the_work_and_not_the_waiting() -> None:
    engine = KokoroEngine.load(KokoroOptions(engine="torch"))
    assert engine.statistics().real_time_factor is None
    begun = time.monotonic()
    waits, hurries = Ticket(), Ticket(due=begun)
    pieces = engine.speak(SENTENCE + " " + SENTENCE, ticket=waits)
    speech = [await anext(pieces)]
    waits.due = begun + 60  # so the other text is made between two pieces of this one
    speech.append(await spoken(engine, SENTENCE, ticket=hurries))
    speech.extend([piece async for piece in pieces])
    took = time.monotonic() - begun
    factor = engine.statistics().real_time_factor
    assert factor is not None
    assert 0.5 * took < factor * sum(map(len, speech)) / SAMPLE_RATE <= took
    engine.close()


async def test_committed_text_overtakes_speculative_text(kokoro: KokoroEngine) -> None:
    order: list[str] = []

    async def speak(name: str, text: str, priority: Priority) -> None:
        await spoken(kokoro, text, ticket=Ticket(priority))
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(speak("running", "Now.", Priority.SPECULATIVE))
        for number in range(3):
            group.create_task(speak(f"guess {number}", "Perhaps.", Priority.SPECULATIVE))
        await asyncio.sleep(0)  # they queue up in order
        group.create_task(speak("committed", "Surely.", Priority.COMMITTED))
    assert order.index("committed") <= 1
    assert order[2:] == ["guess 0", "guess 1", "guess 2"][-len(order[2:]) :]


async def test_a_cancelled_request_ends_at_the_next_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = KokoroEngine.load(KokoroOptions(engine="torch"))
    ticket, checks = Ticket(Priority.SPECULATIVE), 0

    class Watched(Abort):
        def check(self) -> None:
            nonlocal checks
            checks += 1
            if checks == 40:
                ticket.cancel()
            super().check()

    monkeypatch.setattr("headstart.engines.kokoro.engine.Abort", Watched)
    assert len(await spoken(engine, SENTENCE, ticket=ticket)) == 0
    assert checks <= 42  # the other thread may be in the middle of a layer or two
    assert engine.statistics().cancelled == 1
    monkeypatch.undo()
    assert len(await spoken(engine, "Next.")) > 0
    engine.close()


async def test_a_cancelled_request_does_not_wait_for_the_end_of_a_long_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = KokoroEngine.load(KokoroOptions(engine="onnx"))
    backend: Any = engine._backend
    session, ticket = backend._session, Ticket(Priority.SPECULATIVE)
    in_a_layer, layer_ends = threading.Event(), threading.Event()

    class LongLayer:
        def run(self, *args: object) -> object:
            in_a_layer.set()
            layer_ends.wait()
            return session.run(*args)

    monkeypatch.setattr(engine._backend, "_session", LongLayer())
    try:
        async with asyncio.timeout(30):
            speaking = asyncio.create_task(spoken(engine, SENTENCE, ticket=ticket))
            await asyncio.to_thread(in_a_layer.wait)
            ticket.cancel()
            assert len(await speaking) == 0
            monkeypatch.undo()
            assert len(await spoken(engine, "Next.")) > 0
    finally:
        layer_ends.set()
        engine.close()


async def test_a_hundred_requests_at_once_are_all_spoken(kokoro: KokoroEngine) -> None:
    tickets = [Ticket(Priority.SPECULATIVE) for _ in range(100)]
    rejected = kokoro.statistics().rejected
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(spoken(kokoro, "Perhaps.", ticket=ticket)) for ticket in tickets]
        await asyncio.sleep(0)  # all have queued up
        for ticket in tickets[3:]:
            ticket.cancel()
    assert [len(task.result()) > 0 for task in tasks[:3]] == [True] * 3
    assert kokoro.statistics().rejected == rejected


@pytest.mark.parametrize(
    ("voice", "text"),
    [("ef_dora", "Buenas tardes."), ("hf_alpha", "नमस्ते।"), ("pm_alex", "Boa tarde.")],
)
async def test_voices_of_other_languages_speak(kokoro: KokoroEngine, voice: str, text: str) -> None:
    assert np.abs(await spoken(kokoro, text, voice=voice)).max() > 0.05


@pytest.mark.parametrize(
    ("voice", "text", "package"), [("jf_alpha", "こんにちは", "ja"), ("zf_xiaobei", "你好", "zh")]
)
async def test_a_language_without_its_packages_says_what_to_install_before_it_shall_speak(
    kokoro: KokoroEngine, voice: str, text: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"misaki.{package}", None)
    for attempt in (kokoro.prepare(voice), spoken(kokoro, text, voice=voice)):
        with pytest.raises(EngineError, match=rf'pip install "misaki\[{package}\]"$') as caught:
            await attempt
        assert "\n" not in str(caught.value)


# Clauses


@pytest.mark.parametrize(
    ("reply", "clauses"),
    [
        ("Sure. I will do that now.", ["Sure.", "I will do that now."]),
        ("Well, I think so.", ["Well, I think so."]),
        ("I can help you with that, and I will.", ["I can help you with that,", "and I will."]),
        ("Dr. Smith came at 10:30 for $3.14.", ["Dr. Smith came at 10:30 for $3.14."]),
        ("It is 1,000 km. Go!", ["It is 1,000 km.", "Go!"]),
        ("No. I cannot.", ["No.", "I cannot."]),
        ("The U.S. won. J. R. Smith wept.", ["The U.S. won.", "J. R. Smith wept."]),
        ("Mail a.b@c.com or see https://d.e/f, then wait.",
         ["Mail a.b@c.com or see https://d.e/f,", "then wait."]),
        ("Hmm... let me see. Wait… What?", ["Hmm... let me see.", "Wait…", "What?"]),
        ('He said "yes." Then he left.', ['He said "yes."', "Then he left."]),
        ("Do this:\n1. Open it.\n2. Close it\n- item", ["Do this:", "1. Open it.", "2. Close it\n",
                                                    "- item"]),
        ("See:\n```py\nprint('no, never.')\n```\nDone.", ["See:\n", "Done."]),
        ("One two three four five because six seven.",
         ["One two three four five", "because six seven."]),
        ("你好。我很好。", ["你好。", "我很好。"]),
        ('Oh <prosody rate="slow, or so. Well">my dear</prosody>, so. Bye, a <b c, d',
         ['Oh <prosody rate="slow, or so. Well">my dear</prosody>,', "so.", "Bye, a <b c, d"]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_replies_are_cut_where_a_speaker_would_pause(reply: str, clauses: list[str]) -> None:
    splitter = ClauseSplitter()
    assert [c for piece in reply for c in splitter.push(piece)] + splitter.flush() == clauses


def test_text_without_punctuation_is_cut_between_words_that_may_part() -> None:
    splitter = ClauseSplitter()
    first = splitter.push("this reply has no comma at all in it yet the people keep on talking ")[0]
    assert 6 <= len(first.split()) <= 12
    assert first.split()[-1] not in {"the", "in", "at", "no"}


words = st.sampled_from(
    "yes no, and but well. Dr. 3.14 10:30 1,000 U.S. why? (so) — - \n * ** `x` e.g. I because "
    "x@y.z ... … : ; ! 你好。 # 1. **bold** _it_ cafe <b> </b> <a\u00a0b,\u00a0c> <i".split(" ")
)


@given(st.lists(words | st.text("ab .,\n", max_size=6), max_size=40), st.integers(1, 9))
def test_clauses_lose_no_word_and_do_not_depend_on_how_the_text_came(
    parts: list[str], size: int
) -> None:
    text = " ".join(parts)
    whole, dripped = ClauseSplitter(), ClauseSplitter()
    at_once = whole.push(text) + whole.flush()
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(" ".join(at_once).split()) == "".join(text.split())
    assert [c for piece in pieces for c in dripped.push(piece)] + dripped.flush() == at_once
    assert [c for clause in at_once for c in whole.cut(clause)] == at_once


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("**Bold** and _it_ and `code`.", "Bold and it and code."),
        ("**half a", "half a"),
        ("pair** of marks", "pair of marks"),
        ("- an item\n", "an item."),
        ("## A title\n", "A title."),
        ("2. Pour it.", "2, Pour it."),
        ("[a link](https://x.y/z) here", "a link here"),
        ("Done! 😀", "Done!"),
        ("2*3 is 6", "2*3 is 6"),
        ("---", ""),
        ("😀", ""),
    ],
)
async def test_markdown_and_emoji_are_not_read_out(written: str, said: str) -> None:
    assert await as_spoken(written, "sentence") == said


# The service


class Recorder(FrameProcessor):
    """The end of a pipeline: keeps what comes and tells when it has."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self._came = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        self._came.set()
        await self.push_frame(frame, direction)

    def all(self, kind: type[F]) -> list[F]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    async def wait_for(self, kind: type[Frame], count: int = 1) -> None:
        async with asyncio.timeout(60):
            while len(self.all(kind)) < count:
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def running(stage: KokoroTTS, rate: int = SAMPLE_RATE) -> AsyncIterator[tuple[Any, Recorder]]:
    """The stage in a pipeline of nothing else; ends it without losing what it still says."""
    before, after = Recorder(), Recorder()
    worker = PipelineWorker(
        Pipeline([before, stage, after]), params=PipelineParams(audio_out_sample_rate=rate)
    )
    started = asyncio.Event()

    async def on_started(worker: PipelineWorker, frame: Frame) -> None:
        started.set()

    async def on_error(worker: PipelineWorker, frame: Frame) -> None:
        after.frames.append(frame)

    worker.add_event_handler("on_pipeline_started", on_started)
    worker.add_event_handler("on_pipeline_error", on_error)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    task = asyncio.create_task(runner.run())
    await started.wait()
    yield worker, after
    await worker.queue_frame(EndFrame())
    await task


def reply(text: str) -> list[Frame]:
    tokens = [LLMTextFrame(text[i : i + 4]) for i in range(0, len(text), 4)]
    return [LLMFullResponseStartFrame(), *tokens, LLMFullResponseEndFrame()]


@pytest.mark.parametrize("rate", [24_000, 8_000])
async def test_a_reply_is_spoken_clause_by_clause_with_its_words(
    whisper: WhisperEngine, rate: int
) -> None:
    async with running(KokoroTTS(KokoroSettings(engine="onnx")), rate) as (worker, out):
        await worker.queue_frames(reply("**Sure.** It is a very old town."))
        await out.wait_for(LLMFullResponseEndFrame)
        assert len(out.all(TTSStartedFrame)) == len(out.all(TTSStoppedFrame)) == 1
        assert [f.text for f in out.all(TTSTextFrame)] == "Sure. It is a very old town.".split()
        times = [f.pts or 0 for f in out.all(TTSTextFrame)]
        assert times == sorted(times)
        kinds = [type(f) for f in out.frames]
        assert kinds.index(TTSStartedFrame) < kinds.index(TTSAudioRawFrame)
        assert kinds.index(TTSAudioRawFrame) < kinds.index(TTSStoppedFrame)
        assert {f.sample_rate for f in out.all(TTSAudioRawFrame)} == {rate}
        pcm = np.frombuffer(b"".join(f.audio for f in out.all(TTSAudioRawFrame)), np.int16)
        assert (await heard(whisper, pcm.astype(np.float32) / np.float32(32768), rate)).endswith(
            "old town"
        )
        assert not out.all(ErrorFrame)


async def test_an_interruption_ends_the_speech_and_the_next_reply_is_spoken() -> None:
    stage = KokoroTTS(KokoroSettings(engine="onnx"))
    async with running(stage) as (worker, out):
        await worker.queue_frames(reply("Sure. " + "This goes on and on. " * 40))
        await out.wait_for(TTSAudioRawFrame)
        await worker.queue_frame(InterruptionFrame())
        await out.wait_for(InterruptionFrame)
        before = len(out.all(TTSAudioRawFrame))
        await worker.queue_frame(TTSSpeakFrame("Bye."))
        await out.wait_for(TTSStoppedFrame)
        assert len(out.all(TTSAudioRawFrame)) == before + 1
        assert out.all(TTSTextFrame)[-1].text == "Bye."
        assert not out.all(ErrorFrame)


TONE_HZ = 440


class Tone:
    """In the place of Kokoro's network: every clause is a second of a tone that goes on and on."""

    name = "tone"

    def __init__(self) -> None:
        self.stalls = False
        """Whether no more than the first piece is made of a clause until it is aborted."""
        self._made = 0

    def render(self, tokens: NDArray[np.int64], style: object, **how: Any) -> Rendering:
        return Rendering(np.ones(len(tokens) + 2, np.int64), 0, self._pieces(how["abort"]))

    def _pieces(self, abort: Abort) -> Iterator[NDArray[np.float32]]:
        aborted = threading.Event()
        abort.on_request(aborted.set)
        for size in (2_400, 600, 12_000, 3_001, 5_999):
            times = np.arange(self._made, self._made + size) / SAMPLE_RATE
            self._made += size
            yield 0.5 * np.sin(2 * np.pi * TONE_HZ * times).astype(np.float32)
            if self.stalls:
                aborted.wait(30)

    def close(self) -> None:
        pass


@pytest.fixture
def tone() -> Iterator[tuple[Tone, KokoroTTS]]:
    """A stage that speaks in tones, and its network."""
    network, stage = Tone(), KokoroTTS(KokoroSettings(engine="onnx"))
    engine = KokoroEngine(network, Voices(assets.path(VOICES)))
    fetch = stage.setup

    async def setup(setup: Any) -> None:
        await fetch(setup)
        stage._engine = engine

    stage.setup = setup  # type: ignore[method-assign]
    yield network, stage
    engine.close()


def samples_of(frames: list[Frame]) -> NDArray[np.int16]:
    audio = [frame.audio for frame in frames if isinstance(frame, TTSAudioRawFrame)]
    return np.frombuffer(b"".join(audio), np.int16)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("apart_secs", [0, 10])
async def test_speech_keeps_its_length_and_pitch_at_any_rate_however_late_its_pieces_come(
    rate: int, apart_secs: int, tone: tuple[Tone, KokoroTTS], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=itertools.count(0, apart_secs).__next__)
    monkeypatch.setattr("pipecat.audio.resamplers.soxr_stream_resampler.time", clock)
    async with running(tone[1], rate) as (worker, out):
        await worker.queue_frames(reply("Sure. It is a very old town. And it is large."))
        await out.wait_for(TTSStoppedFrame)
    heard = samples_of(out.frames)
    assert len(heard) == 3 * rate
    ends = rate // 50  # the tone begins and ends at once, which no filter passes on
    times = np.arange(len(heard))[ends:-ends] / rate
    pure = 0.5 * 32767 * np.sin(2 * np.pi * TONE_HZ * times)
    assert np.abs(heard[ends:-ends] - pure).max() < 100


async def test_nothing_of_an_interrupted_answer_is_heard_in_the_next(
    tone: tuple[Tone, KokoroTTS],
) -> None:
    network, stage = tone
    async with running(stage, 8_000) as (worker, out):
        network.stalls = True
        await worker.queue_frames(reply("It is a very old town. And it is large."))
        await out.wait_for(TTSAudioRawFrame)
        network.stalls = False
        await worker.queue_frame(InterruptionFrame())
        await worker.queue_frame(TTSSpeakFrame("Bye."))
        await out.wait_for(TTSStoppedFrame)
    kinds = [type(frame) for frame in out.frames]
    assert len(samples_of(out.frames[kinds.index(InterruptionFrame) :])) == 8_000


async def test_a_clause_slower_than_the_timeout_is_no_silent_context() -> None:
    stage = KokoroTTS(KokoroSettings(engine="onnx"), stop_frame_timeout_s=0.05)
    async with running(stage) as (worker, out):
        await worker.queue_frame(TTSSpeakFrame(SENTENCE))
        await out.wait_for(TTSStoppedFrame)
        assert not out.all(ErrorFrame)
        assert len(out.all(TTSStartedFrame)) == len(out.all(TTSStoppedFrame)) == 1
        assert out.all(TTSAudioRawFrame)


async def test_text_with_nothing_to_say_opens_no_context() -> None:
    async with running(KokoroTTS(KokoroSettings(engine="onnx"))) as (worker, out):
        await worker.queue_frames(reply("... 😀 —"))
        await out.wait_for(LLMFullResponseEndFrame)
        assert not out.all(TTSStartedFrame)
        assert not out.all(ErrorFrame)


async def test_a_long_text_handed_over_at_once_is_heard_from_its_first_clause_on() -> None:
    async with running(KokoroTTS(KokoroSettings(engine="onnx"))) as (worker, out):
        text = "If you like, come in and sit down by the fire."
        # There is no cut inside of a tag.
        await worker.queue_frame(TTSSpeakFrame(f'<prosody rate="slow, or so">{text}</prosody>'))
        await out.wait_for(TTSStoppedFrame)
    kinds = [type(frame) for frame in out.frames]
    # The engine makes a clause at a time.
    assert len(out.all(TTSAudioRawFrame)) == 2
    assert [f.text for f in out.all(TTSTextFrame)] == text.split()
    assert kinds.count(TTSStartedFrame) == kinds.count(TTSStoppedFrame) == 1


@pytest.mark.parametrize("speak", [True, False])
async def test_a_text_of_many_pages_is_spoken_in_parts_between_which_others_get_the_event_loop(
    speak: bool, tone: tuple[Tone, KokoroTTS]
) -> None:
    network, stage = tone
    network.stalls = True
    text = "It is a very old town, and it is large. " * 300
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with running(stage) as (worker, out):
        waiting = asyncio.create_task(others())
        if speak:
            await worker.queue_frame(TTSSpeakFrame(text))
        else:
            await worker.queue_frames([LLMFullResponseStartFrame(), LLMTextFrame(text)])
        await out.wait_for(AggregatedTextFrame, 250)
        assert turns > len(text) / 1024
        waiting.cancel()
        await worker.queue_frame(InterruptionFrame())
        await out.wait_for(InterruptionFrame)
    parts = [f.text for f in out.all(AggregatedTextFrame) if not isinstance(f, TTSTextFrame)]
    assert max(map(len, parts)) <= MOST_CHARACTERS
    assert text.startswith(" ".join(parts))


async def test_the_first_words_for_one_need_not_wait_until_all_is_said_to_another() -> None:
    clause = "The early train is the best way to get there on time."
    slow, usual = (KokoroSettings(engine="torch", speed=speed) for speed in (0.5, 1.0))
    async with (
        running(KokoroTTS(slow)) as (talker, said),
        running(KokoroTTS(usual)) as (other, answered),
    ):
        await talker.queue_frames(reply(clause))
        await said.wait_for(TTSAudioRawFrame)
        await other.queue_frame(TTSSpeakFrame("Yes."))
        await answered.wait_for(TTSAudioRawFrame)
        pieces = len(said.all(TTSAudioRawFrame))
    assert len(said.all(TTSAudioRawFrame)) > pieces


async def test_the_end_of_the_pipeline_waits_for_what_is_still_to_be_said() -> None:
    async with running(KokoroTTS(KokoroSettings(engine="onnx"))) as (worker, out):
        await worker.queue_frame(TTSSpeakFrame("Good bye."))
    assert [f.text for f in out.all(TTSTextFrame)] == ["Good", "bye."]
    assert len(out.all(TTSStoppedFrame)) == 1


async def test_the_voice_can_change_while_the_pipeline_runs_but_not_to_a_wrong_one() -> None:
    stage = KokoroTTS(KokoroSettings(engine="onnx"))
    async with running(stage) as (worker, out):
        await worker.queue_frame(TTSUpdateSettingsFrame(delta=KokoroLiveSettings(voice="am_adam")))
        await worker.queue_frame(TTSUpdateSettingsFrame(delta=KokoroLiveSettings(voice="am_adm")))
        await worker.queue_frame(TTSSpeakFrame("Yes."))
        await out.wait_for(TTSStoppedFrame)
        assert stage.settings.voice == "am_adam"  # type: ignore[attr-defined]
        assert "did you mean am_adam" in out.all(ErrorFrame)[0].error


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"speed": 9}, "speed is 9"),
        ({"speed": 0}, "speed is 0"),
        ({"speed": -1.5}, "speed is -1.5"),
        ({"speed": float("nan")}, "speed is nan"),
        ({"speed": float("inf")}, "speed is inf"),
        ({"speed": "1.5"}, "speed is '1.5'"),
        ({"speed": None}, "speed is None"),
        ({"voice": 5}, "no voice 5"),
        ({"voice": None}, "no voice None"),
        ({"voice": ["af_heart"]}, r"no voice \['af_heart'\]"),
        ({"voice": "am_adm", "speed": 1.5}, "did you mean am_adam"),
        ({"voice": "am_adam", "speed": 3}, "speed is 3"),
    ],
)
async def test_settings_with_which_no_clause_could_be_spoken_are_refused_whole(
    wrong: dict[str, Any], says: str, tone: tuple[Tone, KokoroTTS]
) -> None:
    stage = tone[1]
    async with running(stage) as (worker, out):
        await worker.queue_frame(TTSUpdateSettingsFrame(delta=KokoroLiveSettings(**wrong)))
        await worker.queue_frame(TTSSpeakFrame("Yes."))
        await out.wait_for(TTSStoppedFrame)
    assert (stage._settings.voice, stage._settings.speed) == ("af_heart", 1.0)
    assert out.all(TTSAudioRawFrame)
    [error] = out.all(ErrorFrame)
    assert re.search(says, error.error)


async def test_a_whole_number_is_a_speed(tone: tuple[Tone, KokoroTTS]) -> None:
    async with running(tone[1]) as (worker, out):
        await worker.queue_frame(TTSUpdateSettingsFrame(delta=KokoroLiveSettings(speed=2)))
        await worker.queue_frame(TTSSpeakFrame("Yes."))
        await out.wait_for(TTSStoppedFrame)
    assert tone[1]._settings.speed == 2
    assert not out.all(ErrorFrame)
