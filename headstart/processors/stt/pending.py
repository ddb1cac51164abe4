"""Tells the turn stage that final transcripts are still being made."""

from __future__ import annotations

import asyncio
from collections import deque

from pipecat.processors.frame_processor import FrameProcessor

from headstart.frames import FinalPendingFrame

_EVERY_SECS = 0.5
"""Well below the shortest patience of a turn."""


class FinalsOwed:
    """The segments that have ended and have no final transcript yet."""

    def __init__(self, stage: FrameProcessor) -> None:
        """Begin with none.

        Args:
            stage: The recogniser; it pushes the frames.
        """
        self._stage = stage
        self._since: deque[float] = deque()
        self._some = asyncio.Event()

    def owe(self) -> None:
        """A segment has ended."""
        self._since.append(_now())
        self._some.set()

    def give(self) -> None:
        """The final transcript of the oldest of them is about to be pushed."""
        self._since.popleft()
        if not self._since:
            self._some.clear()

    async def tell(self) -> None:
        """Push a `FinalPendingFrame` every half second in which a final transcript is owed."""
        while True:
            await self._some.wait()
            await asyncio.sleep(_EVERY_SECS)
            if self._since:
                waited_secs = _now() - self._since[0]
                await self._stage.push_frame(FinalPendingFrame(waited_secs))


def _now() -> float:
    return asyncio.get_running_loop().time()
