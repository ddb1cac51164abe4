"""Tells what a benchmark of voices found: on the terminal, as Markdown, and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

from rich.console import Console

from headstart.bench.statistics import paired_ratio
from headstart.bench.tables import (
    Rows,
    Titled,
    markdown_origin,
    markdown_tables,
    print_tables,
)
from headstart.bench.voice.session import Row, VoiceResults, p50, p95
from headstart.errors import HeadstartError

_HUES = {"torch": "#0969da", "onnx": "#1a7f37", "kmodel": "#8250df", "pipecat": "#bc4c00"}
_INK, _DIM, _LINE = "#24292f", "#6e7781", "#d8dee4"


def write_voice_report(results: VoiceResults, out: Path) -> None:
    """Write tts.json, report.md and first-audible.svg.

    Raises:
        HeadstartError: The folder cannot be written.
    """
    try:
        results.save(out)
        (out / "report.md").write_text(voice_markdown(results), "utf-8")
        if results.engines():
            (out / "first-audible.svg").write_text(first_audible_plot(results), "utf-8")
    except OSError as error:
        raise HeadstartError(f"{out}: cannot be written ({error.strerror})") from None


def print_voice_summary(results: VoiceResults, console: Console) -> None:
    """Print the tables."""
    print_tables(voice_tables(results), console)


def voice_markdown(results: VoiceResults) -> str:
    """The report; its picture lies beside it."""
    lines = [
        "# Benchmark of voices",
        "",
        f"    {results.command}",
        "",
        f"{results.started_at}, {results.duration_s / 60:.0f} minutes, seed {results.seed}.  ",
        *markdown_origin(results.machine, results.versions),
        "",
        "All engines speak as services in Pipecat pipelines, on the same weights, one at a time, "
        "in random order. *First audible* is from handing over the text to the first sample "
        "beyond -40 dBFS, if audio is played as it comes; an *underrun* is a gap in that playback, "
        "*stolen* if the host gave processor time of this machine to others during that text. "
        "The *floor* is what two whole clauses differ by whose noise differs. *Memory* is that of "
        "a process for each engine, whose sessions all speak at once.",
    ]
    if results.engines():
        lines += ["", "![First audible sample](first-audible.svg)"]
    lines += markdown_tables(voice_tables(results))
    return "\n".join(lines) + "\n"


def voice_tables(results: VoiceResults) -> list[Titled]:
    """Everything that is told in figures."""
    found: list[Titled] = []
    if results.engines():
        head = ["words, engine", "first audible p50, ms", "p95", "first chunk p50, ms"]
        head += ["real-time factor p50", "underruns", "of these stolen", "gap p95, ms", "n"]
        found.append(("Speed", head, _speed(results)))
        if "pipecat" in results.engines():
            head = ["engine", "first audible, times Pipecat's (95 %)", "real-time factor"]
            found.append(("Against Pipecat's service, in pairs", head, _ratios(results)))
    if results.cancellations:
        head = ["engine", "worker free after p50, ms", "p95", "most", "n"]
        found.append(("Cancelled inside a clause", head, _cancelling(results)))
    if results.memory:
        head = ["engine", "sessions", "of them heard", "one, MB", "the others silent, MB"]
        head += ["all have spoken, MB", "most, MB"]
        found.append((f"Memory: each says “{results.memory[0].text}”", head, _memory(results)))
    judged = [row for row in _once_each(results.rows) if row.lmd_db is not None]
    if judged:
        head = ["voice", "log-mel, dB", "floor, dB", "ratio", "level p50, dB", "most", "floor"]
        head += ["seams p50, dB", "p95", "same words", "floor"]
        voices = sorted({row.voice for row in judged})
        rows = [_quality(v, [row for row in judged if row.voice == v]) for v in voices]
        for words in results.lengths() if len(results.lengths()) <= 6 else []:
            of_length = [row for row in judged if row.words == words]
            rows += [_quality(f"{words} words", of_length)] if of_length else []
        rows.append(_quality("all", judged))
        found.append(("Streamed against whole clauses (torch)", head, rows))
    return found


def _speed(results: VoiceResults) -> Rows:
    rows = []
    for words in results.lengths():
        for engine in results.engines():
            takes = [r for r in results.rows if (r.engine, r.words) == (engine, words)]
            rows.append(
                [
                    f"{words}, {engine}",
                    *_two([row.first_audible_ms for row in takes]),
                    _number(p50(row.first_chunk_ms for row in takes)),
                    _number(p50(row.rtf for row in takes), 2),
                    str(sum(bool(row.underruns) for row in takes)),
                    str(sum(bool(row.underruns and row.stolen_ms) for row in takes)),
                    _number(p95(row.gap_ms for row in takes)),
                    str(len(takes)),
                ]
            )
    return rows


def _ratios(results: VoiceResults) -> Rows:
    return [
        [engine, *(_ratio(results, engine, figure) for figure in (_first_audible, _factor))]
        for engine in results.engines()
        if engine != "pipecat"
    ]


def _first_audible(row: Row) -> float | None:
    return row.first_audible_ms


def _factor(row: Row) -> float | None:
    return row.rtf


def _ratio(results: VoiceResults, engine: str, figure: Callable[[Row], float | None]) -> str:
    """The geometric mean over clauses of the ratio of medians, with its interval."""
    pairs = {}
    for key in {(row.voice, row.text) for row in results.rows}:
        theirs, ours = (
            p50(
                figure(row)
                for row in results.rows
                if row.engine == name and (row.voice, row.text) == key
            )
            for name in ("pipecat", engine)
        )
        if theirs and ours:
            pairs[" ".join(key)] = [(theirs, ours)]
    ratio = paired_ratio(dict(sorted(pairs.items())), results.seed)
    return "-" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _cancelling(results: VoiceResults) -> Rows:
    rows = []
    for engine in dict.fromkeys(one.engine for one in results.cancellations):
        freed = [one.freed_ms for one in results.cancellations if one.engine == engine]
        rows.append([engine, *_two(freed), _number(max(freed)), str(len(freed))])
    return rows


def _memory(results: VoiceResults) -> Rows:
    return [
        [one.engine, str(one.sessions), str(one.spoke)]
        + [f"{mb:.0f}" for mb in (one.one_mb, one.silent_mb, one.spoken_mb, one.most_mb)]
        for one in results.memory
    ]


def _quality(name: str, rows: list[Row]) -> list[str]:
    distance = sum(row.lmd_db or 0 for row in rows) / len(rows)
    floor = sum(row.floor_db or 0 for row in rows) / len(rows)
    levels = [row.level_db or 0.0 for row in rows]
    floor_levels = [row.floor_level_db or 0.0 for row in rows]
    same = sum(bool(row.same_transcript) for row in rows)
    floor_same = sum(bool(row.floor_same_transcript) for row in rows)
    return [
        name,
        f"{distance:.2f}",
        f"{floor:.2f}",
        f"{distance / max(floor, 1e-9):.2f}",
        f"{p50(levels):+.2f}",
        f"{max(levels, key=abs):+.2f}",
        f"{max(floor_levels, key=abs):+.2f}",
        *_two([row.seam_db for row in rows], 1),
        f"{same} of {len(rows)}",
        str(floor_same),
    ]


def _once_each(rows: Iterable[Row]) -> list[Row]:
    """Quality is the same for every repeat."""
    return list({(row.voice, row.text): row for row in rows if row.engine == "torch"}.values())


def _two(values: list[float | None] | list[float], digits: int = 0) -> tuple[str, str]:
    """Median and 95th percentile."""
    return _number(p50(values), digits), _number(p95(values), digits)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def first_audible_plot(results: VoiceResults) -> str:
    """Every first audible sample as a dot, by engine and length, as SVG."""
    waits = [row.first_audible_ms for row in results.rows if row.first_audible_ms is not None]
    left, width, lane, y = 120, 860, 20, 48.0
    last_s = max([*waits, 500.0]) / 1000 * 1.04
    step = next(s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0) if last_s / s <= 10)

    def x(secs: float) -> float:
        return left + secs / last_s * (width - left - 90)

    parts = [_text(left, 24, "Text handed over to first audible sample, seconds", 15, _INK, 600)]
    marks: list[str] = []
    for words in results.lengths():
        marks.append(_text(left - 12, y + 14, f"{words} words", 13, _INK, 600, "end"))
        for engine in results.engines():
            dots = [
                row.first_audible_ms / 1000
                for row in results.rows
                if (row.engine, row.words) == (engine, words) and row.first_audible_ms is not None
            ]
            hue = _HUES.get(engine, _DIM)
            for at, secs in enumerate(dots):
                middle = y + 10 + (at * 7 % 11 - 5) * 1.1
                marks.append(
                    f'<circle cx="{x(secs):.1f}" cy="{middle:.1f}" r="3" fill="{hue}" '
                    f'fill-opacity=".5"/>'
                )
            middle_s = p50(dots)
            if middle_s is not None:
                marks.append(_stroke(x(middle_s), y + 1, x(middle_s), y + 19, hue, 3))
                label = f"{middle_s:.2f} {engine}"
                marks.append(_text(x(max(dots)) + 10, y + 14, label, 11, hue))
            y += lane
        y += 14
    for tick in range(int(last_s / step) + 1):
        place = x(tick * step)
        parts.append(_stroke(place, 40, place, y, _LINE, 1))
        parts.append(_text(place, y + 16, f"{tick * step:g}", 11, _DIM, anchor="middle"))
    parts += [*marks, _text(left, y + 36, "The bars are the medians.", 11, _DIM)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 48:.0f}" '
        f'font-family="system-ui, sans-serif" role="img">'
        f'<rect width="{width}" height="{y + 48:.0f}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _text(
    x: float, y: float, text: str, size: int, ink: str, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{ink}">{escape(text)}</text>'
    )


def _stroke(x1: float, y1: float, x2: float, y2: float, ink: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{ink}" '
        f'stroke-width="{width}"/>'
    )
