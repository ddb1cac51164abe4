"""Compares two benchmarks of the same arms: what has become slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstart.bench.conversation.results import Comparison, Results, Run, compare_arms
from headstart.errors import UsageError


@dataclass(frozen=True)
class Change:
    """What became of an arm from one benchmark to another."""

    arm: str
    waits: Comparison
    """The later wait in multiples of the earlier, over runs of the same utterance and repeat."""
    failed_before: int
    failed_after: int

    @property
    def percent(self) -> float | None:
        """How much longer the wait has become, in per cent."""
        return 100 * (self.waits.ratio.value - 1) if self.waits.ratio else None

    def exceeds(self, max_percent: float) -> bool:
        """Whether it has become worse than may be.

        It has where the wait grew by more than `max_percent` or more runs fail, and also where
        nothing is left to compare: silence is no good news.
        """
        percent = self.percent
        return percent is None or percent > max_percent or self.failed_after > self.failed_before


def changes(before: Results, after: Results) -> list[Change]:
    """What became of every arm that both have.

    Raises:
        UsageError: They have no arm in common.
    """
    arms = [arm for arm in before.arms if arm in after.arms]
    if not arms:
        raise UsageError(
            f"no arm in common: {', '.join(before.arms)} there, {', '.join(after.arms)} here"
        )
    return [_change(arm, before, after) for arm in arms]


def _change(arm: str, before: Results, after: Results) -> Change:
    old, new = _named(before.runs, arm, "before"), _named(after.runs, arm, "after")
    keys = {(run.utterance, run.repeat) for run in old} & {(r.utterance, r.repeat) for r in new}
    shared = [run for run in (*old, *new) if (run.utterance, run.repeat) in keys]
    waits = compare_arms(["before", "after"], shared, after.seed)[0]
    failed = {
        name: sum(not run.usable for run in shared if run.arm == name)
        for name in ("before", "after")
    }
    return Change(arm, waits, failed["before"], failed["after"])


def _named(runs: Sequence[Run], arm: str, name: str) -> list[Run]:
    return [run.model_copy(update={"arm": name}) for run in runs if run.arm == arm]
