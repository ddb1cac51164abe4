"""Kokoro as a Pipecat TTS service that begins with the first clause and can stop at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from loguru import logger
from numpy.typing import NDArray
from pipecat.frames.frames import (
    AggregatedTextFrame,
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    LLMFullResponseStartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup

from headstart.engines import hub
from headstart.engines.kokoro import SAMPLE_RATE, KokoroEngine, KokoroOptions
from headstart.engines.kokoro.engine import MODEL, VOICES
from headstart.errors import HeadstartError
from headstart.processors.speculation.attempts import AttemptStatus
from headstart.processors.speculation.following import FollowingTTS
from headstart.processors.tts.aggregator import ClauseAggregator
from headstart.processors.tts.context import SpeechContext
from headstart.processors.tts.settings import KokoroLiveSettings, KokoroSettings, language_of
from headstart.processors.tts.spoken import as_spoken
from headstart.text.clauses import MOST_CHARACTERS

_AHEAD_SECS = 1.5
"""Speech made of an unconfirmed answer; its first clause is made whole, however long."""

_IN_HAND_SECS = 1.5
"""Speech in hand with which the rest may wait for the first words of somebody else. With two who
speak at once, these came 0.1 s sooner than if all was said to one before (median of 8), and the one
who had begun had 0.9 s of gaps instead of 2.5; with 0.5 s in hand, 0.4 s sooner and 5.5 s."""


@dataclass(frozen=True)
class _Request:
    """Something to be spoken in an audio context; no text ends the context."""

    context_id: str
    text: str | None


class KokoroTTS(FollowingTTS):
    """Speaks the reply clause by clause while it is still being written.

    Synthesis runs beside the frames: `run_tts` only queues the text, and one task of the
    service speaks what is queued, so that nothing waits behind a long sentence. An
    interruption drops what is queued and stops the model inside the clause.
    """

    _settings: KokoroLiveSettings

    def __init__(self, settings: KokoroSettings | None = None, **kwargs: Any) -> None:
        """Configure the stage; the engine is fetched when the pipeline is set up.

        Args:
            settings: Voice, speed and engine.
            **kwargs: For Pipecat's `TTSService`, e.g. `name` or `sample_rate`.
        """
        self._options = settings or KokoroSettings()
        kwargs.setdefault("text_transforms", [("*", as_spoken)])
        # Text that cannot be spoken is reported each time, but is no reason to fall silent.
        kwargs.setdefault("max_consecutive_zero_audio_contexts", 0)
        # On a machine that is busy with other things, the event loop itself may stand still for
        # seconds; an answer must not be given up for that.
        kwargs.setdefault("stop_frame_timeout_s", 30.0)
        super().__init__(
            push_text_frames=False,
            push_start_frame=True,
            settings=KokoroLiveSettings(
                model="kokoro-82m",
                voice=self._options.voice,
                language=language_of(self._options.voice),
                speed=self._options.speed,
            ),
            **kwargs,
        )
        aggregator: Any = ClauseAggregator(language=self.text_aggregation_language)
        self._text_aggregator = aggregator
        self._engine: KokoroEngine | None = None
        self._requests: deque[_Request] = deque()
        self._requested = asyncio.Event()
        self._speaker: asyncio.Task[None] | None = None
        self._clause: tuple[str, asyncio.Task[None]] | None = None
        self._contexts: dict[str, SpeechContext] = {}
        self._ahead_secs = 0.0
        """Speech made of the current answer, as long as it was not confirmed."""

    @classmethod
    def required_assets(cls, settings: KokoroSettings) -> tuple[str, ...]:
        """Names of the weights that the stage needs."""
        return (MODEL, VOICES)

    def can_generate_metrics(self) -> bool:
        """It measures the time to the first audio, and the characters spoken."""
        return True

    @property
    def supports_processing_metrics(self) -> bool:
        """No: the synthesis does not happen inside `run_tts`."""
        return False

    @property
    def model_is_busy(self) -> bool:
        """Whether the model speaks for somebody who waits."""
        return self._engine is not None and self._engine.workload.is_committed

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Fetch the engine.

        Raises:
            AssetError: The weights are not there.
            EngineError: The model did not load, or the voice's language needs a package that is
                not installed.
            UsageError: There is no such voice.
        """
        await super().setup(setup)
        self._engine = await hub.shared.get(
            KokoroEngine, KokoroOptions(engine=self._options.engine, threads=self._options.threads)
        )
        await self._engine.prepare(self._options.voice, self._options.speed)
        self._speaker = self.create_task(self._speak(), "speaker")

    async def stop(self, frame: EndFrame) -> None:
        """Speak what is queued, then end."""
        for context_id in self.get_audio_contexts():
            self._request(_Request(context_id, None))
        await super().stop(frame)
        await self._end_speaker()

    async def cancel(self, frame: CancelFrame) -> None:
        """Fall silent at once."""
        await self._end_speaker()
        await super().cancel(frame)

    async def cleanup(self) -> None:
        """End the task that speaks."""
        await self._end_speaker()
        await super().cleanup()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Speak; of an answer that is not confirmed yet only the beginning."""
        if isinstance(frame, LLMFullResponseStartFrame):
            self._ahead_secs = 0.0
        await super().process_frame(frame, direction)

    def _confirmed(self) -> None:
        """What was made is heard from now on, and the rest is urgent."""
        for context in self._contexts.values():
            context.begin_playback(self.get_clock().get_time())
            self._say_when_due(context)

    def _say_when_due(self, context: SpeechContext) -> None:
        """Let others go first as long as what has been made is still to be heard."""
        if self._follower.status is AttemptStatus.CONFIRMED:
            left_secs = context.left_secs(self.get_clock().get_time())
            self._follower.ticket.due = time.monotonic() + left_secs - _IN_HAND_SECS

    async def _handle_aggregated_text(
        self, src_frame: AggregatedTextFrame, context_id: str | None = None
    ) -> None:
        """Speak a text; one that is much longer than a clause (of a `TTSSpeakFrame`) in parts.

        Pipecat and the text transforms take time that grows with the square of a text's length.
        """
        if len(src_frame.text) <= MOST_CHARACTERS:
            await super()._handle_aggregated_text(src_frame, context_id)
            return
        context_id = context_id or self.create_context_id()
        async for part in ClauseAggregator().whole(src_frame.text):
            frame = self._aggregated_text_frame(part)
            frame.interruptible = src_frame.interruptible
            await super()._handle_aggregated_text(frame, context_id)

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None]:
        """Queue `text`; its audio and words come into the context as they are made.

        What comes in one piece (a `TTSSpeakFrame`) is cut as an answer is that is being written;
        clauses of an answer stay what they are.
        """
        await self.start_tts_usage_metrics(text)
        splitter = self._contexts.setdefault(context_id, SpeechContext()).splitter
        for clause in splitter.cut(text):
            self._request(_Request(context_id, clause))
        yield None

    async def flush_audio(self, context_id: str | None = None) -> None:
        """No more text for the context: it ends when what is queued has been spoken."""
        context_id = context_id or self.get_active_audio_context_id()
        if context_id:
            self._request(_Request(context_id, None))

    async def on_audio_context_interrupted(self, context_id: str) -> None:
        """Drop what is queued for the context and stop the clause that is being made."""
        self._requests = deque(
            request for request in self._requests if request.context_id != context_id
        )
        self._contexts.pop(context_id, None)
        if self._clause and self._clause[0] == context_id:
            await self.cancel_task(self._clause[1])

    @property
    def _speed(self) -> float:
        speed = self._settings.speed
        return speed if isinstance(speed, (int, float)) else 1.0

    def _request(self, request: _Request) -> None:
        self._requests.append(request)
        self._requested.set()

    async def _end_speaker(self) -> None:
        speaker, self._speaker = self._speaker, None
        if speaker:
            self._requests.clear()
            await self.cancel_task(speaker)

    async def _speak(self) -> None:
        """Speak one request after the other, as long as the pipeline runs."""
        while True:
            while not self._requests:
                self._requested.clear()
                await self._requested.wait()
            request = self._requests.popleft()
            if request.text is None:
                await self._end_context(request.context_id)
                continue
            context_id = request.context_id
            awake = self.create_task(self._keep_waiting(context_id), "keep-waiting")
            try:
                if self._ahead_secs >= _AHEAD_SECS:
                    await self._follower.verdict()
                if self.audio_context_available(context_id):  # not withdrawn meanwhile
                    await self._speak_apart(request.text, context_id)
            finally:
                await self.cancel_task(awake)

    async def _speak_apart(self, text: str, context_id: str) -> None:
        """Speak a clause in a task of its own, so that an interruption can end it alone."""
        clause = self.create_task(self._speak_clause(text, context_id), "clause")
        self._clause = (context_id, clause)
        try:
            await asyncio.wait([clause])
        finally:
            self._clause = None
            await self.cancel_task(clause)

    async def _speak_clause(self, text: str, context_id: str) -> None:
        assert self._engine is not None
        context = self._contexts.setdefault(context_id, SpeechContext())
        try:
            pieces = self._engine.speak_words(
                text,
                voice=str(self._settings.voice),
                speed=self._speed,
                ticket=self._follower.ticket,
                cut=False,
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    start_secs = context.start(self.get_clock().get_time())
                    await self._push_audio(piece.samples, context_id)
                    context.played(len(piece.samples))
                    self._say_when_due(context)
                    self._ahead_secs += len(piece.samples) / SAMPLE_RATE
                    await self.add_word_timestamps(
                        [(word.text, start_secs + word.start_secs) for word in piece.words],
                        context_id,
                    )
        except Exception as error:  # whatever it is, the conversation goes on without this clause
            if self._follower.is_pending:
                logger.debug(f"{self}: attempt {self._follower.attempt} is given up: {error}")
                await self._give_up()
            else:
                await self.append_to_audio_context(context_id, ErrorFrame(f"Kokoro: {error}"))

    async def _push_audio(self, samples: NDArray[np.float32], context_id: str) -> None:
        audio = (np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        resampler = self._contexts[context_id].resampler
        audio = await resampler.resample(audio, SAMPLE_RATE, self.sample_rate)
        await self._append_audio(audio, context_id)

    async def _append_audio(self, audio: bytes, context_id: str) -> None:
        if audio:
            await self.append_to_audio_context(
                context_id, TTSAudioRawFrame(audio, self.sample_rate, 1, context_id=context_id)
            )

    async def _keep_waiting(self, context_id: str) -> None:
        """Let the context stay open while its next audio is being made, however slowly.

        Pipecat would end a context that gets nothing for `stop_frame_timeout_s`, and report
        that it completed without audio.
        """
        while True:
            await asyncio.sleep(self._stop_frame_timeout_s / 3)
            self._refresh_audio_context(context_id)

    async def _end_context(self, context_id: str) -> None:
        context = self._contexts.pop(context_id, None)
        if self.audio_context_available(context_id):
            if context is not None:
                await self._append_audio(await context.resampler.flush(), context_id)
            await self.append_to_audio_context(context_id, TTSStoppedFrame(context_id=context_id))
            await self.remove_audio_context(context_id)

    async def _update_settings(self, delta: Any) -> dict[str, Any]:
        """Change voice or speed from the next clause on; what cannot be is refused."""
        wanted: dict[str, Any] = {"voice": self._settings.voice, "speed": self._settings.speed}
        wanted |= {name: value for name, value in delta.given_fields().items() if name in wanted}
        try:
            if self._engine:
                await self._engine.prepare(**wanted)
        except HeadstartError as error:
            await self.push_error(str(error))
            return {}
        logger.debug(f"{self}: speaks with {wanted['voice']} from now on")
        return await super()._update_settings(delta)
