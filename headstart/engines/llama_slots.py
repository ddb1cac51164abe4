"""Keeps conversations apart in the slots of llama.cpp."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from weakref import WeakSet

_PATIENCE_SECS = 2.0
_LOOK_AGAIN_SECS = 0.01


class Slots:
    """Who has a slot, and whether a request that was given up still has one.

    llama.cpp gives a request the free slot that holds most of its prompt already. A request
    that is given up keeps its slot until the batch under way is computed. One that follows at
    once would get the slot of another conversation, and each of the two would have its whole
    conversation read anew: seconds, if it is long. So it waits for that batch, which llama.cpp
    computes first in any case.
    """

    def __init__(self) -> None:
        """Nobody has asked for anything."""
        self._answering = 0
        self._given_up = False
        self._conversations: WeakSet[object] = WeakSet()
        self.answers = 0
        """How many answers to conversations have been begun."""

    @property
    def hold_conversations(self) -> bool:
        """Whether a slot may hold a conversation that goes on."""
        return bool(self._conversations)

    @contextmanager
    def answering(self, conversation: object | None = None) -> Iterator[None]:
        """A request is being answered, and so has a slot, as long as the block lasts.

        Args:
            conversation: Who asked. Until `left` its slot holds what it will ask next begins with.
        """
        if conversation is not None:
            self._conversations.add(conversation)
            self.answers += 1
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1

    def left(self, conversation: object) -> None:
        """A conversation is over."""
        self._conversations.discard(conversation)

    def given_up(self) -> None:
        """A request has been given up before its answer was whole."""
        self._given_up = True

    async def settled(self, busy: Callable[[], Awaitable[int]]) -> None:
        """Wait until those that were given up have left their slots, for two seconds at most.

        Args:
            busy: Asks llama.cpp how many slots are busy.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECS):
                while self._given_up:
                    if await busy() <= self._answering:
                        self._given_up = False
                    else:
                        await asyncio.sleep(_LOOK_AGAIN_SECS)
