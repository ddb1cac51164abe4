"""Holds several conversations at once in one process: what each costs, and what it suffers.

Run as `python -m headstart.bench.load CONFIG SESSIONS AUDIO...`: speaks every utterance in every
session, in real time, and prints one JSON line, a `Load`. A process for each number of sessions,
so that none inherits the memory of another.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from headstart.bench.machine import usage
from headstart.bench.statistics import percentile
from headstart.errors import HeadstartError
from headstart.pipeline.dialogue import Dialogue, converse
from headstart.pipeline.spec import PipelineSpec
from headstart.transports.wav import Samples

_FRAME_SECS = 0.02


class Load(BaseModel):
    """What several sessions at once were like."""

    sessions: int
    answers: int
    """Utterances that were answered, of all sessions."""
    utterances: int
    """Utterances spoken, in all sessions."""
    voice_to_voice_p50_s: float | None
    """By the timeline: from the end of the voice as the VAD has it."""
    voice_to_voice_p95_s: float | None
    cpu_ms_per_s: float
    """CPU milliseconds a second of conversation a session."""
    late_p50_ms: float
    """By how much a timer of 20 ms on the event loop was late: the pacing error of frames."""
    late_p99_ms: float
    peak_rss_mb: float
    failed: int
    """Sessions that broke off."""


async def load(spec: PipelineSpec, utterances: Sequence[Samples], sessions: int) -> Load:
    """Hold conversations at once, each begun a little after the last."""
    await converse(spec, utterances[:1])  # loads the models
    late: list[float] = []
    pacing = asyncio.create_task(_watch_pacing(late), name="pacing")
    before = usage()
    held = await asyncio.gather(
        *(_hold(spec, utterances, 0.37 * number) for number in range(sessions)),
        return_exceptions=True,
    )
    after = usage()
    pacing.cancel()
    dialogues = [one for one in held if isinstance(one, Dialogue)]
    waits = [
        record.voice_to_voice_s
        for dialogue in dialogues
        for record in dialogue.records
        if record.voice_to_voice_s is not None
    ]
    talked_s = sum(len(dialogue.recording.user) * _FRAME_SECS for dialogue in dialogues)
    return Load(
        sessions=sessions,
        answers=len(waits),
        utterances=sessions * len(utterances),
        voice_to_voice_p50_s=percentile(waits, 50),
        voice_to_voice_p95_s=percentile(waits, 95),
        cpu_ms_per_s=1000 * (after.cpu_s - before.cpu_s) / max(talked_s, _FRAME_SECS),
        late_p50_ms=1000 * (percentile(late, 50) or 0.0),
        late_p99_ms=1000 * (percentile(late, 99) or 0.0),
        peak_rss_mb=after.peak_rss_mb,
        failed=len(held) - len(dialogues),
    )


async def _hold(spec: PipelineSpec, utterances: Sequence[Samples], delay_secs: float) -> Dialogue:
    await asyncio.sleep(delay_secs)
    return await converse(spec, utterances)


async def _watch_pacing(late: list[float]) -> None:
    due = time.monotonic()
    while True:
        due += _FRAME_SECS
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        late.append(max(0.0, time.monotonic() - due))
        due = max(due, time.monotonic() - _FRAME_SECS)


def measure_load(config: str, audio: Sequence[Path], sessions: int) -> Load:
    """Measure in a process of its own.

    Raises:
        HeadstartError: It ended without figures.
    """
    command = [sys.executable, "-m", "headstart.bench.load", config, str(sessions)]
    ended = subprocess.run(
        [*command, *map(str, audio)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise HeadstartError(f"{config} with {sessions} sessions: {last}")
    return Load.model_validate_json(ended.stdout)


def main() -> None:
    """Measure, and print the figures."""
    from headstart.cli.app import set_up_logging
    from headstart.engines.hub import shared
    from headstart.pipeline.load import load_config
    from headstart.transports.wav import read_audio

    # What a library prints must not be taken for the figures.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    set_up_logging()
    config, sessions, *audio = sys.argv[1:]
    spec = load_config(config)
    utterances = [read_audio(Path(path), spec.audio.in_sample_rate) for path in audio]
    figures = asyncio.run(load(spec, utterances, int(sessions)))
    answers.write(figures.model_dump_json() + "\n")
    answers.flush()
    shared.close()
    os._exit(0)


if __name__ == "__main__":
    main()
