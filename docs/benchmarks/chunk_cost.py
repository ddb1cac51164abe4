"""What a chunk of 250 ms costs the speech-to-text stages themselves, without any recogniser.

    python docs/benchmarks/chunk_cost.py

Each stage hears a minute of speech in segments of 5 s, from a recogniser that answers at once: in
place of Whisper, and in place of the socket to Deepgram. What the same audio costs a stage that
only passes it on is subtracted. CPU time of the process, least of five runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace

import numpy as np
from deepgram.listen.v1.socket_client import AsyncV1SocketClient
from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner
from pydantic import SecretStr

from headstart.engines.hypothesis import Hypothesis, Word
from headstart.processors.stt.deepgram import DeepgramSTT
from headstart.processors.stt.deepgram_settings import DeepgramSettings
from headstart.processors.stt.local import LocalSTT, LocalSTTSettings, Recogniser
from headstart.processors.stt.streaming.link import Link, pool
from headstart.testing import deepgram_messages as messages

RATE = 16000
SECS, SEGMENT_SECS, CHUNK_SECS = 60, 5, 0.25
SAID = [f"word{number}" for number in range(12)]


class Passing(FrameProcessor):
    """Does nothing."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass it on."""
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class Instant:
    """In place of Whisper."""

    async def transcribe(self, audio: object, ticket: object = None) -> Hypothesis:
        """Always the same."""
        return Hypothesis(" ".join(SAID), 0.9, tuple(Word(word, 0.9) for word in SAID))


class InstantSTT(LocalSTT):
    """The local stage without a model."""

    async def fetch(self) -> Recogniser:
        """See `LocalSTT`."""
        return Instant()


class Socket(AsyncV1SocketClient):
    """In place of a socket to Deepgram: an interim result for every other chunk."""

    def __init__(self) -> None:
        self.sent_secs = self.final_secs = 0.0
        self.answers: asyncio.Queue[str] = asyncio.Queue()
        self._websocket = self
        self.transport = SimpleNamespace(abort=lambda: None)
        self.chunks = 0

    async def send_media(self, pcm: bytes) -> None:
        """Answer every other chunk."""
        self.sent_secs += len(pcm) / 2 / RATE
        self.chunks += 1
        if self.chunks % 2:
            self.answer(final=False)

    async def send_finalize(self, message: object = None) -> None:
        """Answer."""
        self.answer(final=True)

    async def send_keep_alive(self, message: object = None) -> None:
        """There is nothing to keep."""

    async def send_close_stream(self, message: object = None) -> None:
        """There is nothing to close."""

    def answer(self, *, final: bool) -> None:
        """Put the same words into the queue, for what has been sent."""
        said = Hypothesis(" ".join(SAID), 0.9, tuple(Word(word, 0.9) for word in SAID))
        listed = messages.words(said, self.final_secs, self.sent_secs, punctuate=True)
        result = messages.results(
            "none",
            messages.alternative(said, listed),
            start_secs=self.final_secs,
            end_secs=self.sent_secs,
            is_final=final,
            speech_final=False,
            from_finalize=final,
        )
        self.answers.put_nowait(json.dumps(result))
        if final:
            self.final_secs = self.sent_secs

    async def wait_closed(self) -> None:
        """It closes at once."""

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            yield await self.answers.get()


async def cost_secs(stage: FrameProcessor) -> float:
    """CPU seconds that a minute of speech takes with a stage."""
    worker = PipelineWorker(
        Pipeline([Passing(), stage, Passing()]), enable_rtvi=False, cancel_on_idle_timeout=False
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    noise = np.random.default_rng(0).normal(0, 2000, RATE * SECS).astype(np.int16).tobytes()
    size = 2 * RATE // 50
    frames = [
        InputAudioRawFrame(noise[at : at + size], RATE, 1) for at in range(0, len(noise), size)
    ]
    begun = time.process_time()
    for number, frame in enumerate(frames):
        if number % (50 * SEGMENT_SECS) == 0:
            await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
        await worker.queue_frame(frame)
        if number % (50 * SEGMENT_SECS) == 50 * SEGMENT_SECS - 1:
            await worker.queue_frame(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await asyncio.sleep(0.001)  # so that each chunk is handled by itself
    await worker.queue_frame(EndFrame())
    await running
    return time.process_time() - begun


async def deepgram() -> FrameProcessor:
    """The Deepgram stage, with a connection that answers at once waiting for it."""
    settings = DeepgramSettings(api_key=SecretStr("none"), base_url="ws://127.0.0.1:1")
    pool.give(Link(settings.destination(RATE), 0.0, Socket(), AsyncExitStack()))
    return DeepgramSTT(settings)


async def main() -> None:
    """Measure and tell."""
    logger.remove()
    chunks = SECS / CHUNK_SECS
    for name in ("whisper", "deepgram"):
        owed = []
        for _ in range(5):
            idle = await cost_secs(Passing())
            stage = (
                await deepgram()
                if name == "deepgram"
                else InstantSTT(LocalSTTSettings(), model="none")
            )
            owed.append((await cost_secs(stage) - idle) / chunks * 1000)
            await pool.close()
        sys.stdout.write(f"stt.{name:<9} {min(owed):.2f} ms of CPU a chunk of 250 ms\n")


asyncio.run(main())
