"""Runs `headstart bench load`: more and more sessions, arm beside arm."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path

from headstart.bench.load.results import Level, LoadResults
from headstart.bench.load.session import Job, Load, measure_load
from headstart.bench.machine import machine, versions
from headstart.config.load import load_config
from headstart.errors import HeadstartError, UsageError


@dataclass(frozen=True)
class LoadPlan:
    """What to measure."""

    configs: Sequence[str]
    utterances: Mapping[str, tuple[Path, float]]
    """By name: the audio file, and where in it the voice truly ends, in seconds."""
    block: int
    """Utterances after which it is the next arm's turn."""
    steps: Sequence[int] | None
    """How many sessions; None: 1, 2, 4, ... as long as an arm holds."""
    pause_s: float | None
    break_at: float
    rounds: int
    seed: int
    command: str


def run_load(plan: LoadPlan, *, on_measure: Callable[[str], None]) -> LoadResults:
    """Measure every arm with every number of sessions.

    The arms take turns after every few utterances: a machine whose speed changes from minute to
    minute changes it for all of them.

    An arm that gives no figures at one number is not asked for those at higher ones. Ctrl-C
    ends it early, with the results so far.

    Args:
        plan: What to measure.
        on_measure: Called with a few words before each measurement.

    Raises:
        UsageError: Two arms have the same name.
        ConfigError: A pipeline is wrong.
        HeadstartError: An arm cannot hold a single conversation.
    """
    names = {load_config(config).name: config for config in plan.configs}
    if len(names) < len(plan.configs):
        raise UsageError("two of the pipelines have the same name")
    started, described = datetime.now(UTC), machine()
    draw = random.Random(plan.seed)
    levels: list[Level] = []
    arms = list(names)
    complete = True
    try:
        for sessions in plan.steps or (2**power for power in count()):
            loads: dict[str, list[Load]] = {arm: [] for arm in arms}
            errors: dict[str, str] = {}
            goes = [block for _ in range(plan.rounds) for block in _blocks(plan)]
            for number, block in enumerate(goes, start=1):
                for arm in draw.sample(arms, len(arms)):
                    on_measure(f"{arm}: {sessions} sessions, part {number} of {len(goes)}")
                    job = Job(
                        config=names[arm],
                        sessions=sessions,
                        utterances=block,
                        pause_s=plan.pause_s,
                    )
                    try:
                        loads[arm].append(measure_load(job))
                    except HeadstartError as error:
                        errors[arm] = str(error)
            levels += [Level.of(arm, sessions, loads[arm], errors.get(arm)) for arm in arms]
            arms = [arm for arm in arms if _holds(plan, levels, arm)]
            if not arms:
                break
    except KeyboardInterrupt:
        if not levels:
            raise
        complete = False
    if not any(level.parts for level in levels):
        raise HeadstartError(levels[0].error or "nothing was measured")
    return LoadResults(
        command=plan.command,
        started_at=started.isoformat(timespec="seconds"),
        pause_s=plan.pause_s,
        seed=plan.seed,
        versions=versions(),
        machine=described,
        complete=complete,
        levels=levels,
    )


def _blocks(plan: LoadPlan) -> Iterator[dict[str, tuple[Path, float]]]:
    left = iter(plan.utterances.items())
    while block := dict(islice(left, plan.block)):
        yield block


def _holds(plan: LoadPlan, levels: Sequence[Level], arm: str) -> bool:
    """Whether an arm is to be tried with more sessions."""
    own = [level for level in levels if level.arm == arm]
    if not own[-1].parts:
        return False
    return plan.steps is not None or not own[-1].has_broken(own[0], plan.break_at)
