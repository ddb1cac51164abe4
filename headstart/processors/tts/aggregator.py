"""The clause splitter as Pipecat's TTS services want it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pipecat.utils.text.base_text_aggregator import Aggregation, BaseTextAggregator, TextType

from headstart.text.clauses import ClauseSplitter

_SLICE = 256
"""Characters that are cut at a time."""


class ClauseAggregator(BaseTextAggregator):
    """Gives text to the voice clause by clause, as soon as prosody allows a cut."""

    def __init__(self, *, language: str | None = None) -> None:
        """Begin with an empty reply."""
        super().__init__(aggregation_type=TextType.SENTENCE, language=language)
        self._splitter = ClauseSplitter()

    @property
    def text(self) -> Aggregation:
        """What has come and belongs to no clause yet."""
        return Aggregation(self._splitter.pending, TextType.SENTENCE)

    async def aggregate(self, text: str) -> AsyncIterator[Aggregation]:
        """Add text; yields the clauses that it completes.

        Others get the event loop between two slices of a long text.
        """
        splitter = self._splitter
        for start in range(0, len(text), _SLICE):
            if start:
                await asyncio.sleep(0)
            if splitter is not self._splitter:  # interrupted meanwhile
                return
            for clause in splitter.push(text[start : start + _SLICE]):
                yield Aggregation(clause, TextType.SENTENCE)

    async def whole(self, text: str) -> AsyncIterator[Aggregation]:
        """Add text that ends a reply; yields the clauses of the reply."""
        async for clause in self.aggregate(text):
            yield clause
        rest = await self.flush()
        if rest:
            yield rest

    async def flush(self) -> Aggregation | None:
        """End the reply; what is left of it."""
        rest = " ".join(self._splitter.flush())
        return Aggregation(rest, TextType.SENTENCE) if rest else None

    async def handle_interruption(self) -> None:
        """Forget the reply, and the rest of a text that is being cut."""
        self._splitter = ClauseSplitter()

    async def reset(self) -> None:
        """As `handle_interruption`."""
        await self.handle_interruption()
