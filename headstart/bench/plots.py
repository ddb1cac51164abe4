"""Draws a benchmark's pictures as SVG text: in the page, and as files that GitHub shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise

from headstart.bench.conversation.results import ArmSummary, Results, Run, kinds_of

_INK, _DIM, _LINE = "#24292f", "#6e7781", "#d8dee4"
_HUES = ("#0969da", "#1a7f37", "#bc4c00", "#8250df", "#bf3989", "#9a6700", "#57606a")
_AHEAD, _WAIT, _SPEECH, _BOT = "#2da44e", "#d4a72c", "#8c959f", "#0969da"
_STAGE_HUES = {
    "vad": "#8c959f",
    "transcript": "#54aeff",
    "turn": "#0969da",
    "llm": "#2da44e",
    "clause": "#8ddb8c",
    "tts": "#d4a72c",
    "out": "#bc4c00",
}
_WIDTH, _RIGHT = 860, 130
_TICKS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def kind_hues(runs: Sequence[Run]) -> dict[str, str]:
    """A colour for each kind of utterance."""
    return {kind: _HUES[at % len(_HUES)] for at, kind in enumerate(kinds_of(runs))}


def distribution(results: Results) -> str:
    """Every wait of every arm as a dot, with the median and the 95th percentile."""
    waits = [run.voice_to_voice_s for run in results.runs if run.usable]
    last = max([w for w in waits if w is not None], default=1.0) * 1.03
    scale = _Scale(0.0, last, _room_for(results.arms))
    hues = kind_hues(results.runs)
    parts, y, row = [_title(scale, "Voice to voice, seconds: lower is better")], 52, 58
    bottom = y + row * len(results.arms)
    parts += _axis(scale, y - 8, bottom)
    for name, arm in results.arms.items():
        middle = y + row / 2 - 4
        parts += _arm(scale, middle + 5, name, arm)
        dots = [run for run in results.runs if run.arm == name and run.usable]
        for at, run in enumerate(dots):
            assert run.voice_to_voice_s is not None
            # A fixed pattern keeps dots apart, and pictures of the same figures the same.
            shift = (at * 7 % 11 - 5) * 2.6
            parts.append(
                f'<circle cx="{scale(run.voice_to_voice_s):.1f}" cy="{middle + shift:.1f}" r="4" '
                f'fill="{hues[run.kind]}" fill-opacity=".65"><title>{escape(run.utterance)} '
                f"{run.voice_to_voice_s:.3f} s</title></circle>"
            )
        spread = arm.voice_to_voice_s
        for value, height, ink in ((spread.p50, 22, _INK), (spread.p95, 16, _DIM)):
            if value is not None:
                x = scale(value)
                parts.append(_line(x, middle - height, x, middle + height, ink, 2.5))
        label = "-" if spread.p50 is None else f"{spread.p50:.2f} / {spread.p95:.2f} s"
        failed = f"{spread.failed} of {spread.n + spread.failed} failed" if spread.failed else ""
        x = _WIDTH - _RIGHT + 14
        parts.append(_text(x, middle + (0 if failed else 5), label, size=13, weight=600))
        parts.append(_text(x, middle + 17, failed, ink="#cf222e", size=12))
        y += row
    parts += _legend(scale, hues, bottom + 44, "p50 and p95 are the bars")
    return _svg(bottom + 58, parts)


def stages(results: Results) -> str:
    """What the mean wait of every arm is made of."""
    totals = [sum(arm.stages_mean_s.values()) for arm in results.arms.values()]
    scale = _Scale(0.0, max([*totals, 0.1]) * 1.03, _room_for(results.arms))
    title = "Where the mean wait goes, seconds after the user's last sound"
    parts, y, row = [_title(scale, title)], 52, 46
    bottom = y + row * len(results.arms)
    parts += _axis(scale, y - 8, bottom)
    for (name, arm), total in zip(results.arms.items(), totals, strict=True):
        parts += _arm(scale, y + 19, name, arm)
        reached = 0.0
        for stage, wait in arm.stages_mean_s.items():
            x = scale(reached)
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{scale(reached + wait) - x:.1f}" height="28" '
                f'fill="{_STAGE_HUES[stage]}"><title>{stage} {wait:.3f} s</title></rect>'
            )
            reached += wait
        parts.append(_text(_WIDTH - _RIGHT + 14, y + 19, f"{total:.2f} s", size=13, weight=600))
        y += row
    parts += _legend(scale, _STAGE_HUES, bottom + 44, "")
    return _svg(bottom + 58, parts)


def waterfall(runs: Sequence[Run]) -> str:
    """Runs of one utterance below each other, aligned on the end of the user's voice."""
    lasts = [at - run.true_end_s for run in runs for at in run.moments_s.values() if at is not None]
    firsts = [(run.moments_s.get("speech_start_s") or 0.0) - run.true_end_s for run in runs]
    room = 56 + _room_for({run.arm for run in runs}, size=13)
    scale = _Scale(max(min(firsts, default=-1), -6.0), max([*lasts, 0.2]) * 1.08, room)
    parts: list[str] = []
    y, lane = 14, 13
    height = 30 + len(runs) * (6 * lane + 16)
    parts += _axis(scale, 6, height - 20)
    parts.append(_line(scale(0), 6, scale(0), height - 20, _INK, 1.5))
    for run in runs:
        outcome = ", ".join(run.failures) or f"{run.voice_to_voice_s or 0:.3f} s"
        parts.append(_text(scale.left - 68, y + 10, run.arm, anchor="end", size=13, weight=600))
        ink = "#cf222e" if run.failures else _INK
        parts.append(_text(_WIDTH - _RIGHT + 14, y + 10, outcome, size=13, weight=600, ink=ink))
        for label, start, end in _lanes(run.moments_s, run.true_end_s):
            parts.append(_text(scale.left - 12, y + 10, label, anchor="end", size=10, ink=_DIM))
            parts += _bar(scale, label, start - run.true_end_s, end - run.true_end_s, y)
            y += lane
        y += 16 + lane * (6 - len(_lanes(run.moments_s, run.true_end_s)))
    return _svg(height, parts)


def _lanes(moments: Mapping[str, float | None], end_s: float) -> list[tuple[str, float, float]]:
    """(name, from, to) of what is known of a turn."""
    at = moments.get
    begun = at("fired_at_s") or at("turn_end_s")
    out = at("first_audio_out_s")
    spans = [
        ("user", at("speech_start_s"), end_s),
        ("hearing", at("first_partial_s") or at("vad_stop_s"), at("final_transcript_s")),
        ("turn", at("vad_stop_s"), at("turn_end_s")),
        ("model", begun, at("first_clause_s")),
        ("voice", at("first_clause_s"), at("first_audio_ready_s")),
        ("bot", out, None if out is None else out + 0.4),
    ]
    return [(name, a, max(a, b)) for name, a, b in spans if a is not None and b is not None]


def _bar(scale: _Scale, label: str, start: float, end: float, y: float) -> list[str]:
    """A bar; what was done before the user had finished is coloured as time gained."""
    if label in ("user", "bot"):
        pieces = [(start, end, _SPEECH if label == "user" else _BOT)]
    else:
        pieces = [(start, min(end, 0.0), _AHEAD), (max(start, 0.0), end, _WAIT)]
    return [
        f'<rect x="{scale(a):.1f}" y="{y}" width="{max(scale(b) - scale(a), 1.5):.1f}" '
        f'height="10" rx="2" fill="{hue}"><title>{label} {a:+.3f} to {b:+.3f} s</title></rect>'
        for a, b, hue in pieces
        if b >= a
    ]


def lines_plot(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x_name: str
) -> str:
    """Curves over a common axis, a panel below the other.

    Args:
        panels: By title, the points (x, y) of each curve by its name; from zero upward.
        x_name: What the axis is.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    hues = {name: _HUES[at % len(_HUES)] for at, name in enumerate(names)}
    every = [point for curves in panels.values() for curve in curves.values() for point in curve]
    across = _Scale(0.0, max([x for x, _ in every], default=1.0) * 1.05, left=80.0)
    parts: list[str] = []
    height, y = 190.0, 20.0
    for title, curves in panels.items():
        points = [point for curve in curves.values() for point in curve]
        top, bottom = y + 24, y + height
        most = max([value for _, value in points], default=1.0) * 1.1 or 1.0
        parts += [
            _text(across.left, y + 8, title, size=15, weight=600),
            *_axis(across, top, bottom),
        ]
        for step in (0.0, most / 2, most / 1.1):
            at = bottom - step / most * (bottom - top)
            parts.append(_line(across.left, at, _WIDTH - _RIGHT, at, _LINE, 1))
            parts.append(
                _text(across.left - 8, at + 4, f"{step:.3g}", anchor="end", ink=_DIM, size=11)
            )
        for name, curve in curves.items():
            drawn = [(across(x), bottom - v / most * (bottom - top)) for x, v in curve]
            parts += [_line(*a, *b, hues[name], 2) for a, b in pairwise(drawn)]
            parts += [
                f'<circle cx="{x:.1f}" cy="{v:.1f}" r="4" fill="{hues[name]}"/>' for x, v in drawn
            ]
        y += height + 40
    parts += _legend(across, hues, y + 6, x_name)
    return _svg(y + 20, parts)


class _Scale:
    """Maps seconds to the picture's width, beside the names on its left."""

    def __init__(self, first: float, last: float, left: float) -> None:
        self.first, self.last, self.left = first, max(last, first + 0.1), left

    def __call__(self, at: float) -> float:
        share = (min(max(at, self.first), self.last) - self.first) / (self.last - self.first)
        return self.left + share * (_WIDTH - self.left - _RIGHT)

    def ticks(self) -> list[float]:
        span = self.last - self.first
        step = next((s for s in _TICKS_S if span / s <= 9), _TICKS_S[-1])
        return [n * step for n in range(-int(-self.first / step), int(self.last / step) + 1)]


def _axis(scale: _Scale, top: float, bottom: float) -> list[str]:
    parts = []
    for tick in scale.ticks():
        x = scale(tick)
        parts.append(_line(x, top, x, bottom, _LINE, 1))
        parts.append(_text(x, bottom + 16, f"{tick:g}", anchor="middle", ink=_DIM, size=11))
    return parts


def _room_for(names: Iterable[str], size: int = 15) -> float:
    """How wide the widest name is, in the bold of the pictures, with a margin."""
    return max(80.0, 24 + 0.6 * size * max(map(len, names), default=0))


def _arm(scale: _Scale, y: float, name: str, arm: ArmSummary) -> list[str]:
    x = scale.left - 12
    parts = [_text(x, y, name, anchor="end", size=15, weight=600)]
    if arm.simulated:
        parts.append(_text(x, y + 16, "simulated", anchor="end", ink=_DIM, size=11))
    return parts


def _legend(scale: _Scale, hues: Mapping[str, str], y: float, note: str) -> list[str]:
    parts, x = [], scale.left
    for name, hue in hues.items():
        parts.append(f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="11" height="11" fill="{hue}"/>')
        parts.append(_text(x + 16, y + 1, name, ink=_DIM))
        x += 32 + 6.4 * len(name)
    parts.append(_text(x + 6, y + 1, note, ink=_DIM))
    return parts


def _title(scale: _Scale, text: str) -> str:
    return _text(scale.left, 24, text, size=15, weight=600)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    ink: str = _INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{ink}">{escape(text)}</text>'
        if text
        else ""
    )


def _line(x1: float, y1: float, x2: float, y2: float, ink: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{ink}" '
        f'stroke-width="{width}"/>'
    )


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        f'font-family="system-ui, sans-serif" role="img">'
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
