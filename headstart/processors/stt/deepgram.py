"""Speech-to-text by Deepgram: streamed while the user speaks, and never a word lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from deepgram.listen.v1.types import ListenV1Error, ListenV1Results
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
from pipecat.services.stt_latency import DEEPGRAM_TTFS_P99
from pipecat.services.stt_service import STTService
from pipecat.transcriptions.language import Language
from pipecat.utils.time import time_now_iso8601
from pipecat.utils.tracing.service_decorators import traced_stt

from headstart.errors import HeadstartError
from headstart.frames import ProgressiveTranscriptionFrame
from headstart.processors.stt.deepgram_batch import Local, Prerecorded
from headstart.processors.stt.deepgram_link import (
    KEEP_ALIVE_SECS,
    Link,
    LinkLostError,
    RefusedError,
    pool,
)
from headstart.processors.stt.deepgram_segments import (
    Heard,
    Segment,
    Segments,
    TimedWord,
)
from headstart.processors.stt.deepgram_settings import DeepgramSettings, LinkSettings
from headstart.processors.stt.recognised import Recognised
from headstart.processors.stt.replay import ReplayRing

_LIVE = {"model", "language"}
"""The settings that a frame can change while the session runs."""

_HOPELESS = 3
"""After so many failed attempts in a row, a segment does not wait for the next one's turn."""


class DeepgramSTT(STTService):
    """Streams each segment to Deepgram and gives exactly one final transcript for it.

    Only speech is sent: from the pre-roll before a VAD start to the VAD stop, then `Finalize`.
    Deepgram bills the audio it is sent, and a voice agent's line is silent most of the time.

    All I/O is in two tasks. `_stream` has a connection open from the session's start, sends
    what the ring holds, and after a drop opens another and sends the ring again. `_settle`
    sees to it that the final text of every segment comes, in order, from elsewhere if need be.
    """

    def __init__(self, settings: DeepgramSettings | None = None, **kwargs: Any) -> None:
        """Create the stage.

        Args:
            settings: As in YAML; the defaults if None.
            **kwargs: For Pipecat's `STTService`.

        Raises:
            UsageError: There is no API key.
        """
        self._options: LinkSettings = settings or DeepgramSettings()
        self._options.destination(16000)
        super().__init__(
            ttfs_p99_latency=DEEPGRAM_TTFS_P99,
            settings=STTSettings(model=self._options.model, language=self._language),
            **kwargs,
        )
        self._chunk_secs = self._options.chunk_ms / 1000
        self._segments = Segments()
        self._pre_roll = bytearray()
        self._work = asyncio.Event()  # there is something to send, or the connection broke
        self._speech = asyncio.Event()  # the user speaks: do not put off connecting
        self._answer = asyncio.Event()  # a segment was closed by the stream
        self._stopped: asyncio.Queue[tuple[Segment, float]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._carried: set[Segment] = set()  # those with audio sent on this connection
        self._asked: set[Segment] = set()  # those that Finalize was sent for on this connection
        self._setup_secs: float | None = None
        self._failures = 0  # attempts in a row that brought no word from Deepgram
        self._seems_hopeless = False
        self._broken: LinkLostError | None = None
        self._refused: RefusedError | None = None
        self._unanswered_since: float | None = None

    @classmethod
    def required_assets(cls, settings: DeepgramSettings) -> tuple[str, ...]:
        """The weights that the stage needs: those of the local fallback, if it is named."""
        return ("whisper-tiny",) if "local" in settings.fallback else ()

    def can_generate_metrics(self) -> bool:
        """Usage, and the time from the end of speech to the final text, are reported."""
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Begin to connect; audio that comes before the connection is there waits for it."""
        await super().setup(setup)
        self._ring = ReplayRing(self.sample_rate, self._options.replay_secs)
        self._local = await Local.load() if "local" in self._options.fallback else None
        self._aim()
        self._tasks = [
            self.create_task(self._stream(), "stream"),
            self.create_task(self._settle(), "settle"),
        ]

    async def stop(self, frame: EndFrame) -> None:
        """Let the last words through, then close."""
        await self._stopped.join()
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

    async def process_audio_frame(
        self, frame: InputAudioRawFrame, direction: FrameDirection
    ) -> None:
        """Keep the last moments of silence; hand speech on."""
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
        self._segments.begin(self._ring.end_secs)
        pre_roll = bytes(self._pre_roll)
        self._pre_roll.clear()
        self._record_stt_audio_usage(pre_roll)
        self._ring.push(pre_roll)
        self._speech.set()
        self._work.set()

    async def _handle_vad_user_stopped_speaking(self, frame: VADUserStoppedSpeakingFrame) -> None:
        await super()._handle_vad_user_stopped_speaking(frame)
        segment = self._segments.speaking
        if segment is not None:
            segment.end_secs = self._ring.end_secs
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
                self._tasks.append(self.create_task(self._stream(), "stream"))
            self._break(LinkLostError("the settings have changed"))
        self._warn_unhandled_updated_settings(changed.keys() - ours)  # type: ignore[no-untyped-call]
        return changed

    # -- the connection

    def _aim(self) -> None:
        """Lead connections and requests where the settings say."""
        self._destination = self._options.destination(self.sample_rate)
        rest = Prerecorded(
            self._options.prerecorded(self.sample_rate), self._options.rest_timeout_secs
        )
        batches = {"rest": rest, "local": self._local}
        self._batches = [batch for name in self._options.fallback if (batch := batches[name])]

    async def _stream(self) -> None:
        """Have a connection, and send on it, until the session ends or Deepgram refuses."""
        while True:
            self._speech.clear()
            try:
                destination = self._destination
                link = await pool.take(destination, self._options.connect_timeout_secs)
                if destination == self._destination:
                    await self._use(link)
                else:  # the settings have changed meanwhile
                    pool.give(link)
            except RefusedError as error:
                self._refused = error
                self._answer.set()
                await self.push_error(
                    str(error), force_treat_as_permanent="local" not in self._options.fallback
                )
                return
            except LinkLostError as error:
                logger.log("DEBUG" if self._failures else "WARNING", f"{self}: {error}")
                await self._pause()
                self._failures += 1

    async def _use(self, link: Link) -> None:
        """Send what there is to send, until the link is lost."""
        self._setup_secs = link.setup_secs
        self._broken = self._unanswered_since = None
        self._asked.clear()
        self._carried.clear()
        self._ring.connect(link.sent_secs)
        self._work.set()
        listening = self.create_task(self._listen(link), "listen")
        try:
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
        except asyncio.CancelledError:
            await self.cancel_task(listening)
            if self._segments.open or self._broken or self._unanswered_since is not None:
                await link.close()
            else:
                pool.give(link)
            raise
        except LinkLostError:
            await self.cancel_task(listening)
            link.abort()
            await link.close()
            raise

    async def _send(self, link: Link) -> None:
        """Send all whole chunks of the segment that grows, and all of those that have ended."""
        for segment in self._segments.open:
            if segment in self._asked:
                continue
            least_secs = self._chunk_secs if segment.end_secs is None else 0.0
            while (left_secs := self._ring.unsent_secs(segment.end_secs)) and (
                left_secs >= least_secs
            ):
                if segment not in self._carried:
                    self._carried.add(segment)
                    segment.connections += 1
                await self._send_chunk(link, min(left_secs, self._chunk_secs))
            if segment.end_secs is not None:
                self._asked.add(segment)
                self._unanswered_since = self._unanswered_since or time.monotonic()
                await link.finalize()

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
                self._failures = 0
                await self._take_in(message)
        except LinkLostError as error:
            self._break(error)
        except Exception as error:
            self._break(LinkLostError(f"Deepgram was not understood: {error!r}"))

    async def _take_in(self, message: object) -> None:
        if isinstance(message, ListenV1Results):
            await self._hear(message)
        elif isinstance(message, ListenV1Error):
            logger.warning(f"{self}: Deepgram: {message.description}")

    def _break(self, error: LinkLostError) -> None:
        """Have the connection replaced."""
        self._broken = error
        self._work.set()

    async def _pause(self) -> None:
        """Wait before the next attempt, unless the last one had worked; speech ends the wait."""
        if not self._failures:
            return
        secs = self._options.retry_min_secs * 2 ** (self._failures - 1)
        secs = min(secs, self._options.retry_max_secs) * random.uniform(0.75, 1.0)
        self._seems_hopeless = self._failures >= _HOPELESS
        self._answer.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(secs):
                await self._speech.wait()
        self._seems_hopeless = False

    # -- the words

    async def _hear(self, message: ListenV1Results) -> None:
        if not message.channel.alternatives:
            return
        changed = self._segments.hear(self._heard(message))
        self._ring.finalise(self._segments.final_until_secs)
        for segment in changed:
            if segment.closed:
                self._answer.set()
            elif segment.hypothesis.text:
                await self._push_progress(segment)

    def _heard(self, message: ListenV1Results) -> Heard:
        best = message.channel.alternatives[0]
        at = self._ring.stream_secs
        return Heard(
            best.transcript,
            tuple(
                TimedWord(
                    word.punctuated_word or word.word, word.confidence, at(word.start), at(word.end)
                )
                for word in best.words
            ),
            best.confidence,
            at(message.start),
            at(message.start + message.duration),
            bool(message.is_final),
            bool(message.from_finalize),
        )

    async def _push_progress(self, segment: Segment, ends_turn: bool | None = None) -> None:
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
                ends_turn=ends_turn,
            )
        )

    async def _settle(self) -> None:
        """Give each segment that has ended its final text, in order."""
        while True:
            segment, stopped_at = await self._stopped.get()
            try:
                await self._complete(segment, stopped_at + self._options.final_timeout_secs)
            except Exception as error:  # whatever fails, the turn must end and the next one work
                segment.close("none", segment.interim)
                self._segments.settle(segment)
                await self.push_error(f"speech was not recognised: {error}", exception=error)
            try:
                await self._push_final(segment)
            finally:
                self._stopped.task_done()

    async def _complete(self, segment: Segment, deadline: float) -> None:
        """Have the segment closed, by the stream if it can, in any case before long."""
        if not (
            await self._answered(segment, deadline, patient=False)
            or self._segments.close_covered(segment)
        ):
            if self._unanswered_since is not None:
                self._break(LinkLostError("Deepgram did not answer Finalize in time"))
            await self._fall_back(segment)
        if not segment.closed:
            deadline = time.monotonic() + self._options.give_up_secs
            await self._answered(segment, deadline, patient=True)
        segment.close("none", segment.interim)
        self._segments.settle(segment)
        self._ring.finalise(self._segments.final_until_secs)

    async def _answered(self, segment: Segment, deadline: float, *, patient: bool) -> bool:
        """Wait for the stream to close a segment; False if it does not, or hardly can."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                while not (
                    segment.closed or self._refused or (not patient and self._seems_hopeless)
                ):
                    self._answer.clear()
                    await self._answer.wait()
        return segment.closed

    async def _fall_back(self, segment: Segment) -> None:
        """Try elsewhere, with the audio that has no final words yet."""
        assert segment.end_secs is not None
        pcm = self._ring.since(segment.start_secs, segment.end_secs)
        for batch in self._batches:
            if self._refused and batch.path == "rest":
                continue  # with the same key and options
            try:
                rest = await batch.transcribe(pcm, self.sample_rate)
            except HeadstartError as error:
                logger.warning(f"{self}: fallback {batch.path!r}: {error}")
                continue
            segment.close(batch.path, rest)
            return

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
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await self.cancel_task(task)
