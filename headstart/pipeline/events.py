"""What a session tells its reader: bounded, however slowly it is read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from enum import IntEnum
from typing import Generic, TypeVar

from loguru import logger

T = TypeVar("T")

_MOST_EVENTS = 1024
"""Events that may be dropped; about 20 s of the bot's voice."""


class Worth(IntEnum):
    """Which events go first where nobody reads them."""

    PASSING = 0
    """The next one says more, or it was for the ear: partial texts, audio."""
    TEXT = 1
    """What was said, a piece at a time; the record of the turn has it too."""
    KEPT = 2
    """Never dropped."""


class EventQueue(Generic[T]):
    """Events in order, each read once; where too many wait, the oldest of the least worth go.

    Several iterations share it: an event goes to the one that asks first, and one that begins
    later goes on where another has stopped. When the queue is closed, each ends as soon as
    nothing is left to read.
    """

    def __init__(self, worth: Callable[[T], Worth], most: int = _MOST_EVENTS) -> None:
        """Begin empty.

        Args:
            worth: Of an event.
            most: How many events that may be dropped can wait.
        """
        self._worth = worth
        self._most = most
        self._waiting: dict[Worth, deque[tuple[int, T]]] = {worth: deque() for worth in Worth}
        self._count = 0
        self._has_dropped = self._is_closed = False
        self._changed = asyncio.Event()

    def put_nowait(self, event: T) -> None:
        """Add an event; after the end there are none."""
        if self._is_closed:
            return
        self._count += 1
        self._waiting[self._worth(event)].append((self._count, event))
        passing, texts = self._waiting[Worth.PASSING], self._waiting[Worth.TEXT]
        if len(passing) + len(texts) > self._most:
            (passing or texts).popleft()
            self._say_once()
        self._changed.set()

    def close(self) -> None:
        """No more events will come."""
        self._is_closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[T]:
        """The events, as they come, until there will be no more."""
        while True:
            if waiting := [events for events in self._waiting.values() if events]:
                _, event = min(waiting, key=lambda events: events[0][0]).popleft()
                yield event
            elif self._is_closed:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def _say_once(self) -> None:
        if not self._has_dropped:
            self._has_dropped = True
            logger.warning(
                f"the session's events are not read: of {self._most} and more that wait, the "
                "oldest partial texts and pieces of audio are dropped"
            )
