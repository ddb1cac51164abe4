"""What the timeline makes of a conversation: the records of its turns, and their picture."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipecat.frames.frames import (
    AggregatedTextFrame,
    BotStartedSpeakingFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    OutputAudioRawFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.types import ProcessFrameResult
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import BaseUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.text.base_text_aggregator import TextType
from pipecat.workers.runner import WorkerRunner
from rich.console import Console
from scripted import Model, World, play
from test_speculation import EAGER, MODELS, SCRIPTS, Step, perform

from headstart.cli.waterfall import ASCII, layout, render
from headstart.frames import ProgressiveTranscriptionFrame
from headstart.pipeline.timeline.observer import Timeline, first_audible_s
from headstart.pipeline.timeline.records import (
    AttemptRecord,
    Event,
    Kind,
    SegmentRecord,
    SpeculationRecord,
    TurnRecord,
    Verdict,
)
from headstart.pipeline.timeline.reducer import QUIET_SECS, STALL_SECS, TurnReducer
from headstart.transports.memory import MemoryTransport, PlayedAudio

KEYS = (
    "turn user_text bot_text speech_start_s vad_stop_s turn_end_s first_partial_s "
    "final_transcript_s first_token_s first_clause_s first_audio_ready_s first_audio_out_s "
    "voice_to_voice_s interrupted errors speculation segments"
).split()
SPECULATION_KEYS = (
    "attempts committed saved_ms waited_ms left_ms release_ms wasted_input_tokens "
    "wasted_output_tokens wasted_audio_s"
).split()
SEGMENT_KEYS = (
    "start_s stop_s partials first_partial_s partial_gap_ms final_s final_after_ms path setup_ms "
    "connections"
).split()
ATTEMPT_KEYS = "fired_at_s text confidence verdict reason lead_ms".split()
TIMES = [key for key in KEYS if key.endswith("_s") and key != "voice_to_voice_s"]


# -- the reducer


def reduce(*events: Event, reducer: TurnReducer | None = None) -> list[TurnRecord]:
    reducer = reducer or TurnReducer()
    records = [record for event in events for record in reducer.feed(event)]
    return [*records, *reducer.finish()]


QUESTION = (
    Event(Kind.VAD_STARTED, 1.2, confirm_secs=0.2),
    Event(Kind.USER_STARTED, 1.21),
    Event(Kind.INTERRUPTED, 1.22),
    Event(Kind.PARTIAL, 1.5),
    Event(Kind.PARTIAL, 1.75),
    Event(Kind.VAD_STOPPED, 3.2, confirm_secs=0.2),
    Event(Kind.FINAL, 3.25, text="What is"),
    Event(Kind.USER_STOPPED, 3.3),
    Event(Kind.USER_TEXT, 3.31, text="What is"),
)
ANSWER = (
    Event(Kind.RESPONSE_STARTED, 3.32),
    Event(Kind.TOKEN, 3.4),
    Event(Kind.TOKEN, 3.41),
    Event(Kind.CLAUSE, 3.5),
    Event(Kind.RESPONSE_ENDED, 3.55),
    Event(Kind.AUDIO_READY, 3.8),
    Event(Kind.BOT_STARTED, 3.85),
    Event(Kind.AUDIO_OUT, 3.9),
    Event(Kind.SPOKEN, 4.0, text=" It is"),
    Event(Kind.SPOKEN, 4.1, text=" that."),
    Event(Kind.TTS_STOPPED, 4.2),
)
BOT_STOPPED = Event(Kind.BOT_STOPPED, 6.0)


def test_an_answered_turn_has_all_its_times() -> None:
    (record,) = reduce(*QUESTION, *ANSWER, BOT_STOPPED)
    assert json.loads(record.to_json()) == {
        "turn": 1,
        "user_text": "What is",
        "bot_text": "It is that.",
        "speech_start_s": 1.0,
        "vad_stop_s": 3.2,
        "turn_end_s": 3.3,
        "first_partial_s": 1.5,
        "final_transcript_s": 3.25,
        "first_token_s": 3.4,
        "first_clause_s": 3.5,
        "first_audio_ready_s": 3.8,
        "first_audio_out_s": 3.9,
        "voice_to_voice_s": 0.9,
        "interrupted": False,
        "errors": [],
        "speculation": {
            "attempts": [],
            "committed": False,
            "saved_ms": None,
            "waited_ms": None,
            "left_ms": None,
            "release_ms": None,
            "wasted_input_tokens": 0,
            "wasted_output_tokens": 0,
            "wasted_audio_s": 0.0,
        },
        "segments": [
            {
                "start_s": 1.0,
                "stop_s": 3.2,
                "partials": 2,
                "first_partial_s": 1.5,
                "partial_gap_ms": 1250.0,
                "final_s": 3.25,
                "final_after_ms": 50.0,
                "path": None,
                "setup_ms": None,
                "connections": 0,
            }
        ],
    }


def test_the_keys_and_their_order_are_those_of_the_contract() -> None:
    attempt = AttemptRecord(
        fired_at_s=1.0, text="", confidence=None, verdict="aborted", reason="", lead_ms=None
    )
    record = TurnRecord(
        turn=1, user_text="", bot_text="", speculation=SpeculationRecord(attempts=[attempt])
    )
    row = json.loads(record.to_json())
    assert list(row) == KEYS
    assert list(row["speculation"]) == SPECULATION_KEYS
    assert list(row["speculation"]["attempts"][0]) == ATTEMPT_KEYS
    assert list(SegmentRecord.model_fields) == SEGMENT_KEYS


def test_a_record_read_back_still_knows_where_the_speech_ended() -> None:
    (record,) = reduce(*QUESTION, *ANSWER)
    assert record.speech_end_s == 3.0
    assert TurnRecord.model_validate_json(record.to_json()).speech_end_s == 3.0


def test_the_wait_counts_from_the_true_end_of_speech_where_it_is_known() -> None:
    asked: list[float] = []

    def true_end(before_s: float) -> float:
        asked.append(before_s)
        return 2.95

    (record,) = reduce(*QUESTION, *ANSWER, reducer=TurnReducer(true_end))
    assert asked == [3.3]
    assert record.voice_to_voice_s == 0.95


def test_of_several_segments_the_last_counts() -> None:
    pause = (
        Event(Kind.VAD_STOPPED, 2.0, confirm_secs=0.2),
        Event(Kind.FINAL, 2.1, text="Well,"),
        Event(Kind.VAD_STARTED, 2.5, confirm_secs=0.2),
    )
    (record,) = reduce(*QUESTION[:5], *pause, *QUESTION[5:8], *ANSWER)
    assert (record.speech_start_s, record.vad_stop_s, record.final_transcript_s) == (1.0, 3.2, 3.25)
    assert record.user_text == "Well, What is"


def test_each_stretch_of_speech_tells_how_its_words_were_had() -> None:
    spoken = (
        Event(Kind.VAD_STARTED, 1.2, confirm_secs=0.2),
        Event(Kind.PARTIAL, 1.6),
        Event(Kind.PARTIAL, 1.8),
        Event(Kind.VAD_STOPPED, 2.2, confirm_secs=0.2),
        Event(Kind.VAD_STARTED, 2.5, confirm_secs=0.2),
        Event(Kind.PARTIAL, 2.6),  # of the second, though the first has no final text yet
        Event(Kind.FINAL, 2.7, text="Well,", path="replayed", setup_secs=0.6, connections=2),
        Event(Kind.PARTIAL, 2.9),
        Event(Kind.VAD_STOPPED, 3.2, confirm_secs=0.2),
        Event(Kind.PARTIAL, 3.21),  # late: the voice has ended
        Event(Kind.FINAL, 3.3, text="now.", path="stream", setup_secs=0.05, connections=1),
        Event(Kind.USER_STOPPED, 3.4),
    )
    (record,) = reduce(*spoken)
    first, second = record.segments
    assert (first.start_s, first.stop_s, first.partials) == (1.0, 2.2, 2)
    assert (first.partial_gap_ms, first.final_after_ms) == (200.0, 500.0)
    assert (first.path, first.setup_ms, first.connections) == ("replayed", 600.0, 2)
    assert (second.partials, second.first_partial_s, second.partial_gap_ms) == (2, 2.6, 300.0)
    assert (second.final_s, second.final_after_ms, second.path) == (3.3, 100.0, "stream")


def test_final_texts_that_come_early_or_without_a_vad_are_kept_too() -> None:
    early = (
        Event(Kind.VAD_STARTED, 1.2, confirm_secs=0.2),
        Event(Kind.FINAL, 1.9, text="Well,"),
        Event(Kind.VAD_STOPPED, 2.2, confirm_secs=0.2),
        Event(Kind.FINAL, 2.3, text="now."),
    )
    (record,) = reduce(*early)
    (segment,) = record.segments
    assert (segment.stop_s, segment.final_after_ms, segment.partial_gap_ms) == (2.2, 100.0, None)
    without = (Event(Kind.USER_STARTED, 1.0), Event(Kind.FINAL, 1.9, text="Hello", path="rest"))
    (record,) = reduce(*without)
    assert [(s.stop_s, s.final_s, s.path) for s in record.segments] == [(None, 1.9, "rest")]


def test_a_word_of_agreement_while_the_bot_speaks_is_no_turn() -> None:
    agreement = (
        Event(Kind.VAD_STARTED, 4.5, confirm_secs=0.2),
        Event(Kind.VAD_STOPPED, 5.0, confirm_secs=0.2),
        Event(Kind.FINAL, 5.1, text="mhm"),
    )
    (record,) = reduce(*QUESTION, *ANSWER, *agreement, BOT_STOPPED)
    assert (record.user_text, record.vad_stop_s, record.interrupted) == ("What is", 3.2, False)


def test_who_is_still_speaking_when_the_bot_stops_has_the_next_turn() -> None:
    speaks_on = Event(Kind.VAD_STARTED, 5.5, confirm_secs=0.2)
    first, second = reduce(*QUESTION, *ANSWER, speaks_on, BOT_STOPPED)
    assert (first.interrupted, second.turn, second.speech_start_s) == (False, 2, 5.3)


def test_an_interrupted_answer_says_only_what_was_heard_of_it() -> None:
    barge_in = (
        Event(Kind.VAD_STARTED, 4.5, confirm_secs=0.2),
        Event(Kind.USER_STARTED, 4.5),
        Event(Kind.INTERRUPTED, 4.5),
        Event(Kind.BOT_STOPPED, 4.51),
    )
    reducer = TurnReducer()
    assert [r for event in (*QUESTION, *ANSWER, *barge_in) for r in reducer.feed(event)] == []
    (record,) = reducer.feed(Event(Kind.BOT_TEXT, 4.52, text="It is"))
    assert (record.interrupted, record.bot_text) == (True, "It is")
    (following,) = reducer.finish()
    assert (following.speech_start_s, following.interrupted) == (4.3, False)


def test_the_remains_of_an_interrupted_answer_are_not_the_next_one() -> None:
    remains = (
        Event(Kind.USER_STARTED, 4.5),
        Event(Kind.TOKEN, 4.51),
        Event(Kind.CLAUSE, 4.52),
        Event(Kind.AUDIO_READY, 4.53),
        Event(Kind.SPOKEN, 4.54, text=" And so on."),
        Event(Kind.RESPONSE_ENDED, 4.55),
    )
    _, following = reduce(*QUESTION, *ANSWER, *remains)
    assert following.first_token_s is following.first_clause_s is None
    assert following.first_audio_ready_s is None


def test_an_answer_cut_before_it_was_audible_said_nothing() -> None:
    cut = (Event(Kind.USER_STARTED, 3.87), Event(Kind.BOT_STOPPED, 3.88))
    record, _ = reduce(*QUESTION, *ANSWER[:7], *cut)
    assert (record.interrupted, record.bot_text, record.voice_to_voice_s) == (True, "", None)


def test_audio_that_is_reported_just_after_the_interruption_was_heard_all_the_same() -> None:
    cut = (Event(Kind.USER_STARTED, 3.92), Event(Kind.AUDIO_OUT, 3.93))
    record, _ = reduce(*QUESTION, *ANSWER[:7], *cut)
    assert (record.interrupted, record.first_audio_out_s) == (True, 3.93)


def test_a_transcript_that_comes_after_the_turn_can_begin_another() -> None:
    late = (
        Event(Kind.FINAL, 3.6, text="the time?"),
        Event(Kind.USER_STARTED, 3.61),
        Event(Kind.USER_STOPPED, 3.62),
        Event(Kind.FINAL, 3.7, text="Please."),
        Event(Kind.USER_STARTED, 3.71),
    )
    first, second, third = reduce(*QUESTION, *ANSWER[:5], *late)
    assert (first.user_text, first.final_transcript_s) == ("What is", 3.25)
    assert (second.user_text, second.final_transcript_s) == ("the time?", 3.6)
    assert second.speech_start_s is None
    assert (third.user_text, third.final_transcript_s) == ("Please.", 3.7)


def test_a_greeting_that_the_user_talks_over_is_not_the_answer() -> None:
    greeting = (Event(Kind.BOT_STARTED, 0.5), Event(Kind.AUDIO_OUT, 0.6))
    goes_on = (Event(Kind.AUDIO_OUT, 3.31), Event(Kind.BOT_STOPPED, 3.315))
    (record,) = reduce(*greeting, *QUESTION, *goes_on)
    assert (record.first_audio_out_s, record.interrupted) == (None, False)
    (record,) = reduce(*greeting, *QUESTION, *goes_on, *ANSWER, BOT_STOPPED)
    assert (record.first_audio_out_s, record.interrupted) == (3.9, False)


def test_a_turn_waits_for_the_response_that_follows_a_function_call() -> None:
    calls = (
        Event(Kind.RESPONSE_STARTED, 3.32),
        Event(Kind.TOOLS_STARTED, 3.33),
        Event(Kind.RESPONSE_ENDED, 3.34),
    )
    reducer = TurnReducer()
    for event in (*QUESTION, *calls):
        reducer.feed(event)
    assert reducer.feed(Event(Kind.TICK, 3.34 + QUIET_SECS)) == []
    (record,) = reduce(*ANSWER, BOT_STOPPED, reducer=reducer)
    assert record.first_token_s == 3.4


def test_a_turn_that_gets_no_answer_closes_when_all_is_quiet() -> None:
    reducer = TurnReducer()
    failed = (
        Event(Kind.RESPONSE_STARTED, 3.32),
        Event(Kind.ERROR, 3.4, text="LLM: refused"),
        Event(Kind.RESPONSE_ENDED, 3.4),
    )
    for event in (*QUESTION, *failed):
        assert reducer.feed(event) == []
    assert reducer.feed(Event(Kind.TICK, 3.39 + QUIET_SECS)) == []
    (record,) = reducer.feed(Event(Kind.TICK, 3.4 + QUIET_SECS))
    assert (record.errors, record.bot_text) == (["LLM: refused"], "")
    assert reducer.idle_since_s == 3.4


def fired(at_s: float, text: str, attempt: int = 1) -> tuple[Event, ...]:
    return (
        Event(Kind.ATTEMPT_FIRED, at_s, attempt=attempt, text=text, confidence=0.9),
        Event(Kind.RESPONSE_STARTED, at_s),
        Event(Kind.TOKEN, at_s + 0.1),
        Event(Kind.CLAUSE, at_s + 0.2),
        Event(Kind.AUDIO_READY, at_s + 0.3),
    )


def ended(at_s: float, verdict: Verdict) -> Event:
    return Event(
        Kind.ATTEMPT_ENDED,
        at_s,
        text="why",
        verdict=verdict,
    )


def cost(at_s: float, attempt: int = 1) -> tuple[Event, ...]:
    return (
        Event(Kind.ATTEMPT_COST, at_s, attempt=attempt, input_tokens=20, output_tokens=5),
        Event(Kind.ATTEMPT_DROPPED, at_s, audio_s=0.5),
    )


def test_only_the_committed_attempt_gives_the_times_of_the_answer() -> None:
    (record,) = reduce(
        *QUESTION[:5],
        *fired(1.8, "What"),
        ended(2.2, "aborted"),
        *cost(2.21),
        *fired(2.5, "What is", 2),
        *QUESTION[5:8],
        ended(3.3, "committed"),
        cost(3.31, 2)[0],
        Event(Kind.BOT_STARTED, 3.35),
        Event(Kind.AUDIO_LEFT, 3.36),
        Event(Kind.AUDIO_LEFT, 3.38),
        Event(Kind.AUDIO_OUT, 3.4),
    )
    assert (record.first_token_s, record.first_audio_ready_s) == (2.6, 2.8)
    speculation = record.speculation
    assert [(a.text, a.verdict, a.lead_ms) for a in speculation.attempts] == [
        ("What", "aborted", 1500.0),
        ("What is", "committed", 800.0),
    ]
    # Begun at turn end, its first audio would have been ready 300 ms after it.
    assert (speculation.committed, speculation.saved_ms) == (True, 300.0)
    assert (speculation.left_ms, speculation.release_ms) == (60.0, 100.0)
    assert (speculation.wasted_input_tokens, speculation.wasted_output_tokens) == (20, 5)
    assert speculation.wasted_audio_s == 0.5


def test_every_attempt_gets_a_verdict_though_the_session_ends_first() -> None:
    (record,) = reduce(*QUESTION[:5], *fired(1.8, "What"), *fired(2.5, "What is"))
    verdicts = [(a.verdict, a.reason, a.lead_ms) for a in record.speculation.attempts]
    assert verdicts == [
        ("superseded", "a newer attempt", None),
        ("aborted", "the session ended", None),
    ]


def test_an_error_of_a_withdrawn_attempt_is_none_of_the_turn() -> None:
    def failure(at_s: float, text: str, attempt: int = 0) -> Event:
        return Event(Kind.ERROR, at_s, text=text, attempt=attempt)

    withdrawn = (*fired(1.8, "What"), failure(2.15, "in vain", 1), ended(2.2, "aborted"))
    (record,) = reduce(*QUESTION[:5], *withdrawn, *QUESTION[5:], *ANSWER, BOT_STOPPED)
    assert record.errors == []
    (record,) = reduce(*QUESTION[:5], *withdrawn, *QUESTION[5:], failure(3.4, "again"))
    assert record.errors == ["again"]
    committed = (*fired(2.5, "What is", 2), *QUESTION[5:8], ended(3.3, "committed"))
    (record,) = reduce(*QUESTION[:5], *withdrawn, *committed, failure(3.4, "broke off", 2))
    assert record.errors == ["broke off"]


def test_the_remains_of_a_withdrawn_answer_are_not_the_ordinary_one() -> None:
    withdrawn = (*fired(2.5, "What"), ended(3.26, "aborted"), *QUESTION[7:])
    remains = (
        Event(Kind.TOKEN, 3.311),
        Event(Kind.CLAUSE, 3.312),
        Event(Kind.AUDIO_READY, 3.313),
    )
    (record,) = reduce(*QUESTION[:7], *withdrawn, *remains, *ANSWER, BOT_STOPPED)
    times = (record.first_token_s, record.first_clause_s, record.first_audio_ready_s)
    assert times == (3.4, 3.5, 3.8)


def test_words_that_leave_the_output_just_after_the_interruption_were_heard() -> None:
    cut = (
        Event(Kind.USER_STARTED, 4.15),
        Event(Kind.SPOKEN, 4.16, text=" Yes."),
        Event(Kind.BOT_STOPPED, 4.17),
    )
    record, following = reduce(*QUESTION, *ANSWER, *cut)
    assert (record.bot_text, following.bot_text) == ("It is that. Yes.", "")


@st.composite
def conversations(draw: st.DrawFn) -> list[Event]:
    """Anything in any order, each event at a moment and with a text of its own."""
    kinds = draw(st.lists(st.sampled_from(list(Kind)), max_size=60))
    steps = draw(st.lists(st.integers(1, 500), min_size=len(kinds), max_size=len(kinds)))
    events: list[Event] = []
    for number, kind in enumerate(kinds):
        verdict: Verdict = draw(st.sampled_from(["committed", "aborted", "superseded"]))
        at_s = sum(steps[: number + 1]) / 100
        # Half a step, so that no start of speech falls on another event.
        events.append(Event(kind, at_s, f"word{number}.", confirm_secs=0.005, verdict=verdict))
    return events


@settings(deadline=None)
@given(conversations())
def test_whatever_happens_each_turn_that_opens_has_one_record(events: Sequence[Event]) -> None:
    reducer = TurnReducer()
    records = [record for event in events for record in reducer.feed(event)]
    records += reducer.finish()
    assert [record.turn for record in records] == list(range(1, len(records) + 1))
    assert len(records) >= any(event.kind is Kind.VAD_STARTED for event in events)
    assert reducer.finish() == []
    assert reducer.deadline_s is None


@settings(deadline=None)
@given(conversations())
def test_whatever_happens_nothing_is_counted_in_two_turns(events: Sequence[Event]) -> None:
    records = reduce(*events)
    rows = [json.loads(record.to_json()) for record in records]
    moments = [row[key] for row in rows for key in TIMES if row[key] is not None]
    moments += [a["fired_at_s"] for row in rows for a in row["speculation"]["attempts"]]
    assert len(moments) == len(set(moments))
    words = [
        word
        for row in rows
        for text in (row["user_text"], row["bot_text"], *row["errors"])
        for word in text.replace(".", ". ").split()
    ]
    assert len(words) == len(set(words))


@settings(deadline=None)
@given(conversations())
def test_whatever_happens_time_runs_forward_within_a_turn(events: Sequence[Event]) -> None:
    def forward(*moments: float | None) -> bool:
        known = [moment for moment in moments if moment is not None]
        return known == sorted(known)

    for record in reduce(*events):
        assert forward(record.speech_start_s, record.vad_stop_s, record.turn_end_s)
        assert forward(record.speech_start_s, record.first_partial_s, record.turn_end_s)
        assert forward(record.speech_start_s, record.final_transcript_s, record.turn_end_s)
        assert forward(record.turn_end_s, record.first_audio_out_s)
        assert record.turn_end_s is not None or record.first_audio_out_s is None
        assert record.voice_to_voice_s is None or record.voice_to_voice_s > 0
        verdicts = [attempt.verdict for attempt in record.speculation.attempts]
        assert record.speculation.committed == ("committed" in verdicts)


@settings(deadline=None)
@given(conversations())
def test_whatever_happened_a_turn_whose_user_is_done_closes_by_itself(
    events: Sequence[Event],
) -> None:
    reducer = TurnReducer()
    for event in events:
        reducer.feed(event)
    end_s = events[-1].at_s if events else 0.0
    reducer.feed(Event(Kind.USER_STOPPED, end_s + 1))
    reducer.feed(Event(Kind.BOT_STOPPED, end_s + 2))
    reducer.feed(Event(Kind.TICK, end_s + 3 + STALL_SECS))
    assert reducer.idle_since_s is not None or reducer.finish()[0].turn_end_s is None


# -- the observer in a real pipeline


SPEECH_RATE = 24000
SILENCE = bytes(2 * SPEECH_RATE // 20)  # 50 ms
TONE = (8000 * np.sin(np.arange(SPEECH_RATE // 5) * 0.1)).astype(np.int16).tobytes()  # 200 ms


class Ears(FrameProcessor):
    """Hears what the test says it hears."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)

    async def begin(self) -> None:
        await self.broadcast_frame(VADUserStartedSpeakingFrame, start_secs=0.2)

    async def end(self, text: str) -> None:
        if text:
            await self.push_frame(ProgressiveTranscriptionFrame(text[:3], "", ""))
        await self.broadcast_frame(VADUserStoppedSpeakingFrame, stop_secs=0.2)
        await self.push_frame(TranscriptionFrame(text, "", "", finalized=True))


class Brain(FrameProcessor):
    """Answers everything in two sentences."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame):
            await self.push_frame(LLMFullResponseStartFrame())
            await self.push_frame(LLMTextFrame("So it is. "))
            await self.push_frame(LLMTextFrame("Indeed."))
            await self.push_frame(LLMFullResponseEndFrame())
        else:
            await self.push_frame(frame, direction)


class Voice(FrameProcessor):
    """Says what it is given: 50 ms of silence and 200 ms of tone for every text."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMFullResponseStartFrame):
            await self.push_frame(frame)
            await self.push_frame(TTSStartedFrame())
        elif isinstance(frame, LLMTextFrame):
            announced = AggregatedTextFrame(frame.text, TextType.SENTENCE)
            announced.append_to_context = False
            await self.push_frame(announced)
            await self.push_frame(TTSAudioRawFrame(SILENCE, SPEECH_RATE, 1))
            await self.push_frame(TTSAudioRawFrame(TONE, SPEECH_RATE, 1))
            await self.push_frame(TTSTextFrame(frame.text, TextType.SENTENCE))
        elif isinstance(frame, LLMFullResponseEndFrame):
            await self.push_frame(TTSStoppedFrame())
            await self.push_frame(frame)
        else:
            await self.push_frame(frame, direction)


class EndsWithTranscript(BaseUserTurnStopStrategy):  # type: ignore[no-untyped-call]
    """The final transcript ends the user's turn, even when it is empty."""

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        if isinstance(frame, TranscriptionFrame):
            await self.trigger_user_turn_stopped()
        return ProcessFrameResult.CONTINUE


@dataclass
class Conversation:
    ears: Ears
    turns: asyncio.Queue[TurnRecord]
    played: list[PlayedAudio]
    audible: asyncio.Event
    user_done: asyncio.Event

    async def ask(self, text: str) -> None:
        self.user_done.clear()
        await self.ears.begin()
        await self.ears.end(text)
        await self.user_done.wait()

    async def next_turn(self) -> TurnRecord:
        async with asyncio.timeout(10):
            return await self.turns.get()


@asynccontextmanager
async def conversation() -> AsyncIterator[Conversation]:
    played: list[PlayedAudio] = []
    audible, user_done = asyncio.Event(), asyncio.Event()
    audible_frames = 0

    def on_played(audio: PlayedAudio) -> None:
        nonlocal audible_frames
        played.append(audio)
        audible_frames += int(np.abs(np.frombuffer(audio.audio, np.int16)).max()) > 327
        # While the second is played, the pipeline knows of the first.
        if audible_frames == 2:
            audible.set()

    transport = MemoryTransport(on_played=on_played)
    turns: asyncio.Queue[TurnRecord] = asyncio.Queue()
    timeline = Timeline(zero_ns=lambda: transport.zero_ns, on_turn=turns.put_nowait)
    ears = Ears()
    user, assistant = LLMContextAggregatorPair(
        LLMContext(),
        user_params=LLMUserAggregatorParams(
            user_turn_strategies=UserTurnStrategies(
                start=[VADUserTurnStartStrategy()], stop=[EndsWithTranscript()]
            ),
            empty_user_turn=None,
        ),
    )
    stages = [transport.input(), ears, user, Brain(), Voice(), transport.output(), assistant]
    worker = PipelineWorker(
        Pipeline(stages), observers=[timeline], enable_rtvi=False, enable_turn_tracking=False
    )
    started = asyncio.Event()

    async def on_started(*_: object) -> None:
        started.set()

    async def on_user_done(*_: object) -> None:
        user_done.set()

    worker.add_event_handler("on_pipeline_started", on_started)
    user.add_event_handler("on_user_turn_stopped", on_user_done)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await started.wait()
        await transport.push_audio(bytes(640))
        yield Conversation(ears, turns, played, audible, user_done)
    finally:
        await runner.cancel()
        await running


async def test_a_turn_through_a_real_pipeline_is_timed_from_speech_to_first_audible_sample() -> (
    None
):
    async with conversation() as talk:
        await talk.ask("What is it?")
        record = await talk.next_turn()
    assert (record.turn, record.user_text, record.bot_text) == (
        1,
        "What is it?",
        "So it is. Indeed.",
    )
    assert (record.interrupted, record.errors) == (False, [])
    moments = [getattr(record, key) for key in TIMES]
    assert None not in moments
    chain = [record.vad_stop_s, record.final_transcript_s, record.turn_end_s]
    chain += [record.first_token_s, record.first_clause_s, record.first_audio_ready_s]
    assert sorted(filter(None, chain)) == chain
    # The first audible sample, found independently in what the far end was given.
    speech = np.concatenate([np.frombuffer(piece.audio, np.int16) for piece in talk.played])
    rate, start = talk.played[0].sample_rate, talk.played[0].start_sample
    heard_s = (start + int(np.argmax(np.abs(speech) > 327))) / rate
    assert record.first_audio_out_s == pytest.approx(heard_s, abs=0.001)
    assert record.vad_stop_s is not None
    waited_s = heard_s - (record.vad_stop_s - 0.2)
    assert record.voice_to_voice_s == pytest.approx(waited_s, abs=0.002)


async def test_a_barge_in_through_a_real_pipeline_ends_the_turn_and_opens_the_next() -> None:
    async with conversation() as talk:
        await talk.ask("Tell me.")
        await talk.audible.wait()
        await talk.ask("Stop.")
        interrupted, answered = await talk.next_turn(), await talk.next_turn()
    assert (interrupted.user_text, interrupted.interrupted) == ("Tell me.", True)
    assert interrupted.first_audio_out_s is not None
    assert interrupted.bot_text in ("", "So it is.", "So it is. Indeed.")
    assert (answered.turn, answered.user_text, answered.interrupted) == (2, "Stop.", False)
    assert answered.first_audio_out_s is not None
    assert answered.turn_end_s is not None
    assert answered.first_audio_out_s > answered.turn_end_s


async def test_a_turn_without_words_through_a_real_pipeline_has_a_record_and_no_answer() -> None:
    async with conversation() as talk:
        await talk.ask("")
        await talk.ask("Hello?")
        silent, answered = await talk.next_turn(), await talk.next_turn()
    assert (silent.user_text, silent.bot_text, silent.interrupted) == ("", "", False)
    assert silent.turn_end_s is not None
    assert silent.first_token_s is silent.voice_to_voice_s is None
    assert answered.user_text == "Hello?"


async def test_a_pipeline_taken_down_in_the_middle_of_a_turn_still_yields_its_record() -> None:
    async with conversation() as talk:
        await talk.ask("Tell me.")
        await talk.audible.wait()
    record = await talk.next_turn()
    assert (record.user_text, record.interrupted) == ("Tell me.", True)
    assert "Indeed" not in record.bot_text, "it was not heard"


# -- the observer alone


def pushed(frame: Frame, at_s: float, direction: FrameDirection) -> FramePushed:
    ears = Ears()
    return FramePushed(ears, ears, frame, direction, timestamp=round(at_s * 1e9))


async def test_frames_broadcast_both_ways_count_once_and_subclasses_count_as_their_base() -> None:
    @dataclass
    class Barge(InterruptionFrame):
        """A frame of somebody's own."""

    records: list[TurnRecord] = []
    timeline = Timeline(zero_ns=lambda: 0, on_turn=records.append)
    down, up = VADUserStartedSpeakingFrame(0.2), VADUserStartedSpeakingFrame(0.2)
    down.broadcast_sibling_id, up.broadcast_sibling_id = up.id, down.id
    await timeline.on_push_frame(pushed(up, 0.9, FrameDirection.UPSTREAM))
    await timeline.on_push_frame(pushed(down, 1.0, FrameDirection.DOWNSTREAM))
    await timeline.on_push_frame(pushed(Barge(), 1.1, FrameDirection.DOWNSTREAM))
    timeline.finish()
    assert [record.speech_start_s for record in records] == [0.8]


async def test_words_count_when_they_leave_the_output_and_once() -> None:
    records: list[TurnRecord] = []
    timeline = Timeline(zero_ns=lambda: 0, on_turn=records.append)
    output = MemoryTransport().output()

    async def push(frame: Frame, at_s: float, source: FrameProcessor, first: bool = True) -> None:
        await timeline.on_push_frame(
            FramePushed(source, source, frame, FrameDirection.DOWNSTREAM, round(at_s * 1e9), first)
        )

    def word(text: str) -> TTSTextFrame:
        return TTSTextFrame(text, TextType.WORD)

    heard, cut, voice = word("Well"), word("then"), Voice()
    await push(UserStartedSpeakingFrame(), 1.0, voice)
    await push(UserStoppedSpeakingFrame(), 2.0, voice)
    await push(word("withdrawn"), 2.1, voice)
    await push(LLMFullResponseStartFrame(), 2.2, voice)
    await push(heard, 2.3, voice)
    await push(cut, 2.3, voice)
    tone = TTSAudioRawFrame(TONE, SPEECH_RATE, 1)
    await push(BotStartedSpeakingFrame(), 2.4, output)
    await push(tone, 2.4, output)
    await push(heard, 2.4, output, first=False)
    await push(heard, 2.4, voice, first=False)  # as a stage behind the output passes it on
    timeline.finish()
    assert [record.bot_text for record in records] == ["Well"]


async def test_who_waits_for_quiet_is_woken_by_the_input_or_by_the_end() -> None:
    timeline = Timeline(zero_ns=lambda: 0, on_turn=lambda _: None)
    waiting = [asyncio.create_task(timeline.wait_idle(secs)) for secs in (1.0, 60.0)]
    await asyncio.sleep(0)
    for at_s in (0.5, 0.9, 1.0):
        assert not waiting[0].done()
        silence = InputAudioRawFrame(bytes(640), 16000, 1)
        await timeline.on_push_frame(pushed(silence, at_s, FrameDirection.DOWNSTREAM))
        await asyncio.sleep(0)
    await waiting[0]
    assert not waiting[1].done()
    timeline.finish()
    await waiting[1]


@pytest.mark.parametrize(
    ("samples", "channels", "expected_s"),
    [
        ([0] * 80 + [400], 1, 0.01),
        ([0] * 80 + [-32768], 1, 0.01),
        ([327, -327] * 40, 1, None),
        ([0, 0] * 8 + [0, 400], 2, 0.001),
        ([], 1, None),
    ],
)
def test_the_first_audible_sample_is_found_within_a_frame(
    samples: list[int], channels: int, expected_s: float | None
) -> None:
    frame = OutputAudioRawFrame(np.array(samples, np.int16).tobytes(), 8000, channels)
    assert first_audible_s(frame) == expected_s


# -- whole conversations, in virtual time


class Recorded(World):
    """A conversation with the trigger, and the records of its turns."""

    def __init__(self) -> None:
        super().__init__(trigger=EAGER, turn={"smart_turn": False})
        self.records: list[TurnRecord] = []
        timeline = Timeline(zero_ns=lambda: 0, on_turn=self.records.append)
        self.built.pipeline.watch([timeline])


def recorded(steps: list[Step], *models: Model, lag: int = 0) -> Recorded:
    """Play the steps; the session ends with the last."""
    world = Recorded()
    world.llm.script.extend(models)
    world.llm.lag = lag

    async def script() -> None:
        await asyncio.sleep(0.5)
        await perform(world, steps)

    play(world, script)
    return world


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCRIPTS, MODELS, st.just(0) | st.integers(0, 40))
def test_whatever_happens_the_record_has_the_words_that_were_heard(
    steps: list[Step], models: list[Model], lag: int
) -> None:
    world = recorded(steps, *models, lag=lag)
    heard = {answer.reply: len(answer.pieces) for answer in world.heard}
    told: dict[int, int] = {}
    for record in world.records:
        reply = None
        for word in record.bot_text.split():
            if match := re.fullmatch(r"reply(\d+)", word):
                reply = int(match[1])
                assert reply not in told
            assert reply is not None
            told[reply] = told.get(reply, 0) + 1
    # One piece is one word; the last may have been heard in part.
    assert all(heard.get(reply, 0) - count in (0, 1) for reply, count in told.items())
    assert all(reply in told for reply, pieces in heard.items() if pieces > 1)


@pytest.mark.parametrize(
    ("models", "errors"), [((Model.FAILS, Model.FAST), 0), ((Model.FAILS, Model.FAILS), 1)]
)
def test_a_failure_is_in_the_record_only_if_the_ordinary_answer_fails_too(
    models: tuple[Model, ...], errors: int
) -> None:
    early: list[Step] = [("start_speaking",), ("partial", "What time is it?"), ("wait", 1.0)]
    end: list[Step] = [("stop_speaking",), ("final", "What time is it?"), ("silence", 3.0)]
    world = recorded([*early, *end], *models)
    (record,) = world.records
    assert [attempt.verdict for attempt in record.speculation.attempts] == ["aborted"]
    assert len(record.errors) == errors


# -- the picture


def spoken_for() -> TurnRecord:
    return TurnRecord(
        turn=2,
        user_text="What is the capital of France?",
        bot_text="The capital of France is Paris. It lies on the Seine, and it is quite large.",
        speech_start_s=0.3,
        speech_end_s=2.1,
        vad_stop_s=2.31,
        turn_end_s=2.42,
        first_partial_s=0.82,
        final_transcript_s=2.37,
        first_token_s=2.0,
        first_clause_s=2.08,
        first_audio_ready_s=2.4,
        first_audio_out_s=2.43,
        voice_to_voice_s=0.33,
        errors=["STT: reconnected"],
        speculation=SpeculationRecord(
            attempts=[
                AttemptRecord(
                    fired_at_s=1.2,
                    text="What is the",
                    confidence=0.83,
                    verdict="aborted",
                    reason="the words changed",
                    lead_ms=1220.0,
                ),
                AttemptRecord(
                    fired_at_s=1.87,
                    text="What is the capital of France",
                    confidence=None,
                    verdict="committed",
                    reason="same words",
                    lead_ms=550.0,
                ),
            ],
            committed=True,
            saved_ms=530.0,
        ),
        segments=[
            SegmentRecord(
                start_s=0.3,
                stop_s=2.31,
                partials=5,
                partial_gap_ms=310.4,
                final_after_ms=60.0,
                path="replayed",
                setup_ms=42.3,
                connections=2,
            )
        ],
    )


WATERFALL = """\
Turn 2                                                     voice to voice 330 ms
  user   What is the capital of France?
  bot    The capital of France is Paris. It lies on the Seine, and it is quite
         large.
  error  STT: reconnected

             -1.0           -0.5             0 s            from end of speech
  early           ×                   ●      │              2 fired
  speech ◀███████████████████████████████████│              1.80 s long
  VAD                                        ░░░░░░░█       stop         +210 ms
  STT    ◀░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░█     final text   +270 ms
  turn                                       │      ░░░█    end          +320 ms
  LLM                                 ░░░░███│              first token  -100 ms
  TTS                                        ░░░░░░░░░░█    first audio  +300 ms
  out                                        │         ███▶ audible      +330 ms
  early  -900 ms aborted: the words changed · 0.83 sure · "What is the"
  early  -230 ms committed: same words · "What is the capital of France"
  heard  replayed on 2 connections, opened in 42 ms · final text 60 ms after VAD
         stop · partials at most 310 ms apart

"""


def test_the_waterfall_looks_as_it_is_documented() -> None:
    out = io.StringIO()
    render([spoken_for()], console=Console(file=out, width=80))
    assert out.getvalue() == WATERFALL
    documentation = (Path(__file__).parents[1] / "docs" / "timeline.md").read_text("utf-8")
    chart = WATERFALL.partition("\n\n")[2].strip("\n")
    assert chart in documentation


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_line_of_a_waterfall_is_wider_than_the_terminal(width: int) -> None:
    lines = layout(spoken_for(), width=width)
    assert max(len(line.text) for line in lines) <= max(width, 60)


def test_a_terminal_that_knows_no_blocks_gets_plain_characters() -> None:
    raw = io.BytesIO()
    record = spoken_for().model_copy(update={"user_text": "¿Qué? \x1b[31m"})
    with io.TextIOWrapper(raw, encoding="ascii") as out:
        render([record], console=Console(file=out, width=80))
        out.flush()
        drawn = raw.getvalue().decode("ascii")
    assert "?Qu??" in drawn
    assert "\x1b" not in drawn
    assert ASCII.result * 3 in drawn


@settings(deadline=None)
@given(
    st.builds(
        TurnRecord,
        turn=st.integers(1, 99),
        user_text=st.text(max_size=200),
        bot_text=st.text(max_size=200),
        **{key: st.none() | st.floats(-10, 1000) for key in TIMES},
        speech_end_s=st.none() | st.floats(-10, 1000),
    ),
    st.integers(1, 200),
)
def test_any_record_can_be_drawn(record: TurnRecord, width: int) -> None:
    assert all(len(line.text) <= max(width, 60) for line in layout(record, width=width))
