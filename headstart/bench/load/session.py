"""Holds several conversations at once in one process: what each costs, and what it suffers.

Run as `python -m headstart.bench.load.session`, with a `Job` as JSON on its standard input: it
speaks every utterance in every session, in real time, and prints one JSON line, a `Load`. Every
measurement has a process of its own, so that none inherits the memory of another.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from headstart.bench.machine import usage
from headstart.bench.stock.session import StockSession, is_stock
from headstart.config.spec import PipelineSpec
from headstart.errors import HeadstartError
from headstart.pipeline.converse import answered, converse
from headstart.pipeline.session import Session
from headstart.pipeline.timeline.observer import AUDIBLE
from headstart.transports.memory import PlayedAudio
from headstart.transports.wav import Recording, Samples, Spoken, WavTransport

_TIMER_SECS = 0.02
_BETWEEN_SECS = 0.37
"""Sessions begin this long after each other, so that their users do not speak in unison."""
_PAUSE_SECS = 0.2
"""Silence of the bot after which its next frame begins anew."""


class Job(BaseModel):
    """What to measure."""

    config: str
    sessions: int
    utterances: dict[str, tuple[Path, float]]
    """By name: the audio file, and where in it the voice truly ends, in seconds."""
    pause_s: float | None = None
    """Nobody answers: the next utterance is spoken this long after the last. None: it is spoken
    when the last has been answered."""


class Load(BaseModel):
    """What several sessions at once were like."""

    sessions: int
    utterances: int
    """Spoken, in all sessions."""
    waits_s: dict[str, list[float | None]]
    """Voice to voice on the waveform, of each utterance in every session that held: from its true
    end to the first audible sample of the bot. None: not answered, or too early."""
    broken: int
    """Sessions that broke off."""
    error: str | None = None
    """Why the first of them did."""
    cpu_ms_per_s: float
    """CPU milliseconds a second of conversation a session; opening it is not counted."""
    open_cpu_ms: float
    """CPU milliseconds it took to open a session, once the models that are shared were loaded."""
    late_ms: list[float]
    """By how much each tick of a 20 ms timer on the event loop was late."""
    pacing_ms: list[float]
    """How far the time between two of the bot's audio frames was from their length."""
    peak_rss_mb: float


async def load(spec: PipelineSpec, job: Job, utterances: Sequence[Samples]) -> Load:
    """Hold conversations at once, each begun a little after the last.

    Args:
        spec: The pipeline of the job.
        job: What to measure.
        utterances: The samples of the job's utterances.

    Raises:
        HeadstartError: A session did not open.
    """
    await converse(spec, utterances[:1])  # loads the models, and runs each once
    kind = StockSession if is_stock(spec) else Session
    transports = [WavTransport() for _ in range(job.sessions)]
    pacing_ms: list[float] = []
    for transport in transports:
        _listen(transport, pacing_ms)
    closed = usage()
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(kind(spec, transport)) for transport in transports
        ]
        late_ms: list[float] = []
        timer = asyncio.create_task(_watch_timer(late_ms), name="timer")
        before = usage()
        held = await asyncio.gather(
            *(
                _talk(session, transport, utterances, job.pause_s, _BETWEEN_SECS * number)
                for number, (session, transport) in enumerate(
                    zip(sessions, transports, strict=True)
                )
            ),
            return_exceptions=True,
        )
        after = usage()
        talked_s = sum(transport.recording.user_secs for transport in transports)
        timer.cancel()
    broken = [one for one in held if isinstance(one, BaseException)]
    ends_s = [end_s for _, end_s in job.utterances.values()]
    waits = [
        waits_s(transport.recording, spoken, ends_s)
        for spoken, transport in zip(held, transports, strict=True)
        if not isinstance(spoken, BaseException)
    ]
    return Load(
        sessions=job.sessions,
        utterances=job.sessions * len(utterances),
        waits_s={
            name: [one[number] for one in waits] for number, name in enumerate(job.utterances)
        },
        broken=len(broken),
        error=str(broken[0]) if broken else None,
        cpu_ms_per_s=1000 * (after.cpu_s - before.cpu_s) / talked_s,
        open_cpu_ms=1000 * (before.cpu_s - closed.cpu_s) / job.sessions,
        late_ms=late_ms,
        pacing_ms=pacing_ms,
        peak_rss_mb=after.peak_rss_mb,
    )


async def _talk(
    session: Session,
    transport: WavTransport,
    utterances: Sequence[Samples],
    pause_s: float | None,
    delay_s: float,
) -> list[Spoken]:
    await asyncio.sleep(delay_s)
    spoken = []
    for number, utterance in enumerate(utterances, start=1):
        spoken.append(await transport.speak(utterance))
        if pause_s is None:
            await answered(session, transport, number)
        else:
            await asyncio.sleep(pause_s)
    return spoken


def waits_s(
    recording: Recording, spoken: Sequence[Spoken], ends_s: Sequence[float]
) -> list[float | None]:
    """Voice to voice on the waveform; None of utterances that were not answered, or too early.

    Args:
        recording: Of the conversation.
        spoken: Where the utterances lie in it.
        ends_s: The true end of the voice in each, from its start.
    """
    heard_s = np.concatenate(
        [
            np.zeros(0),
            *(
                (start + np.flatnonzero(np.abs(samples.astype(np.int32)) > AUDIBLE))
                / recording.out_sample_rate
                for start, samples in recording.bot
            ),
        ]
    )
    nexts_s = [*(one.start_secs for one in spoken[1:]), np.inf]
    found: list[float | None] = []
    for one, end_s, next_s in zip(spoken, ends_s, nexts_s, strict=True):
        after = heard_s[(heard_s >= one.start_secs) & (heard_s < next_s)]
        wait = float(after[0] - one.start_secs - end_s) if len(after) else -1.0
        found.append(wait if wait >= 0 else None)
    return found


def _listen(transport: WavTransport, pacing_ms: list[float]) -> None:
    """Note how far the time between two of the bot's frames is from their length.

    The first frame of an answer has no frame before it, and the second comes ahead of its time:
    the loudspeaker's buffer holds one.
    """
    record = transport.on_played
    assert record is not None
    due = 0.0
    frames = 0

    def played(audio: PlayedAudio) -> None:
        nonlocal due, frames
        now = time.monotonic()
        frames = frames + 1 if now - due < _PAUSE_SECS else 1
        if frames > 2:
            pacing_ms.append(1000 * abs(now - due))
        due = now + len(audio.audio) / 2 / audio.sample_rate
        record(audio)

    transport.on_played = played


async def _watch_timer(late_ms: list[float]) -> None:
    due = time.monotonic()
    while True:
        due += _TIMER_SECS
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        late_ms.append(1000 * max(0.0, time.monotonic() - due))
        due = max(due, time.monotonic() - _TIMER_SECS)


def measure_load(job: Job) -> Load:
    """Measure in a process of its own.

    Raises:
        HeadstartError: It ended without figures.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "headstart.bench.load.session"],
        input=job.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise HeadstartError(f"{job.config} with {job.sessions} sessions: {last}")
    return Load.model_validate_json(ended.stdout)


def main() -> None:
    """Measure, and print the figures."""
    from headstart.config.load import load_config
    from headstart.engines.hub import shared
    from headstart.logging import set_up_logging
    from headstart.transports.wav import read_audio

    # What a library prints must not be taken for the figures.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    set_up_logging()
    job = Job.model_validate_json(sys.stdin.read())
    spec = load_config(job.config)
    utterances = [
        read_audio(path, spec.audio.in_sample_rate) for path, _ in job.utterances.values()
    ]
    figures = asyncio.run(load(spec, job, utterances))
    answers.write(figures.model_dump_json() + "\n")
    answers.flush()
    shared.close()
    os._exit(0)


if __name__ == "__main__":
    main()
