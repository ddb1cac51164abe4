"""Speech-to-text on this machine: decodes the growing segment again and again."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    StartFrame,
    TranscriptionFrame,
    UserAudioRawFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import STTService
from pipecat.transcriptions.language import Language
from pipecat.utils.time import time_now_iso8601
from pydantic import Field

from headstart.engines import hub
from headstart.engines.hypothesis import Hypothesis
from headstart.engines.queue import Priority, Ticket
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.frames import AudioGapFrame, ProgressiveTranscriptionFrame
from headstart.processors.audio import MODEL_RATE, AudioRing, Resampler, as_float
from headstart.processors.settings import StageSettings
from headstart.processors.stt.pending import FinalsOwed
from headstart.processors.stt.recognised import Recognised
from headstart.processors.stt.segment import Decode, Segment
from headstart.processors.supervised import supervise

_TTFS_P99_SECS = 0.8
"""From the end of speech to the final text, measured on two cores without AVX-512."""


class Recogniser(Protocol):
    """Anything that turns a stretch of speech into text."""

    async def transcribe(
        self, audio: NDArray[np.float32], ticket: Ticket | None = None
    ) -> Hypothesis:
        """What is said in up to 28 s of audio at 16 kHz in -1..1; empty if nobody speaks."""
        ...


class LocalSTTSettings(StageSettings):
    """Settings of every recogniser on this machine."""

    language: str = "en"
    """ISO 639-1."""
    chunk_ms: int = Field(default=250, ge=50)
    """New audio, in ms, that makes another decode worth while."""
    pre_roll_ms: int = Field(default=500, ge=0, le=5000)
    """Audio before the VAD's start, in ms, that belongs to the segment."""
    quiet_ms: int = Field(default=80, ge=0)
    """Quiet, in ms, at which the last decode starts, ahead of the VAD's stop."""
    window_secs: float = Field(default=20.0, ge=4, le=24)
    """Longest stretch in one decode, in seconds; what is longer is split in a pause."""


class LocalSTT(STTService):
    """Progressive recognition with a recogniser that knows no streams.

    Subclasses say where the recogniser comes from. One task decodes, one stretch at a time,
    segments in the order of their speech; so a final never overtakes another, and a decode
    that would start while another runs waits and then takes all the audio there is.
    """

    _recogniser: Recogniser

    def __init__(self, settings: LocalSTTSettings, *, model: str, **kwargs: Any) -> None:
        """Make the stage; its engine is fetched when the pipeline sets up."""
        super().__init__(
            settings=STTSettings(model=model, language=settings.language),
            ttfs_p99_latency=kwargs.pop("ttfs_p99_latency", _TTFS_P99_SECS),
            **kwargs,
        )
        self._options = settings
        self._pre_roll = AudioRing(settings.pre_roll_ms / 1000)
        self._speech_end = 0
        self._open: Segment | None = None
        self._segments: deque[Segment] = deque()
        self._ticket = Ticket()
        self._changed = asyncio.Event()
        self._ending = False
        self._decoder: asyncio.Task[None] | None = None
        self._owed = FinalsOwed(self)
        self._telling: asyncio.Task[None] | None = None

    @abstractmethod
    async def fetch(self) -> Recogniser:
        """The engine that recognises.

        Raises:
            AssetError: Its weights are missing.
            EngineError: It did not load.
        """

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Fetch the engine.

        Raises:
            AssetError: Its weights are missing.
            EngineError: It did not load.
        """
        await super().setup(setup)
        self._resample = Resampler(self.sample_rate)
        self._recogniser = await self.fetch()

    async def start(self, frame: StartFrame) -> None:
        """Start to decode."""
        await super().start(frame)
        self._decoder = supervise(self, self._decode_segments, "decoder")
        self._telling = supervise(self, self._owed.tell, "tell-pending")

    async def stop(self, frame: EndFrame) -> None:
        """Recognise what was said to its end, drop what is being said, and stop."""
        if self._open:
            self._segments.remove(self._open)
            self._open = None
        if self._decoder:
            self._ending = True
            self._changed.set()
            await asyncio.wait([self._decoder])
        await self._cancel_tasks()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        """Stop at once."""
        await self._cancel_tasks()
        await super().cancel(frame)

    async def cleanup(self) -> None:
        """Stop at once, if nothing else did."""
        await self._cancel_tasks()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def _update_settings(  # type: ignore[override]
        self, delta: STTSettings
    ) -> dict[str, Any]:
        """The model is shared by all sessions and stays what it is; say so."""
        changed = await super()._update_settings(delta)
        self._warn_unhandled_updated_settings(changed)  # type: ignore[no-untyped-call]
        return changed

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Open a segment when the VAD starts, close it when the VAD stops."""
        await super().process_frame(frame, direction)
        if isinstance(frame, AudioGapFrame):
            self._end_audio()
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self._open_segment()
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            self._close_segment(frame.stop_secs)

    async def process_audio_frame(
        self, frame: InputAudioRawFrame, direction: FrameDirection
    ) -> None:
        """Take in audio; what is outside of segments goes through the pre-roll."""
        if self._muted:
            return
        self._user_id = frame.user_id if isinstance(frame, UserAudioRawFrame) else ""
        self._hear(self._resample(frame.audio))

    def _hear(self, samples: NDArray[np.int16]) -> None:
        self._pre_roll.hear(samples)
        if self._open:
            self._open.hear(samples)
            self._changed.set()

    def _end_audio(self) -> None:
        """No more audio comes: what is being said ends with the last sample, and is over."""
        self._hear(self._resample.flush())
        self._close_segment(stop_secs=0.0)
        self._speech_end = self._pre_roll.heard

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Recognise a finished piece of speech outside of all segments.

        Args:
            audio: 16-bit mono PCM at the session's input rate.
        """
        samples = as_float(Resampler(self.sample_rate)(audio, last=True))
        yield self._final_frame(await self._recogniser.transcribe(samples))

    def _open_segment(self) -> None:
        if self._open is None:
            self._open = Segment(
                self._pre_roll.since(self._speech_end),
                chunk_ms=self._options.chunk_ms,
                quiet_ms=self._options.quiet_ms,
                window_secs=self._options.window_secs,
            )
            self._segments.append(self._open)

    def _close_segment(self, stop_secs: float) -> None:
        if self._open:
            self._open.close(stop_secs)
            self._speech_end = self._pre_roll.heard - int(stop_secs * MODEL_RATE)
            self._open = None
            self._owed.owe()
            self._ticket.commit()
            self._changed.set()

    async def _decode_segments(self) -> None:
        self._changed.set()  # begun anew after a failure, it finds work
        while not (self._ending and not self._segments):
            await self._changed.wait()
            self._changed.clear()
            while self._segments:
                segment = self._segments[0]
                if (final := segment.final()) is not None:
                    await self._finish(segment, final)
                elif (decode := segment.wants()) is not None:
                    await self._recognise(segment, decode)
                else:
                    break

    async def _recognise(self, segment: Segment, decode: Decode) -> None:
        self._ticket = Ticket(Priority.SPECULATIVE if segment is self._open else Priority.COMMITTED)
        try:
            hypothesis = await self._recogniser.transcribe(
                as_float(segment.audio(decode)), self._ticket
            )
        except Exception as error:  # whatever fails, the segment must end and the next one work
            segment.failed(decode)
            await self.push_error(f"speech was not recognised: {error}", exception=error)
            return
        before = segment.hypothesis.text
        segment.understood(decode, hypothesis)
        text = segment.hypothesis.text
        if segment is self._open and not decode.commits and (text or before):
            await self.push_frame(
                ProgressiveTranscriptionFrame(
                    text=text,
                    user_id=self._user_id,
                    timestamp=time_now_iso8601(),
                    language=_language(self._options.language),
                    result=segment.hypothesis,
                    confidence=segment.hypothesis.confidence,
                    stable_text=segment.stable_text,
                    audio_secs=segment.covered_secs,
                    behind_secs=segment.heard_secs - segment.covered_secs,
                )
            )

    async def _finish(self, segment: Segment, final: Hypothesis) -> None:
        self._segments.remove(segment)
        self._owed.give()
        self._stt_usage_pending_seconds += segment.heard_secs
        await self.emit_stt_usage_metrics()  # type: ignore[no-untyped-call]
        await self.push_frame(self._final_frame(final))

    def _final_frame(self, final: Hypothesis) -> TranscriptionFrame:
        frame = TranscriptionFrame(
            text=final.text,
            user_id=self._user_id,
            timestamp=time_now_iso8601(),
            language=_language(self._options.language),
            result=Recognised.of(final, "local"),
            finalized=True,
        )
        frame.interruptible = False  # the user's words must survive their own barge-in
        return frame

    async def _cancel_tasks(self) -> None:
        tasks = [task for task in (self._decoder, self._telling) if task is not None]
        self._decoder = self._telling = None
        for task in tasks:
            await self.cancel_task(task)


class WhisperSettings(LocalSTTSettings):
    """Settings of `stt.whisper`."""

    asset: str = "whisper-tiny"
    """Folder of CTranslate2 weights, by its name among the assets."""
    threads: int = Field(default=1, ge=1)
    """Cores that a decode uses."""
    padding_secs: float = Field(default=4.0, ge=0)
    """Silence after the audio, in seconds. Less is faster; below 3 the text may repeat itself."""


class WhisperSTT(LocalSTT):
    """Whisper, embedded and shared by all sessions."""

    def __init__(self, settings: WhisperSettings | None = None, **kwargs: Any) -> None:
        """Make the stage; its engine is fetched when the pipeline sets up."""
        settings = settings or WhisperSettings()
        super().__init__(settings, model=settings.asset, **kwargs)
        self._engine_options = WhisperOptions(
            asset=settings.asset,
            language=settings.language,
            threads=settings.threads,
            padding_secs=settings.padding_secs,
        )

    @classmethod
    def required_assets(cls, settings: WhisperSettings) -> tuple[str, ...]:
        """The weights that the stage needs."""
        return (settings.asset,)

    async def fetch(self) -> Recogniser:
        """Whisper as the settings want it."""
        return await hub.shared.get(WhisperEngine, self._engine_options)


def _language(tag: str) -> Language | None:
    try:
        return Language(tag)
    except ValueError:
        return None
