"""The hearing half: VAD, recognition and the end of turns, on real speech and real models."""

from __future__ import annotations

import asyncio
import json
import re
import wave
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray
from pipecat.audio.turn.smart_turn._whisper_features import compute_whisper_log_mel_features
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMContextUserTurnFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from headstart.engines import hub
from headstart.engines.hypothesis import Hypothesis, Word
from headstart.engines.log_mel import log_mel
from headstart.engines.queue import Ticket
from headstart.engines.silero import WINDOW, SileroEngine, SileroOptions
from headstart.engines.smart_turn import SmartTurnEngine, SmartTurnOptions
from headstart.engines.whisper import WhisperEngine, WhisperOptions, looping, without_tags
from headstart.errors import EngineError
from headstart.frames import (
    AudioGapFrame,
    FinalPendingFrame,
    ProgressiveTranscriptionFrame,
    VoiceFrame,
)
from headstart.processors.audio import AudioRing, Resampler, as_float
from headstart.processors.stt.local import LocalSTT, Recogniser, WhisperSettings, WhisperSTT
from headstart.processors.stt.segment import RATE, Segment, agreement
from headstart.processors.turn.aggregator import TurnSettings, UserTurn
from headstart.processors.turn.end import Ending, TurnEnd
from headstart.processors.vad import SileroVAD, VADSettings

pytestmark = pytest.mark.models

SPEECH = Path(__file__).parent.parent / "samples" / "speech"
SAID = {
    entry["id"]: entry["text"]
    for entry in map(json.loads, (SPEECH / "manifest.jsonl").read_text().splitlines())
}

SPEECH_END = {
    entry["id"]: entry["speech_end_s"]
    for entry in map(json.loads, (SPEECH / "manifest.jsonl").read_text().splitlines())
}

Samples = NDArray[np.int16]


def speech(name: str) -> Samples:
    with wave.open(str(SPEECH / f"{name}.wav")) as file:
        assert file.getframerate() == RATE
        return np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)


def silence(secs: float) -> Samples:
    return np.zeros(int(secs * RATE), dtype=np.int16)


def sine(secs: float, hertz: float = 440.0) -> Samples:
    times = np.arange(int(secs * RATE)) / RATE
    return np.asarray(10000 * np.sin(2 * np.pi * hertz * times), dtype=np.int16)


def plain(text: str) -> list[str]:
    digits = {"10": "ten", "20": "twenty"}
    return [digits.get(word, word) for word in re.findall(r"[a-z0-9']+", text.lower())]


def word_errors(said: str, heard: str) -> int:
    """Levenshtein distance in words."""
    target = plain(heard)
    row = list(range(len(target) + 1))
    for number, word in enumerate(plain(said), 1):
        above, row[0] = row[0], number
        for at, other in enumerate(target, 1):
            above, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, above + (word != other))
    return row[-1]


@dataclass
class Heard:
    """What came out of a pipeline."""

    frames: list[Frame] = field(default_factory=list)
    upstream: list[Frame] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    ending: bool = False
    """The pipeline ends by itself."""

    def of(self, kind: type[Frame]) -> list[Any]:
        return [frame for frame in self.frames if type(frame) is kind]

    @property
    def finals(self) -> list[str]:
        return [frame.text for frame in self.frames if isinstance(frame, TranscriptionFrame)]

    @property
    def written(self) -> list[str]:
        """The user's turns, as they were written to the context."""
        return [frame.text for frame in self.frames if isinstance(frame, LLMContextUserTurnFrame)]

    async def until(self, kind: type[Frame], count: int = 1) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.of(kind)) >= count)


class Tap(FrameProcessor):
    """Notes every frame that passes in a direction."""

    def __init__(self, heard: Heard, direction: FrameDirection) -> None:
        super().__init__()
        self._heard = heard
        self._direction = direction

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == self._direction:
            async with self._heard.arrived:
                self._heard.frames.append(frame)
                self._heard.arrived.notify_all()
        await self.push_frame(frame, direction)


@asynccontextmanager
async def running(
    stages: Sequence[FrameProcessor], rate: int = RATE
) -> AsyncIterator[tuple[PipelineWorker, Heard]]:
    """A pipeline of the stages, which is cancelled at the end unless it ends by itself."""
    heard = Heard()
    errors = Heard()
    heard.upstream = errors.frames
    before, after = Tap(errors, FrameDirection.UPSTREAM), Tap(heard, FrameDirection.DOWNSTREAM)
    worker = PipelineWorker(
        Pipeline([before, *stages, after]),
        params=PipelineParams(audio_in_sample_rate=rate),
        cancel_on_idle_timeout=False,
    )
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")  # type: ignore[untyped-decorator]
    async def on_pipeline_started(*_: object) -> None:
        started.set()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    run = asyncio.create_task(runner.run())
    try:
        await started.wait()
        heard.frames.clear()
        yield worker, heard
    finally:
        if not heard.ending:
            await runner.cancel()
        async with asyncio.timeout(30):
            await run


async def feed(
    worker: PipelineWorker, samples: Samples, *, rate: int = RATE, real_time: bool = False
) -> None:
    """Sends audio in frames of 20 ms, as fast as it is taken or as fast as it is spoken."""
    clock = asyncio.get_running_loop()
    begun = clock.time()
    size = rate // 50
    for number, start in enumerate(range(0, len(samples), size), 1):
        if real_time:
            await asyncio.sleep(max(0.0, begun + number / 50 - clock.time()))
        frame = InputAudioRawFrame(
            samples[start : start + size].tobytes(), sample_rate=rate, num_channels=1
        )
        await worker.queue_frame(frame)


async def hear(
    stages: Sequence[FrameProcessor],
    samples: Samples,
    *,
    rate: int = RATE,
    real_time: bool = False,
) -> Heard:
    """Runs audio through the stages to the end."""
    async with running(stages, rate) as (worker, heard):
        await feed(worker, samples, rate=rate, real_time=real_time)
        await worker.queue_frame(EndFrame())
        heard.ending = True
    return heard


# --- engines ---------------------------------------------------------------------------------


def test_the_features_are_those_that_the_models_were_trained_on() -> None:
    audio = np.random.default_rng(1).normal(0, 0.1, 8 * RATE).astype(np.float32)
    expected = compute_whisper_log_mel_features(audio, do_normalize=False)
    assert np.abs(log_mel(audio) - expected).max() < 1e-4
    assert log_mel(audio[:RATE]).shape == (80, 100)


async def test_smart_turn_judges_as_pipecats_own_analyzer_does() -> None:
    engine = await hub.shared.get(SmartTurnEngine, SmartTurnOptions())
    theirs = LocalSmartTurnAnalyzerV3()
    for audio in (speech("short-joke"), speech("change-timer")[: int(1.3 * RATE)]):
        expected = theirs._predict_endpoint(as_float(audio))["probability"]
        assert await engine.probability(as_float(audio)) == pytest.approx(expected, abs=1e-3)


async def test_silero_hears_as_pipecats_own_analyzer_does() -> None:
    engine = await hub.shared.get(SileroEngine, SileroOptions())
    stream = engine.stream()
    theirs = SileroVADAnalyzer(sample_rate=RATE)
    theirs.set_sample_rate(RATE)
    audio = np.concatenate([silence(3), speech("medium-france"), sine(3), speech("short-joke")])
    for start in range(0, len(audio) - WINDOW, WINDOW):
        window = audio[start : start + WINDOW]
        expected = float(np.asarray(theirs.voice_confidence(window.tobytes())).item())
        assert stream.probability(as_float(window), quiet=True) == pytest.approx(expected, abs=1e-5)


async def test_a_soft_beginning_is_noticed_before_the_model_is_sure_of_a_voice() -> None:
    # "Could you tell me" until 1.086 s, "how" from 1.686 s. Silero is sure of it 0.1 s later.
    heard = await hear([SileroVAD()], np.concatenate([speech("pause-moon"), silence(1)]))
    at, began = 0, []
    for frame in heard.frames:
        if isinstance(frame, InputAudioRawFrame):
            at += frame.num_frames
        elif isinstance(frame, VoiceFrame) and frame.heard:
            began.append(at / RATE)
    (again,) = (secs for secs in began if secs > 1.086)
    assert 1.686 < again < 1.686 + 0.09


async def test_nobody_is_heard_in_silence_noise_and_tones() -> None:
    engine = await hub.shared.get(WhisperEngine, WhisperOptions())
    noise = np.random.default_rng(2).normal(0, 500, 2 * RATE).astype(np.int16)
    for audio in (silence(1), silence(5), noise, sine(2), sine(1, 1000.0)):
        hypothesis = await engine.transcribe(as_float(audio))
        assert hypothesis.text == ""
        assert hypothesis.confidence is None


async def test_whisper_is_surer_of_a_whole_question_than_of_a_cut_one() -> None:
    engine = await hub.shared.get(WhisperEngine, WhisperOptions())
    audio = as_float(speech("medium-france"))
    whole = await engine.transcribe(audio)
    cut = await engine.transcribe(audio[: int(1.3 * RATE)])
    assert whole.confidence is not None and cut.confidence is not None
    assert 0 < cut.confidence < whole.confidence <= 1
    assert " ".join(word.text for word in whole.words) == whole.text
    assert all(0 <= word.probability <= 1 for word in whole.words)


async def test_weights_that_know_english_only_say_so() -> None:
    with pytest.raises(EngineError, match="English only"):
        await hub.EngineHub().get(WhisperEngine, WhisperOptions(language="de"))


@pytest.mark.parametrize(
    ("text", "spoken", "kept"),
    [
        ("tell me a joke", 4, "tell me a joke"),
        ("no no no no", 4, "no no no no"),
        ("no no no no no no", 1, "no"),
        ("bye bye", 2, "bye bye"),
        ("that is very very very", 5, "that is very very very"),
        ("call 555 1234 I repeat 555 1234", 7, "call 555 1234 I repeat 555 1234"),
        ("my number is 7429. 7429. 749", 4, "my number is 7429."),
        ("tell me O O O O O O O", 3, "tell me O"),
        ("yes please. Yes please. Yes please. Yes", 2, "yes please."),
        ("yes please. Yes please. Yes please. Yes", 4, "yes please. Yes please."),
        ("yes please. Yes please. Yes please. Yes", 7, "yes please. Yes please. Yes please. Yes"),
        ("who are you'd? Who are you'd? Who are you", 3, "who are you'd?"),
        ("could you could you tell me that", 7, "could you could you tell me that"),
    ],
)
def test_a_repeat_for_which_there_is_no_audio_was_not_said(
    text: str, spoken: int, kept: str
) -> None:
    pieces = text.split()
    starts = [min(at, spoken) * 0.3 for at in range(len(pieces))]
    unsaid = looping(pieces, lambda: starts, spoken * 0.3)
    assert " ".join(pieces[: len(pieces) - unsaid]) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [("[BLANK_AUDIO]", ""), ("well (he sighs) now ♪", "well now"), ("*music* go on.", "go on.")],
)
def test_tags_are_no_words(text: str, kept: str) -> None:
    spoken = without_tags([Word(word, 1.0) for word in text.split()])
    assert " ".join(word.text for word in spoken) == kept


async def test_what_is_said_twice_is_heard_twice_and_what_is_said_once_is_not() -> None:
    engine = await hub.shared.get(WhisperEngine, WhisperOptions())
    joke, moon = speech("short-joke"), speech("pause-moon")
    twice = await engine.transcribe(as_float(np.concatenate([joke, joke])))
    assert plain(twice.text) == 2 * plain(SAID["short-joke"])
    for secs in np.arange(1.2, 1.8, 0.1):
        cut = await engine.transcribe(as_float(moon[: int(secs * RATE)]))
        assert plain(cut.text).count("tell") <= 1, "it was cut short, and is not begun again"


# --- pure parts ------------------------------------------------------------------------------

_pieces = st.lists(st.integers(0, 3000), max_size=40)


@given(_pieces, st.integers(0, 2000), st.integers(0, 20000))
def test_a_ring_keeps_the_last_of_what_it_heard(sizes: list[int], kept: int, start: int) -> None:
    ring = AudioRing(kept / RATE)
    audio = np.arange(sum(sizes)).astype(np.int16)
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        ring.hear(audio[end - size : end])
    expected = audio[max(start, len(audio) - int(kept / RATE * RATE)) :]
    assert ring.heard == len(audio)
    assert np.array_equal(ring.since(start), expected)


@given(st.lists(st.sampled_from(["one", "two,", "Two", "three"])), st.integers(0, 8))
def test_words_are_stable_as_far_as_two_hypotheses_agree(words: list[str], same: int) -> None:
    after = [Word(word, 1.0) for word in words]
    before = [Word(word.upper(), 0.5) for word in words[:same]] + [Word("else", 1.0)]
    assert list(agreement(before, after)) == after[:same]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.booleans(), st.integers(1, 60)), min_size=1, max_size=25),
    slowness=st.integers(0, 80),
    pre_roll=st.integers(0, 8000),
    failures=st.sets(st.integers(0, 40), max_size=3),
)
def test_every_sample_of_speech_is_recognised_however_slow_the_recogniser(
    parts: list[tuple[bool, int]], slowness: int, pre_roll: int, failures: set[int]
) -> None:
    noise = np.random.default_rng(0).normal(0, 3000, 60 * RATE // 50).astype(np.int16)
    segment = Segment(noise[:pre_roll], window_secs=4.0)
    busy, decode, number, spoken = 0, None, 0, pre_roll

    def answer() -> None:
        nonlocal decode, number
        assert decode is not None
        assert 0 < len(segment.audio(decode)) <= 28 * RATE
        if number in failures and segment.final() is None:
            segment.failed(decode)
        else:
            span = f"{decode.start}-{decode.end}"
            segment.understood(decode, Hypothesis(span, 1.0, (Word(span, 1.0),)))
        decode, number = None, number + 1

    for loud, blocks in parts:
        for _ in range(blocks):
            segment.hear(noise[: RATE // 50] if loud else silence(0.02))
            spoken = round(segment.heard_secs * RATE) if loud else spoken
            busy -= 1
            if decode is not None and busy <= 0:
                answer()
            if decode is None and (decode := segment.wants()) is not None:
                busy = slowness
    segment.hear(silence(0.2))
    segment.close(stop_secs=0.2)
    failures = set()  # a closed segment ends at its first failure
    while segment.final() is None:
        decode = decode or segment.wants()
        answer()
    final = segment.final()
    assert final is not None
    spans = [tuple(map(int, span.split("-"))) for span in final.text.split()]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] >= spoken
    assert segment.wants() is None


class Turns(RuleBasedStateMachine):
    """A recogniser that answers each segment once, in order, at any time; and a user."""

    def __init__(self) -> None:
        super().__init__()
        self.end = TurnEnd(threshold=0.5, silence_secs=2.0, final_timeout_secs=3.0)
        self.in_turn = self.speaking = self.words = False
        self.owed = self.stop = 0
        self.verdict: float | None = None
        self.silent = self.audio = 0.0
        self.ending: Ending | None = None

    def see(self, ending: Ending | None) -> None:
        self.ending = ending
        if ending is None:
            return
        assert self.in_turn and not self.speaking
        if ending is Ending.MISSING_TRANSCRIPT:
            assert self.silent >= 3.0
            self.owed = 0  # it had its chance
        else:
            assert self.owed == 0
        if ending is Ending.COMPLETE:
            assert self.words and self.verdict is not None and self.verdict >= 0.5
        if ending is Ending.NO_WORDS:
            assert not self.words
        self.in_turn = False
        self.end.turn_stopped()

    @precondition(lambda self: not self.speaking)
    @rule()
    def speak(self) -> None:
        if not self.in_turn:
            self.end.turn_started()
            self.in_turn, self.words = True, False
        self.end.vad_started()
        self.speaking, self.verdict = True, None

    @precondition(lambda self: self.speaking)
    @rule()
    def fall_silent(self) -> None:
        self.speaking, self.silent, self.audio = False, 0.2, 0.2
        self.owed += 1
        self.see(self.end.vad_stopped(0.2))
        self.stop = self.end.stops

    @precondition(lambda self: self.owed)
    @rule(text=st.sampled_from(["", "words"]))
    def recognise(self, text: str) -> None:
        self.owed -= 1
        self.words = self.words or bool(text)
        self.see(self.end.transcript(text, final=True))

    @precondition(lambda self: self.stop)
    @rule(probability=st.floats(0, 1), late=st.integers(0, 1))
    def judge(self, probability: float, late: int) -> None:
        if not late and not self.speaking and self.in_turn:
            self.verdict = probability
        self.see(self.end.verdict(self.stop - late, probability))

    @rule()
    def wait(self) -> None:
        if not self.speaking:
            self.audio += 0.5
            self.silent = max(self.silent, self.audio)
            self.see(self.end.silent(0.5))
        else:
            self.see(self.end.silent(0.5))

    @rule(secs=st.sampled_from([0.2, 1.0]))
    def wait_without_audio(self, secs: float) -> None:
        if not self.speaking:
            self.silent += secs
        self.see(self.end.silent_for(self.silent))

    @invariant()
    def no_turn_lasts_beyond_the_longest_silence(self) -> None:
        assert not self.in_turn or self.speaking or self.silent < 3.0


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=examples(200), stateful_step_count=40, deadline=None)


def test_a_late_transcript_of_the_first_half_does_not_end_the_turn() -> None:
    end = TurnEnd(threshold=0.5, silence_secs=2.0, final_timeout_secs=2.0)
    end.turn_started()
    end.vad_started()
    assert end.vad_stopped(0.2) is None
    assert end.verdict(1, 0.98) is None
    end.vad_started()
    assert end.transcript("Could you tell me", final=True) is None
    assert end.vad_stopped(0.2) is None
    assert end.verdict(2, 0.98) is None
    assert end.transcript("how far away the moon is?", final=True) is Ending.COMPLETE


def test_the_nearer_the_verdict_the_shorter_the_wait() -> None:
    waits = {}
    for probability in (0.0, 0.25, 0.49, 0.5):
        end = TurnEnd(threshold=0.5, silence_secs=2.0, final_timeout_secs=2.0)
        end.turn_started()
        end.vad_started()
        end.vad_stopped(0.2)
        end.transcript("well", final=True)
        ending = end.verdict(1, probability)
        waits[probability] = 0.2
        while ending is None:
            ending = end.silent(0.02)
            waits[probability] += 0.02
    assert waits == pytest.approx({0.0: 2.0, 0.25: 1.0, 0.49: 0.2, 0.5: 0.2}, abs=0.03)


def test_a_turn_waits_as_long_as_the_recogniser_is_at_work_but_not_for_ever() -> None:
    end = TurnEnd(threshold=0.0, silence_secs=2.0, final_timeout_secs=2.0)
    end.turn_started()
    end.vad_started()
    end.vad_stopped(0.2)
    waited = 0.2
    ending = None
    while ending is None:
        end.final_pending(waited)
        waited += 0.5
        ending = end.silent(0.5)
        if waited == pytest.approx(7.2):
            assert ending is None
    assert ending is Ending.MISSING_TRANSCRIPT
    assert 30.0 <= waited <= 33.0


# --- stages ----------------------------------------------------------------------------------


async def test_what_was_said_is_understood_once_a_segment_and_in_order() -> None:
    errors = words = 0
    for name, said in SAID.items():
        heard = await hear([SileroVAD(), WhisperSTT()], np.concatenate([speech(name), silence(1)]))
        assert len(heard.finals) == len(heard.of(VADUserStoppedSpeakingFrame)) > 0
        errors += word_errors(said, " ".join(heard.finals))
        words += len(plain(said))
        first = heard.finals[0].split()[0]
        assert plain(first) == plain(said)[:1], "the first syllable is there"
    assert errors / words < 0.05


@pytest.mark.parametrize("rate", [8000, 44100])
async def test_any_input_rate_will_do(rate: int) -> None:
    audio = soxr.resample(np.concatenate([speech("medium-france"), silence(1)]), RATE, rate)
    heard = await hear([SileroVAD(), WhisperSTT()], audio, rate=rate)
    assert word_errors(SAID["medium-france"], " ".join(heard.finals)) == 0


async def test_silence_noise_and_a_tone_give_no_words_and_no_partials() -> None:
    noise = np.random.default_rng(2).normal(0, 500, 2 * RATE).astype(np.int16)
    for audio in (silence(2), noise, np.concatenate([silence(0.5), sine(2), silence(1)])):
        async with running([WhisperSTT()]) as (worker, heard):
            # Even if the VAD is fooled.
            await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
            await feed(worker, audio, real_time=True)
            await worker.queue_frame(VADUserStoppedSpeakingFrame(stop_secs=0.2))
            await heard.until(TranscriptionFrame)
            assert heard.finals == [""]
            assert not heard.of(ProgressiveTranscriptionFrame)
        assert not any((await hear([SileroVAD(), WhisperSTT()], audio)).finals)


async def test_partials_arrive_while_the_user_speaks() -> None:
    audio = np.concatenate([speech("medium-france"), silence(0.8)])
    heard = await hear([SileroVAD(), WhisperSTT()], audio, real_time=True)
    kinds = [type(frame) for frame in heard.frames]
    partials = [frame for frame in heard.frames if isinstance(frame, ProgressiveTranscriptionFrame)]
    assert kinds.index(ProgressiveTranscriptionFrame) < kinds.index(TranscriptionFrame)
    covered = [partial.audio_secs for partial in partials]
    assert covered == sorted(set(covered))
    for partial in partials:
        assert partial.confidence is None or 0 <= partial.confidence <= 1
        assert partial.text.startswith(partial.stable_text)


async def test_speech_longer_than_a_window_is_understood_whole() -> None:
    names = [name for name in SAID for _ in range(4)]
    audio = np.concatenate([*(speech(name) for name in names), silence(3)])
    assert len(audio) > 30 * RATE
    vad = SileroVAD(VADSettings(stop_secs=2.5))
    heard = await hear([vad, WhisperSTT(WhisperSettings(window_secs=8))], audio)
    said = " ".join(SAID[name] for name in names)
    assert len(heard.finals) == 1
    assert word_errors(said, heard.finals[0]) / len(plain(said)) < 0.1


class Faulty:
    """The real recogniser, but the first few requests fail."""

    def __init__(self, engine: WhisperEngine, failures: int) -> None:
        self._engine = engine
        self._failures = failures

    async def transcribe(
        self, audio: NDArray[np.float32], ticket: Ticket | None = None
    ) -> Hypothesis:
        self._failures -= 1
        if self._failures >= 0:
            raise EngineError("whisper failed to decode: no reason")
        return await self._engine.transcribe(audio, ticket)


class FaultySTT(LocalSTT):
    """A stage whose recogniser fails at first."""

    async def fetch(self) -> Recogniser:
        return Faulty(await hub.shared.get(WhisperEngine, WhisperOptions()), failures=1)


async def test_after_a_failure_the_segment_ends_and_the_next_one_is_understood() -> None:
    async with running([FaultySTT(WhisperSettings(), model="faulty")]) as (worker, heard):
        for number, name in enumerate(("short-joke", "medium-france"), 1):
            await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
            # A single frame: there is no decode before the end.
            samples = np.concatenate([speech(name), silence(0.6)])
            audio = InputAudioRawFrame(samples.tobytes(), sample_rate=RATE, num_channels=1)
            await worker.queue_frames([audio, VADUserStoppedSpeakingFrame(stop_secs=0.2)])
            await heard.until(TranscriptionFrame, number)
        assert heard.finals[0] == ""
        assert word_errors(SAID["medium-france"], heard.finals[1]) == 0
        errors = [frame.error for frame in heard.upstream if isinstance(frame, ErrorFrame)]
        assert len(errors) == 1 and "no reason" in errors[0]


async def test_a_word_cut_off_by_a_mute_is_heard_once_and_starts_nothing_when_it_is_over() -> None:
    stages = [SileroVAD(VADSettings(audio_idle_secs=0.3)), WhisperSTT()]
    async with running(stages) as (worker, heard):
        # "What is the cap-"; the voice is still there when the audio ends.
        await feed(worker, speech("medium-france")[: int(1.2 * RATE)])
        await heard.until(TranscriptionFrame)
        gap, stop = heard.of(AudioGapFrame)[0], heard.of(VADUserStoppedSpeakingFrame)[0]
        assert heard.frames.index(gap) < heard.frames.index(stop)
        voices = [frame.heard for frame in heard.frames if isinstance(frame, VoiceFrame)]
        assert voices[-1] is False
        await feed(worker, silence(2.0))
        await worker.queue_frame(EndFrame())
        heard.ending = True
    assert len(heard.of(VADUserStartedSpeakingFrame)) == 1, "silence is no voice"
    assert [plain(text)[:3] for text in heard.finals] == [["what", "is", "the"]]


async def test_what_is_said_after_a_mute_is_understood_alone_and_what_was_said_before_whole() -> (
    None
):
    for rate in (RATE, 8000):
        stages = [SileroVAD(VADSettings(audio_idle_secs=0.3)), WhisperSTT()]
        first, second = (
            soxr.resample(speech(name), RATE, rate) for name in ("medium-france", "short-joke")
        )
        async with running(stages, rate) as (worker, heard):
            await feed(worker, first[: int(SPEECH_END["medium-france"] * rate)], rate=rate)
            await heard.until(TranscriptionFrame)
            await feed(worker, np.concatenate([second, silence(0.5)]), rate=rate)
            await worker.queue_frame(EndFrame())
            heard.ending = True
        assert [plain(text) for text in heard.finals] == [
            plain(SAID["medium-france"]),
            plain(SAID["short-joke"]),
        ]


@pytest.mark.parametrize("frame_secs", [0.02, 0.5, 2.0, 60.0])
async def test_words_are_heard_in_frames_of_any_length(frame_secs: float) -> None:
    audio = np.concatenate([silence(0.5), speech("pause-moon"), silence(0.5)])
    async with running([SileroVAD(), WhisperSTT()]) as (worker, heard):
        size = int(frame_secs * RATE)
        for start in range(0, len(audio), size):
            piece = audio[start : start + size].tobytes()
            await worker.queue_frame(InputAudioRawFrame(piece, RATE, 1))
        await worker.queue_frame(EndFrame())
        heard.ending = True
    assert word_errors(SAID["pause-moon"], " ".join(heard.finals)) == 0
    passed = [frame.audio for frame in heard.frames if isinstance(frame, InputAudioRawFrame)]
    assert audio.tobytes().startswith(b"".join(passed)), "and no sample is lost or moved"


class Held:
    """The real recogniser, held up until it is let go."""

    def __init__(self, engine: WhisperEngine) -> None:
        self._engine = engine
        self.go = asyncio.Event()

    async def transcribe(
        self, audio: NDArray[np.float32], ticket: Ticket | None = None
    ) -> Hypothesis:
        await self.go.wait()
        return await self._engine.transcribe(audio, ticket)


class HeldSTT(LocalSTT):
    """A stage whose recogniser takes as long as the test says."""

    async def fetch(self) -> Recogniser:
        self.held = Held(await hub.shared.get(WhisperEngine, WhisperOptions()))
        return self.held


async def test_a_recogniser_that_needs_long_says_that_its_words_are_still_coming() -> None:
    stage = HeldSTT(WhisperSettings(), model="held")
    async with asyncio.timeout(60), running([stage]) as (worker, heard):
        await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
        audio = InputAudioRawFrame(speech("short-joke").tobytes(), sample_rate=RATE, num_channels=1)
        await worker.queue_frames([audio, VADUserStoppedSpeakingFrame(stop_secs=0.2)])
        await heard.until(FinalPendingFrame, 2)
        stage.held.go.set()
        await heard.until(TranscriptionFrame)
        first, second, *_ = (f for f in heard.frames if isinstance(f, FinalPendingFrame))
        assert 0 < first.waited_secs < second.waited_secs
        assert word_errors(SAID["short-joke"], heard.finals[0]) == 0


class Broken(LocalSTT):
    """A stage whose decoding fails once where nobody expects it."""

    async def fetch(self) -> Recogniser:
        self._whole = True
        return await hub.shared.get(WhisperEngine, WhisperOptions())

    async def _finish(self, segment: Segment, final: Hypothesis) -> None:
        if self._whole:
            self._whole = False
            raise RuntimeError("no reason")
        await super()._finish(segment, final)


async def test_a_decoder_that_dies_is_reported_and_begins_anew() -> None:
    async with (
        asyncio.timeout(60),
        running([Broken(WhisperSettings(), model="broken")]) as (worker, heard),
    ):
        await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
        audio = InputAudioRawFrame(speech("short-joke").tobytes(), sample_rate=RATE, num_channels=1)
        await worker.queue_frames([audio, VADUserStoppedSpeakingFrame(stop_secs=0.2)])
        await heard.until(TranscriptionFrame)
        assert word_errors(SAID["short-joke"], heard.finals[0]) == 0
        (error,) = (frame.error for frame in heard.upstream if isinstance(frame, ErrorFrame))
        assert error == "background task 'decoder' failed: no reason"


async def test_a_stop_amid_an_utterance_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    context = LLMContext()
    async with running([SileroVAD(), WhisperSTT(), UserTurn(context)]) as (worker, heard):
        await feed(worker, speech("medium-france")[: int(1.5 * RATE)])
        await heard.until(VADUserStartedSpeakingFrame)
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()


async def test_each_turn_is_answered_once_and_no_word_is_lost() -> None:
    for name, said in SAID.items():
        context = LLMContext()
        stages = [SileroVAD(), WhisperSTT(), UserTurn(context)]
        audio = np.concatenate([speech(name), silence(3)])
        heard = await hear(stages, audio, real_time=name == "pause-moon")
        # A turn that had ended too early goes on in the next: nobody has heard an answer to it.
        (message,) = context.messages
        assert isinstance(message, dict)
        assert word_errors(said, str(message["content"])) == 0
        assert heard.of(LLMContextFrame)[-1].context is context


async def test_a_sound_without_words_ends_the_turn_unanswered() -> None:
    context = LLMContext()
    async with running([WhisperSTT(), UserTurn(context, TurnSettings())]) as (worker, heard):
        await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
        await heard.until(UserStartedSpeakingFrame)
        await feed(worker, np.concatenate([sine(0.5), silence(0.2)]))
        await worker.queue_frame(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await heard.until(UserStoppedSpeakingFrame)
    assert not heard.of(LLMContextFrame)
    assert not context.messages


def test_resampling_in_pieces_is_seamless() -> None:
    audio = soxr.resample(speech("medium-france"), RATE, 48000)
    resample = Resampler(48000)
    pieces = [resample(audio[at : at + 960].tobytes()) for at in range(0, len(audio), 960)]
    whole = soxr.resample(audio, 48000, RATE)
    got = np.concatenate(pieces)
    assert len(whole) - len(got) < 0.05 * RATE
    assert np.abs(got.astype(int) - whole[: len(got)]).max() < 400


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_a_stream_that_ends_is_heard_to_its_last_sample(rate: int) -> None:
    audio = soxr.resample(speech("medium-france"), RATE, rate)
    resample = Resampler(rate)
    got = [resample(audio[:1000].tobytes()), resample(audio[1000:].tobytes(), last=True)]
    assert abs(sum(map(len, got)) - len(audio) * RATE / rate) <= 1
