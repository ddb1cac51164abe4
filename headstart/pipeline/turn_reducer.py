"""The pure machine that works out the turns of a conversation from what happened when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from headstart.pipeline.hearing import Hearing
from headstart.pipeline.turns import (
    AttemptRecord,
    Event,
    Kind,
    SpeculationRecord,
    TurnRecord,
)

QUIET_SECS = 3.0
"""A turn whose answer has nothing left to do, or never began, is closed after this long.

It has to outlast the moment in which a failed request is tried again by another service."""

STALL_SECS = 30.0
"""A turn whose answer is under way but makes no progress is closed after this long."""


@dataclass
class _Said:
    """The user's part of a turn."""

    speech_start_s: float | None = None
    vad_stop_s: float | None = None
    speech_end_s: float | None = None
    first_partial_s: float | None = None
    final_transcript_s: float | None = None
    finals: list[str] = field(default_factory=list)
    hearing: Hearing = field(default_factory=Hearing)


@dataclass
class _Answer:
    """The bot's part of a turn. The first of everything counts."""

    begun: bool = False
    responses_owed: int = 0
    voicing: bool = False
    started_speaking: bool = False
    first_token_s: float | None = None
    first_clause_s: float | None = None
    first_audio_ready_s: float | None = None
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
class _Attempt:
    fired: Event
    ended: Event | None = None
    cost: Event | None = None
    dropped_audio_s: float = 0.0

    @property
    def in_vain(self) -> bool:
        """Whether it did not become the answer."""
        return self.ended is None or self.ended.verdict != "committed"


@dataclass
class _Turn:
    number: int
    said: _Said
    other_speech: bool
    """The bot is speaking, and not in answer to this turn."""
    answer: _Answer = field(default_factory=_Answer)
    turn_end_s: float | None = None
    user_text: list[str] = field(default_factory=list)
    attempts: list[_Attempt] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False


class TurnReducer:
    """Turns events into records, deterministically and without a clock of its own.

    A turn opens with the VAD's first report of speech (or with the user turn itself, where a
    transcript alone starts it), its user part ends with the user turn, and it closes when the
    bot has answered, when the next user turn starts, when nothing more happens
    (`deadline_s`), or with `finish`. User speech that comes while the bot still answers is
    kept apart until it is known to be a turn: "mhm" is none.

    Args:
        true_speech_end: Where the caller knows better than the VAD: given the time of a turn's
            end in seconds, the true end of the user's voice before it, or None.
    """

    def __init__(self, true_speech_end: Callable[[float], float | None] | None = None) -> None:
        self._true_speech_end = true_speech_end
        self._opened = 0
        self._turn: _Turn | None = None
        self._coming = _Said()
        # Interrupted; only what was heard of it is still to come.
        self._leaving: _Turn | None = None
        self._left_at_s = 0.0
        self._bot_speaking = False
        self._last_event_s = 0.0
        self._closed: list[TurnRecord] = []

    @property
    def awaits_audio(self) -> bool:
        """Whether the next audible sample is the first of an answer."""
        turn = self._leaving or self._turn
        return (
            turn is not None
            and turn.turn_end_s is not None
            and not turn.other_speech
            and turn.answer.first_audio_out_s is None
        )

    @property
    def idle_since_s(self) -> float | None:
        """Since when nobody has been speaking, or thinking what to say; None while one is."""
        busy = self._turn is not None or self._leaving is not None or self._bot_speaking
        return None if busy else self._last_event_s

    @property
    def deadline_s(self) -> float | None:
        """When a turn closes if nothing happens until then; None if nothing would."""
        if self._leaving:
            return self._left_at_s + QUIET_SECS
        turn = self._turn
        if turn is None or turn.turn_end_s is None or self._bot_speaking:
            return None
        return self._last_event_s + (STALL_SECS if turn.answer.under_way else QUIET_SECS)

    def feed(self, event: Event) -> list[TurnRecord]:
        """Take in what happened next; returns the turns that this closed, in order."""
        while (deadline_s := self.deadline_s) is not None and event.at_s >= deadline_s:
            self._close_leaving() if self._leaving else self._close()
        if event.kind is not Kind.TICK:
            self._last_event_s = max(self._last_event_s, event.at_s)
            self._user_event(event)
            self._bot_event(event)
        return self._take_closed()

    def finish(self) -> list[TurnRecord]:
        """Close what is open: the conversation is over."""
        self._coming = _Said()
        self._close_leaving()
        if self._turn:
            self._turn.interrupted |= self._answer_can_be_cut
            self._emit(self._turn)
            self._turn = None
        return self._take_closed()

    # -- the user's part

    def _user_event(self, event: Event) -> None:
        turn = self._turn
        said = turn.said if turn and turn.turn_end_s is None else self._coming
        match event.kind:
            case Kind.VAD_STARTED:
                start_s = event.at_s - event.confirm_secs
                if turn is None:
                    self._open(_Said(speech_start_s=start_s))
                elif turn.turn_end_s is not None:
                    self._coming = _Said(speech_start_s=start_s)
                elif said == _Said():
                    said.speech_start_s = start_s
            case Kind.VAD_STOPPED:
                said.vad_stop_s = event.at_s
                said.speech_end_s = event.at_s - event.confirm_secs
            case Kind.PARTIAL if said.first_partial_s is None:
                said.first_partial_s = event.at_s
            case Kind.FINAL:
                said.final_transcript_s = event.at_s
                said.finals.append(event.text)
            case Kind.USER_STARTED if turn is None or turn.turn_end_s is not None:
                if turn:
                    turn.interrupted |= self._answer_can_be_cut
                    self._leave(event.at_s)
                if self._turn is None:
                    self._open(self._coming)
            case Kind.USER_STOPPED if turn and turn.turn_end_s is None:
                self._close_leaving()
                turn.turn_end_s = event.at_s
            case Kind.USER_TEXT if turn:
                turn.user_text.append(event.text)
        turn = self._turn
        said = turn.said if turn and turn.turn_end_s is None else self._coming
        said.hearing.feed(event)

    def _open(self, said: _Said) -> None:
        self._opened += 1
        self._turn = _Turn(self._opened, said, other_speech=self._bot_speaking)
        self._coming = _Said()

    # -- the bot's part

    def _bot_event(self, event: Event) -> None:
        if self._leaving and event.kind is Kind.BOT_TEXT:
            self._leaving.answer.in_context.append(event.text)
            self._close_leaving()
            return
        if self._leaving and event.kind is Kind.AUDIO_OUT:
            # Played before the interruption, reported after it.
            if self._leaving.answer.first_audio_out_s is None:
                self._leaving.answer.first_audio_out_s = event.at_s
            return
        if event.kind is Kind.BOT_STARTED:
            self._bot_speaking = True
        elif event.kind is Kind.BOT_STOPPED:
            self._bot_speaking = False
        if self._turn is None:
            return
        if event.kind is Kind.ERROR:
            self._turn.errors.append(event.text)
        elif event.kind in (Kind.ATTEMPT_COST, Kind.ATTEMPT_DROPPED):
            self._charge(self._turn, event)
        elif self._turn.turn_end_s is None:
            self._speculative_event(self._turn, event)
        else:
            self._answering_event(self._turn, event)

    def _speculative_event(self, turn: _Turn, event: Event) -> None:
        """Before the turn has ended: an answer in advance, or the remains of another one."""
        match event.kind:
            case Kind.ATTEMPT_FIRED:
                self._end_attempt(
                    turn, replace(event, text="a newer attempt", verdict="superseded")
                )
                turn.attempts.append(_Attempt(event))
            case Kind.ATTEMPT_ENDED:
                self._end_attempt(turn, event)
            case Kind.INTERRUPTED:
                turn.answer = _Answer()
            case Kind.BOT_STARTED:
                turn.other_speech = True
            case Kind.BOT_STOPPED:
                turn.other_speech = False
            case _ if turn.answer.begun or event.kind is Kind.RESPONSE_STARTED:
                self._progress(turn.answer, event)

    def _answering_event(self, turn: _Turn, event: Event) -> None:
        """After the turn has ended: its answer."""
        answer = turn.answer
        match event.kind:
            case Kind.ATTEMPT_ENDED:
                self._end_attempt(turn, event)
            case Kind.INTERRUPTED if self._answer_can_be_cut:
                turn.interrupted = True
                answer.responses_owed, answer.voicing = 0, False
                if not self._bot_speaking:
                    self._leave(event.at_s)
            case Kind.BOT_STARTED:
                answer.started_speaking |= not turn.other_speech
            case Kind.AUDIO_OUT if self.awaits_audio:
                answer.first_audio_out_s = event.at_s
            case Kind.BOT_STOPPED if turn.other_speech:
                turn.other_speech = False
            case Kind.BOT_STOPPED if answer.started_speaking and not answer.under_way:
                self._leave(event.at_s)
            case Kind.BOT_TEXT:
                answer.in_context.append(event.text)
            case _:
                self._progress(answer, event)

    @staticmethod
    def _progress(answer: _Answer, event: Event) -> None:
        match event.kind:
            case Kind.RESPONSE_STARTED:
                answer.begun = True
                answer.responses_owed = max(answer.responses_owed, 1)
            case Kind.TOOLS_STARTED:
                answer.responses_owed += 1
            case Kind.RESPONSE_ENDED:
                answer.responses_owed = max(answer.responses_owed - 1, 0)
            case Kind.TOKEN if answer.first_token_s is None:
                answer.first_token_s = event.at_s
            case Kind.CLAUSE:
                answer.voicing = True
                if answer.first_clause_s is None:
                    answer.first_clause_s = event.at_s
            case Kind.AUDIO_READY if answer.first_audio_ready_s is None:
                answer.first_audio_ready_s = event.at_s
            case Kind.SPOKEN:
                answer.spoken.append(event.text)
            case Kind.TTS_STOPPED:
                answer.voicing = False

    @staticmethod
    def _end_attempt(turn: _Turn, ended: Event) -> None:
        """Settle the attempt in flight; one that is not committed takes its answer with it."""
        if turn.attempts and turn.attempts[-1].ended is None:
            turn.attempts[-1].ended = ended
            if ended.verdict != "committed" and turn.answer.first_audio_out_s is None:
                turn.answer = _Answer()

    @staticmethod
    def _charge(turn: _Turn, event: Event) -> None:
        """Note what an attempt has cost."""
        if event.kind is Kind.ATTEMPT_COST:
            for attempt in turn.attempts:
                if attempt.fired.attempt == event.attempt:
                    attempt.cost = event
        elif turn.attempts:
            last = next((a for a in reversed(turn.attempts) if a.in_vain), turn.attempts[-1])
            last.dropped_audio_s += event.audio_s

    @property
    def _answer_can_be_cut(self) -> bool:
        """Whether the bot is answering the open turn, audibly or not yet."""
        turn = self._turn
        if turn is None or turn.turn_end_s is None:
            return False
        return turn.answer.under_way or (self._bot_speaking and not turn.other_speech)

    # -- closing

    def _leave(self, at_s: float) -> None:
        """Close the turn, or wait for the text of what was heard of its interrupted answer."""
        turn = self._turn
        assert turn is not None
        answer = turn.answer
        if turn.interrupted and answer.started_speaking and not answer.in_context:
            self._close_leaving()
            self._leaving, self._left_at_s = turn, at_s
            self._after_turn()
        else:
            self._close()

    def _close(self) -> None:
        assert self._turn is not None
        self._close_leaving()
        self._emit(self._turn)
        self._after_turn()

    def _close_leaving(self) -> None:
        if self._leaving:
            self._emit(self._leaving)
            self._leaving = None

    def _after_turn(self) -> None:
        self._turn = None
        # The user has begun to speak meanwhile and still does: that is the next turn.
        if self._coming.speech_start_s is not None and self._coming.vad_stop_s is None:
            self._open(self._coming)

    def _emit(self, turn: _Turn) -> None:
        self._closed.append(_record(turn, self._true_speech_end))

    def _take_closed(self) -> list[TurnRecord]:
        closed, self._closed = self._closed, []
        return closed


def _record(turn: _Turn, true_speech_end: Callable[[float], float | None] | None) -> TurnRecord:
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
        errors=turn.errors,
        speculation=_speculation(turn),
        segments=said.hearing.records(),
        speech_end_s=_ms(speech_end_s),
    )


def _speculation(turn: _Turn) -> SpeculationRecord:
    record = SpeculationRecord(
        attempts=[_attempt(attempt, turn.turn_end_s) for attempt in turn.attempts],
        committed=any(a.ended and a.ended.verdict == "committed" for a in turn.attempts),
    )
    in_vain = [attempt for attempt in turn.attempts if attempt.in_vain]
    costs = [attempt.cost for attempt in in_vain if attempt.cost]
    saved_s = waited_s = release_s = None
    last = turn.attempts[-1] if record.committed else None
    if last is not None and last.ended is not None and turn.turn_end_s is not None:
        # The same work would have taken as long again, begun when the turn would have ended.
        ready_s = turn.answer.first_audio_ready_s
        done_s = turn.turn_end_s if ready_s is None else min(turn.turn_end_s, ready_s)
        waited_s = last.ended.waited_secs
        saved_s = done_s - waited_s - last.fired.at_s
        if ready_s is not None and ready_s <= turn.turn_end_s:
            release_s = _minus(turn.answer.first_audio_out_s, turn.turn_end_s)
    return record.model_copy(
        update={
            "saved_ms": _in_ms(saved_s),
            "waited_ms": _in_ms(waited_s),
            "release_ms": _in_ms(release_s),
            "wasted_input_tokens": sum(cost.input_tokens for cost in costs),
            "wasted_output_tokens": sum(cost.output_tokens for cost in costs),
            "wasted_audio_s": round(sum(attempt.dropped_audio_s for attempt in in_vain), 3),
        }
    )


def _in_ms(secs: float | None) -> float | None:
    return None if secs is None else round(secs * 1000, 1)


def _attempt(attempt: _Attempt, turn_end_s: float | None) -> AttemptRecord:
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
