"""The clause splitter as Pipecat's TTS services want it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pipecat.utils.text.base_text_aggregator import Aggregation, BaseTextAggregator, TextType

from headstart.text.clauses import ClauseSplitter


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
        """Add text; yields the clauses that it completes."""
        for clause in self._splitter.push(text):
            yield Aggregation(clause, TextType.SENTENCE)

    async def flush(self) -> Aggregation | None:
        """End the reply; what is left of it."""
        rest = " ".join(self._splitter.flush())
        return Aggregation(rest, TextType.SENTENCE) if rest else None

    async def handle_interruption(self) -> None:
        """Forget the reply."""
        self._splitter.reset()

    async def reset(self) -> None:
        """Forget the reply."""
        self._splitter.reset()
