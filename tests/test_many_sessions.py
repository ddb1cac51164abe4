"""Two hundred sessions with each recogniser, some closed in mid-word, leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from conftest import Sample
from pipecat.frames.frames import VADUserStartedSpeakingFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed

from headstart import Session, load_config
from headstart.config.spec import PipelineSpec
from headstart.pipeline.session import Heard, TurnEnded
from headstart.processors.stt.streaming.link import pool
from headstart.testing.deepgram import DeepgramServer
from headstart.transports.wav import read_audio

pytestmark = pytest.mark.models

FRAME = 320
"""Samples of 20 ms at 16 kHz."""


def descriptors() -> set[str]:
    """What this process has open, the sockets of the server that it also is included."""
    try:
        return set(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux
        return set()


@pytest.mark.parametrize("stt", ["deepgram", "whisper"])
async def test_two_hundred_sessions_leave_no_task_no_thread_and_no_socket(
    stt: str, tmp_path: Path, samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = read_audio(samples["medium-france"].path, 16000)
    config = tmp_path / "ears.yaml"
    config.write_text(f"prompt: none\nstages: [vad, {{stt: {stt}}}, turn]\n")
    async with DeepgramServer() as server:
        monkeypatch.setenv("DEEPGRAM_BASE_URL", server.url)
        monkeypatch.setenv("DEEPGRAM_API_KEY", "any")
        spec = load_config(config)
        at_once = asyncio.Semaphore(10)
        await converse(
            spec, audio[: len(audio) // 2].tobytes(), at_once
        )  # the models are there now
        await pool.close()
        tasks, threads, open_ones = asyncio.all_tasks(), threading.enumerate(), descriptors()
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                spoken = audio[: len(audio) // 2].tobytes() if number % 10 == 0 else b""
                group.create_task(converse(spec, spoken, at_once))
        assert len(pool) <= 4
        await pool.close()
        assert len(pool) == 0
        await server.until(lambda: not any(served.open for served in server.served))
        # The server's own task for an HTTP connection lives as long as its socket.
        while left := {task for task in asyncio.all_tasks() - tasks if not task.done()}:
            assert all("RequestHandler" in repr(task) for task in left)
            await asyncio.wait(left)
        grown = {thread.name for thread in threading.enumerate() if thread not in threads}
        assert {name for name in grown if not name.startswith("asyncio_")} == set()
        assert len(descriptors()) <= len(open_ones)


class Voice(BaseObserver):
    """Waits until the VAD has heard one."""

    def __init__(self) -> None:
        super().__init__(observe_every_push=False)
        self.heard = asyncio.Event()

    async def on_push_frame(self, data: FramePushed) -> None:
        if isinstance(data.frame, VADUserStartedSpeakingFrame):
            self.heard.set()


async def converse(spec: PipelineSpec, spoken: bytes, at_once: asyncio.Semaphore) -> None:
    """Open a session, begin to speak if there is something to say, and close in mid-word."""
    voice = Voice()
    async with at_once, Session(spec, observers=[voice]) as session:
        for at in range(0, len(spoken), 2 * FRAME):
            await session.push_audio(spoken[at : at + 2 * FRAME])
        if spoken:
            async with asyncio.timeout(30):
                await voice.heard.wait()


async def test_the_record_of_a_turn_says_which_way_its_words_came(
    tmp_path: Path, samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = read_audio(samples["short-joke"].path, 16000).tobytes() + bytes(32000)
    for stt in ("deepgram", "whisper"):
        config = tmp_path / f"{stt}.yaml"
        config.write_text(f"prompt: none\nstages: [vad, {{stt: {stt}}}, turn]\n")
        async with DeepgramServer() as server:
            monkeypatch.setenv("DEEPGRAM_BASE_URL", server.url)
            monkeypatch.setenv("DEEPGRAM_API_KEY", "any")
            async with Session(load_config(config)) as session:
                for at in range(0, len(audio), 2 * FRAME):
                    await session.push_audio(audio[at : at + 2 * FRAME])
                async for event in session.events():
                    if isinstance(event, Heard) and event.final:
                        break
            async for event in session.events():
                if isinstance(event, TurnEnded):
                    (segment,) = event.record.segments
            await pool.close()
        assert segment.final_after_ms is not None
        if stt == "whisper":
            assert (segment.path, segment.setup_ms, segment.connections) == ("local", None, 0)
        else:
            assert (segment.path, segment.connections) == ("stream", 1)
            assert segment.setup_ms is not None
