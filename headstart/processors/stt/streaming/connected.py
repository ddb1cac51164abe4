"""A connection to Deepgram that is always there: one that breaks is replaced by another."""

from __future__ import annotations

import asyncio
import random
import time
from abc import abstractmethod
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any

from loguru import logger
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.services.settings import STTSettings
from pipecat.services.stt_latency import DEEPGRAM_TTFS_P99
from pipecat.services.stt_service import STTService

from headstart.errors import UsageError
from headstart.processors.stt.deepgram_settings import LinkSettings
from headstart.processors.stt.streaming.link import (
    KEEP_ALIVE_SECS,
    Destination,
    Link,
    LinkLostError,
    RefusedError,
    pool,
)
from headstart.processors.stt.streaming.messages import Message
from headstart.processors.stt.streaming.replay import ReplayRing
from headstart.processors.stt.streaming.segments import Segment, Segments
from headstart.processors.supervised import supervise

_HOPELESS = 3
"""After so many failed attempts in a row, a segment does not wait for the next one's turn."""


class ConnectedSTT(STTService):
    """Sends what the ring holds; after a drop it connects again and sends the ring again.

    A recogniser says what is sent (`_send`), and what its messages mean (`_take_in`).
    """

    _ring: ReplayRing
    _destination: Destination

    def __init__(self, settings: LinkSettings, segments: Segments, **kwargs: Any) -> None:
        """Create the stage.

        Args:
            settings: The recogniser's.
            segments: None yet; they share out its words.
            **kwargs: For Pipecat's `STTService`.

        Raises:
            UsageError: There is no API key.
        """
        settings.destination(16000)
        super().__init__(
            ttfs_p99_latency=DEEPGRAM_TTFS_P99,
            settings=STTSettings(model=settings.model, language=settings.spoken_language),
            **kwargs,
        )
        self._options = settings
        self._chunk_secs = settings.chunk_ms / 1000
        self._segments = segments
        self._work = asyncio.Event()  # there is something to send, or the connection broke
        self._speech = asyncio.Event()  # the user speaks: do not put off connecting
        self._answer = asyncio.Event()  # a segment was closed by the stream, or hardly will be
        self._settled = asyncio.Event()  # a segment was closed, by whatever
        self._carried: set[Segment] = set()  # those with audio sent on this connection
        self._setup_secs: float | None = None
        self._failures = 0  # connections in a row, had or not, that brought no final result
        self._seems_hopeless = False
        self._stands_by = False  # until a segment that it was given up for is settled
        self._broken: LinkLostError | None = None
        self._refused: RefusedError | UsageError | None = None
        self._unanswered_since: float | None = None

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Have the ring."""
        await super().setup(setup)
        self._ring = ReplayRing(self.sample_rate, self._options.replay_secs)

    async def _stream(self) -> None:
        """Have a connection, and send on it, until the session ends or Deepgram refuses."""
        while True:
            await self._stand_by()
            self._speech.clear()
            try:
                destination = self._destination
                link = await pool.take(destination, self._options.connect_timeout_secs)
                if destination == self._destination:
                    await self._use(link)
                else:  # the settings have changed meanwhile
                    pool.give(link)
            except (RefusedError, UsageError) as error:
                self._refused = error
                self._answer.set()
                await self.push_error(
                    str(error), force_treat_as_permanent=not self._works_without_deepgram
                )
                return
            except LinkLostError as error:
                logger.log("DEBUG" if self._failures else "WARNING", f"{self}: {error}")
                await self._pause()
                self._failures += 1

    async def _use(self, link: Link) -> None:
        """Send what there is to send, until the link is lost.

        However it ends, the listener is gone then, and the link closed or back in the pool.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_exit(partial(self._leave, link))
            self._setup_secs = link.setup_secs
            self._broken = self._unanswered_since = None
            self._carried.clear()
            self._ring.connect(link.sent_secs)
            self._work.set()
            listening = supervise(self, partial(self._listen, link), "listen")
            stack.push_async_callback(self.cancel_task, listening)
            while True:
                await self._send(link)
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECS):
                        await self._work.wait()
                except TimeoutError:
                    await link.keep_alive()
                self._work.clear()
                if self._broken is not None:
                    raise self._broken

    async def _leave(
        self,
        link: Link,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Pass the link on if it is as good as new; else close it."""
        cancelled = isinstance(error, asyncio.CancelledError)
        owed = self._segments.open or self._broken or self._unanswered_since is not None
        if cancelled and not owed:
            pool.give(link)
            return
        if not cancelled:
            link.abort()
        await link.close()

    @property
    @abstractmethod
    def _works_without_deepgram(self) -> bool:
        """Whether speech is recognised even if Deepgram takes none."""

    @abstractmethod
    async def _send(self, link: Link) -> None:
        """Send what there is to send on a connection.

        Raises:
            LinkLostError: It did not work.
        """

    @abstractmethod
    async def _take_in(self, message: Message) -> None:
        """Take in a message of Deepgram's.

        Raises:
            LinkLostError: It says that the connection is of no more use.
        """

    def _carries(self, segment: Segment) -> None:
        """Audio of a segment is about to be sent on this connection."""
        if segment not in self._carried:
            self._carried.add(segment)
            segment.connections += 1
            segment.fruitless += 1

    async def _send_chunk(self, link: Link, secs: float) -> None:
        now = time.monotonic()
        self._unanswered_since = self._unanswered_since or now
        if now - self._unanswered_since > self._options.stall_secs:
            raise LinkLostError(f"Deepgram said nothing for {self._options.stall_secs:g} s")
        pcm = self._ring.take(secs)
        try:
            async with asyncio.timeout(self._options.stall_secs):
                await link.send(pcm, len(pcm) / 2 / self.sample_rate)
        except TimeoutError:
            raise LinkLostError("Deepgram takes no more audio") from None

    async def _listen(self, link: Link) -> None:
        """Take in what Deepgram says, until the link is lost."""
        try:
            async for message in link.messages():
                self._unanswered_since = None
                await self._take_in(message)
        except LinkLostError as error:
            self._break(error)
        except Exception:
            self._break(LinkLostError("a message of Deepgram's could not be used"))
            raise

    def _break(self, error: LinkLostError) -> None:
        """Have the connection replaced."""
        self._broken = error
        self._work.set()

    async def _pause(self) -> None:
        """Wait before the next attempt, unless the last one had worked; speech ends the wait."""
        if not self._failures:
            return
        secs = self._options.retry_min_secs * 2 ** min(self._failures - 1, 30)
        secs = min(secs, self._options.retry_max_secs) * random.uniform(0.75, 1.0)
        self._seems_hopeless = self._failures >= _HOPELESS
        self._answer.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(secs):
                await self._speech.wait()
        self._seems_hopeless = False

    async def _stand_by(self) -> None:
        """Wait until no segment is left that has had chances enough.

        Its audio would be sent once more with that of the segments after it, and billed.
        """
        while any(segment.given_up for segment in self._segments.open):
            self._stands_by = True
            self._answer.set()
            self._settled.clear()
            await self._settled.wait()
        self._stands_by = False

    def _will_not_close(self, segment: Segment, *, patient: bool) -> bool:
        """Whether the stream will not close a segment any more, or not soon.

        Args:
            segment: It has ended.
            patient: Whether it may take any number of further attempts.
        """
        if self._refused is not None or (self._stands_by and segment.given_up):
            return True
        return self._seems_hopeless and not patient
