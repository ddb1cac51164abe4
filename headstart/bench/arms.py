"""The pipelines that are compared: each in a process of its own, of which one works at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from headstart.bench.worker import Answer, Job
from headstart.errors import HeadstartError, UsageError
from headstart.pipeline.build import required_assets
from headstart.pipeline.load import find_config, load_config

_RUN_SECS = 240.0
"""Longest run, the loading of models included."""
_CLOSE_SECS = 2.0


@dataclass(frozen=True)
class Arm:
    """A pipeline to measure."""

    name: str
    """The name that its file says or has."""
    config: Path
    assets: tuple[str, ...]
    """The weights that it needs."""


def read_arms(configs: Sequence[str]) -> list[Arm]:
    """Read the pipelines' files.

    Args:
        configs: Paths, or names of pipelines that ship.

    Raises:
        UsageError: Two have the same name.
        ConfigError: A file is wrong.
    """
    arms: dict[str, Arm] = {}
    for config in configs:
        spec = load_config(config)
        if spec.name in arms or "/" in spec.name:
            raise UsageError(f"{config}: {spec.name!r} cannot name one more arm; give it a `name:`")
        arms[spec.name] = Arm(spec.name, find_config(config).resolve(), required_assets(spec))
    return list(arms.values())


class ArmProcess:
    """The process that runs an arm. It starts with the first job, and again after its death."""

    def __init__(self, arm: Arm, log: Path) -> None:
        """Take note of what to run, and where its log goes."""
        self.arm = arm
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, with its models loaded by the jobs it has done."""
        return self._process is not None and self._process.poll() is None

    def run(self, job: Job) -> Answer:
        """Do one job; blocks until it is done."""
        if not self.alive:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        too_late = threading.Timer(_RUN_SECS, process.kill)
        too_late.daemon = True
        too_late.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(job.model_dump_json() + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            too_late.cancel()
        if not line:
            return Answer(error=f"its process ended with code {process.wait()}; see {self._log}")
        return Answer.model_validate_json(line)

    def close(self) -> None:
        """End the process; its models go with it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_CLOSE_SECS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        self.close()
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("a")
        except OSError as error:
            raise HeadstartError(f"{self._log}: cannot be written ({error.strerror})") from None
        with log, _uninterrupted():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "headstart.bench.worker", str(self.arm.config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C: one that comes before a new process is noted would leave it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C does not come here
        return
    pressed: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt
