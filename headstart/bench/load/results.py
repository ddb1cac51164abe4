"""What `headstart bench load` has measured: `results.json`, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from headstart.bench.conversation.results import RESULTS
from headstart.bench.load.session import Load
from headstart.bench.plots import lines_plot
from headstart.bench.statistics import paired_ratio, percentile
from headstart.bench.tables import Titled, markdown_origin, markdown_tables, print_tables
from headstart.errors import HeadstartError

_HOLE_MS = 20.0
"""The loudspeaker's buffer holds one frame; a timer that is later than this may be heard."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Model):
    """How figures are spread; None of nothing."""

    p50: float | None
    p95: float | None
    max: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values."""
        ends = percentile(values, 50), percentile(values, 95), percentile(values, 100)
        return cls(p50=_rounded(ends[0]), p95=_rounded(ends[1]), max=_rounded(ends[2]))


class Level(_Model):
    """An arm with some sessions at once; figures of all parts together."""

    arm: str
    sessions: int
    parts: int
    """Measurements that gave figures, each in a process of its own."""
    utterances: int
    answered: int
    """None of those that the bot answered before their end."""
    broken: int
    error: str | None
    waits_s: dict[str, list[float | None]]
    """Voice to voice of each utterance: session by session, round by round; None where it was
    not answered, or too early."""
    voice_to_voice_s: Spread
    pacing_ms: Spread
    late_ms: Spread
    cpu_ms_per_s: float
    open_cpu_ms: float
    peak_rss_mb: float

    @classmethod
    def of(cls, arm: str, sessions: int, loads: Sequence[Load], error: str | None) -> Level:
        """The figures of one or more parts.

        Args:
            arm: Its name.
            sessions: How many at once.
            loads: The parts that gave figures.
            error: Why one gave none.
        """
        told = [load.error for load in loads if load.error is not None]
        waits_s: dict[str, list[float | None]] = {}
        for load in loads:
            for name, waits in load.waits_s.items():
                waits_s.setdefault(name, []).extend(map(_rounded, waits))
        answered = [wait for waits in waits_s.values() for wait in waits if wait is not None]
        return cls(
            arm=arm,
            sessions=sessions,
            parts=len(loads),
            utterances=sum(load.utterances for load in loads),
            answered=len(answered),
            broken=sum(load.broken for load in loads) + (sessions if error else 0),
            error=error or (told[0] if told else None),
            waits_s=waits_s,
            voice_to_voice_s=Spread.of(answered),
            pacing_ms=Spread.of([x for load in loads for x in load.pacing_ms]),
            late_ms=Spread.of([x for load in loads for x in load.late_ms]),
            cpu_ms_per_s=_mean([load.cpu_ms_per_s for load in loads]),
            open_cpu_ms=_mean([load.open_cpu_ms for load in loads]),
            peak_rss_mb=max((round(load.peak_rss_mb, 1) for load in loads), default=0.0),
        )

    def has_broken(self, alone: Level, factor: float) -> bool:
        """Whether this is more than the machine can hold.

        Args:
            alone: The same arm with the fewest sessions.
            factor: How many times as long as alone the p95 of the wait may be.
        """
        if self.broken:
            return True
        wait, was = self.voice_to_voice_s.p95, alone.voice_to_voice_s.p95
        if wait is not None and was is not None:
            return wait > factor * was or self.answered < self.utterances * 0.9
        return self.answered < alone.answered or (self.late_ms.p95 or 0.0) > _HOLE_MS


class LoadResults(_Model):
    """Everything that is written to `results.json`."""

    command: str
    started_at: str
    pause_s: float | None
    seed: int
    versions: dict[str, str]
    machine: dict[str, str | int | float]
    complete: bool = True
    """Whether it was not broken off."""
    levels: list[Level]

    def save(self, folder: Path) -> None:
        """Write results.json, report.md and load.svg.

        Raises:
            HeadstartError: The folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RESULTS).write_text(self.model_dump_json(indent=1) + "\n", "utf-8")
            (folder / "report.md").write_text(self.markdown(), "utf-8")
            (folder / "load.svg").write_text(self.plot(), "utf-8")
        except OSError as error:
            raise HeadstartError(f"{folder}: cannot be written ({error.strerror})") from None

    def print(self, console: Console) -> None:
        """Print the figures."""
        print_tables(self.tables(), console)
        for level in self.levels:
            if level.error is not None:
                console.print(f"{level.arm}, {level.sessions} sessions: {level.error}")

    def markdown(self) -> str:
        """The figures as Markdown."""
        lines = [
            "# Load",
            "",
            f"    {self.command}",
            "",
            f"{self.started_at}.",
            *markdown_origin(self.machine, self.versions),
            "",
            "![Load](load.svg)",
        ]
        return "\n".join([*lines, *markdown_tables(self.tables()), ""])

    def tables(self) -> Iterator[Titled]:
        """Everything that is told in figures."""
        yield (
            "What the user waits for",
            _WAIT_HEAD,
            [
                [
                    *_who(level),
                    f"{level.answered} of {level.utterances}",
                    _told(level.voice_to_voice_s.p50, 2),
                    _told(level.voice_to_voice_s.p95, 2),
                    *(_told(x, 1) for x in _all(level.pacing_ms)),
                    str(level.broken),
                ]
                for level in self.levels
            ],
        )
        yield (
            "What it costs",
            _COST_HEAD,
            [
                [
                    *_who(level),
                    f"{level.cpu_ms_per_s:.0f}",
                    f"{level.open_cpu_ms:.0f}",
                    *(_told(x, 1) for x in _all(level.late_ms)),
                    f"{level.peak_rss_mb:.0f}",
                ]
                for level in self.levels
            ],
        )
        pairs = [
            [_told_pair(a, b, self.seed) for a, b in self._pairs(sessions)]
            for sessions in self._steps()
        ]
        if any(pairs):
            yield "Compared", _PAIR_HEAD, [row for rows in pairs for row in rows]

    def plot(self) -> str:
        """The wait and the CPU time against the number of sessions, as SVG."""
        arms = list(dict.fromkeys(level.arm for level in self.levels))

        def curves(
            value: Callable[[Level], float | None],
        ) -> dict[str, list[tuple[float, float]]]:
            return {
                arm: [
                    (level.sessions, y)
                    for level in self.levels
                    if level.arm == arm and level.parts and (y := value(level)) is not None
                ]
                for arm in arms
            }

        panels = {
            "Voice to voice, p95, s": curves(lambda level: level.voice_to_voice_s.p95),
            "CPU, ms a second a session": curves(lambda level: level.cpu_ms_per_s),
        }
        return lines_plot({title: c for title, c in panels.items() if any(c.values())}, "sessions")

    def _steps(self) -> list[int]:
        return sorted({level.sessions for level in self.levels if level.parts})

    def _pairs(self, sessions: int) -> Iterator[tuple[Level, Level]]:
        """Each arm beside the one before, at a number of sessions."""
        return pairwise(
            level for level in self.levels if level.sessions == sessions and level.parts
        )


_WAIT_HEAD = (
    "arm|sessions|answered|v2v p50, s|p95|frame pacing error p50, ms|p95|max|broken"
).split("|")
_COST_HEAD = (
    "arm|sessions|CPU, ms a second|to open, CPU ms|timer late p50, ms|p95|max|RSS, MB"
).split("|")
_PAIR_HEAD = "arm|against|sessions|v2v p50, s|v2v, paired (95 %)|CPU a session".split("|")


def _who(level: Level) -> list[str]:
    return [level.arm, str(level.sessions)]


def _all(spread: Spread) -> tuple[float | None, ...]:
    return spread.p50, spread.p95, spread.max


def _told_pair(first: Level, second: Level, seed: int) -> list[str]:
    a, b = first.voice_to_voice_s.p50, second.voice_to_voice_s.p50
    difference = "-" if a is None or b is None else f"{a - b:+.2f}"
    waits = {
        name: [
            (b, a)
            for a, b in zip(first.waits_s[name], second.waits_s[name], strict=False)
            if a is not None and b is not None
        ]
        for name in first.waits_s.keys() & second.waits_s.keys()
    }
    paired = paired_ratio(dict(sorted(waits.items())), seed)
    ratio = f"x {paired.value:.2f} ({paired.low:.2f}-{paired.high:.2f})" if paired else "-"
    cost = f"x {first.cpu_ms_per_s / second.cpu_ms_per_s:.2f}" if second.cpu_ms_per_s else "-"
    return [first.arm, second.arm, str(first.sessions), difference, ratio, cost]


def _told(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 2) if values else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
