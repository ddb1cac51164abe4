"""When a user turn begins and ends, from the frames of the pipeline; and answers begun before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from loguru import logger
from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    InterruptionFrame,
    LLMContextFrame,
    MetricsFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TurnMetricsData
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.turns.types import ProcessFrameResult, UserTurnSpeculation
from pipecat.turns.user_start import BaseUserTurnStartStrategy
from pipecat.turns.user_stop import BaseUserTurnStopStrategy
from pydantic import Field

from headstart.engines import hub
from headstart.engines.smart_turn import LONGEST_SECS, SmartTurnEngine, SmartTurnOptions
from headstart.frames import (
    AnswerCutFrame,
    ProgressiveTranscriptionFrame,
    SpeculationAwaitedFrame,
    SpeculationCostFrame,
    SpeculationEndedFrame,
    SpeculationFiredFrame,
    VoiceFrame,
    attempt_of,
)
from headstart.processors.audio import MODEL_RATE, AudioRing, Resampler, as_float
from headstart.processors.settings import StageSettings
from headstart.processors.turn.end import Ending, TurnEnd
from headstart.processors.turn.trigger.machine import Action, Decision, TriggerPolicy
from headstart.processors.turn.trigger.policies import Reason

_BEFORE_SPEECH_SECS = 0.5
"""Audio before the VAD's first sign of speech that Smart Turn hears, as it was trained."""
_NO_AUDIO_SECS = 0.3
"""After so long without audio, silence passes by the clock; networks are late by less."""
_TICK_SECS = 0.1


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
    min_silence_secs: float = Field(default=0.0, ge=0)
    """Silence, in seconds, before which no turn ends, finished as it may sound."""
    final_timeout_secs: float = Field(default=2.0, gt=0)
    """Silence, in seconds, after which the turn no longer waits for a final transcript; counted
    anew as long as the recogniser says that it is still at work on one."""


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
        self._early_silence_secs = 0.0
        """Silence before which no early answer is let out."""
        self._confirmed: int | None = None
        """The attempt that answers the last turn."""
        self._waiting: asyncio.Task[None] | None = None
        """For enough silence to end the turn."""
        self._waits_since: float | None = None
        self._audio_at = self._silent_since = 0.0
        """On the loop's clock: when the last audio came, and since when the user is silent."""
        self._turn_is_open = asyncio.Event()
        self._timekeeper: asyncio.Task[None] | None = None
        self._why_not = ""
        """Why the trigger waits, as it was logged last."""
        self._cut: int | None = None
        """The interruption after which the context is not up to date yet."""

    def speculate(self, trigger: TriggerPolicy, min_silence_secs: float) -> None:
        """Begin answers before the turn has ended.

        Args:
            trigger: Decides when.
            min_silence_secs: Silence before which none of them is let out.
        """
        self.trigger = trigger
        self._early_silence_secs = min_silence_secs

    def answer_cut(self, interruption: int) -> None:
        """An interruption is on its way to whatever is being said."""
        self._cut = interruption
        if self.trigger is not None:
            self.trigger.interrupted()

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
        """End what is under way."""
        await self.session_ends()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def session_ends(self) -> None:
        """No turn ends any more: withdraw the pending attempt, and stop waiting."""
        await self._stop_judging()
        await self._stop_waiting()
        if self._timekeeper is not None:
            timekeeper, self._timekeeper = self._timekeeper, None
            await self.cancel_task(timekeeper)
        if self.trigger is not None:
            await self._follow(self.trigger.session_ended())

    async def handle_user_turn_started(self) -> None:
        """A turn has begun."""
        self.end.turn_started()
        self._silent_since = asyncio.get_running_loop().time()
        self._turn_is_open.set()
        if self._timekeeper is None:
            self._timekeeper = self.create_task(self._keep_time(), "silence-by-the-clock")
        self._confirmed = None
        if self.trigger is not None:
            self.trigger.turn_started()

    async def handle_user_turn_stopped(self) -> None:
        """The turn has ended, by our decision or another's."""
        self.end.turn_stopped()
        await self._stop_waiting()
        self._turn_is_open.clear()
        self._from = None
        self._words = []
        if self.trigger is not None:
            # Pending still, if it ended over our head (the watchdog): nothing confirms the answer.
            await self._follow(self.trigger.turn_dropped())

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Take in what was heard and understood; end the turn when it is over."""
        if isinstance(frame, InputAudioRawFrame):
            self._audio_at = asyncio.get_running_loop().time()
            samples = self._resample(frame.audio)
            self._audio.hear(samples)
            if self.trigger is not None:
                await self._follow(self.trigger.time_passed(self._heard_secs))
            await self._act(self.end.silent(len(samples) / MODEL_RATE))
        elif isinstance(frame, VoiceFrame):
            self.end.voice(heard=frame.heard)
            await self._hear_voice(frame.heard)
            await self._act(self.end.due)
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self.end.vad_started()
            await self._stop_judging()
            await self._stop_waiting()
            await self._hear_voice(True)
            if self._from is None:
                before = _BEFORE_SPEECH_SECS + frame.start_secs
                self._from = max(0, self._audio.heard - int(before * MODEL_RATE))
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            self._silent_since = asyncio.get_running_loop().time() - frame.stop_secs
            ending = self.end.vad_stopped(frame.stop_secs)
            if ending is None:
                await self._hear_voice(False)
            if self._settings.smart_turn and self.end.in_turn:
                await self._stop_judging()
                self._judging = self.create_task(self._judge(self.end.stops), "smart-turn")
            await self._act(ending)
        elif isinstance(frame, TranscriptionFrame):
            self._words.append(frame.text)
            ending = self.end.transcript(frame.text, final=frame.finalized)
            self._note_language(frame)
            if self.trigger is not None and self.end.in_turn and not self._ends_now(ending):
                await self._follow(self.trigger.final(frame.text, self._heard_secs))
            await self._act(ending)
        elif self.trigger is not None:
            await self._speculate(frame, self.trigger)
        return ProcessFrameResult.CONTINUE

    async def _speculate(self, frame: Frame, trigger: TriggerPolicy) -> None:
        """Take in what matters to answers that are begun early only."""
        if isinstance(frame, ProgressiveTranscriptionFrame):
            if self.end.in_turn:
                self._note_language(frame)
                await self._follow(
                    trigger.partial(
                        frame.text,
                        frame.confidence,
                        self._heard_secs,
                        behind_secs=frame.behind_secs,
                        ends_turn=frame.ends_turn,
                    )
                )
        elif isinstance(frame, SpeculationCostFrame):
            trigger.spent(frame.input_tokens + frame.output_tokens, self._heard_secs)
        elif isinstance(frame, AnswerCutFrame):
            if frame.interruption == self._cut:
                await self._follow(trigger.settled(self._heard_secs))
        elif isinstance(frame, InterruptionFrame) or (
            isinstance(frame, EagerEndOfTurnCancelFrame) and attempt_of(frame) == trigger.latest
        ):
            # A later stage can not or may not go on with the answer.
            await self._follow(trigger.cancel())
            await self._act(self.end.due)

    def _note_language(self, words: TranscriptionFrame | InterimTranscriptionFrame) -> None:
        if self.trigger is not None and words.text.strip():
            self.trigger.spoken_in(words.language)

    async def _hear_voice(self, heard: bool) -> None:
        if self.trigger is None or not self.end.in_turn:
            return
        if heard:
            self.trigger.voice_began()
        else:
            await self._follow(self.trigger.voice_ended(self._heard_secs))

    @property
    def _heard_secs(self) -> float:
        """How much audio there has been: the trigger's clock."""
        return self._audio.heard / MODEL_RATE

    def _ends_now(self, ending: Ending | None) -> bool:
        """Whether the turn is to end, and not to wait for enough silence."""
        asked = self._asked_secs
        return ending is not None and (
            asked is None or (not self.end.voice_heard and self.end.silent_secs >= asked)
        )

    @property
    def _asked_secs(self) -> float | None:
        """Silence before which the turn does not end, whatever has been decided; None: any."""
        if self.trigger is not None and self.trigger.keeps(self._text):
            return max(self._early_silence_secs, self._settings.min_silence_secs)
        return self._settings.min_silence_secs or None

    async def _act(self, ending: Ending | None, *, waited: bool = False) -> None:
        if ending is None:
            return
        now = asyncio.get_running_loop().time()
        if not (waited or self._ends_now(ending)):
            if self._waits_since is None:
                self._waits_since = now
                if self.trigger is not None and self.trigger.pending is not None:
                    await self._report(SpeculationAwaitedFrame(self.trigger.pending.number))
            if self._waiting is None and not self.end.voice_heard:
                self._waiting = self.create_task(self._wait(), "wait-for-silence")
            return
        logger.debug(f"{self}: the user's turn has ended ({ending})")
        if self.trigger is not None:
            decision = self.trigger.turn_ended(self._text)
            if decision.action is Action.COMMIT and decision.attempt is not None:
                self._confirmed = decision.attempt.number
                waited_secs = now - (self._waits_since or now)
                await self.trigger_user_turn_finalized(confirms_speculation=True)
                await self._follow(decision, waited_secs)
                return
            await self._follow(decision)
        await self.trigger_user_turn_stopped()

    @property
    def _text(self) -> str:
        return " ".join(self._words)

    async def _wait(self) -> None:
        clock = asyncio.get_running_loop().time
        since = clock() - self.end.silent_secs
        # An answer begun meanwhile may ask for more; time itself is what is waited for.
        while (until := since + (self._asked_secs or 0.0)) > clock():  # noqa: ASYNC110
            await asyncio.sleep(until - clock())
        self._waiting = None  # what is to be done then is not to be cancelled
        if not self.end.voice_heard:
            await self._act(self.end.due, waited=True)

    async def _keep_time(self) -> None:
        """Let silence pass by the clock while no audio comes: push-to-talk, a muted microphone."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._turn_is_open.wait()
            await asyncio.sleep(max(_TICK_SECS, self._audio_at + _NO_AUDIO_SECS - clock()))
            if not self.end.in_turn or clock() < self._audio_at + _NO_AUDIO_SECS:
                continue
            if self.trigger is not None:
                await self._follow(self.trigger.time_passed(self._heard_secs))
            await self._act(self.end.silent_for(clock() - self._silent_since))

    async def _follow(self, decision: Decision, waited_secs: float = 0.0) -> None:
        """Do what the trigger has decided, and say so."""
        attempt = decision.attempt
        if attempt is None:
            if decision.reason not in (self._why_not, Reason.NOTHING_PENDING):
                self._why_not = decision.reason
                logger.debug(f"{self}: no early answer ({decision.reason})")
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
        await self._report(
            SpeculationEndedFrame(attempt.number, committed, decision.reason, waited_secs)
        )

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

    async def _stop_waiting(self) -> None:
        self._waits_since = None
        if self._waiting:
            waiting, self._waiting = self._waiting, None
            await self.cancel_task(waiting)

    async def _stop_judging(self) -> None:
        if self._judging:
            judging, self._judging = self._judging, None
            await self.cancel_task(judging)
