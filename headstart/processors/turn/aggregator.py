"""The turn stage: collects the user's words into turns, and the conversation into its context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    EagerEndOfTurnCancelFrame,
    Frame,
    InterruptionFrame,
    LLMContextUserTurnFrame,
    LLMFullResponseEndFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMAssistantAggregator,
    LLMUserAggregator,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameCallback, FrameDirection
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.string import TextPartForConcatenation

from headstart.engines.smart_turn import SmartTurnOptions
from headstart.frames import (
    AnswerCutFrame,
    AnswerOverFrame,
    FinalPendingFrame,
    ProgressiveTranscriptionFrame,
    mark_attempt,
)
from headstart.processors.speculation.attempts import SESSION_ENDS
from headstart.processors.turn.strategy import LateWordsStrategy, TurnEndStrategy, TurnSettings
from headstart.processors.turn.trigger.machine import TriggerPolicy
from headstart.processors.turn.trigger.settings import EarlyTrigger

__all__ = ["AssistantTurn", "TurnSettings", "UserTurn"]

_WATCHDOG_SECS = 3.0
"""Ends a turn that should have ended so long ago, whatever went wrong."""


class UserTurn(LLMUserAggregator):
    """Pipecat's user aggregator, with turns that begin with the voice and end as `TurnEnd` says.

    Words that come so late that their turn has been given up begin one of their own.

    A user who goes on speaking before anything of the answer was heard has not finished: the
    words so far belong to the turn that begins then, and are taken back out of the context.
    But an answer that failed, or had nothing to say, leaves them a turn of their own, and so
    does a pipeline in which nobody answers.
    """

    def __init__(
        self, context: LLMContext, settings: TurnSettings | None = None, **kwargs: Any
    ) -> None:
        """Make the stage.

        Args:
            context: The conversation, to which the user's turns are added.
            settings: When a turn ends.
            **kwargs: For Pipecat's aggregator.
        """
        settings = settings or TurnSettings()
        self.stop_strategy = TurnEndStrategy(settings, self.push_frame)
        self.is_answered = True
        """Whether there is somebody to answer the turns."""
        self._release: Callable[[int], Awaitable[None]] | None = None
        self._written: tuple[object, str] | None = None
        """The user's last message in the context, and its text, until something is answered."""
        super().__init__(
            context,
            params=LLMUserAggregatorParams(
                user_turn_strategies=UserTurnStrategies(
                    start=[VADUserTurnStartStrategy(), LateWordsStrategy(self.stop_strategy.end)],
                    stop=[self.stop_strategy],
                ),
                user_turn_stop_timeout=_WATCHDOG_SECS
                + max(
                    settings.silence_secs, settings.min_silence_secs, settings.final_timeout_secs
                ),
                empty_user_turn=None,
            ),
            **kwargs,
        )

    def speculate(
        self,
        trigger: EarlyTrigger,
        is_busy: Callable[[], bool],
        release: Callable[[int], Awaitable[None]],
    ) -> None:
        """Begin answers before the turn has ended, as the trigger says.

        What such an answer brings must be held by a release gate behind the last stage that
        makes any of it.

        Args:
            trigger: The stage with the settings.
            is_busy: Whether the models that make answers work for somebody who waits.
            release: Lets go of what that release gate holds of an attempt, by its number.
        """
        self._release = release
        self.stop_strategy.speculate(
            TriggerPolicy(trigger.settings, trigger.policy, is_busy),
            trigger.settings.min_silence_secs,
        )

    @classmethod
    def required_assets(cls, settings: TurnSettings) -> tuple[str, ...]:
        """The weights that the stage needs."""
        return (SmartTurnOptions().asset,) if settings.smart_turn else ()

    async def queue_frame(
        self,
        frame: Frame,
        direction: FrameDirection = FrameDirection.DOWNSTREAM,
        callback: FrameCallback | None = None,
    ) -> None:
        """Queue a frame; an interruption, which empties the queue, takes no words with it."""
        if isinstance(frame, TranscriptionFrame):
            frame.interruptible = False
        await super().queue_frame(frame, direction, callback)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect words, and follow what happens to the turn."""
        if isinstance(frame, SESSION_ENDS) and direction is FrameDirection.DOWNSTREAM:
            # Before the frame goes on: a later stage must not wait for a verdict behind it.
            await self.stop_strategy.session_ends()
        if isinstance(frame, TranscriptionFrame | ProgressiveTranscriptionFrame):
            # A turn is open, or begins with these words.
            if self.stop_strategy.in_turn or (
                isinstance(frame, TranscriptionFrame) and frame.text.strip()
            ):
                self._take_back_unanswered()
        elif isinstance(frame, BotStartedSpeakingFrame):
            self._written = None
        elif isinstance(frame, FinalPendingFrame):
            if self.stop_strategy.end.final_pending(frame.waited_secs):
                # Pipecat's watchdog takes transcripts only for a sign that more is to come.
                self._user_turn_controller._user_turn_stop_timeout_event.set()
            return
        elif isinstance(frame, AnswerOverFrame):
            if not self.stop_strategy.in_turn:
                self._written = None
            return
        await super().process_frame(frame, direction)
        if isinstance(frame, EagerEndOfTurnCancelFrame) and self.stop_strategy.unconfirm(frame):
            await self.push_context_frame()

    async def push_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        """Push a frame; one that begins, withdraws or confirms an attempt says which one."""
        attempt = self.stop_strategy.attempt_for(frame)
        if attempt is not None:
            mark_attempt(frame, attempt)
        if isinstance(frame, InterruptionFrame) and direction is FrameDirection.DOWNSTREAM:
            self.stop_strategy.answer_cut(frame.id)
        if isinstance(frame, LLMContextUserTurnFrame) and self.is_answered:
            self._written = self.messages[-1], frame.text
        await super().push_frame(frame, direction)
        if attempt is None or self._release is None or direction is FrameDirection.UPSTREAM:
            return
        if isinstance(frame, UserStoppedSpeakingFrame):
            await self._release(attempt)

    def _take_back_unanswered(self) -> None:
        written, text = self._written or (None, "")
        messages = self.messages
        if not messages or messages[-1] is not written:
            return
        self.context.set_messages(messages[:-1])
        self._aggregation.insert(
            0, TextPartForConcatenation(text, includes_inter_part_spaces=False)
        )
        self.stop_strategy.reopen(text)


class AssistantTurn(LLMAssistantAggregator):
    """Pipecat's assistant aggregator: adds what the user heard of an answer to the context.

    Of an answer that was cut off it says when it has done so (`AnswerCutFrame`), and of one that
    came to its end that it has (`AnswerOverFrame`).
    """

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Collect the answer."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InterruptionFrame) and direction is FrameDirection.DOWNSTREAM:
            await self.push_frame(AnswerCutFrame(frame.id), FrameDirection.UPSTREAM)
        elif isinstance(frame, LLMFullResponseEndFrame):
            await self.push_frame(AnswerOverFrame(), FrameDirection.UPSTREAM)
