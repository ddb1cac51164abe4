"""One conversation: a pipeline built from its spec, run, listened to, and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from loguru import logger
from pipecat.clocks.base_clock import BaseClock
from pipecat.clocks.system_clock import SystemClock
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.runner import WorkerRunner

from headstart.config.spec import PipelineSpec
from headstart.errors import HeadstartError
from headstart.frames import ProgressiveTranscriptionFrame, WarmUpFrame
from headstart.pipeline import gc_freeze
from headstart.pipeline.build import Built, build
from headstart.pipeline.events import EventQueue, Worth
from headstart.pipeline.timeline.observer import Timeline, TurnRecord
from headstart.pipeline.watch import WatchedPipeline
from headstart.transports.door import Pcm
from headstart.transports.memory import MemoryTransport, PlayedAudio

_OPEN_TIMEOUT_SECS = 120.0
"""Models load while a session opens; a cold disk is slow."""
_CANCEL_TIMEOUT_SECS = 1.0
"""A pipeline that is cancelled has this long to pass the news on."""
_CLOSE_TIMEOUT_SECS = 4.0
"""Longest wait for a cancelled pipeline; what is left then is cancelled task by task."""
_FORCE_TIMEOUT_SECS = 1.0
END_TIMEOUT_SECS = 30.0
"""Longest wait, by default, for the bot to finish what it is saying."""


@dataclass(frozen=True)
class Heard:
    """What the recogniser understood."""

    text: str
    final: bool
    confidence: float | None
    """0..1; None where the recogniser has none, and for finals."""


@dataclass(frozen=True)
class Said:
    """Words of the bot, as they are heard."""

    text: str


@dataclass(frozen=True)
class Played:
    """A piece of the bot's speech, as it is played."""

    audio: PlayedAudio


@dataclass(frozen=True)
class TurnEnded:
    """A turn is over: the user has spoken and the bot has answered, or has not."""

    record: TurnRecord


@dataclass(frozen=True)
class Failed:
    """A stage reported an error; the conversation goes on if it can."""

    message: str


Event = Heard | Said | Played | TurnEnded | Failed


class Session:
    """A running conversation.

    ```python
    async with Session(load_config("local")) as session:
        await session.push_audio(pcm)          # as it comes, in pieces of any length
        async for event in session.events():
            ...
    ```

    Leaving the block ends the conversation at once; `end()` lets the bot finish first.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        transport: BaseTransport | None = None,
        *,
        observers: Sequence[BaseObserver] = (),
    ) -> None:
        """Prepare a conversation; nothing is loaded yet.

        Args:
            spec: What `load_config` returned.
            transport: Where audio comes from and goes; without one, the caller gives it
                (`push_audio`) and receives it (`Played` events).
            observers: Pipecat observers that want to watch too.
        """
        self._spec = spec
        self._events: EventQueue[Event] = EventQueue(_worth)
        self._transport = transport or MemoryTransport(
            on_played=lambda audio: self._events.put_nowait(Played(audio))
        )
        self.timeline = Timeline(zero_ns=self._zero_ns, on_turn=self._turn_ended)
        self._watchers = [self.timeline, _Listener(self._events)]
        self._observers = list(observers)
        self.context = LLMContext()
        """The conversation: what the user said, and what was heard of the bot."""
        self._clock: BaseClock = SystemClock()  # type: ignore[no-untyped-call]
        self._worker: PipelineWorker | None = None
        self._running: asyncio.Task[None] | None = None
        self._holds_gc_freeze = False
        self._is_over = False

    async def __aenter__(self) -> Self:
        """Build the pipeline, load its models and warm it up.

        Raises:
            HeadstartError: A stage could not be built or set up.
        """
        built = self._build()
        self.context = built.context
        worker = self._make_worker(built)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def on_warm(_: PipelineWorker, frame: WarmUpFrame) -> None:
            if not opened.done():
                opened.set_result(None)

        async def on_error(_: PipelineWorker, frame: ErrorFrame) -> None:
            if not opened.done():
                opened.set_exception(_as_headstart_error(frame, self._spec))

        async def on_end(worker: PipelineWorker, frame: Frame) -> None:
            # A stage may push an EndFrame itself, of which the stages before it do not hear.
            await worker.cancel()

        worker.add_event_handler("on_pipeline_finished", on_end)
        worker.set_reached_downstream_filter((WarmUpFrame,))
        worker.add_event_handler("on_frame_reached_downstream", on_warm)
        worker.add_event_handler("on_pipeline_error", on_error)
        self._worker = worker
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        self._running = asyncio.create_task(_run(runner, built.pipeline), name="session")
        self._running.add_done_callback(lambda _: _give_up(opened))
        # However the pipeline ends, by `close` or by itself: whoever listens must hear of it.
        self._running.add_done_callback(self._ran)
        await worker.queue_frame(WarmUpFrame(context=built.context))
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_SECS):
                await opened
        except TimeoutError:
            await self.close()
            raise HeadstartError(
                f"the pipeline did not open within {_OPEN_TIMEOUT_SECS:.0f} s"
            ) from None
        except BaseException:
            await self.close()
            raise
        if not self._is_over:
            gc_freeze.freeze()
            self._holds_gc_freeze = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the conversation at once."""
        await self.close()

    def _build(self) -> Built:
        return build(self._spec, self._transport)

    def _make_worker(self, built: Built) -> PipelineWorker:
        built.pipeline.watch(self._watchers)
        return PipelineWorker(
            built.pipeline,
            params=self._params(),
            clock=self._clock,
            observers=self._observers,
            # Only what somebody needs: each of these watches every step of every frame.
            enable_rtvi=False,
            enable_turn_tracking=False,
            idle_timeout_secs=None,
            cancel_timeout_secs=_CANCEL_TIMEOUT_SECS,
            setup_timeout_secs=_OPEN_TIMEOUT_SECS,
        )

    def _params(self) -> PipelineParams:
        return PipelineParams(
            audio_in_sample_rate=self._spec.audio.in_sample_rate,
            audio_out_sample_rate=self._spec.audio.out_sample_rate,
            enable_metrics=True,
            enable_usage_metrics=True,
            send_initial_empty_metrics=False,
        )

    async def push_audio(self, audio: Pcm, sample_rate: int | None = None) -> None:
        """Hand over what the user has just said.

        Pieces may have any length; once the session is over they are ignored.

        Args:
            audio: Mono 16-bit PCM, as bytes or as an array of samples, at the pace of real time.
            sample_rate: Of the audio, in Hz, from 1000 to 384000; by default the spec's input
                rate. Another one is resampled.

        Raises:
            TypeError: The audio is not 16-bit PCM, the rate is no whole number, or the session
                has a transport of its own.
            ValueError: Half a sample, or a rate that is out of range.
            RuntimeError: The session is not open yet.
        """
        if not isinstance(self._transport, MemoryTransport):
            raise TypeError("this session's audio comes from its transport")
        await self._transport.push_audio(audio, sample_rate)

    async def events(self) -> AsyncIterator[Event]:
        """What happens, as it happens, until the session ends.

        Each event is given once. Several iterations share them: one that begins later goes on
        where another has stopped, and two at a time take turns. Over a closed session an
        iteration ends when what was left has been read. Where nobody reads, the oldest audio and
        partial texts are dropped, of about 20 s of speech and more, then other texts; never
        `TurnEnded` nor `Failed`.
        """
        async for event in self._events:
            yield event

    async def end(self, timeout_secs: float = END_TIMEOUT_SECS) -> None:
        """Let the bot finish what it is saying, then close.

        An answer whose turn has not ended is withdrawn.

        Args:
            timeout_secs: Longest wait for the bot; after it, the conversation is closed.
        """
        if self._worker is not None and self._running is not None and not self._running.done():
            await self._worker.queue_frame(EndFrame())
            _, late = await asyncio.wait([self._running], timeout=timeout_secs)
            if late:
                logger.warning(f"the bot has not finished within {timeout_secs:g} s; closing")
        await self.close()

    async def close(self) -> None:
        """End the conversation at once; the turn that is open gets its record.

        Takes a few seconds at most, whatever the stages do.
        """
        if self._running is None:
            return
        if not self._running.done():
            if not self._running.cancelling():
                self._running.cancel()
            limit_secs = _CLOSE_TIMEOUT_SECS + 4 * _FORCE_TIMEOUT_SECS
            await asyncio.wait([self._running], timeout=limit_secs)
        self._finish()

    def _ran(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled() and (error := running.exception()) is not None:
            logger.error(f"the pipeline failed: {error}")
            self._events.put_nowait(Failed(f"the pipeline failed: {error}"))
        self._finish()

    def _finish(self) -> None:
        """Tell everybody who waits for something that the conversation is over; once."""
        if self._is_over:
            return
        self._is_over = True
        if self._holds_gc_freeze:
            self._holds_gc_freeze = False
            gc_freeze.release()
        self.timeline.finish()
        self._events.close()

    def _zero_ns(self) -> int | None:
        zero: int | None = getattr(self._transport, "zero_ns", 0)
        return zero

    def _turn_ended(self, record: TurnRecord) -> None:
        self._events.put_nowait(TurnEnded(record))


async def _run(runner: WorkerRunner, pipeline: WatchedPipeline) -> None:
    """Run the pipeline until it ends. Cancelling this ends it in bounded time.

    `asyncio.run` cancels all tasks of the loop at once when the program ends. Then no frame moves
    any more, and Pipecat's runner would wait for its worker for ever.
    """
    running = asyncio.create_task(runner.run(), name="session-runner")
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        if not running.cancelling():
            await runner.cancel()
            await asyncio.wait([running], timeout=_CLOSE_TIMEOUT_SECS)
        for _ in range(2):  # the runner takes the first for a request, and waits for its worker
            if not running.done():
                running.cancel()
                await asyncio.wait([running], timeout=_FORCE_TIMEOUT_SECS)
        raise
    finally:
        await _clean_up(runner, pipeline)


async def _clean_up(runner: WorkerRunner, pipeline: WatchedPipeline) -> None:
    """Release what a pipeline that could not end in order has left: its stages, then all tasks."""
    if not pipeline.is_clean:
        cleaning = asyncio.create_task(pipeline.cleanup(), name="session-cleanup")
        await asyncio.wait([cleaning], timeout=_FORCE_TIMEOUT_SECS)
        cleaning.cancel()
    tasks = [task for task in runner.task_manager.current_tasks() if not task.done()]
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=_FORCE_TIMEOUT_SECS)
        for task in left:
            logger.warning(f"{task.get_name()} ignores its cancellation: it is left behind")


class _Listener(BaseObserver):
    """Tells the session's listeners what is heard, said and gone wrong."""

    def __init__(self, events: EventQueue[Event]) -> None:
        super().__init__(observe_every_push=True)
        self._events = events

    async def on_push_frame(self, data: FramePushed) -> None:
        frame = data.frame
        if isinstance(frame, TTSTextFrame):
            # Before the output, words may belong to an answer that is never heard, or be cut.
            if isinstance(data.source, BaseOutputTransport):
                self._events.put_nowait(Said(frame.text))
        elif not data.first_push:
            return
        elif isinstance(frame, TranscriptionFrame):
            if frame.text:
                self._events.put_nowait(Heard(frame.text, final=True, confidence=None))
        elif isinstance(frame, ProgressiveTranscriptionFrame):
            self._events.put_nowait(Heard(frame.text, final=False, confidence=frame.confidence))
        elif isinstance(frame, ErrorFrame):
            self._events.put_nowait(Failed(frame.error))


def _worth(event: Event) -> Worth:
    match event:
        case Played() | Heard(final=False):
            return Worth.PASSING
        case Heard() | Said():
            return Worth.TEXT
        case TurnEnded() | Failed():
            return Worth.KEPT


def _give_up(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_exception(HeadstartError("the pipeline ended before it was open"))


def _as_headstart_error(frame: ErrorFrame, spec: PipelineSpec) -> HeadstartError:
    error = frame.exception
    if isinstance(error, HeadstartError):
        error.args = (spec.mask(str(error)),)
        return error
    stage = f"{frame.processor.name}: " if frame.processor else ""
    return HeadstartError(spec.mask(f"{stage}{frame.error}"))
