"""The pure machine that works out the turns of a conversation from what happened when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from headstart.pipeline.timeline.records import Event, Kind, TurnRecord
from headstart.pipeline.timeline.spans import Answer, Attempt, Said, Turn, record_of

QUIET_SECS = 3.0
"""A turn whose answer has nothing left to do, or never began, is closed after this long.

It has to outlast the moment in which a failed request is tried again by another service."""

STALL_SECS = 30.0
"""A turn whose answer is under way but makes no progress is closed after this long."""


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
        self._turn: Turn | None = None
        self._coming = Said()
        # Interrupted; only what was heard of it is still to come.
        self._leaving: Turn | None = None
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
        self._coming = Said()
        self._close_leaving()
        if self._turn:
            self._end_attempt(
                self._turn, Event(Kind.ATTEMPT_ENDED, self._last_event_s, "the session ended")
            )
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
                    self._open(Said(speech_start_s=start_s))
                elif turn.turn_end_s is not None:
                    self._coming = Said(speech_start_s=start_s)
                elif said == Said():
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

    def _open(self, said: Said) -> None:
        self._opened += 1
        self._turn = Turn(self._opened, said, other_speech=self._bot_speaking)
        self._coming = Said()

    # -- the bot's part

    def _bot_event(self, event: Event) -> None:
        if self._leaving and event.kind is Kind.BOT_TEXT:
            self._leaving.answer.in_context.append(event.text)
            self._close_leaving()
            return
        if self._leaving and event.kind in (Kind.AUDIO_LEFT, Kind.AUDIO_OUT, Kind.SPOKEN):
            # Played before the interruption, reported after it.
            if event.kind is Kind.SPOKEN:
                self._leaving.answer.spoken.append(event.text)
            elif event.kind is Kind.AUDIO_OUT and self._leaving.answer.first_audio_out_s is None:
                self._leaving.answer.first_audio_out_s = event.at_s
            return
        if event.kind is Kind.BOT_STARTED:
            self._bot_speaking = True
        elif event.kind is Kind.BOT_STOPPED:
            self._bot_speaking = False
        if self._turn is None:
            return
        if event.kind is Kind.ERROR:
            self._turn.errors.append(event)
        elif event.kind in (Kind.ATTEMPT_COST, Kind.ATTEMPT_DROPPED):
            self._charge(self._turn, event)
        elif self._turn.turn_end_s is None:
            self._speculative_event(self._turn, event)
        else:
            self._answering_event(self._turn, event)

    def _speculative_event(self, turn: Turn, event: Event) -> None:
        """Before the turn has ended: an answer in advance, or the remains of another one."""
        match event.kind:
            case Kind.ATTEMPT_FIRED:
                self._end_attempt(
                    turn, replace(event, text="a newer attempt", verdict="superseded")
                )
                turn.attempts.append(Attempt(event))
            case Kind.ATTEMPT_ENDED:
                self._end_attempt(turn, event)
            case Kind.INTERRUPTED:
                turn.answer = Answer()
            case Kind.BOT_STARTED:
                turn.other_speech = True
            case Kind.BOT_STOPPED:
                turn.other_speech = False
            case _ if turn.answer.begun or event.kind is Kind.RESPONSE_STARTED:
                self._progress(turn.answer, event)

    def _answering_event(self, turn: Turn, event: Event) -> None:
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
            case Kind.AUDIO_LEFT if self.awaits_audio and answer.first_audio_left_s is None:
                answer.first_audio_left_s = event.at_s
            case Kind.AUDIO_OUT if self.awaits_audio:
                answer.first_audio_out_s = event.at_s
            case Kind.BOT_STOPPED if turn.other_speech:
                turn.other_speech = False
            case Kind.BOT_STOPPED if answer.started_speaking and not answer.under_way:
                self._leave(event.at_s)
            case Kind.BOT_TEXT:
                answer.in_context.append(event.text)
            case Kind.SPOKEN if not turn.other_speech:
                answer.spoken.append(event.text)
            # What comes before an answer is a withdrawn one's.
            case _ if answer.begun or event.kind is Kind.RESPONSE_STARTED or not turn.attempts:
                self._progress(answer, event)

    @staticmethod
    def _progress(answer: Answer, event: Event) -> None:
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
            case Kind.TTS_STOPPED:
                answer.voicing = False

    @staticmethod
    def _end_attempt(turn: Turn, ended: Event) -> None:
        """Settle the attempt in flight; one that is not committed takes its answer with it."""
        if turn.attempts and turn.attempts[-1].ended is None:
            turn.attempts[-1].ended = ended
            if ended.verdict != "committed" and turn.answer.first_audio_out_s is None:
                turn.answer = Answer()

    @staticmethod
    def _charge(turn: Turn, event: Event) -> None:
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

    def _emit(self, turn: Turn) -> None:
        self._closed.append(record_of(turn, self._true_speech_end))

    def _take_closed(self) -> list[TurnRecord]:
        closed, self._closed = self._closed, []
        return closed
