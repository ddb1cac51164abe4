"""What the tests of Deepgram's recognisers share: what is said, a provider, and a session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from loguru import logger
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    StartFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection
from pipecat.tests.utils import QueuedFrameProcessor
from pipecat.workers.runner import WorkerRunner
from pydantic import SecretStr

from headstart.frames import ProgressiveTranscriptionFrame
from headstart.processors.stt.deepgram_settings import LinkSettings
from headstart.processors.stt.streaming.link import pool
from headstart.processors.stt.streaming.replay import ReplayRing
from headstart.processors.stt.streaming.segments import Heard, TimedWord
from headstart.processors.stt.streaming.stream import StreamingSTT
from headstart.testing.deepgram import DeepgramServer, Served

RATE = 16000
KEY = "sk-never-to-be-logged"
SPEECH = Path(__file__).parent.parent / "samples" / "speech"
UTTERANCES = {
    row["id"]: row for row in map(json.loads, (SPEECH / "manifest.jsonl").read_text().splitlines())
}
TONE = (8000 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.int16)


def samples(utterance: str) -> np.ndarray:
    audio: np.ndarray
    audio, rate = soundfile.read(SPEECH / f"{utterance}.wav", dtype="int16")
    assert rate == RATE
    return audio


def frames(audio: np.ndarray, *speech: tuple[float, float]) -> Iterator[Frame]:
    """20 ms frames; a VAD that knows where speech is, and is as late as a real one."""
    edges: list[tuple[float, Frame]] = []
    for start, end in speech:
        edges.append((start + 0.2, VADUserStartedSpeakingFrame(start_secs=0.2)))
        edges.append((end + 0.2, VADUserStoppedSpeakingFrame(stop_secs=0.2)))
    audio = np.concatenate((audio, np.zeros(RATE // 2, np.int16)))
    for at in range(0, len(audio), 320):
        while edges and at / RATE >= edges[0][0]:
            yield edges.pop(0)[1]
        yield InputAudioRawFrame(audio[at : at + 320].tobytes(), RATE, 1)


def heard(
    text: str, start: float, end: float, *, final: bool = False, finalize: bool = False
) -> Heard:
    """What a recogniser says, its words evenly spread over the audio that it is about."""
    texts = text.split()
    each = (end - start) / max(len(texts), 1)
    timed = tuple(
        TimedWord(word, 0.9, start + each * n, start + each * (n + 1))
        for n, word in enumerate(texts)
    )
    return Heard(text, timed, 0.9 if text else 0.0, start, end, final, finalize)


class Provider:
    """A recogniser that hears a word when its middle is in the audio of the connection.

    Word n takes the second half of the n-th half second of the stream; a sample's value says
    which half second it belongs to. Times are given as inexactly as a real provider's.
    """

    def __init__(self, ring: ReplayRing, slips: Iterator[float]) -> None:
        self.ring, self.slips = ring, slips
        self.heard: list[int] = []
        self.final = 0
        ring.connect()

    def hear(self) -> None:
        self.heard += np.frombuffer(self.ring.take(60.0), np.int16).tolist()

    def result(self, *, final: bool, finalize: bool = False) -> Heard:
        start, end = self.final, len(self.heard)
        span = self.heard[start:]
        middles = [
            at for at in range(1, len(span)) if span[at - 1] % 10 == 7 and span[at] % 10 == 8
        ]
        numbers = [(start + at, span[at] // 10) for at in middles]
        slip = [next(self.slips) for _ in numbers]
        at = self.ring.stream_secs
        spoken = tuple(
            TimedWord(f"w{n}", 0.9, at(m / 100 - 0.12 + s), at(m / 100 + 0.12 + s))
            for (m, n), s in zip(numbers, slip, strict=True)
        )
        if final:
            self.final = end
        text = " ".join(word.text for word in spoken)
        return Heard(text, spoken, 0.9, at(start / 100), at(end / 100), final, finalize)


class Session:
    """A pipeline with nothing but the recogniser in it."""

    def __init__(
        self, worker: PipelineWorker, down: asyncio.Queue[Frame], up: asyncio.Queue[Frame]
    ) -> None:
        self.worker, self.down, self.up = worker, down, up

    async def say(self, *spoken: Frame) -> None:
        """Audio goes in as fast as it can: the recogniser's time is the audio's."""
        await self.worker.queue_frames(list(spoken))

    async def final(self) -> tuple[TranscriptionFrame, list[ProgressiveTranscriptionFrame]]:
        """The next final transcript, and what was believed before."""
        partials: list[ProgressiveTranscriptionFrame] = []
        async with asyncio.timeout(60):
            while True:
                frame = await self.down.get()
                if isinstance(frame, ProgressiveTranscriptionFrame):
                    partials.append(frame)
                elif isinstance(frame, TranscriptionFrame):
                    assert frame.finalized
                    return frame, partials

    async def partial(self) -> ProgressiveTranscriptionFrame:
        """The next of what is believed meanwhile."""
        async with asyncio.timeout(60):
            while not isinstance(frame := await self.down.get(), ProgressiveTranscriptionFrame):
                pass
        return frame

    async def error(self) -> ErrorFrame:
        async with asyncio.timeout(60):
            while not isinstance(frame := await self.up.get(), ErrorFrame):
                pass
        return frame


@asynccontextmanager
async def session_with(
    server: DeepgramServer,
    kind: Callable[[Any], StreamingSTT],
    settings: type[LinkSettings],
    **options: Any,
) -> AsyncIterator[Session]:
    # The patience of the tests is that of a machine which is busy with other things.
    patient: dict[str, Any] = {
        "final_timeout_secs": 30.0,
        "stall_secs": 30.0,
        "rest_timeout_secs": 30.0,
    }
    stage = kind(settings(api_key=SecretStr(KEY), base_url=server.url, **(patient | options)))
    down: asyncio.Queue[Frame] = asyncio.Queue()
    up: asyncio.Queue[Frame] = asyncio.Queue()
    worker = PipelineWorker(
        Pipeline(
            [
                QueuedFrameProcessor(queue=up, queue_direction=FrameDirection.UPSTREAM),
                stage,
                QueuedFrameProcessor(
                    queue=down, queue_direction=FrameDirection.DOWNSTREAM, ignore_start=False
                ),
            ]
        ),
        cancel_on_idle_timeout=False,
        enable_rtvi=False,
        params=PipelineParams(enable_metrics=True, enable_usage_metrics=True),
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    while not isinstance(await down.get(), StartFrame):
        pass
    try:
        yield Session(worker, down, up)
    finally:
        await worker.cancel()
        await running


@pytest.fixture
async def server() -> AsyncIterator[DeepgramServer]:
    async with DeepgramServer() as running:
        yield running
        await pool.close()


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="TRACE")
    yield lines
    logger.remove(sink)


def streams(server: DeepgramServer) -> list[Served]:
    return [served for served in server.served if served.on == "stream"]
