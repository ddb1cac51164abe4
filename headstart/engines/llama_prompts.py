"""Has llama.cpp read the prompts of pipelines before their first turn: once for all sessions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from headstart.engines.llama_slots import Slots


@dataclass(frozen=True)
class _Cached:
    """What has been read into a slot."""

    prompt: str
    task: int | None
    """llama.cpp's number of the request that did; None if the slot may have been used since."""


_Outcome = bool | Exception
"""Of reading a prompt: whether it has been read, or why it could not be."""


class PromptCache:
    """Which prompts llama.cpp has in its slots.

    A prompt is read into the free slots, once: sessions that open at the same time share that.
    A slot is free unless it may hold a conversation that goes on, which would have to be read
    anew, whole. llama.cpp says of each slot which request used it last. So, while any
    conversation goes on, those slots are free that have not been used since they were filled
    from here, or never.
    """

    def __init__(self, slots: Slots) -> None:
        """Nothing has been read.

        Args:
            slots: Who has a slot.
        """
        self._slots = slots
        self._guard = threading.Lock()
        self._url = ""
        self._cached: dict[int, _Cached] = {}
        self._under_way: tuple[str, Future[_Outcome]] | None = None

    async def fill(
        self,
        url: str,
        prompt: str,
        look: Callable[[], Awaitable[Sequence[dict[str, Any]]]],
        read: Callable[[int], Awaitable[object]],
    ) -> None:
        """Have a prompt in every free slot, unless it has been read already.

        Args:
            url: Where llama.cpp serves: after a restart, which empties its slots, elsewhere.
            prompt: What identifies the prompt.
            look: Asks llama.cpp for the state of its slots.
            read: Has it read the prompt into the slot of that number.

        Raises:
            Exception: What `look` or `read` raised, perhaps in another session that reads the
                same prompt.
        """
        while True:
            with self._guard:
                if url != self._url:
                    self._url, self._cached = url, {}
                if any(cached.prompt == prompt for cached in self._cached.values()):
                    return
                under_way = self._under_way
                if under_way is None:
                    done: Future[_Outcome] = Future()
                    self._under_way = prompt, done
                    break
            outcome = await asyncio.shield(asyncio.wrap_future(under_way[1]))
            if under_way[0] == prompt:
                if isinstance(outcome, Exception):
                    raise outcome
                if outcome:
                    return
        outcome = False  # cancelled: one of those who wait reads it
        try:
            await self._fill(prompt, look, read)
            outcome = True
        except Exception as error:
            outcome = error
            raise
        finally:
            with self._guard:
                self._under_way = None
            done.set_result(outcome)

    async def _fill(
        self,
        prompt: str,
        look: Callable[[], Awaitable[Sequence[dict[str, Any]]]],
        read: Callable[[int], Awaitable[object]],
    ) -> None:
        for slot in [state["id"] for state in await look()]:
            if not self._is_free(await _state_of(slot, look)):
                continue
            answers = self._slots.answers
            with self._slots.answering():
                await read(slot)
            task = (await _state_of(slot, look)).get("id_task")
            used_since = answers != self._slots.answers
            self._cached[slot] = _Cached(prompt, None if used_since else task)

    def _is_free(self, state: dict[str, Any]) -> bool:
        if state["is_processing"]:
            return False
        if not self._slots.hold_conversations or "id_task" not in state:
            return True
        cached = self._cached.get(state["id"])
        return cached is not None and cached.task == state["id_task"]


async def _state_of(
    slot: int, look: Callable[[], Awaitable[Sequence[dict[str, Any]]]]
) -> dict[str, Any]:
    return next(state for state in await look() if state["id"] == slot)
