"""An arm's process: holds one conversation at a time, and keeps the models between them.

Run as `python -m headstart.bench.conversation.worker CONFIG`. It reads JSON lines from its
standard input, `{"audio": FILE, "folder": FOLDER or null}`, and answers each with one line on its
standard output, an `Answer` as JSON. It ends when its standard input closes, so that it does not
outlive its parent.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from headstart.bench.machine import Usage, usage
from headstart.config.load import load_config
from headstart.config.spec import PipelineSpec
from headstart.engines.hub import shared
from headstart.errors import HeadstartError
from headstart.logging import set_up_logging
from headstart.pipeline.converse import converse
from headstart.transports.wav import read_audio


class Job(BaseModel):
    """One utterance to speak."""

    audio: Path
    folder: Path | None
    """Where the conversation is to be kept; None if it is not to be."""

    def absolute(self) -> Job:
        """The same for a process that runs in another folder."""
        return Job(audio=self.audio.resolve(), folder=self.folder and self.folder.resolve())


class Answer(BaseModel):
    """What came of a job."""

    error: str | None = None
    """Why there was no conversation, in one line."""
    start_s: float = 0.0
    """Where the utterance lies on the clock of conversation.wav."""
    cpu_s: float = 0.0
    """Used from its first sample to the end of the conversation."""
    duration_s: float = 0.0
    """What that took."""
    peak_rss_mb: float = 0.0
    """Of the process and its children, since they started."""
    versions: dict[str, str] = {}
    """Of packages that the bench's own environment need not have."""


async def hold(spec: PipelineSpec, job: Job) -> Answer:
    """Speak the utterance into a new session, wait for the answer and keep both."""
    gc.collect()  # of the last session, so that memory is that of one
    begun: tuple[float, Usage] = (time.monotonic(), usage())

    def on_stage(stage: str) -> None:
        nonlocal begun
        if stage.endswith("listening"):  # what opening the session took is not the turn's
            begun = (time.monotonic(), usage())

    try:
        utterance = read_audio(job.audio, spec.audio.in_sample_rate)
        dialogue = await converse(spec, [utterance], on_stage=on_stage)
        if job.folder is not None:
            dialogue.save(job.folder)
    except HeadstartError as error:
        return Answer(error=str(error))
    except Exception as error:
        return Answer(error=" ".join(f"{type(error).__name__}: {error}".split()))
    now = usage()
    return Answer(
        start_s=dialogue.spoken[0].start_secs,
        cpu_s=now.cpu_s - begun[1].cpu_s,
        duration_s=time.monotonic() - begun[0],
        peak_rss_mb=now.peak_rss_mb,
    )


async def _serve(config: str, answers: IO[str]) -> None:
    spec = load_config(config)
    loop = asyncio.get_running_loop()
    jobs: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(jobs.put_nowait, line)
        shared.close()
        os._exit(0)

    threading.Thread(target=read, name="jobs", daemon=True).start()
    while True:
        job = Job.model_validate_json(await jobs.get())
        answer = await hold(spec, job)
        answers.write(answer.model_dump_json() + "\n")
        answers.flush()


def main() -> None:
    """Serve until standard input closes."""
    # The parent decides when it is over; the terminal's Ctrl-C goes to the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    set_up_logging()
    asyncio.run(_serve(sys.argv[1], answers))


if __name__ == "__main__":
    main()
