"""Watches the frames of a session and tells, turn by turn, what happened when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from pipecat.frames.frames import (
    AggregatedTextFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    Frame,
    FunctionCallsStartedFrame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    InterruptionFrame,
    LLMContextAssistantTurnFrame,
    LLMContextUserTurnFrame,
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
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.frame_processor import FrameDirection
from pipecat.transports.base_output import BaseOutputTransport

from headstart.frames import (
    PLAYED_AT_NS,
    SpeculationCostFrame,
    SpeculationDroppedFrame,
    SpeculationEndedFrame,
    SpeculationFiredFrame,
    attempt_of,
)
from headstart.pipeline.timeline.records import Event, Kind, TurnRecord
from headstart.pipeline.timeline.reducer import TurnReducer
from headstart.processors.stt.recognised import Recognised

__all__ = ["Timeline", "TurnRecord"]

AUDIBLE = 327
"""A sample beyond this counts as heard: -40 dBFS of 16-bit audio."""


class Timeline(BaseObserver):
    """An observer that reports each turn as it closes.

    Args:
        zero_ns: When the first input sample was taken, in nanoseconds on the pipeline's clock;
            None while there was none, and until then nothing is recorded.
        on_turn: Called with the record of every turn, in order, on the event loop. It must
            not block or raise.
        true_speech_end: Where the caller knows better than the VAD (it plays a file): given
            the time of a turn's end in seconds from zero, the true end of the user's voice
            before it in the same seconds, or None.
    """

    def __init__(
        self,
        *,
        zero_ns: Callable[[], int | None],
        on_turn: Callable[[TurnRecord], None],
        true_speech_end: Callable[[float], float | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(observe_every_push=True, **kwargs)
        self._zero_ns = zero_ns
        self._on_turn = on_turn
        self._turns = TurnReducer(true_speech_end)
        self._readers: dict[type[Frame], _Reader | None] = dict(_READERS)
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    async def on_push_frame(self, data: FramePushed) -> None:
        """Note what a frame says, if it says anything about a turn."""
        frame = data.frame
        if not data.first_push and not isinstance(frame, TTSTextFrame):
            return
        try:
            reader = self._readers[type(frame)]
        except KeyError:
            reader = self._readers[type(frame)] = _reader_of(type(frame))
        if reader is None:
            return
        if frame.broadcast_sibling_id is not None and data.direction is FrameDirection.UPSTREAM:
            return  # the twin of a frame that goes downstream
        zero_ns = self._zero_ns()
        if zero_ns is None:
            return
        event = reader(self, data, zero_ns)
        if event is not None:
            self._report(self._turns.feed(event))

    async def wait_idle(self, secs: float) -> None:
        """Wait until no turn has been open, and nobody has spoken, for a while.

        Args:
            secs: For how long, in seconds of input audio: input has to keep coming.
        """
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((secs, idle))
        await idle

    def finish(self) -> None:
        """Close the turn that is open and let go who waits: the conversation is over."""
        self._report(self._turns.finish())
        waiting, self._waiting = self._waiting, []
        for _, idle in waiting:
            if not idle.done():
                idle.set_result(None)

    async def cleanup(self) -> None:
        """Close the turn that is open, when the pipeline is taken down."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        self.finish()

    def _report(self, records: list[TurnRecord]) -> None:
        for record in records:
            self._on_turn(record)

    def _input_audio(self, data: FramePushed, zero_ns: int) -> Event | None:
        # Input never stops, so it is the clock of turns in which nothing more happens.
        at_s = _seconds(data.timestamp, zero_ns)
        if self._waiting:
            self._wake(at_s)
        deadline_s = self._turns.deadline_s
        return Event(Kind.TICK, at_s) if deadline_s is not None and at_s >= deadline_s else None

    def _wake(self, now_s: float) -> None:
        since_s = self._turns.idle_since_s
        if since_s is None:
            return
        waiting, self._waiting = self._waiting, []
        for secs, idle in waiting:
            if now_s - since_s < secs:
                self._waiting.append((secs, idle))
            elif not idle.done():
                idle.set_result(None)

    def _output_audio(self, data: FramePushed, zero_ns: int) -> Event | None:
        frame = data.frame
        assert isinstance(frame, OutputAudioRawFrame)
        if isinstance(data.source, BaseOutputTransport):
            if not self._turns.awaits_audio:
                return None
            played_s = _seconds(frame.metadata.get(PLAYED_AT_NS, data.timestamp), zero_ns)
            if isinstance(frame, TTSAudioRawFrame):
                self._report(self._turns.feed(Event(Kind.AUDIO_LEFT, played_s)))
            offset_s = first_audible_s(frame)
            return None if offset_s is None else Event(Kind.AUDIO_OUT, played_s + offset_s)
        if isinstance(frame, TTSAudioRawFrame):
            return Event(Kind.AUDIO_READY, _seconds(data.timestamp, zero_ns))
        return None


def first_audible_s(frame: OutputAudioRawFrame) -> float | None:
    """Where in a frame of 16-bit audio the first audible sample is, in seconds from its start."""
    samples = np.frombuffer(frame.audio, dtype=np.int16)
    audible = np.flatnonzero((samples > AUDIBLE) | (samples < -AUDIBLE))
    if not audible.size:
        return None
    return float(audible[0] // frame.num_channels) / frame.sample_rate


_Reader = Callable[[Timeline, FramePushed, int], Event | None]


def _seconds(at_ns: int, zero_ns: int) -> float:
    return (at_ns - zero_ns) / 1e9


def _reader_of(frame_type: type[Frame]) -> _Reader | None:
    """The reader of a frame type, or of the nearest type it derives from."""
    return next((_READERS[base] for base in frame_type.__mro__ if base in _READERS), None)


def _event(kind: Kind, **fields: Callable[[Any], Any]) -> _Reader:
    """A reader that makes an event of one kind, taking its fields from the frame."""

    def read(_: Timeline, data: FramePushed, zero_ns: int) -> Event:
        values = {name: take(data.frame) for name, take in fields.items()}
        return Event(kind, _seconds(data.timestamp, zero_ns), **values)

    return read


def _text(frame: Any) -> str:
    return str(frame.text)


def _if_text(reader: _Reader) -> _Reader:
    def read(timeline: Timeline, data: FramePushed, zero_ns: int) -> Event | None:
        return reader(timeline, data, zero_ns) if _text(data.frame).strip() else None

    return read


def _final(_: Timeline, data: FramePushed, zero_ns: int) -> Event:
    frame: Any = data.frame
    at_s, result = _seconds(data.timestamp, zero_ns), frame.result
    if not isinstance(result, Recognised):
        return Event(Kind.FINAL, at_s, frame.text)
    return Event(
        Kind.FINAL,
        at_s,
        frame.text,
        path=result.path,
        setup_secs=result.setup_secs,
        connections=result.connections,
    )


def _spoken(_: Timeline, data: FramePushed, zero_ns: int) -> Event | None:
    """Words count when they leave the output: before it, they may never be heard."""
    frame = data.frame
    assert isinstance(frame, TTSTextFrame)
    if not isinstance(data.source, BaseOutputTransport):
        return None
    text = frame.text if frame.includes_inter_frame_spaces else f" {frame.text}"
    return Event(Kind.SPOKEN, _seconds(data.timestamp, zero_ns), text)


def _error_text(frame: ErrorFrame) -> str:
    return f"{frame.processor.name}: {frame.error}" if frame.processor else frame.error


def _unless_skipped(reader: _Reader) -> _Reader:
    def read(timeline: Timeline, data: FramePushed, zero_ns: int) -> Event | None:
        skipped = getattr(data.frame, "skip_tts", None)
        return None if skipped else reader(timeline, data, zero_ns)

    return read


_READERS: dict[type[Frame], _Reader] = {
    VADUserStartedSpeakingFrame: _event(Kind.VAD_STARTED, confirm_secs=lambda f: f.start_secs),
    VADUserStoppedSpeakingFrame: _event(Kind.VAD_STOPPED, confirm_secs=lambda f: f.stop_secs),
    InterimTranscriptionFrame: _if_text(_event(Kind.PARTIAL)),
    TranscriptionFrame: _final,
    UserStartedSpeakingFrame: _event(Kind.USER_STARTED),
    UserStoppedSpeakingFrame: _event(Kind.USER_STOPPED),
    LLMContextUserTurnFrame: _event(Kind.USER_TEXT, text=_text),
    SpeculationFiredFrame: _event(
        Kind.ATTEMPT_FIRED,
        attempt=lambda f: f.attempt,
        text=_text,
        confidence=lambda f: f.confidence,
    ),
    SpeculationEndedFrame: _event(
        Kind.ATTEMPT_ENDED,
        text=lambda f: f.reason,
        verdict=lambda f: "committed" if f.committed else "aborted",
        waited_secs=lambda f: f.waited_secs,
    ),
    SpeculationCostFrame: _event(
        Kind.ATTEMPT_COST,
        attempt=lambda f: f.attempt,
        input_tokens=lambda f: f.input_tokens,
        output_tokens=lambda f: f.output_tokens,
    ),
    SpeculationDroppedFrame: _event(Kind.ATTEMPT_DROPPED, audio_s=lambda f: f.audio_secs),
    LLMFullResponseStartFrame: _event(Kind.RESPONSE_STARTED),
    LLMTextFrame: _event(Kind.TOKEN),
    FunctionCallsStartedFrame: _event(Kind.TOOLS_STARTED),
    LLMFullResponseEndFrame: _event(Kind.RESPONSE_ENDED),
    # The TTS announces what it is about to say; where it does not, the start of its answer
    # is the first that is seen of it.
    AggregatedTextFrame: _unless_skipped(_event(Kind.CLAUSE)),
    TTSStartedFrame: _event(Kind.CLAUSE),
    TTSTextFrame: _spoken,
    TTSStoppedFrame: _event(Kind.TTS_STOPPED),
    InputAudioRawFrame: Timeline._input_audio,
    OutputAudioRawFrame: Timeline._output_audio,
    BotStartedSpeakingFrame: _event(Kind.BOT_STARTED),
    BotStoppedSpeakingFrame: _event(Kind.BOT_STOPPED),
    InterruptionFrame: _event(Kind.INTERRUPTED),
    LLMContextAssistantTurnFrame: _event(Kind.BOT_TEXT, text=_text),
    ErrorFrame: _event(Kind.ERROR, text=_error_text, attempt=lambda f: attempt_of(f) or 0),
}
