"""Speech-to-text by Deepgram's Nova models, which are told where a segment ends."""

from __future__ import annotations

import time
from typing import Any

from loguru import logger

from headstart.processors.stt.deepgram_settings import DeepgramSettings
from headstart.processors.stt.streaming.link import Link
from headstart.processors.stt.streaming.messages import Message, Results, Trouble
from headstart.processors.stt.streaming.segments import Heard, Segment, Segments, TimedWord
from headstart.processors.stt.streaming.stream import StreamingSTT


class DeepgramSTT(StreamingSTT):
    """Streams each segment to Deepgram and gives exactly one final transcript for it.

    Only speech is sent: from the pre-roll before a VAD start to the VAD stop, then `Finalize`.
    Deepgram bills the audio it is sent, and a voice agent's line is silent most of the time.
    """

    def __init__(self, settings: DeepgramSettings | None = None, **kwargs: Any) -> None:
        """Create the stage.

        Args:
            settings: As in YAML; the defaults if None.
            **kwargs: For Pipecat's `STTService`.

        Raises:
            UsageError: There is no API key.
        """
        super().__init__(settings or DeepgramSettings(), Segments(), **kwargs)
        self._asked: set[Segment] = set()  # those that Finalize was sent for on this connection

    async def _use(self, link: Link) -> None:
        self._asked.clear()
        await super()._use(link)

    async def _send(self, link: Link) -> None:
        """Send all whole chunks of the segment that grows, and all of those that have ended."""
        for segment in self._segments.open:
            if segment in self._asked:
                continue
            least_secs = self._chunk_secs if segment.end_secs is None else 0.0
            while (left_secs := self._ring.unsent_secs(segment.end_secs)) and (
                left_secs >= least_secs
            ):
                self._carries(segment)
                await self._send_chunk(link, min(left_secs, self._chunk_secs))
            if segment.end_secs is not None:
                self._asked.add(segment)
                self._unanswered_since = self._unanswered_since or time.monotonic()
                await link.finalize()

    async def _take_in(self, message: Message) -> None:
        if isinstance(message, Results) and message.channel.alternatives:
            await self._hear(self._heard(message))
        elif isinstance(message, Trouble):
            logger.warning(f"{self}: Deepgram: {message.line}")

    def _heard(self, message: Results) -> Heard:
        best = message.channel.alternatives[0]
        at = self._ring.stream_secs
        return Heard(
            best.transcript,
            tuple(
                TimedWord(word.text, word.confidence, at(word.start), at(word.end))
                for word in best.words
            ),
            best.confidence,
            at(message.start),
            at(message.start + message.duration),
            bool(message.is_final),
            bool(message.from_finalize),
        )
