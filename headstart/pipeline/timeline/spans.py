"""A turn as far as it has come, and the record that is made of it when it is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from headstart.pipeline.timeline.records import AttemptRecord, Event, SpeculationRecord, TurnRecord
from headstart.pipeline.timeline.segments import Hearing


@dataclass
class Said:
    """The user's part of a turn."""

    speech_start_s: float | None = None
    vad_stop_s: float | None = None
    speech_end_s: float | None = None
    first_partial_s: float | None = None
    final_transcript_s: float | None = None
    finals: list[str] = field(default_factory=list)
    hearing: Hearing = field(default_factory=Hearing)


@dataclass
class Answer:
    """The bot's part of a turn. The first of everything counts."""

    begun: bool = False
    responses_owed: int = 0
    voicing: bool = False
    started_speaking: bool = False
    first_token_s: float | None = None
    first_clause_s: float | None = None
    first_audio_ready_s: float | None = None
    first_audio_left_s: float | None = None
    first_audio_out_s: float | None = None
    spoken: list[str] = field(default_factory=list)
    in_context: list[str] = field(default_factory=list)

    @property
    def under_way(self) -> bool:
        """Whether more is to come from the LLM or the TTS."""
        # A synthesiser that is still busy with an interrupted answer takes its time to begin.
        unspoken = self.first_token_s is not None and self.first_clause_s is None
        return self.responses_owed > 0 or self.voicing or unspoken


@dataclass
class Attempt:
    """An answer begun before the turn had ended."""

    fired: Event
    ended: Event | None = None
    cost: Event | None = None
    dropped_audio_s: float = 0.0

    @property
    def in_vain(self) -> bool:
        """Whether it did not become the answer."""
        return self.ended is None or self.ended.verdict != "committed"


@dataclass
class Turn:
    """A turn as far as it has come."""

    number: int
    said: Said
    other_speech: bool
    """The bot is speaking, and not in answer to this turn."""
    answer: Answer = field(default_factory=Answer)
    turn_end_s: float | None = None
    user_text: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    errors: list[Event] = field(default_factory=list)
    interrupted: bool = False


def record_of(turn: Turn, true_speech_end: Callable[[float], float | None] | None) -> TurnRecord:
    """What is told of a turn that is over.

    Args:
        turn: The turn.
        true_speech_end: As for `TurnReducer`.
    """
    said, answer = turn.said, turn.answer
    speech_end_s = said.speech_end_s
    if true_speech_end and turn.turn_end_s is not None:
        known_s = true_speech_end(turn.turn_end_s)
        speech_end_s = speech_end_s if known_s is None else known_s
    heard = answer.first_audio_out_s is not None
    bot_text = " ".join(answer.in_context) or "".join(answer.spoken if heard else [])
    return TurnRecord(
        turn=turn.number,
        user_text=_tidy(" ".join(turn.user_text or said.finals)),
        bot_text=_tidy(bot_text),
        speech_start_s=_ms(said.speech_start_s),
        vad_stop_s=_ms(said.vad_stop_s),
        turn_end_s=_ms(turn.turn_end_s),
        first_partial_s=_ms(said.first_partial_s),
        final_transcript_s=_ms(said.final_transcript_s),
        first_token_s=_ms(answer.first_token_s),
        first_clause_s=_ms(answer.first_clause_s),
        first_audio_ready_s=_ms(answer.first_audio_ready_s),
        first_audio_out_s=_ms(answer.first_audio_out_s),
        voice_to_voice_s=_ms(_minus(answer.first_audio_out_s, speech_end_s)),
        interrupted=turn.interrupted,
        errors=[error.text for error in turn.errors if _is_heard_of(error, turn)],
        speculation=_speculation(turn),
        segments=said.hearing.records(),
        speech_end_s=_ms(speech_end_s),
    )


def _is_heard_of(error: Event, turn: Turn) -> bool:
    """Whether the error is not that of a withdrawn attempt: the turn's end has asked again."""
    if not error.attempt:
        return True
    return any(a.fired.attempt == error.attempt and not a.in_vain for a in turn.attempts)


def _speculation(turn: Turn) -> SpeculationRecord:
    record = SpeculationRecord(
        attempts=[_attempt(attempt, turn.turn_end_s) for attempt in turn.attempts],
        committed=any(a.ended and a.ended.verdict == "committed" for a in turn.attempts),
    )
    in_vain = [attempt for attempt in turn.attempts if attempt.in_vain]
    costs = [attempt.cost for attempt in in_vain if attempt.cost]
    saved_s = waited_s = left_s = release_s = None
    last = turn.attempts[-1] if record.committed else None
    if last is not None and last.ended is not None and turn.turn_end_s is not None:
        # The same work would have taken as long again, begun when the turn would have ended.
        ready_s = turn.answer.first_audio_ready_s
        done_s = turn.turn_end_s if ready_s is None else min(turn.turn_end_s, ready_s)
        waited_s = last.ended.waited_secs
        saved_s = done_s - waited_s - last.fired.at_s
        if ready_s is not None and ready_s <= turn.turn_end_s:
            left_s = _minus(turn.answer.first_audio_left_s, turn.turn_end_s)
            release_s = _minus(turn.answer.first_audio_out_s, turn.turn_end_s)
    return record.model_copy(
        update={
            "saved_ms": _in_ms(saved_s),
            "waited_ms": _in_ms(waited_s),
            "left_ms": _in_ms(left_s),
            "release_ms": _in_ms(release_s),
            "wasted_input_tokens": sum(cost.input_tokens for cost in costs),
            "wasted_output_tokens": sum(cost.output_tokens for cost in costs),
            "wasted_audio_s": round(sum(attempt.dropped_audio_s for attempt in in_vain), 3),
        }
    )


def _in_ms(secs: float | None) -> float | None:
    return None if secs is None else round(secs * 1000, 1)


def _attempt(attempt: Attempt, turn_end_s: float | None) -> AttemptRecord:
    lead_s = _minus(turn_end_s, attempt.fired.at_s)
    ended = attempt.ended
    return AttemptRecord(
        fired_at_s=round(attempt.fired.at_s, 3),
        text=attempt.fired.text,
        confidence=attempt.fired.confidence,
        verdict=ended.verdict if ended else "aborted",
        reason=ended.text if ended else "the turn closed",
        lead_ms=_in_ms(lead_s),
    )


def _minus(later_s: float | None, earlier_s: float | None) -> float | None:
    return None if later_s is None or earlier_s is None else later_s - earlier_s


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _tidy(text: str) -> str:
    return " ".join(text.split())
