"""One conversation: a pipeline built from its spec, run, listened to, and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.runner import WorkerRunner

from headstart.config.spec import PipelineSpec
from headstart.errors import HeadstartError
from headstart.frames import ProgressiveTranscriptionFrame, WarmUpFrame
from headstart.pipeline import gc_freeze as collector
from headstart.pipeline.build import Built, build
from headstart.pipeline.events import EventQueue, Worth
from headstart.pipeline.timeline.observer import Timeline, TurnRecord
from headstart.transports.door import Pcm
from headstart.transports.memory import MemoryTransport, PlayedAudio

_OPEN_TIMEOUT_SECS = 120.0
"""Models load while a session opens; a cold disk is slow."""
_CANCEL_TIMEOUT_SECS = 1.0


@dataclass(frozen=True)
class Heard:
    """What the recogniser understood."""

    text: str
    final: bool
    confidence: float | None
    """0..1; None where the recogniser has none, and for finals."""


@dataclass(frozen=True)
class Said:
    """Words the bot has just begun to say."""

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
        self._worker: PipelineWorker | None = None
        self._runner: WorkerRunner | None = None
        self._running: asyncio.Task[None] | None = None
        self._spares_collector = False

    async def __aenter__(self) -> Self:
        """Build the pipeline, load its models and warm it up.

        Raises:
            HeadstartError: A stage could not be built or set up.
        """
        built = build(self._spec, self._transport)
        worker = self._make_worker(built)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def on_warm(_: PipelineWorker, frame: WarmUpFrame) -> None:
            if not opened.done():
                opened.set_result(None)

        async def on_error(_: PipelineWorker, frame: ErrorFrame) -> None:
            if not opened.done():
                opened.set_exception(_as_headstart_error(frame))

        worker.set_reached_downstream_filter((WarmUpFrame,))
        worker.add_event_handler("on_frame_reached_downstream", on_warm)
        worker.add_event_handler("on_pipeline_error", on_error)
        self._worker = worker
        self._runner = WorkerRunner(handle_sigint=False)
        await self._runner.add_workers(worker)
        self._running = asyncio.create_task(self._runner.run(), name="session")
        self._running.add_done_callback(lambda _: _give_up(opened))
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
        collector.spare()
        self._spares_collector = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the conversation at once."""
        await self.close()

    def _make_worker(self, built: Built) -> PipelineWorker:
        built.pipeline.watch(self._watchers)
        return PipelineWorker(
            built.pipeline,
            params=self._params(),
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

    async def end(self) -> None:
        """Let the bot finish what it is saying, then close."""
        if self._worker is not None and self._running is not None:
            await self._worker.queue_frame(EndFrame())
            await asyncio.wait([self._running])
        await self.close()

    async def close(self) -> None:
        """End the conversation at once; the turn that is open gets its record."""
        if self._runner is None or self._running is None:
            return
        await self._runner.cancel()
        await asyncio.wait([self._running])
        self._runner = None
        if self._spares_collector:
            self._spares_collector = False
            collector.resume()
        self.timeline.finish()
        self._events.close()

    def _zero_ns(self) -> int | None:
        zero: int | None = getattr(self._transport, "zero_ns", 0)
        return zero

    def _turn_ended(self, record: TurnRecord) -> None:
        self._events.put_nowait(TurnEnded(record))


class _Listener(BaseObserver):
    """Tells the session's listeners what is heard, said and gone wrong."""

    def __init__(self, events: EventQueue[Event]) -> None:
        super().__init__(observe_every_push=False)
        self._events = events

    async def on_push_frame(self, data: FramePushed) -> None:
        frame = data.frame
        if isinstance(frame, TranscriptionFrame):
            if frame.text:
                self._events.put_nowait(Heard(frame.text, final=True, confidence=None))
        elif isinstance(frame, ProgressiveTranscriptionFrame):
            self._events.put_nowait(Heard(frame.text, final=False, confidence=frame.confidence))
        elif isinstance(frame, TTSTextFrame):
            self._events.put_nowait(Said(frame.text))
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


def _as_headstart_error(frame: ErrorFrame) -> HeadstartError:
    if isinstance(frame.exception, HeadstartError):
        return frame.exception
    stage = f"{frame.processor.name}: " if frame.processor else ""
    return HeadstartError(f"{stage}{frame.error}")
