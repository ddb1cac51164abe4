"""What Deepgram's streaming recognisers share: each segment gets its final text, whatever fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.settings import STTSettings
from pipecat.transcriptions.language import Language
from pipecat.utils.time import time_now_iso8601
from pipecat.utils.tracing.service_decorators import traced_stt

from headstart.frames import AudioGapFrame, ProgressiveTranscriptionFrame
from headstart.processors.audio import MODEL_RATE
from headstart.processors.stt.deepgram_settings import LinkSettings
from headstart.processors.stt.pending import FinalsOwed
from headstart.processors.stt.recognised import Recognised
from headstart.processors.stt.streaming.connected import ConnectedSTT
from headstart.processors.stt.streaming.fallback import (
    Batch,
    Local,
    NobodyError,
    Prerecorded,
    transcribe_by_first,
)
from headstart.processors.stt.streaming.link import LinkLostError
from headstart.processors.stt.streaming.segments import Heard, Segment, Segments
from headstart.processors.supervised import supervise

_LIVE = {"model", "language"}
"""The settings that a frame can change while the session runs."""


class StreamingSTT(ConnectedSTT):
    """Streams speech to Deepgram and gives exactly one final transcript for each segment.

    All I/O is in two tasks. `_stream` has a connection open from the session's start. `_settle`
    sees to it that the final text of every segment comes, in order, from elsewhere if need be.
    A third one tells the turn stage meanwhile that it will come.
    """

    def __init__(self, settings: LinkSettings, segments: Segments, **kwargs: Any) -> None:
        """Create the stage, as `ConnectedSTT` does."""
        super().__init__(settings, segments, **kwargs)
        self._pre_roll = bytearray()
        self._batches: list[Batch] = []
        self._stopped: asyncio.Queue[tuple[Segment, float] | None] = asyncio.Queue()
        """The segments that have ended and when; None for the end of the session."""
        self._settling: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._owed = FinalsOwed(self)
        self._passed_secs = 0.0
        """All audio so far: the session's clock. The ring's counts what is sent."""

    @classmethod
    def required_assets(cls, settings: LinkSettings) -> tuple[str, ...]:
        """The weights that the stage needs: those of the local fallback, if it is named."""
        return ("whisper-tiny",) if "local" in settings.fallback else ()

    @classmethod
    def check_environment(cls, settings: LinkSettings) -> None:
        """Check that there is a key where one is needed.

        Raises:
            UsageError: Deepgram wants one and there is none.
        """
        settings.destination(MODEL_RATE)

    def can_generate_metrics(self) -> bool:
        """Usage, and the time from the end of speech to the final text, are reported."""
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Begin to connect; audio that comes before the connection is there waits for it."""
        await super().setup(setup)
        self._local = await Local.load() if "local" in self._options.fallback else None
        self._aim()
        self._settling = supervise(self, self._settle, "settle")
        self._tasks = [
            supervise(self, self._stream, "stream"),
            self._settling,
            supervise(self, self._owed.tell, "tell-pending"),
        ]

    async def stop(self, frame: EndFrame) -> None:
        """Let the last words through, then close."""
        if self._settling is not None:
            self._stopped.put_nowait(None)
            await asyncio.wait([self._settling])
        await super().stop(frame)
        await self._end()

    async def cancel(self, frame: CancelFrame) -> None:
        """Close at once."""
        await super().cancel(frame)
        await self._end()

    async def cleanup(self) -> None:
        """Leave no task and no socket."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        await self._end()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """A gap in the audio ends speech with the last sample; what follows is another."""
        if isinstance(frame, AudioGapFrame):
            if self._segments.speaking is not None:
                over = VADUserStoppedSpeakingFrame(stop_secs=0.0)
                await self._handle_vad_user_stopped_speaking(over)
            self._pre_roll.clear()
        await super().process_frame(frame, direction)

    async def process_audio_frame(
        self, frame: InputAudioRawFrame, direction: FrameDirection
    ) -> None:
        """Keep the last moments of silence; hand speech on."""
        self._passed_secs += frame.num_frames / frame.sample_rate
        if self._collecting:
            await super().process_audio_frame(frame, direction)
        elif not self._muted:
            self._pre_roll += frame.audio
            excess = len(self._pre_roll) - 2 * self.sample_rate * self._options.pre_roll_ms // 1000
            if excess > 0:
                del self._pre_roll[: excess + excess % 2]

    @property
    def _collecting(self) -> bool:
        """Whether the audio that comes now is to be sent."""
        return self._segments.speaking is not None

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Take in speech; the words come from the tasks."""
        self._ring.push(audio)
        if self._ring.unsent_secs() >= self._chunk_secs:
            self._work.set()
        yield None

    async def _handle_vad_user_started_speaking(self, frame: VADUserStartedSpeakingFrame) -> None:
        await super()._handle_vad_user_started_speaking(frame)
        if self._segments.speaking is not None:
            return
        segment = self._segments.begin(self._ring.end_secs)
        pre_roll = bytes(self._pre_roll)
        self._pre_roll.clear()
        self._record_stt_audio_usage(pre_roll)
        self._ring.push(pre_roll)
        segment.lag_secs = self._passed_secs - self._ring.end_secs
        self._speech.set()
        self._work.set()

    async def _handle_vad_user_stopped_speaking(self, frame: VADUserStoppedSpeakingFrame) -> None:
        await super()._handle_vad_user_stopped_speaking(frame)
        segment = self._segments.speaking
        if segment is not None:
            segment.end_secs = self._ring.end_secs
            self._owed.owe()
            self._stopped.put_nowait((segment, time.monotonic()))
            self._work.set()

    async def _update_settings(  # type: ignore[override]
        self, delta: STTSettings
    ) -> dict[str, Any]:
        """Change model or language while the session runs.

        The connection is replaced, and what it has not finalised is sent on the new one.
        """
        changed = await super()._update_settings(delta)
        ours = _LIVE & changed.keys() & type(self._options).model_fields.keys()
        if ours:
            values = {name: getattr(self._settings, name) for name in ours}
            self._options = self._options.model_copy(update=values)
            self._aim()
            if self._refused:
                self._refused = None
                self._tasks.append(supervise(self, self._stream, "stream"))
            self._break(LinkLostError("the settings have changed"))
        self._warn_unhandled_updated_settings(changed.keys() - ours)  # type: ignore[no-untyped-call]
        return changed

    def _aim(self) -> None:
        """Lead connections and requests where the settings say."""
        self._destination = self._options.destination(self.sample_rate)
        rest = Prerecorded(
            self._options.prerecorded(self.sample_rate), self._options.rest_timeout_secs
        )
        understands = self._options.local_understands
        if self._works_without_deepgram and not understands:
            logger.warning(
                f"{self}: the fallback 'local' knows English only and is not used from now on"
            )
        batches = {"rest": rest, "local": self._local if understands else None}
        self._batches = [batch for name in self._options.fallback if (batch := batches[name])]

    @property
    def _works_without_deepgram(self) -> bool:
        return any(batch.path == "local" for batch in self._batches)

    # -- the words

    async def _hear(self, heard: Heard, ends_turn: bool | None = None) -> None:
        """Take in words, and tell of what has changed."""
        settled_secs = self._segments.final_until_secs
        changed = self._segments.hear(heard)
        if self._segments.final_until_secs > settled_secs:
            # Only this shows that the connection is of use: whatever else came, the same audio
            # would be sent again after a drop.
            self._failures = 0
        self._ring.finalise(self._segments.final_until_secs)
        for segment in changed:
            if segment.closed:
                self._answer.set()
            elif segment.hypothesis.text:
                await self._push_progress(segment, heard.end_secs, ends_turn)

    async def _push_progress(
        self, segment: Segment, covered_secs: float, ends_turn: bool | None
    ) -> None:
        hypothesis = segment.hypothesis
        await self.push_frame(
            ProgressiveTranscriptionFrame(
                hypothesis.text,
                self._user_id,
                time_now_iso8601(),
                self._language,
                result=hypothesis,
                confidence=hypothesis.confidence,
                stable_text=segment.stable_text,
                audio_secs=segment.heard_secs - segment.start_secs,
                behind_secs=max(0.0, self._passed_secs - segment.lag_secs - covered_secs),
                ends_turn=ends_turn,
            )
        )

    async def _settle(self) -> None:
        """Give each segment that has ended its final text, in order."""
        while (stopped := await self._stopped.get()) is not None:
            segment, stopped_at = stopped
            try:
                await self._complete(segment, stopped_at)
            except Exception as error:  # whatever fails, the turn must end and the next one work
                segment.close("none", segment.interim)
                self._segments.settle(segment)
                await self.push_error(f"speech was not recognised: {error}", exception=error)
            finally:
                self._settled.set()
                self._owed.give()
            await self._push_final(segment)

    async def _complete(self, segment: Segment, stopped_at: float) -> None:
        """Have the segment closed, by the stream if it can, in any case before long."""
        if not (await self._streamed(segment, stopped_at) or self._segments.close_covered(segment)):
            if self._unanswered_since is not None:
                self._break(LinkLostError("Deepgram did not answer in time"))
            await self._fall_back(segment)
        segment.close("none", segment.interim)
        self._segments.settle(segment)
        self._ring.finalise(self._segments.final_until_secs)

    async def _streamed(self, segment: Segment, stopped_at: float) -> bool:
        """Give the stream its time to close a segment; False if it has not."""
        deadline = stopped_at + self._options.final_timeout_secs
        return await self._answered(segment, deadline, patient=False)

    async def _answered(self, segment: Segment, deadline: float, *, patient: bool) -> bool:
        """Wait for the stream to close a segment; False if it does not, or hardly can."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                while not (segment.closed or self._will_not_close(segment, patient=patient)):
                    self._answer.clear()
                    await self._answer.wait()
        return segment.closed

    async def _fall_back(self, segment: Segment) -> None:
        """Try elsewhere, with the audio that has no final words yet; else wait for the stream."""
        assert segment.end_secs is not None
        pcm = self._ring.since(segment.start_secs, segment.end_secs)
        # With the same key and options, the prerecorded API would refuse as well.
        batches = [one for one in self._batches if not (self._refused and one.path == "rest")]
        try:
            path, said = await transcribe_by_first(batches, pcm, self.sample_rate, asker=str(self))
            segment.close(path, said)
        except NobodyError as error:
            deadline = time.monotonic() + self._options.give_up_secs
            if not await self._answered(segment, deadline, patient=True) and not self._refused:
                await self.push_error(f"no final words from Deepgram's stream; {error}")

    async def _push_final(self, segment: Segment) -> None:
        await self.emit_stt_usage_metrics()  # type: ignore[no-untyped-call]
        said = segment.hypothesis
        frame = TranscriptionFrame(
            said.text,
            self._user_id,
            time_now_iso8601(),
            self._language,
            result=Recognised.of(
                said,
                segment.path,
                setup_secs=self._setup_secs,
                connections=segment.connections,
            ),
            finalized=True,
        )
        frame.interruptible = False  # the user's words must survive their own barge-in
        await self.push_frame(frame)
        await self._handle_transcription(said.text, True, self._language)

    @traced_stt
    async def _handle_transcription(
        self, transcript: str, is_final: bool, language: Language | None = None
    ) -> None:
        """A span of Pipecat's tracing."""

    @property
    def _language(self) -> Language | None:
        return self._options.spoken_language

    async def _end(self) -> None:
        """End all background work; more than once is well."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await self.cancel_task(task)
