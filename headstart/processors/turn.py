"""The turn stage: collects the user's words into turns, and the conversation into its context."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    EagerEndOfTurnCancelFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMContextUserTurnFrame,
    MetricsFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TurnMetricsData
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMAssistantAggregator,
    LLMUserAggregator,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import (
    FrameCallback,
    FrameDirection,
    FrameProcessorSetup,
)
from pipecat.turns.types import ProcessFrameResult, UserTurnSpeculation
from pipecat.turns.user_start import BaseUserTurnStartStrategy, VADUserTurnStartStrategy
from pipecat.turns.user_stop import BaseUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.string import TextPartForConcatenation
from pydantic import Field

from headstart.engines import hub
from headstart.engines.smart_turn import LONGEST_SECS, SmartTurnEngine, SmartTurnOptions
from headstart.frames import (
    ProgressiveTranscriptionFrame,
    SpeculationCostFrame,
    SpeculationEndedFrame,
    SpeculationFiredFrame,
    attempt_of,
    mark_attempt,
)
from headstart.processors.audio import MODEL_RATE, AudioRing, Resampler, as_float
from headstart.processors.settings import StageSettings
from headstart.processors.trigger.policy import Action, Decision, TriggerPolicy, TriggerSettings
from headstart.processors.turn_end import Ending, TurnEnd

_BEFORE_SPEECH_SECS = 0.5
"""Audio before the VAD's first sign of speech that Smart Turn hears, as it was trained."""

_WATCHDOG_SECS = 5.0
"""Ends a turn when no audio comes at all; while audio flows, time is taken from it."""


class TurnSettings(StageSettings):
    """Settings of `turn.smart`."""

    smart_turn: bool = True
    """Ask the Smart Turn model whether the user sounds finished; otherwise each VAD stop is an
    end."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability, 0..1, from which the user sounds finished."""
    silence_secs: float = Field(default=2.0, gt=0)
    """Silence, in seconds, that ends the turn even if the user does not sound finished at all;
    at half the threshold, half of it does."""
    final_timeout_secs: float = Field(default=2.0, gt=0)
    """Silence, in seconds, after which the turn no longer waits for a final transcript."""


class UserTurn(LLMUserAggregator):
    """Pipecat's user aggregator, with turns that begin with the voice and end as `TurnEnd` says.

    Words that come so late that their turn has been given up begin one of their own.

    A user who goes on speaking before anything of the answer was heard has not finished: the
    words so far belong to the turn that begins then, and are taken back out of the context.
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
        self.stop_strategy = TurnEndStrategy(settings or TurnSettings(), self.push_frame)
        self._written: tuple[object, str] | None = None
        """The user's last message in the context, and its text, until something is answered."""
        super().__init__(
            context,
            params=LLMUserAggregatorParams(
                user_turn_strategies=UserTurnStrategies(
                    start=[VADUserTurnStartStrategy(), LateWordsStrategy(self.stop_strategy.end)],
                    stop=[self.stop_strategy],
                ),
                user_turn_stop_timeout=_WATCHDOG_SECS,
                empty_user_turn=None,
            ),
            **kwargs,
        )

    def speculate(self, settings: TriggerSettings) -> None:
        """Begin answers before the turn has ended, as `settings` say.

        What such an answer brings must be held by a release gate behind the last stage that
        makes any of it.
        """
        self.stop_strategy.trigger = TriggerPolicy(settings)

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
        if isinstance(frame, TranscriptionFrame | ProgressiveTranscriptionFrame):
            # A turn is open, or begins with these words.
            if self.stop_strategy.in_turn or (
                isinstance(frame, TranscriptionFrame) and frame.text.strip()
            ):
                self._take_back_unanswered()
        elif isinstance(frame, BotStartedSpeakingFrame):
            self._written = None
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
        if isinstance(frame, LLMContextUserTurnFrame):
            self._written = self.messages[-1], frame.text
        await super().push_frame(frame, direction)

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
    """Pipecat's assistant aggregator: adds what the user heard of an answer to the context."""


class LateWordsStrategy(BaseUserTurnStartStrategy):  # type: ignore[no-untyped-call]
    """Begins a turn with a final transcript that came after its own turn had been given up."""

    def __init__(self, end: TurnEnd) -> None:
        """Make the strategy.

        Args:
            end: Knows whether a turn is open, and is told about those that begin here.
        """
        super().__init__()
        self._end = end

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Begin a turn if words have come."""
        late = isinstance(frame, TranscriptionFrame) and frame.text.strip()
        if late and not self._end.in_turn:
            await self.trigger_user_turn_started()
            self._end.begun_by_words()
        return ProcessFrameResult.CONTINUE


class TurnEndStrategy(BaseUserTurnStopStrategy):
    """Feeds `TurnEnd` from frames, and Smart Turn from the audio of the turn so far.

    With a trigger it also begins answers early. Whether such an answer stands is decided in the
    very step that ends the turn: one place, one moment, so that no verdict can race another.
    """

    _engine: SmartTurnEngine
    _resample: Resampler

    def __init__(self, settings: TurnSettings, report: Callable[[Frame], Awaitable[None]]) -> None:
        """Make the strategy; its engine is fetched when the pipeline sets up.

        Args:
            settings: When a turn ends.
            report: Pushes a frame down the pipeline at once, in its place among the frames of
                the turn; Pipecat's `push_frame` of a strategy queues it.
        """
        super().__init__()
        self._report = report
        self._settings = settings
        self.end = TurnEnd(
            threshold=settings.threshold if settings.smart_turn else 0.0,
            silence_secs=settings.silence_secs,
            final_timeout_secs=settings.final_timeout_secs,
        )
        self._audio = AudioRing(LONGEST_SECS)
        self._from: int | None = None
        self._judging: asyncio.Task[None] | None = None
        self._words: list[str] = []
        """The final texts of the turn so far."""
        self.trigger: TriggerPolicy | None = None
        self._confirmed: int | None = None
        """The attempt that answers the last turn."""

    @property
    def in_turn(self) -> bool:
        """Whether a turn is going on."""
        return self.end.in_turn

    def reopen(self, text: str) -> None:
        """The turn that has begun goes on with one that had ended on these words."""
        self._words.insert(0, text)
        if self.trigger is not None:
            self.trigger.turn_reopened(text)

    def attempt_for(self, frame: Frame) -> int | None:
        """The attempt that a frame of ours begins, withdraws or confirms, if it does."""
        if isinstance(frame, UserStoppedSpeakingFrame):
            return self._confirmed
        if isinstance(frame, EagerEndOfTurnCancelFrame) or (
            isinstance(frame, LLMContextFrame) and frame.speculation
        ):
            return self.trigger.latest if self.trigger is not None else None
        return None

    def unconfirm(self, withdrawal: EagerEndOfTurnCancelFrame) -> bool:
        """Whether this withdraws the answer of the last turn, which then has none.

        A stage that has to give its answer up (a tool call, an error) says so while it is
        speculative; the turn may have ended on the answer before anybody heard of that.
        """
        withdrawn = attempt_of(withdrawal)
        if withdrawn is None or withdrawn != self._confirmed:
            return False
        self._confirmed = None
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Fetch the shared model.

        Raises:
            AssetError: The weights are missing.
            EngineError: They do not load.
        """
        await super().setup(setup)
        self._resample = Resampler(setup.audio_in_sample_rate)
        if self._settings.smart_turn:
            self._engine = await hub.shared.get(SmartTurnEngine, SmartTurnOptions())

    async def cleanup(self) -> None:
        """End the judging that is under way."""
        await self._stop_judging()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def handle_user_turn_started(self) -> None:
        """A turn has begun."""
        self.end.turn_started()
        self._confirmed = None
        if self.trigger is not None:
            self.trigger.turn_started()

    async def handle_user_turn_stopped(self) -> None:
        """The turn has ended, by our decision or another's."""
        self.end.turn_stopped()
        self._from = None
        self._words = []
        if self.trigger is not None:
            # Pending still, if it ended over our head (the watchdog): nothing confirms the answer.
            await self._follow(self.trigger.cancel())

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Take in what was heard and understood; end the turn when it is over."""
        if isinstance(frame, InputAudioRawFrame):
            samples = self._resample(frame.audio)
            self._audio.hear(samples)
            await self._act(self.end.silent(len(samples) / MODEL_RATE))
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self.end.vad_started()
            if self.trigger is not None:
                self.trigger.speech_resumed()
            await self._stop_judging()
            if self._from is None:
                before = _BEFORE_SPEECH_SECS + frame.start_secs
                self._from = max(0, self._audio.heard - int(before * MODEL_RATE))
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            ending = self.end.vad_stopped(frame.stop_secs)
            if self._settings.smart_turn and self.end.in_turn:
                await self._stop_judging()
                self._judging = self.create_task(self._judge(self.end.stops), "smart-turn")
            await self._act(ending)
        elif isinstance(frame, TranscriptionFrame):
            self._words.append(frame.text)
            ending = self.end.transcript(frame.text, final=frame.finalized)
            if ending is None and self.trigger is not None and self.end.in_turn:
                await self._follow(self.trigger.final(frame.text, self._heard_secs))
            await self._act(ending)
        elif self.trigger is not None:
            if isinstance(frame, ProgressiveTranscriptionFrame):
                if self.end.in_turn:
                    await self._follow(
                        self.trigger.partial(frame.text, frame.confidence, self._heard_secs)
                    )
            elif isinstance(frame, SpeculationCostFrame):
                self.trigger.spent(frame.input_tokens + frame.output_tokens, self._heard_secs)
            elif isinstance(frame, InterruptionFrame) or (
                isinstance(frame, EagerEndOfTurnCancelFrame)
                and attempt_of(frame) == self.trigger.latest
            ):
                # A later stage can not or may not go on with the answer.
                await self._follow(self.trigger.cancel())
        return ProcessFrameResult.CONTINUE

    @property
    def _heard_secs(self) -> float:
        """How much audio there has been: the trigger's clock."""
        return self._audio.heard / MODEL_RATE

    async def _act(self, ending: Ending | None) -> None:
        if ending is None:
            return
        logger.debug(f"{self}: the user's turn has ended ({ending})")
        if self.trigger is not None:
            decision = self.trigger.turn_ended(" ".join(self._words))
            if decision.action is Action.COMMIT and decision.attempt is not None:
                self._confirmed = decision.attempt.number
                await self.trigger_user_turn_finalized(confirms_speculation=True)
                await self._follow(decision)
                return
            await self._follow(decision)
        await self.trigger_user_turn_stopped()

    async def _follow(self, decision: Decision) -> None:
        """Do what the trigger has decided, and say so."""
        attempt = decision.attempt
        if attempt is None:
            return
        if decision.action is Action.FIRE:
            await self._report(
                SpeculationFiredFrame(
                    attempt.number, attempt.text, attempt.confidence, decision.reason
                )
            )
            await self.trigger_user_turn_inference_triggered(
                speculation=UserTurnSpeculation(text=attempt.text)
            )
            return
        committed = decision.action is Action.COMMIT
        if not committed:
            await self.trigger_user_turn_speculation_cancelled()  # type: ignore[no-untyped-call]
        await self._report(SpeculationEndedFrame(attempt.number, committed, decision.reason))

    async def _judge(self, stop: int) -> None:
        begun = time.monotonic()
        try:
            probability = await self._engine.probability(
                as_float(self._audio.since(self._from or 0))
            )
        except Exception as error:  # without a verdict, the user counts as finished
            logger.warning(f"{self}: Smart Turn gave no verdict: {error}")
            probability = 1.0
        self._judging = None  # what the verdict brings about is not to be cancelled
        await self.push_frame(
            MetricsFrame(
                data=[
                    TurnMetricsData(
                        processor=str(self),
                        is_complete=probability >= self._settings.threshold,
                        probability=probability,
                        e2e_processing_time_ms=1000 * (time.monotonic() - begun),
                    )
                ]
            )
        )
        ending = self.end.verdict(stop, probability)
        if ending is None and self.trigger is not None and self.end.in_turn:
            await self._follow(self.trigger.completeness(probability, self._heard_secs))
        await self._act(ending)

    async def _stop_judging(self) -> None:
        if self._judging:
            judging, self._judging = self._judging, None
            await self.cancel_task(judging)
