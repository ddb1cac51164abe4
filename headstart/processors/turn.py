"""The turn stage: collects the user's words into turns, and the conversation into its context."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    MetricsFrame,
    TranscriptionFrame,
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
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.turns.types import ProcessFrameResult, UserTurnSpeculation
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import BaseUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pydantic import Field

from headstart.engines import hub
from headstart.engines.smart_turn import LONGEST_SECS, SmartTurnEngine, SmartTurnOptions
from headstart.frames import (
    ProgressiveTranscriptionFrame,
    SpeculationCostFrame,
    SpeculationEndedFrame,
    SpeculationFiredFrame,
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
    """Pipecat's user aggregator, with turns that begin with the voice and end as `TurnEnd` says."""

    def __init__(
        self, context: LLMContext, settings: TurnSettings | None = None, **kwargs: Any
    ) -> None:
        """Make the stage.

        Args:
            context: The conversation, to which the user's turns are added.
            settings: When a turn ends.
            **kwargs: For Pipecat's aggregator.
        """
        self.stop_strategy = TurnEndStrategy(settings or TurnSettings())
        super().__init__(
            context,
            params=LLMUserAggregatorParams(
                user_turn_strategies=UserTurnStrategies(
                    start=[VADUserTurnStartStrategy()], stop=[self.stop_strategy]
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


class AssistantTurn(LLMAssistantAggregator):
    """Pipecat's assistant aggregator: adds what the user heard of an answer to the context."""


class TurnEndStrategy(BaseUserTurnStopStrategy):
    """Feeds `TurnEnd` from frames, and Smart Turn from the audio of the turn so far.

    With a trigger it also begins answers early. Whether such an answer stands is decided in the
    very step that ends the turn: one place, one moment, so that no verdict can race another.
    """

    _engine: SmartTurnEngine
    _resample: Resampler

    def __init__(self, settings: TurnSettings) -> None:
        """Make the strategy; its engine is fetched when the pipeline sets up."""
        super().__init__()
        self._settings = settings
        self._end = TurnEnd(
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
        self._end.turn_started()
        if self.trigger is not None:
            self.trigger.turn_started()

    async def handle_user_turn_stopped(self) -> None:
        """The turn has ended, by our decision or another's."""
        self._end.turn_stopped()
        self._from = None
        self._words = []
        await self._stop_judging()
        if self.trigger is not None and self.trigger.pending is not None:
            # Ended over our head (the watchdog, an interruption): nothing confirms the answer.
            await self._follow(self.trigger.cancel())

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Take in what was heard and understood; end the turn when it is over."""
        if isinstance(frame, InputAudioRawFrame):
            samples = self._resample(frame.audio)
            self._audio.hear(samples)
            await self._act(self._end.silent(len(samples) / MODEL_RATE))
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self._end.vad_started()
            if self.trigger is not None:
                self.trigger.speech_resumed()
            await self._stop_judging()
            if self._from is None:
                before = _BEFORE_SPEECH_SECS + frame.start_secs
                self._from = max(0, self._audio.heard - int(before * MODEL_RATE))
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            ending = self._end.vad_stopped(frame.stop_secs)
            if self._settings.smart_turn and self._end.in_turn:
                await self._stop_judging()
                self._judging = self.create_task(self._judge(self._end.stops), "smart-turn")
            await self._act(ending)
        elif isinstance(frame, TranscriptionFrame):
            self._words.append(frame.text)
            ending = self._end.transcript(frame.text, final=frame.finalized)
            if ending is None and self.trigger is not None and self._end.in_turn:
                await self._follow(self.trigger.final(frame.text, self._heard_secs))
            await self._act(ending)
        elif self.trigger is not None:
            if isinstance(frame, ProgressiveTranscriptionFrame):
                if self._end.in_turn:
                    await self._follow(
                        self.trigger.partial(frame.text, frame.confidence, self._heard_secs)
                    )
            elif isinstance(frame, SpeculationCostFrame):
                self.trigger.spent(frame.input_tokens + frame.output_tokens, self._heard_secs)
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
            await self._follow(decision)
            if decision.action is Action.COMMIT:
                await self.trigger_user_turn_finalized(confirms_speculation=True)
                return
        await self.trigger_user_turn_stopped()

    async def _follow(self, decision: Decision) -> None:
        """Do what the trigger has decided, and say so."""
        attempt = decision.attempt
        if attempt is None:
            return
        if decision.action is Action.FIRE:
            await self.push_frame(
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
        await self.push_frame(SpeculationEndedFrame(attempt.number, committed, decision.reason))

    async def _judge(self, stop: int) -> None:
        begun = time.monotonic()
        try:
            probability = await self._engine.probability(
                as_float(self._audio.since(self._from or 0))
            )
        except Exception as error:  # without a verdict, the user counts as finished
            logger.warning(f"{self}: Smart Turn gave no verdict: {error}")
            probability = 1.0
        self._judging = None  # ending the turn must not cancel this task
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
        await self._act(self._end.verdict(stop, probability))

    async def _stop_judging(self) -> None:
        if self._judging:
            judging, self._judging = self._judging, None
            await self.cancel_task(judging)
