"""Tells a benchmark's results: on the terminal, and as report.md, report.html and pictures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from headstart.bench import plots, raster
from headstart.bench.conversation import page
from headstart.bench.conversation.measure import STAGES
from headstart.bench.conversation.results import (
    ArmSummary,
    Comparison,
    Recognition,
    Results,
    Spread,
)
from headstart.bench.tables import Titled, markdown_origin, markdown_tables, print_tables
from headstart.errors import HeadstartError

FAILURES = {
    "early": "the bot spoke before the user had finished",
    "twice": "two answers were heard",
    "half": "the answer was to half the words",
    "none": "no answer was heard",
    "crashed": "the conversation broke off",
}
"""What a failure means."""


def write_reports(results: Results, out: Path) -> None:
    """Write results.json, report.md, report.html and the two pictures as SVG and PNG.

    Raises:
        HeadstartError: The folder cannot be written.
    """
    try:
        results.save(out)
        (out / "report.md").write_text(markdown(results), "utf-8")
        (out / "report.html").write_text(page.html(results, out), "utf-8")
        for name, draw in (("voice-to-voice", plots.distribution), ("stages", plots.stages)):
            picture = draw(results)
            (out / f"{name}.svg").write_text(picture, "utf-8")
            (out / f"{name}.png").write_bytes(raster.png(picture))
    except OSError as error:
        raise HeadstartError(f"{out}: cannot be written ({error.strerror})") from None


def print_summary(results: Results, console: Console) -> None:
    """Print the figures that matter most."""
    print_tables(tables(results), console)


def markdown(results: Results) -> str:
    """The report as Markdown; its pictures lie beside it."""
    lines = [
        "# Benchmark",
        "",
        f"    {results.command}",
        "",
        f"{results.started_at}, {len(results.runs)} runs in {results.duration_s / 60:.0f} minutes, "
        f"seed {results.seed}. {'' if results.complete else '**Broken off early.** '}",
        *markdown_origin(results.machine, results.versions),
        "",
        "![Voice to voice](voice-to-voice.svg)",
        "![Stages](stages.svg)",
        "",
        "Measured on the waveform, from the true end of the user's voice to the first audible "
        "sample of the bot. Runs that failed are counted and are in no other figure.",
    ]
    lines += markdown_tables(tables(results))
    lines += ["", *(f"- *{name}*: {meaning}" for name, meaning in FAILURES.items()), ""]
    return "\n".join(lines)


def tables(results: Results) -> list[Titled]:
    """Everything that is told in figures."""
    arms = results.arms
    kinds = list(next(iter(arms.values())).kinds)
    found: list[Titled] = [
        (
            "Voice to voice, s",
            ["arm", "p50", "p95", "n", "failed", *(f"{kind} p50" for kind in kinds)],
            [
                [
                    name,
                    *_spread(arm.voice_to_voice_s),
                    *(
                        _seconds(arm.kinds[kind].p50) if kind in arm.kinds else "-"
                        for kind in kinds
                    ),
                ]
                for name, arm in arms.items()
            ],
        ),
        ("Compared in pairs", _PAIR_HEAD, [_pair(one) for one in results.comparisons]),
        (
            "Where the wait goes, s (p50, and the sum of the means)",
            ["arm", *STAGES, "sum", "residual"],
            [
                [
                    name,
                    *(_seconds(arm.stages_s[stage].p50) for stage in STAGES),
                    _seconds(sum(arm.stages_mean_s.values())),
                    _seconds(arm.residual_s.p50),
                ]
                for name, arm in arms.items()
            ],
        ),
        (
            "Failures",
            ["arm", *FAILURES],
            [[name, *(str(arm.failures[key]) for key in FAILURES)] for name, arm in arms.items()],
        ),
        ("Cost", _COST_HEAD, [_cost(name, arm) for name, arm in arms.items()]),
    ]
    simulated = [[name, one] for name, arm in arms.items() for one in arm.simulated]
    if simulated:
        found.insert(1, ("Simulated: delays are drawn, not real", ["arm", "service"], simulated))
    heard = [(name, arm.recognition) for name, arm in arms.items() if arm.recognition]
    if any(one.final_after_ms.n for _, one in heard):
        rows = [_recognition(name, one) for name, one in heard]
        found.append(("Recognition, ms, of each stretch of speech", _RECOGNITION_HEAD, rows))
    if any(arm.speculation.fired for arm in arms.values()):
        rows = [_speculation(name, arm) for name, arm in arms.items() if arm.speculation.fired]
        found.append(("Speculation", _SPECULATION_HEAD, rows))
        rows = [_released(name, arm) for name, arm in arms.items() if arm.speculation.fired]
        found.append(("Answers ready when the turn ended, ms from there", _RELEASED_HEAD, rows))
    return found


_PAIR_HEAD = ["arm", "against", "of", "pairs", "failed", "ratio (95 %)", "difference, s (95 %)"]
_COST_HEAD = ["arm", "WER", "CPU s a turn", "CPU share", "peak RSS, MB"]
_SPECULATION_HEAD = (
    "arm|fired|committed|precision|recall|lead, ms|saved, ms|wasted tokens a turn|wasted audio, s"
).split("|")

_RELEASED_HEAD = "arm|answers|of answered turns|leaves p50|p95|max|audible p50|p95|max".split("|")
_RECOGNITION_HEAD = (
    "arm|stretches|VAD stop to final p50|p95|partials apart at most p50|p95|max|opened in p50|paths"
).split("|")


def _pair(one: Comparison) -> list[str]:
    ratio, difference = "-", "-"
    if one.ratio is not None and one.difference_s is not None:
        ratio = f"{one.ratio.value:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
        d = one.difference_s
        difference = f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})"
    kind = one.kind or "all"
    return [one.arm, one.against, kind, str(one.n), str(one.failed), ratio, difference]


def _cost(name: str, arm: ArmSummary) -> list[str]:
    return [
        name,
        _percent(arm.word_error_rate),
        _seconds(arm.cpu_s_per_turn),
        _percent(arm.cpu_share),
        _whole(arm.peak_rss_mb),
    ]


def _speculation(name: str, arm: ArmSummary) -> list[str]:
    s = arm.speculation
    return [
        name,
        str(s.fired),
        str(s.committed),
        _percent(s.precision),
        _percent(s.recall),
        _whole(s.lead_ms_p50),
        _whole(s.saved_ms_p50),
        f"{s.wasted_input_tokens_per_turn:.1f} in, {s.wasted_output_tokens_per_turn:.1f} out",
        f"{s.wasted_audio_s_per_turn:.2f}",
    ]


def _released(name: str, arm: ArmSummary) -> list[str]:
    s = arm.speculation
    return [
        name,
        str(s.released),
        _percent(s.released_share),
        *_distribution(s.left_ms, s.left_ms_max),
        *_distribution(s.release_ms, s.release_ms_max),
    ]


def _distribution(spread: Spread | None, most: float | None) -> list[str]:
    figures = (spread.p50, spread.p95, most) if spread else (None, None, most)
    return [_whole(figure) for figure in figures]


def _recognition(name: str, one: Recognition) -> list[str]:
    gaps = one.partial_gap_ms
    figures = (one.final_after_ms.p50, one.final_after_ms.p95, gaps.p50, gaps.p95)
    return [
        name,
        str(one.final_after_ms.n),
        *(_whole(figure) for figure in (*figures, one.partial_gap_ms_max, one.setup_ms.p50)),
        ", ".join(f"{path} {count}" for path, count in sorted(one.paths.items())) or "-",
    ]


def _spread(spread: Spread) -> list[str]:
    return [_seconds(spread.p50), _seconds(spread.p95), str(spread.n), str(spread.failed)]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) >= 0.005 else "0.00"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
