"""LiveKit's arm of the benchmark: an AgentSession without a room, its microphone a recording.

Speaks the worker's protocol of `headstart bench` (docs/bench.md): JSON lines in, JSON lines out,
`conversation.wav` and `turns.jsonl` into the folder that a job names. Imports nothing of Headstart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import soundfile
import soxr
from audio import OUT_RATE, RATE, Microphone, Speaker
from livekit.agents import Agent, AgentSession
from livekit.plugins import openai
from models import KokoroTTS, Llama, WhisperSTT
from moments import Moments, turns

PROMPT = "You are a helpful voice assistant. Answer in one short sentence."
LEAD_IN_SECS = 0.3
"""Silence before the utterance: a session opens before anybody speaks."""
SETTLE_SECS = 1.0
GIVE_UP_SECS = 60.0
"""After the utterance: no answer is to come any more."""


class Voice(Agent):
    """An agent with nothing of its own, which notes when its nodes have results."""

    def __init__(self, moments: Moments) -> None:
        super().__init__(instructions=PROMPT)
        self._moments = moments

    async def llm_node(self, chat_ctx: Any, tools: Any, model_settings: Any) -> Any:
        """As LiveKit's; notes the first token."""
        answer = self._moments.begin_answer()
        async for chunk in Agent.default.llm_node(self, chat_ctx, tools, model_settings):
            delta = getattr(chunk, "delta", None)
            if delta is not None and delta.content:
                answer.note("first_token_s")
            yield chunk

    async def tts_node(self, text: Any, model_settings: Any) -> Any:
        """As LiveKit's; notes the first audio."""
        answer = self._moments.latest_answer()
        async for frame in Agent.default.tts_node(self, text, model_settings):
            answer.note("first_audio_ready_s")
            yield frame


class Bench:
    """The models of the process, and one session after the other on them."""

    def __init__(self, preemptive_tts: bool) -> None:
        folders = {
            name: Path(at) for name, at in json.loads(os.environ["HEADSTART_ASSETS"]).items()
        }
        self._llama = Llama(next(folders["smollm2-135m"].glob("*.gguf")))
        self._stt = WhisperSTT(folders["whisper-tiny"])
        self._tts = KokoroTTS(folders["kokoro-v1.0"], folders["kokoro-voices"])
        self._turn_handling: Any = {
            "preemptive_generation": {"enabled": True, "preemptive_tts": preemptive_tts}
        }

    async def converse(self, audio: Path, folder: Path | None) -> dict[str, Any]:
        """Speak a recording into a new session, wait for the answer, keep both."""
        samples, rate = soundfile.read(audio, dtype="float32", always_2d=True)
        heard = soxr.resample(samples.mean(axis=1), rate, RATE)
        utterance = (np.clip(heard, -1, 1) * 32767).astype(np.int16)
        clock_zero = time.monotonic()
        moments = Moments()
        microphone, speaker = Microphone(), Speaker()
        session = AgentSession(
            stt=self._stt,
            llm=openai.LLM(
                model="smollm2",
                base_url=f"{self._llama.url}/v1",
                api_key=self._llama.key,
                temperature=0.0,
                extra_body={"max_tokens": 64, "stop": ["\n\n"]},
            ),
            tts=self._tts,
            turn_handling=self._turn_handling,
        )
        session.input.audio, session.output.audio = microphone, speaker
        self._tts.on_clause = lambda: moments.latest_answer().note("first_clause_s")
        moments.listen(session)
        await session.start(agent=Voice(moments))
        try:
            await asyncio.sleep(LEAD_IN_SECS)
            before, begun = usage(), time.monotonic()
            spoken = await microphone.speak(utterance)
            deadline = time.monotonic() + GIVE_UP_SECS
            while time.monotonic() < deadline:
                await asyncio.sleep(0.05)
                quiet_since = max(spoken.ended, speaker.busy_until, moments.latest)
                if moments.answered and time.monotonic() - quiet_since > SETTLE_SECS:
                    break
        finally:
            await session.aclose()
        after, ended = usage(), time.monotonic()
        zero = microphone.zero or clock_zero
        if folder is not None:
            save(folder, microphone, speaker, moments, zero)
        return {
            "start_s": spoken.start_s,
            "cpu_s": after[0] - before[0],
            "duration_s": ended - begun,
            "peak_rss_mb": after[1],
            "versions": {"livekit-agents": version("livekit-agents")},
        }


def save(
    folder: Path, microphone: Microphone, speaker: Speaker, moments: Moments, zero: float
) -> None:
    """Write `conversation.wav` and `turns.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    user, bot = soxr.resample(microphone.recorded(), RATE, OUT_RATE), speaker.recorded(zero)
    stereo = np.zeros((max(len(user), len(bot)), 2), np.int16)
    stereo[: len(user), 0], stereo[: len(bot), 1] = user, bot
    soundfile.write(folder / "conversation.wav", stereo, OUT_RATE, subtype="PCM_16")
    lines = [json.dumps(turn) + "\n" for turn in turns(moments, speaker, zero)]
    (folder / "turns.jsonl").write_text("".join(lines), "utf-8")


def usage() -> tuple[float, float]:
    """CPU seconds and peak memory, in MB, of this process and its children."""
    cpu_s = rss_mb = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (psutil.NoSuchProcess, OSError):
            continue
        cpu_s += times.user + times.system
        peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        rss_mb += int(peak[0]) * 1024 / 1e6 if peak else 0.0
    return cpu_s, rss_mb


async def serve(preemptive_tts: bool, answers: IO[str]) -> None:
    """Answer one job after the other."""
    loop = asyncio.get_running_loop()
    jobs: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(jobs.put_nowait, line)
        os._exit(0)  # the child process ends when its standard input does

    threading.Thread(target=read, daemon=True).start()
    bench: Bench | None = None
    while True:
        job = json.loads(await jobs.get())
        try:
            bench = bench or Bench(preemptive_tts)
            folder = job["folder"] and Path(job["folder"])
            answer = await bench.converse(Path(job["audio"]), folder)
        except Exception as error:
            logging.exception("the conversation broke off")
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preemptive-tts", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it is over
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(options.preemptive_tts, answers))


if __name__ == "__main__":
    main()
