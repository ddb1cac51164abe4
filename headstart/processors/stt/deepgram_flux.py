"""Speech-to-text by Deepgram Flux, which also hears when the user's turn ends."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from loguru import logger
from pipecat.frames.frames import EndFrame, VADUserStoppedSpeakingFrame

from headstart.processors.stt.deepgram_settings import FluxSettings
from headstart.processors.stt.streaming.link import Link, LinkLostError
from headstart.processors.stt.streaming.messages import Message, Trouble, TurnInfo
from headstart.processors.stt.streaming.segments import Heard, Segment, Segments, TimedWord
from headstart.processors.stt.streaming.stream import StreamingSTT

_NOT_HEARD_SECS = 0.5
"""Audio after a VAD stop in which Flux still has no words: then nothing was said."""

_VOICE_END_SECS = 0.1
"""How far the VAD's idea of where the voice ended may lie behind Flux's."""

_ENDS_TURN = {
    "StartOfTurn": False,
    "EagerEndOfTurn": True,
    "TurnResumed": False,
    "EndOfTurn": True,
}
"""Whether the turn seems to be over from an event on; an `Update` leaves that as it is."""


@dataclass(eq=False)
class _Stretch(Segment):
    voice_end_secs: float = math.inf
    """Stream time at which the voice ended, so much earlier than the VAD said so."""


class FluxSegments(Segments):
    """Flux's turns, shared out to the VAD's segments.

    A turn may span several segments: Flux waits where the user has only paused. Its words go to
    the first of them, and the others have none: the words of a turn are revised to its end, so
    there is no dividing them before. A segment may also span several turns.
    """

    def begin(self, start_secs: float) -> Segment:
        """The user has begun to speak."""
        segment = _Stretch(start_secs)
        self._open.append(segment)
        return segment

    def stopped(self, segment: Segment, stop_secs: float) -> None:
        """The VAD has stopped, after `stop_secs` of silence; Flux may have been faster."""
        assert isinstance(segment, _Stretch) and segment.end_secs is not None
        segment.voice_end_secs = segment.end_secs - stop_secs
        if not segment.interim.text and self._reaches(segment, segment.covered_secs):
            self._close(segment)

    def hear(self, heard: Heard) -> list[Segment]:
        """Take in what a turn is believed to say, up to `heard.end_secs`; final when it ended.

        Returns:
            The segments that it changed or closed, oldest first.
        """
        if not self._open or heard.end_secs <= self._open[0].start_secs:
            return []  # silence after a segment that was closed
        first, segments = self._open[0], self.open
        end_secs = heard.end_secs if first.end_secs is None else min(heard.end_secs, first.end_secs)
        first.hear(replace(heard, start_secs=first.start_secs, end_secs=end_secs))
        if heard.is_final:
            self._final_until = max(self._final_until, heard.settled_secs)
        for segment in segments:
            if segment.end_secs is None:
                continue
            if heard.is_final:
                over = self._reaches(segment, heard.end_secs)
            else:
                over = not heard.text and heard.end_secs >= segment.end_secs + _NOT_HEARD_SECS
            if over:
                self._close(segment)
        return [segment for segment in segments if segment is first or segment.closed]

    def _reaches(self, segment: Segment, secs: float) -> bool:
        """Whether a turn that ended then has all of a segment's voice in it."""
        assert isinstance(segment, _Stretch)
        return secs >= segment.voice_end_secs - _VOICE_END_SECS


class DeepgramFluxSTT(StreamingSTT):
    """Streams to Flux from each VAD start until Flux has ended the turn.

    The silence after the VAD stop is sent too, since that is what Flux decides on. The final
    transcript of a segment comes when both the VAD has stopped and Flux has ended the turn; a
    turn stage without Smart Turn then ends the turn on it.
    """

    _options: FluxSettings
    _segments: FluxSegments

    def __init__(self, settings: FluxSettings | None = None, **kwargs: Any) -> None:
        """Create the stage.

        Args:
            settings: As in YAML; the defaults if None.
            **kwargs: For Pipecat's `STTService`.

        Raises:
            UsageError: There is no API key.
        """
        super().__init__(settings or FluxSettings(), FluxSegments(), **kwargs)
        self._patience_secs = self._options.eot_timeout_ms / 1000 + self._options.final_timeout_secs
        self._stopped_at = 0.0
        self._ends_turn = False

    async def stop(self, frame: EndFrame) -> None:
        """Let the last words through, then close. No more audio comes: that is silence."""
        if self._segments.open:
            silence_secs = self._options.eot_timeout_ms / 1000 + _NOT_HEARD_SECS
            self._ring.push(bytes(2 * round(silence_secs * self.sample_rate)))
            self._work.set()
        await super().stop(frame)

    @property
    def _collecting(self) -> bool:
        return bool(self._segments.open)

    async def _handle_vad_user_stopped_speaking(self, frame: VADUserStoppedSpeakingFrame) -> None:
        segment = self._segments.speaking
        await super()._handle_vad_user_stopped_speaking(frame)
        if segment is not None:
            self._stopped_at = time.monotonic()
            self._segments.stopped(segment, frame.stop_secs)

    async def _send(self, link: Link) -> None:
        """Send all whole chunks."""
        while self._ring.unsent_secs() >= self._chunk_secs:
            for segment in self._segments.open:
                self._carries(segment)
            await self._send_chunk(link, self._chunk_secs)
        self._expect_nothing_when_idle()

    async def _take_in(self, message: Message) -> None:
        if isinstance(message, TurnInfo):
            self._ends_turn = _ENDS_TURN.get(message.event, self._ends_turn)
            predicts = self._options.eager_eot_threshold is not None
            await self._hear(self._heard(message), self._ends_turn if predicts else None)
        elif isinstance(message, Trouble):
            if message.type == "Error":
                raise LinkLostError(f"Deepgram: {message.line}")
            logger.warning(f"{self}: Deepgram: {message.line}")

    def _heard(self, turn: TurnInfo) -> Heard:
        at = self._ring.stream_secs
        start, end = turn.audio_window_start, turn.audio_window_end
        words = tuple(
            TimedWord(
                word.word,
                word.confidence,
                at(start if word.start is None else word.start),
                at(end if word.end is None else word.end),
            )
            for word in turn.words
        )
        confidence = math.fsum(word.probability for word in words) / max(len(words), 1)
        ended = turn.event == "EndOfTurn"
        return Heard(
            turn.transcript, words, confidence, at(start), at(end), ended, from_finalize=False
        )

    async def _complete(self, segment: Segment, stopped_at: float) -> None:
        await super()._complete(segment, stopped_at)
        self._expect_nothing_when_idle()

    async def _streamed(self, segment: Segment, stopped_at: float) -> bool:
        """Wait as long as Flux may: while the user speaks, and until the turn must have ended."""
        while not (segment.closed or self._will_not_close(segment, patient=False)):
            stopped_at = time.monotonic() if self._segments.speaking else self._stopped_at
            deadline = stopped_at + self._patience_secs
            if deadline <= time.monotonic():
                break
            await self._answered(segment, deadline, patient=False)
        if not segment.closed:  # what Flux still says of this turn must not come to the next
            self._break(LinkLostError("Flux did not end the turn in time"))
        return segment.closed

    def _expect_nothing_when_idle(self) -> None:
        """Flux answers each 250 ms or so of audio: the last pieces may have no answer."""
        if not self._segments.open:
            self._unanswered_since = None
