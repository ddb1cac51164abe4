"""The pipelines that are compared: each in a process of its own, of which one works at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from headstart import assets
from headstart.bench.conversation.foreign import read_foreign
from headstart.bench.conversation.worker import Answer, Job
from headstart.config.constructor import settings_model
from headstart.config.load import find_config, load_config
from headstart.config.registry import stage_type
from headstart.config.spec import PipelineSpec
from headstart.errors import HeadstartError, UsageError
from headstart.pipeline.build import required_assets

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
    command: tuple[str, ...]
    """The worker's."""
    folder: Path = Path()
    """Where the worker runs."""
    simulated: tuple[str, ...] = ()
    """The services whose delays are drawn instead of real, and from what."""


def read_arms(configs: Sequence[str]) -> list[Arm]:
    """Read the arms' files.

    Args:
        configs: Paths of pipelines or of files that name a worker, or names of pipelines that
            ship.

    Raises:
        UsageError: Two have the same name.
        ConfigError: A file is wrong.
    """
    arms: dict[str, Arm] = {}
    for config in configs:
        arm = _read_arm(config)
        if arm.name in arms or "/" in arm.name:
            raise UsageError(f"{config}: {arm.name!r} cannot name one more arm; give it a `name:`")
        arms[arm.name] = arm
    return list(arms.values())


def _read_arm(config: str) -> Arm:
    path = find_config(config).resolve()
    foreign = read_foreign(path)
    if foreign is not None:
        return Arm(
            foreign.name, path, tuple(foreign.assets), tuple(foreign.worker), folder=path.parent
        )
    spec = load_config(config)
    command = (sys.executable, "-m", "headstart.bench.conversation.worker", str(path))
    return Arm(spec.name, path, required_assets(spec), command, simulated=_simulated(spec))


def _simulated(spec: PipelineSpec) -> tuple[str, ...]:
    settings = [(settings_model(stage_type(stage).cls), stage.settings) for stage in spec.stages]
    found = [model.model_validate(values) for model, values in settings if model is not None]
    return tuple(one.simulation() for one in found if hasattr(one, "simulation"))


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
                process.stdin.write(job.absolute().model_dump_json() + "\n")
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
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_CLOSE_SECS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _start(self) -> None:
        self.close()
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("a")
        except OSError as error:
            raise HeadstartError(f"{self._log}: cannot be written ({error.strerror})") from None
        weights = {name: str(assets.path(name)) for name in self.arm.assets}
        with log, _uninterrupted():
            try:
                self._process = subprocess.Popen(
                    self.arm.command,
                    cwd=self.arm.folder,
                    env={**os.environ, "HEADSTART_ASSETS": json.dumps(weights)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            except OSError as error:
                what = f"{self.arm.config}: {self.arm.command[0]} does not start"
                raise HeadstartError(f"{what} ({error.strerror})") from None


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
