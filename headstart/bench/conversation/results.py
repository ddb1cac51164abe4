"""The figures of a benchmark: `results.json`, and how it is made from the runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from headstart.bench.conversation.measure import STAGES, Failure, Measured
from headstart.bench.statistics import paired_difference, paired_ratio, percentile
from headstart.errors import UsageError
from headstart.pipeline.timeline.records import SegmentRecord, SpeculationRecord

FORMAT = 1
RESULTS = "results.json"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Model):
    """One utterance spoken to one arm once."""

    arm: str
    utterance: str
    kind: str
    repeat: int
    order: int
    """Which run it was, of all."""
    failures: list[Failure]
    voice_to_voice_s: float | None = None
    true_end_s: float
    """The end of the user's voice, on the clock of conversation.wav."""
    stages_s: dict[str, float] | None = None
    residual_s: float | None = None
    moments_s: dict[str, float | None] = {}
    """When the stages of the answered turn had their results, on the clock of conversation.wav."""
    user_text: str = ""
    bot_text: str = ""
    word_errors: int = 0
    words: int = 0
    missing_share: float = 0.0
    turns: int = 0
    speculation: SpeculationRecord = SpeculationRecord()
    segments: list[SegmentRecord] = []
    cpu_s: float | None = None
    """Of the arm's process and its children, from the utterance's first sample to the end."""
    duration_s: float | None = None
    """What that took."""
    peak_rss_mb: float | None = None
    folder: str
    """Where conversation.wav and turns.jsonl are, from results.json."""
    error: str | None = None

    @property
    def usable(self) -> bool:
        """Whether its wait may be compared."""
        return not self.failures and self.voice_to_voice_s is not None

    @classmethod
    def measured(cls, measured: Measured, **others: Any) -> Run:
        """A run from what was measured in it."""
        return cls(**measured.model_dump(), **others)


class Spread(_Model):
    """How a figure is distributed over the runs that did not fail."""

    p50: float | None
    p95: float | None
    n: int
    failed: int = 0


class Speculation(_Model):
    """What answers begun early gained and cost an arm."""

    fired: int
    committed: int
    precision: float | None
    """Committed of fired."""
    recall: float | None
    """Answered turns that were answered from one."""
    lead_ms_p50: float | None
    """How long before the end of the turn the committed ones had been fired."""
    saved_ms_p50: float | None
    released: int = 0
    """Committed answers whose audio was ready when the turn ended."""
    released_share: float | None = None
    """Of the answered turns."""
    left_ms: Spread | None = None
    """From the turn's end to the first sample of theirs, audible or not, leaving."""
    left_ms_max: float | None = None
    release_ms: Spread | None = None
    """From the turn's end to their first audible sample."""
    release_ms_max: float | None = None
    wasted_input_tokens_per_turn: float
    wasted_output_tokens_per_turn: float
    wasted_audio_s_per_turn: float


class Recognition(_Model):
    """How the recogniser did on all stretches of speech, by the timeline."""

    final_after_ms: Spread
    """From VAD stop to the final text."""
    partial_gap_ms: Spread
    """The longest time without an update in each stretch."""
    partial_gap_ms_max: float | None
    setup_ms: Spread
    """How long connections took to open."""
    paths: dict[str, int]
    """How many stretches went which way."""


class ArmSummary(_Model):
    """One pipeline's figures."""

    config: str
    simulated: list[str] = []
    """The services whose delays were drawn instead of real: from what, and the seed."""
    voice_to_voice_s: Spread
    kinds: dict[str, Spread]
    """The same by kind of utterance."""
    stages_s: dict[str, Spread]
    """What each stage added to the wait."""
    stages_mean_s: dict[str, float]
    """Their means, which add up to the mean wait."""
    residual_s: Spread
    failures: dict[str, int]
    speculation: Speculation
    recognition: Recognition | None = None
    word_error_rate: float | None
    cpu_s_per_turn: float | None
    cpu_share: float | None
    """CPU seconds a second of conversation."""
    peak_rss_mb: float | None


class Interval(_Model):
    """An estimate with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(_Model):
    """One arm against another, over the utterances and repeats in which neither failed."""

    arm: str
    against: str
    kind: str | None
    """None for all of them."""
    n: int
    failed: int
    """Pairs left out, because one or both failed."""
    ratio: Interval | None
    """`arm`'s wait in multiples of that of `against`: geometric mean of the pairs."""
    difference_s: Interval | None
    """`arm`'s wait less that of `against`: mean of the pairs."""


class Results(_Model):
    """All of a benchmark."""

    format: int = FORMAT
    command: str
    started_at: str
    duration_s: float
    complete: bool
    """Whether all runs were made."""
    seed: int
    repeats: int
    versions: dict[str, str]
    machine: dict[str, str | int | float]
    arms: dict[str, ArmSummary]
    comparisons: list[Comparison]
    runs: list[Run]

    def save(self, folder: Path) -> None:
        """Write `results.json`."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (folder / RESULTS).write_text(text + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a `results.json`, or that of a folder.

        Raises:
            UsageError: There is none, or it is none.
        """
        file = path / RESULTS if path.is_dir() else path
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UsageError(
                f"{file}: no results of a benchmark ({where}: {first['msg']})"
            ) from None


def summarise(
    config: str, runs: Sequence[Run], kinds: Sequence[str], *, simulated: Sequence[str] = ()
) -> ArmSummary:
    """An arm's figures from its runs, over all utterances and by kind."""
    usable = [run for run in runs if run.usable]
    stages = [run.stages_s for run in usable if run.stages_s is not None]
    words = sum(run.words for run in runs)
    cpu = [(run.cpu_s, run.duration_s) for run in runs if run.cpu_s and run.duration_s]
    return ArmSummary(
        config=config,
        simulated=list(simulated),
        voice_to_voice_s=_waits(runs),
        kinds={kind: _waits([run for run in runs if run.kind == kind]) for kind in kinds},
        stages_s={stage: _spread([waits[stage] for waits in stages]) for stage in STAGES},
        stages_mean_s={
            stage: sum(waits[stage] for waits in stages) / max(1, len(stages)) for stage in STAGES
        },
        residual_s=_spread([run.residual_s for run in usable if run.residual_s is not None]),
        failures={
            failure.value: sum(failure in run.failures for run in runs) for failure in Failure
        },
        speculation=_speculation(runs),
        recognition=_recognition(runs),
        word_error_rate=sum(run.word_errors for run in runs) / words if words else None,
        cpu_s_per_turn=sum(used for used, _ in cpu) / len(cpu) if cpu else None,
        cpu_share=sum(used for used, _ in cpu) / sum(took for _, took in cpu) if cpu else None,
        peak_rss_mb=max((run.peak_rss_mb for run in runs if run.peak_rss_mb), default=None),
    )


def compare_arms(arms: Iterable[str], runs: Sequence[Run], seed: int) -> list[Comparison]:
    """Every arm against every one named before it, over all utterances and by kind."""
    kinds = (None, *kinds_of(runs))
    pairs = combinations(arms, 2)
    return [_compare(arm, against, kind, runs, seed) for against, arm in pairs for kind in kinds]


def _compare(
    arm: str, against: str, kind: str | None, runs: Sequence[Run], seed: int
) -> Comparison:
    by_key: dict[str, dict[tuple[str, int], Run]] = {arm: {}, against: {}}
    for run in runs:
        if run.arm in by_key and kind in (None, run.kind):
            by_key[run.arm][run.utterance, run.repeat] = run
    pairs: dict[str, list[tuple[float, float]]] = {}
    failed = 0
    for key, run in by_key[arm].items():
        other = by_key[against].get(key)
        if other is None:
            continue
        first, second = other.voice_to_voice_s, run.voice_to_voice_s
        if run.usable and other.usable and first and second:
            pairs.setdefault(run.utterance, []).append((first, second))
        else:
            failed += 1
    ratio, difference = paired_ratio(pairs, seed), paired_difference(pairs, seed)
    return Comparison(
        arm=arm,
        against=against,
        kind=kind,
        n=sum(map(len, pairs.values())),
        failed=failed,
        ratio=Interval(**asdict(ratio)) if ratio else None,
        difference_s=Interval(**asdict(difference)) if difference else None,
    )


def _speculation(runs: Sequence[Run]) -> Speculation:
    records = [run.speculation for run in runs]
    left = [r.left_ms for r in records if r.left_ms is not None]
    released = [r.release_ms for r in records if r.release_ms is not None]
    attempts = [attempt for record in records for attempt in record.attempts]
    committed = [attempt for attempt in attempts if attempt.verdict == "committed"]
    heard = [run for run in runs if run.voice_to_voice_s is not None]
    answered, early = len(heard), sum(run.moments_s.get("fired_at_s") is not None for run in heard)
    turns = max(1, len(runs))
    return Speculation(
        fired=len(attempts),
        committed=len(committed),
        precision=len(committed) / len(attempts) if attempts else None,
        recall=early / answered if answered else None,
        lead_ms_p50=percentile([a.lead_ms for a in committed if a.lead_ms is not None], 50),
        saved_ms_p50=percentile([r.saved_ms for r in records if r.saved_ms is not None], 50),
        released=len(released),
        released_share=len(released) / answered if answered else None,
        left_ms=_spread(left),
        left_ms_max=max(left, default=None),
        release_ms=_spread(released),
        release_ms_max=max(released, default=None),
        wasted_input_tokens_per_turn=sum(r.wasted_input_tokens for r in records) / turns,
        wasted_output_tokens_per_turn=sum(r.wasted_output_tokens for r in records) / turns,
        wasted_audio_s_per_turn=sum(r.wasted_audio_s for r in records) / turns,
    )


def _recognition(runs: Sequence[Run]) -> Recognition:
    segments = [segment for run in runs for segment in run.segments]
    gaps = [s.partial_gap_ms for s in segments if s.partial_gap_ms is not None]
    return Recognition(
        final_after_ms=_spread(
            [s.final_after_ms for s in segments if s.final_after_ms is not None]
        ),
        partial_gap_ms=_spread(gaps),
        partial_gap_ms_max=max(gaps, default=None),
        setup_ms=_spread([s.setup_ms for s in segments if s.setup_ms is not None]),
        paths=dict(Counter(s.path for s in segments if s.path is not None)),
    )


def _waits(runs: Sequence[Run]) -> Spread:
    usable = [run.voice_to_voice_s for run in runs if run.usable]
    return _spread([w for w in usable if w is not None], failed=len(runs) - len(usable))


def _spread(values: Sequence[float], failed: int = 0) -> Spread:
    return Spread(
        p50=percentile(values, 50), p95=percentile(values, 95), n=len(values), failed=failed
    )


def kinds_of(runs: Sequence[Run]) -> list[str]:
    """The kinds of utterances, each once, in alphabetical order."""
    return sorted({run.kind for run in runs})
