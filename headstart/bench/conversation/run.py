"""Runs a benchmark: every utterance to every arm, one after the other, interleaved."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import soundfile

from headstart.bench.conversation.arms import Arm, ArmProcess
from headstart.bench.conversation.measure import Failure, measure
from headstart.bench.conversation.results import Results, Run, compare_arms, kinds_of, summarise
from headstart.bench.conversation.utterances import Utterance
from headstart.bench.conversation.worker import Answer, Job
from headstart.bench.machine import machine, versions
from headstart.errors import HeadstartError
from headstart.pipeline.timeline.records import SpeculationRecord, TurnRecord


@dataclass(frozen=True)
class Plan:
    """What to run."""

    arms: Sequence[Arm]
    utterances: Mapping[str, tuple[Utterance, Path]]
    repeats: int
    seed: int
    out: Path
    command: str

    def order(self) -> list[tuple[int, str, str]]:
        """Every (repeat, utterance, arm).

        Utterances in random order, and behind each other the arms that are compared on one,
        in random order too: what the machine does meanwhile hits all of them alike.
        """
        draw = random.Random(self.seed)
        runs = []
        for repeat in range(1, self.repeats + 1):
            names = list(self.utterances)
            draw.shuffle(names)
            for name in names:
                arms = [arm.name for arm in self.arms]
                draw.shuffle(arms)
                runs += [(repeat, name, arm) for arm in arms]
        return runs


def run_benchmark(
    plan: Plan,
    *,
    on_warm_up: Callable[[str], None] = lambda _: None,
    on_run: Callable[[Run], None] = lambda _: None,
) -> Results:
    """Run a plan; the conversations are kept under `plan.out`.

    Ctrl-C ends it early, with the results of the runs that were made.

    Args:
        plan: What to run.
        on_warm_up: Called with an arm's name before it loads its models.
        on_run: Called after each run.

    Raises:
        HeadstartError: An arm cannot hold a conversation at all, or nothing can be written.
        KeyboardInterrupt: Ctrl-C before the first run was done.
    """
    started, begun = datetime.now(UTC), time.monotonic()
    processes = {
        arm.name: ArmProcess(arm, plan.out / "runs" / arm.name / "worker.log") for arm in plan.arms
    }
    described, used = machine(), versions()
    runs: list[Run] = []
    warm_up = next(iter(plan.utterances.values()))[1]
    order = plan.order()
    try:
        for process in processes.values():
            on_warm_up(process.arm.name)
            used |= _warm_up(process, warm_up)
        for repeat, name, arm in order:
            process = processes[arm]
            if not process.alive:  # it died; should it be for good, the run will say so
                process.run(Job(audio=warm_up, folder=None))
            runs.append(_run(plan, process, name, repeat, len(runs) + 1))
            on_run(runs[-1])
    except KeyboardInterrupt:
        if not runs:
            raise
    finally:
        for process in processes.values():
            process.close()
    names = [arm.name for arm in plan.arms]
    return Results(
        command=plan.command,
        started_at=started.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - begun, 1),
        complete=len(runs) == len(order),
        seed=plan.seed,
        repeats=plan.repeats,
        versions=used,
        machine=described,
        arms={
            arm.name: summarise(
                arm.config.name,
                [run for run in runs if run.arm == arm.name],
                kinds_of(runs),
                simulated=arm.simulated,
            )
            for arm in plan.arms
        },
        comparisons=compare_arms(names, runs, plan.seed),
        runs=runs,
    )


def _warm_up(process: ArmProcess, audio: Path) -> dict[str, str]:
    answer = process.run(Job(audio=audio, folder=None))
    if answer.error is not None:
        raise HeadstartError(f"{process.arm.name}: {answer.error}")
    return {f"{process.arm.name}: {name}": number for name, number in answer.versions.items()}


def _run(plan: Plan, process: ArmProcess, name: str, repeat: int, order: int) -> Run:
    utterance, audio = plan.utterances[name]
    folder = Path("runs", process.arm.name, name, str(repeat))
    answer = process.run(Job(audio=audio, folder=plan.out / folder))
    about: dict[str, Any] = {
        "arm": process.arm.name,
        "utterance": name,
        "kind": utterance.kind,
        "repeat": repeat,
        "order": order,
        "folder": folder.as_posix(),
    }
    if answer.error is not None:
        return Run(
            **about,
            failures=[Failure.CRASHED],
            true_end_s=utterance.speech_end_s,
            error=answer.error,
        )
    return read_run(plan.out / folder, utterance, answer, about)


def read_run(folder: Path, utterance: Utterance, answer: Answer, about: Mapping[str, Any]) -> Run:
    """Measure a run that was kept."""
    conversation, rate = soundfile.read(folder / "conversation.wav", dtype="int16", always_2d=True)
    lines = (folder / "turns.jsonl").read_text("utf-8").splitlines()
    records = [TurnRecord.model_validate_json(line) for line in lines]
    measured = measure(
        conversation,
        rate,
        records,
        said=utterance.text,
        true_end_s=answer.start_s + utterance.speech_end_s,
    )
    errors = [error for record in records for error in record.errors]
    return Run.measured(
        measured,
        **about,
        turns=len(records),
        speculation=_all_speculation(records),
        cpu_s=round(answer.cpu_s, 3),
        duration_s=round(answer.duration_s, 3),
        peak_rss_mb=round(answer.peak_rss_mb, 1),
        error=errors[0] if errors else None,
    )


def _all_speculation(records: Sequence[TurnRecord]) -> SpeculationRecord:
    """What was tried in all turns of a run."""
    tried = [record.speculation for record in records]
    saved = [one.saved_ms for one in tried if one.saved_ms is not None]
    return SpeculationRecord(
        attempts=[attempt for one in tried for attempt in one.attempts],
        committed=any(one.committed for one in tried),
        saved_ms=saved[0] if saved else None,
        waited_ms=next((one.waited_ms for one in tried if one.waited_ms is not None), None),
        left_ms=next((one.left_ms for one in tried if one.left_ms is not None), None),
        release_ms=next((one.release_ms for one in tried if one.release_ms is not None), None),
        wasted_input_tokens=sum(one.wasted_input_tokens for one in tried),
        wasted_output_tokens=sum(one.wasted_output_tokens for one in tried),
        wasted_audio_s=sum(one.wasted_audio_s for one in tried),
    )
