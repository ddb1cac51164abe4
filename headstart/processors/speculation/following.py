"""Services that work on answers whose turn has not ended: ours, and any of Pipecat's.

`FollowingLLM` and `FollowingTTS` are mixins. Our own services have them as a base, and
`following` puts one in front of a Pipecat service that a pipeline names by its class path.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar, cast

from loguru import logger
from pipecat.frames.frames import (
    AggregatedTextFrame,
    EagerEndOfTurnCancelFrame,
    ErrorFrame,
    Frame,
    FunctionCallFromLLM,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    SystemFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.metrics.metrics import LLMTokenUsage
from pipecat.processors.frame_processor import FrameCallback, FrameDirection, FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.services.tts_service import TTSService
from pipecat.turns.speculation_gate import GatedFrame, SpeculationGate
from pipecat.utils.errors import classify_http_exception

from headstart.frames import SpeculationCostFrame, attempt_of, mark_attempt
from headstart.processors.speculation.attempts import SESSION_ENDS, AttemptStatus
from headstart.processors.speculation.follower import Follower

LETTERS_PER_TOKEN = 4
"""Of English text. The pieces in which an API sends its text are not tokens."""


class FollowingStage(FrameProcessor):
    """A stage that makes part of an answer, and follows the attempt that the answer belongs to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Pass everything on to the service."""
        super().__init__(*args, **kwargs)
        self._follower = Follower()

    async def queue_frame(
        self,
        frame: Frame,
        direction: FrameDirection = FrameDirection.DOWNSTREAM,
        callback: FrameCallback | None = None,
    ) -> None:
        """Queue a frame. One that ends the session ends all waits before its turn comes."""
        if isinstance(frame, SESSION_ENDS) and direction is FrameDirection.DOWNSTREAM:
            self._follower.hear(frame)
        await super().queue_frame(frame, direction, callback)

    async def cleanup(self) -> None:
        """End all waits, and close the service's client."""
        self._follower.close()
        await super().cleanup()  # type: ignore[no-untyped-call]
        # Services of Pipecat's leave theirs, and its connections, to the garbage collector.
        close = getattr(getattr(self, "_client", None), "close", None)
        if inspect.iscoroutinefunction(close):
            await close()

    async def push_error_frame(
        self, error: ErrorFrame, force_treat_as_permanent: bool = False
    ) -> None:
        """Report an error, unless it belongs to an attempt: the ordinary answer may succeed."""
        if force_treat_as_permanent or not await self._hides(error):
            await super().push_error_frame(error, force_treat_as_permanent)

    async def push_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        """Push a frame, unless it is the error of an attempt."""
        if not (isinstance(frame, ErrorFrame) and await self._hides(frame)):
            await super().push_frame(frame, direction)

    async def _hides(self, error: ErrorFrame) -> bool:
        attempt = self._attempt_at_work()
        if self._follower.status_of(attempt) is AttemptStatus.CONFIRMED or error.fatal:
            return False
        category = error.category
        if category is None and error.exception is not None:
            category = self._classify_error(error.exception) or classify_http_exception(
                error.exception
            )
        if category is not None and category.is_permanent:
            return False  # the ordinary answer fails, too, perhaps without another word
        logger.debug(f"{self}: attempt {attempt} failed: {error.error}")
        await self._attempt_failed()
        return True

    def _attempt_at_work(self) -> int | None:
        """The attempt that the running task works on; None if on none."""
        return self._follower.attempt

    async def _attempt_failed(self) -> None:
        """Something went wrong while the current answer was pending or void."""


_answering: ContextVar[int | None] = ContextVar("answering", default=None)
"""The attempt whose answer the task makes. Tasks inherit it, those of tools among them."""


class _OpenGate(SpeculationGate):
    """Pipecat's gate, held open: it tracks whether the turn is confirmed and holds no frame."""

    def process(self, frame: Frame, direction: FrameDirection) -> list[GatedFrame]:
        """Let the frame pass, noting what it says about the turn."""
        if isinstance(frame, SystemFrame):
            super().process(frame, direction)
        return [(frame, direction)]


class FollowingLLM(FollowingStage, LLMService[Any]):
    """Mixin: the answers of a language model go on to the voice while their turn is still open.

    Pipecat's service holds a speculative answer inside itself until the turn ends. Here a
    release gate further down holds it, so that the voice works ahead, too. An unconfirmed answer
    pauses after `max_speculative_letters`, and its tools wait for the verdict. An attempt that
    fails or says nothing is withdrawn: the end of the turn asks again.
    """

    max_speculative_letters = 32 * LETTERS_PER_TOKEN
    """Length, in letters, at which an unconfirmed answer pauses until its verdict."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Pass everything on to the service."""
        super().__init__(*args, **kwargs)
        self._said = False
        """Whether a word of the current answer is out."""
        self._failed = False
        self._letters = 0

    def work_ahead(self) -> None:
        """Let speculative answers out: a release gate further down holds them."""
        self._speculation_gate = _OpenGate(name=f"{self}::gate")

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer contexts, but for those whose attempt is void already."""
        self._follower.hear(frame)
        if not isinstance(frame, LLMContextFrame):
            await super().process_frame(frame, direction)
            return
        if self._follower.begin(attempt_of(frame)) is not AttemptStatus.VOID:
            self._said, self._failed, self._letters = False, False, 0
            token = _answering.set(self._follower.attempt)
            try:
                await super().process_frame(frame, direction)
            finally:
                _answering.reset(token)
            await self._context_processed()

    async def push_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        """Push a frame; what begins, withdraws or fails a speculative answer carries its number."""
        attempt = self._follower.attempt
        if attempt is not None and isinstance(
            frame, LLMFullResponseStartFrame | EagerEndOfTurnCancelFrame
        ):
            mark_attempt(frame, attempt)
        elif isinstance(frame, ErrorFrame) and self._attempt_at_work() is not None:
            mark_attempt(frame, self._attempt_at_work() or 0)
        elif isinstance(frame, LLMTextFrame):
            self._said = self._said or bool(frame.text.strip())
            if self._letters >= self.max_speculative_letters:
                await self._follower.verdict()
            self._letters += len(frame.text)
        await super().push_frame(frame, direction)

    async def start_llm_usage_metrics(self, tokens: LLMTokenUsage) -> None:
        """Report the tokens of an answer; those of a speculative one are counted apart, too."""
        await super().start_llm_usage_metrics(tokens)
        if self._follower.attempt is not None:
            await self.broadcast_frame(
                SpeculationCostFrame,
                attempt=self._follower.attempt,
                input_tokens=tokens.total_tokens - tokens.completion_tokens,
                output_tokens=tokens.completion_tokens,
            )

    async def run_function_calls(self, function_calls: Sequence[FunctionCallFromLLM]) -> None:
        """Call tools once the turn has ended on their answer; never those of a void one."""
        if function_calls:
            await self._follower.verdict()
        if self._follower.status is not AttemptStatus.VOID:
            await super().run_function_calls(function_calls)

    def _attempt_at_work(self) -> int | None:
        return _answering.get()

    async def _attempt_failed(self) -> None:
        self._failed = True

    async def _context_processed(self) -> None:
        """The service has processed a context: the answer to it is complete."""
        await self._withdraw_if_in_vain()

    async def _withdraw_if_in_vain(self) -> None:
        """Withdraw an unconfirmed answer that has failed or says nothing."""
        if (self._failed or not self._said) and self._speculation_gate.is_speculating:
            await self.broadcast_frame(EagerEndOfTurnCancelFrame)


class FollowingTTS(FollowingStage, TTSService):
    """Mixin: a voice stops at once when the answer that it speaks is withdrawn.

    What was made and queued of such an answer is dropped, and its request is cancelled at the
    provider, as if the user had interrupted. A voice that cannot speak an unconfirmed answer
    withdraws it.
    """

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Speak, but nothing of an answer that is void."""
        was_pending = self._follower.is_pending
        status = self._follower.hear(frame)
        if isinstance(frame, LLMFullResponseStartFrame):
            status = self._follower.begin(attempt_of(frame))
        elif was_pending and not isinstance(frame, InterruptionFrame):
            if status is AttemptStatus.CONFIRMED:
                self._confirmed()
            elif status is AttemptStatus.VOID:
                await self._withdraw(direction)
        if status is AttemptStatus.VOID and isinstance(
            frame, LLMFullResponseStartFrame | LLMTextFrame | LLMFullResponseEndFrame
        ):
            return
        await super().process_frame(frame, direction)

    async def _withdraw(self, direction: FrameDirection) -> None:
        """Drop all that was made and queued, as an interruption does; the bot never spoke."""
        await self._start_interruption()  # type: ignore[no-untyped-call]
        await self._handle_interruption(InterruptionFrame(), direction)

    def _confirmed(self) -> None:
        """The answer is heard from now on."""

    async def _attempt_failed(self) -> None:
        await self._give_up()

    async def _give_up(self) -> None:
        """Withdraw an answer that cannot be spoken whole; the end of the turn asks for another."""
        if not self._follower.is_pending or self._follower.attempt is None:
            return
        for direction in FrameDirection:
            withdrawal = EagerEndOfTurnCancelFrame()
            mark_attempt(withdrawal, self._follower.attempt)
            await self.push_frame(withdrawal, direction)


class _WordTimes(FollowingTTS):
    """Mixin: the words of a voice that gives no word times are timed by its audio.

    Pipecat hands on such a voice's text sentence by sentence, each when its audio has been heard
    to the end. An interruption would lose the words of the sentence that it cuts. Here each word
    follows the share of the sentence's audio that its letters make up.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Pass everything on to the service."""
        super().__init__(*args, **kwargs)
        self._audio_secs: dict[str, float] = {}
        """Length of the audio that each open context has got so far."""
        self._text_from_secs = 0.0
        """Where in its context the audio of the current text begins."""
        self._played_from_ns: dict[str, int] = {}
        """When the first audio of a context is heard, on the pipeline's clock."""
        self._busy_until_ns = 0
        """When all audio that has been pushed will have been heard."""

    async def append_to_audio_context(self, context_id: str | None, frame: Any) -> None:
        if isinstance(frame, TTSAudioRawFrame) and context_id is not None:
            secs = self._audio_secs.get(context_id, 0.0)
            self._audio_secs[context_id] = secs + frame.num_frames / frame.sample_rate
        await super().append_to_audio_context(context_id, frame)

    async def _synthesize_text(self, text: str, context_id: str) -> None:
        self._text_from_secs = self._audio_secs.get(context_id, 0.0)
        await super()._synthesize_text(text, context_id)

    async def _push_spoken_text(
        self, src_frame: AggregatedTextFrame, text: str, context_id: str, append_to_context: bool
    ) -> None:
        begin = self._text_from_secs
        length = self._audio_secs.get(context_id, 0.0) - begin
        words = text.split()
        if not self._push_text_frames or self._is_streaming_tokens or length <= 0 or not words:
            await super()._push_spoken_text(src_frame, text, context_id, append_to_context)
            return
        letters = sum(map(len, words))
        for word in words:
            frame = TTSTextFrame(word, text_type=src_frame.text_type, segment_id=src_frame.id)
            frame.will_be_spoken = True
            frame.context_id = context_id
            frame.append_to_context = append_to_context
            frame.metadata[_OFFSET_SECS] = begin
            await self.append_to_audio_context(context_id, frame)
            begin += length * len(word) / letters
        for unblocked in self._aggregated_frame_sequencer.complete_spoken_slot():
            await self.push_frame(unblocked)

    async def push_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        if isinstance(frame, TTSAudioRawFrame) and frame.context_id:
            now = max(self.get_clock().get_time(), self._busy_until_ns)
            self._played_from_ns.setdefault(frame.context_id, now)
            self._busy_until_ns = now + round(frame.num_frames / frame.sample_rate * 1e9)
        elif isinstance(frame, TTSTextFrame) and _OFFSET_SECS in frame.metadata:
            start_ns = self._played_from_ns.get(frame.context_id or "", 0)
            frame.pts = start_ns + round(frame.metadata.pop(_OFFSET_SECS) * 1e9)
        await super().push_frame(frame, direction)

    async def on_audio_context_completed(self, context_id: str) -> None:
        self._forget(context_id)
        await super().on_audio_context_completed(context_id)

    async def on_audio_context_interrupted(self, context_id: str) -> None:
        self._forget(context_id)
        await super().on_audio_context_interrupted(context_id)

    async def _handle_interruption(
        self, frame: InterruptionFrame, direction: FrameDirection
    ) -> None:
        self._busy_until_ns = 0
        await super()._handle_interruption(frame, direction)

    def _forget(self, context_id: str) -> None:
        self._audio_secs.pop(context_id, None)
        self._played_from_ns.pop(context_id, None)


_OFFSET_SECS = "offset_secs"
"""Key in the metadata of a word: where in its context's audio it begins, in seconds."""

P = TypeVar("P", bound=FrameProcessor)


@cache
def following(cls: type[P]) -> type[P]:
    """A class whose instances follow attempts, in place of a service of Pipecat's.

    Args:
        cls: The class of any stage. Stages other than language models and voices, and those that
            follow attempts already, are returned as they are.
    """
    if issubclass(cls, FollowingStage):
        return cls
    mixin: type[FollowingStage]
    if issubclass(cls, LLMService):
        mixin = FollowingLLM
    elif issubclass(cls, TTSService):
        mixin = _WordTimes
    else:
        return cls
    members = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return cast(type[P], type(cls.__name__, (mixin, cls), members))


def obstacle_to_following(cls: type[FrameProcessor]) -> str | None:
    """Why a stage cannot take part in early answers; None if it can, or need not."""
    # Only services that hear audio themselves describe themselves with more than their name.
    realtime = LLMService.service_metadata_frame
    if issubclass(cls, LLMService) and cls.service_metadata_frame is not realtime:
        return "is a speech-to-speech service: it decides itself when it answers"
    return None
