"""Has voices speak as Pipecat services, and measures when their audio comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSUpdateSettingsFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.kokoro.tts import KokoroTTSService
from pipecat.services.tts_service import TTSService
from pipecat.transcriptions.language import Language
from pipecat.workers.runner import WorkerRunner

from headstart.bench.stock.voice import KokoroTTS as PipecatsKokoroTTS
from headstart.bench.stolen import stolen_ms
from headstart.bench.voice.session import Row
from headstart.engines.kokoro import SAMPLE_RATE
from headstart.errors import EngineError
from headstart.processors.tts import KokoroSettings, KokoroTTS
from headstart.processors.tts.settings import KokoroLiveSettings

AUDIBLE = 10 ** (-40 / 20)
"""Of full scale: what counts as heard."""
_LONGEST_SECS = 120.0


@dataclass
class Take:
    """The audio of a text and when it came."""

    handed_over: float
    pieces: list[tuple[float, NDArray[np.float32]]] = field(default_factory=list)
    stolen_ms: float = 0.0

    def row(self, engine: str, voice: str, text: str) -> Row:
        """What it says about the engine."""
        row = Row(engine=engine, voice=voice, text=text, words=len(text.split()))
        row.stolen_ms = self.stolen_ms
        samples = sum(len(audio) for _, audio in self.pieces)
        if not samples:
            return row
        row.audio_s = samples / SAMPLE_RATE
        row.first_chunk_ms = 1000 * (self.pieces[0][0] - self.handed_over)
        row.rtf = (self.pieces[-1][0] - self.handed_over) / row.audio_s
        row.underruns, row.gap_ms, until = 0, 0.0, self.pieces[0][0]
        for came, audio in self.pieces:
            if came > until:
                row.underruns += 1
                row.gap_ms += 1000 * (came - until)
            begins = max(came, until)
            heard = np.flatnonzero(np.abs(audio) > AUDIBLE)
            if len(heard) and row.first_audible_ms is None:
                row.first_audible_ms = 1000 * (begins + heard[0] / SAMPLE_RATE - self.handed_over)
            until = begins + len(audio) / SAMPLE_RATE
        return row


class Line:
    """A pipeline that is nothing but a voice."""

    def __init__(self, engine: str, worker: PipelineWorker, end: _End) -> None:
        self.engine = engine
        self._worker = worker
        self._end = end
        self._voice = ""

    async def speak(self, text: str, voice: str, limit_secs: float = _LONGEST_SECS) -> Take:
        """Say `text`; done when the service says that it is.

        Raises:
            EngineError: The service reported an error, or never ended.
        """
        if voice != self._voice:
            self._voice = voice
            delta = (
                KokoroTTSService.Settings(
                    voice=voice, language=Language.EN_GB if voice[0] == "b" else Language.EN_US
                )
                if self.engine == "pipecat"
                else KokoroLiveSettings(voice=voice)
            )
            await self._worker.queue_frame(TTSUpdateSettingsFrame(delta=delta))
        # Threads of onnxruntime that still spin would slow down whoever comes next.
        await asyncio.sleep(0.2)
        self._end.done.clear()
        stolen_before = stolen_ms()
        self._end.take = take = Take(time.monotonic())
        await self._worker.queue_frame(TTSSpeakFrame(text))
        try:
            async with asyncio.timeout(limit_secs):
                await self._end.done.wait()
        except TimeoutError:
            raise EngineError(f"{self.engine} did not end to say {text[:40]!r}") from None
        if self._end.error:
            raise EngineError(f"{self.engine}: {self._end.error}")
        take.stolen_ms = stolen_ms() - stolen_before
        return take


class _End(FrameProcessor):
    """Keeps the audio that reaches the end of the pipeline."""

    def __init__(self) -> None:
        super().__init__()
        self.take = Take(0.0)
        self.done = asyncio.Event()
        self.error = ""

    def fail(self, error: str) -> None:
        self.error = error
        self.done.set()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            samples = np.frombuffer(frame.audio, "<i2").astype(np.float32) / np.float32(32768)
            self.take.pieces.append((time.monotonic(), samples))
        elif isinstance(frame, TTSStoppedFrame):
            self.done.set()
        elif isinstance(frame, ErrorFrame):
            self.fail(frame.error)
        await self.push_frame(frame, direction)


@asynccontextmanager
async def line(engine: str) -> AsyncIterator[Line]:
    """A voice in a pipeline, ready to speak: `torch`, `onnx`, `kmodel` or `pipecat`."""
    stage: TTSService
    if engine == "pipecat":
        stage = PipecatsKokoroTTS()
    else:
        stage = KokoroTTS(KokoroSettings.model_validate({"engine": engine}))
    end, started = _End(), asyncio.Event()
    worker = PipelineWorker(
        Pipeline([stage, end]),
        params=PipelineParams(audio_out_sample_rate=SAMPLE_RATE),
        idle_timeout_secs=None,
        enable_rtvi=False,
        enable_turn_tracking=False,
        setup_timeout_secs=_LONGEST_SECS,
    )

    async def on_started(worker: PipelineWorker, frame: Frame) -> None:
        started.set()

    async def on_error(worker: PipelineWorker, frame: ErrorFrame) -> None:
        end.fail(frame.error)

    worker.add_event_handler("on_pipeline_started", on_started)
    worker.add_event_handler("on_pipeline_error", on_error)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    starting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait([running, starting], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
            raise EngineError(f"{engine}: the pipeline did not start")
        yield Line(engine, worker, end)
    finally:
        starting.cancel()
        await worker.queue_frame(EndFrame())
        await running
