"""Draws a turn as a waterfall: which stage was at work when, and how they overlapped."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from headstart.pipeline.timeline.records import AttemptRecord, SegmentRecord, TurnRecord

_INDENT = 2
_LABEL = 7
_NOTE = 20
_MIN_WIDTH = 60
_MAX_WIDTH = 120
_STEPS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TICK_CELLS = 8
"""Least distance between two labels of the axis."""


@dataclass(frozen=True)
class Glyphs:
    """The characters a waterfall is drawn with."""

    working: str
    result: str
    goes_on: str
    began_earlier: str
    zero: str
    dash: str
    committed: str
    aborted: str
    superseded: str


UNICODE = Glyphs("░", "█", "▶", "◀", "│", "·", "●", "×", "○")
ASCII = Glyphs(".", "#", ">", "<", "|", "-", "@", "x", "o")


@dataclass(frozen=True)
class Line:
    """A line of the drawing."""

    text: str
    style: str = ""
    """In rich's words."""


@dataclass(frozen=True)
class _Bar:
    """A stage at work from one moment, and its results until another."""

    begun_s: float | None
    result_s: float | None
    until_s: float | None = None
    goes_on: bool = False


@dataclass(frozen=True)
class _Row:
    label: str
    style: str
    bar: _Bar
    note: str


def render(records: Iterable[TurnRecord], *, console: Console) -> None:
    """Print the waterfall of each turn.

    Plain characters where the console's encoding has no better ones, and no colour where it
    is no terminal.
    """
    encoding = console.encoding
    glyphs = UNICODE
    try:
        "".join(vars(UNICODE).values()).encode(encoding)
    except UnicodeEncodeError:
        glyphs = ASCII
    for record in records:
        for line in layout(record, width=console.width, glyphs=glyphs):
            text = line.text.encode(encoding, "replace").decode(encoding)
            console.print(Text(text, line.style), no_wrap=True, crop=False, highlight=False)


def layout(record: TurnRecord, *, width: int = 80, glyphs: Glyphs = UNICODE) -> list[Line]:
    """The lines of a turn's waterfall.

    Args:
        record: The turn.
        width: Characters a line may have; kept between 60 and 120.
        glyphs: What to draw with.
    """
    width = min(max(width, _MIN_WIDTH), _MAX_WIDTH)
    lines = [
        _title(record, width, glyphs),
        *_said("user", record.user_text, width),
        *_said("bot", record.bot_text, width),
        *(line for error in record.errors for line in _said("error", error, width, "red")),
    ]
    zero = _zero(record)
    if zero is not None:
        zero_s, zero_name = zero
        chart = _Chart(record, zero_s, width - _INDENT - _LABEL - 1 - _NOTE, glyphs)
        lines += [Line(""), chart.axis(f"from {zero_name}")]
        if record.speculation.attempts:
            lines.append(chart.attempts(record.speculation.attempts))
        lines += [chart.row(row) for row in _rows(record, zero_s)]
        lines += _attempts(record, zero_s, width, glyphs)
        lines += _heard(record.segments, width, glyphs)
    return [*lines, Line("")]


def _zero(record: TurnRecord) -> tuple[float, str] | None:
    """The end of the user's speech or what is known that comes nearest to it, and its name."""
    candidates = {
        "end of speech": record.speech_end_s,
        "VAD stop": record.vad_stop_s,
        "turn end": record.turn_end_s,
        "start of speech": record.speech_start_s,
    }
    return next(((at_s, name) for name, at_s in candidates.items() if at_s is not None), None)


def _title(record: TurnRecord, width: int, glyphs: Glyphs) -> Line:
    if record.voice_to_voice_s is not None:
        outcome = f"voice to voice {record.voice_to_voice_s * 1000:.0f} ms"
    else:
        outcome = "answered" if record.first_audio_out_s is not None else "no answer"
    if record.interrupted:
        outcome += f" {glyphs.dash} interrupted"
    return Line(f"Turn {record.turn}{outcome:>{width - len(f'Turn {record.turn}')}}", "bold")


def _said(who: str, text: str, width: int, style: str = "") -> list[Line]:
    # What models and services say may hold anything, control sequences of terminals included.
    printable = "".join(char if char.isprintable() else " " for char in text).strip() or "(nothing)"
    first = f"{' ' * _INDENT}{who:<{_LABEL}}"
    wrapped = textwrap.wrap(
        printable, width, initial_indent=first, subsequent_indent=" " * len(first)
    )
    return [Line(line, style) for line in wrapped]


def _rows(record: TurnRecord, zero_s: float) -> list[_Row]:
    """The stages in the order in which data meets them; those that did nothing are left out."""
    committed = [a.fired_at_s for a in record.speculation.attempts if a.verdict == "committed"]
    asked_s = _earliest(record.first_token_s, committed[0] if committed else record.turn_end_s)
    length = (
        ""
        if record.speech_start_s is None
        else f"{max(zero_s - record.speech_start_s, 0):.2f} s long"
    )
    rows = [
        _Row("speech", "cyan", _Bar(None, record.speech_start_s, zero_s), length),
        _Row("VAD", "blue", _Bar(zero_s, record.vad_stop_s), "stop"),
        _Row(
            "STT",
            "bright_blue",
            _Bar(
                _earliest(record.first_partial_s, record.vad_stop_s, record.final_transcript_s),
                record.final_transcript_s,
            ),
            "final text",
        ),
        _Row("turn", "magenta", _Bar(record.vad_stop_s, record.turn_end_s), "end"),
        _Row(
            "LLM",
            "yellow",
            _Bar(asked_s, record.first_token_s, record.first_clause_s),
            "first token",
        ),
        _Row("TTS", "red", _Bar(record.first_clause_s, record.first_audio_ready_s), "first audio"),
        _Row(
            "out",
            "green",
            _Bar(record.first_audio_ready_s, record.first_audio_out_s, goes_on=True),
            "audible",
        ),
    ]
    return [_with_time(row, zero_s) for row in rows if row.bar.result_s is not None]


def _with_time(row: _Row, zero_s: float) -> _Row:
    if row.label == "speech" or row.bar.result_s is None:
        return row
    after_s = row.bar.result_s - zero_s
    after = f"{after_s * 1000:+.0f} ms" if abs(after_s) < 90 else f"{after_s:+.1f} s"
    return _Row(row.label, row.style, row.bar, f"{row.note:<11}{after:>9}")


def _earliest(*moments_s: float | None) -> float | None:
    return min((moment for moment in moments_s if moment is not None), default=None)


def _attempts(record: TurnRecord, zero_s: float, width: int, glyphs: Glyphs) -> list[Line]:
    lines: list[Line] = []
    for attempt in record.speculation.attempts:
        sure = "" if attempt.confidence is None else f" {glyphs.dash} {attempt.confidence:.2f} sure"
        lines += _said(
            "early",
            f"{(attempt.fired_at_s - zero_s) * 1000:+.0f} ms {attempt.verdict}: {attempt.reason}"
            f'{sure} {glyphs.dash} "{attempt.text}"',
            width,
            "green" if attempt.verdict == "committed" else "dim",
        )
    return lines


def _heard(segments: Sequence[SegmentRecord], width: int, glyphs: Glyphs) -> list[Line]:
    """How the words of each stretch of speech were had, where the recogniser says so."""
    lines: list[Line] = []
    for segment in segments:
        told = [segment.path or ""]
        if segment.connections > 1:
            told[0] += f" on {segment.connections} connections"
        if segment.setup_ms is not None:
            told[0] += f", opened in {segment.setup_ms:.0f} ms"
        if segment.final_after_ms is not None:
            told.append(f"final text {segment.final_after_ms:.0f} ms after VAD stop")
        if segment.partial_gap_ms is not None:
            told.append(f"partials at most {segment.partial_gap_ms:.0f} ms apart")
        if segment.path is not None:
            lines += _said("heard", f" {glyphs.dash} ".join(told), width, "dim")
    return lines


class _Chart:
    """Maps moments to cells, and draws."""

    def __init__(self, record: TurnRecord, zero_s: float, cells: int, glyphs: Glyphs) -> None:
        self._zero_s, self._cells, self._glyphs = zero_s, cells, glyphs
        fired = [attempt.fired_at_s for attempt in record.speculation.attempts]
        moments = [row.bar.result_s for row in _rows(record, zero_s) if row.bar.result_s]
        last_s = max([zero_s, *moments]) - zero_s
        right_s = last_s + max(0.15 * last_s, 0.1)
        # A long utterance would squeeze what matters, the wait after it, into a few cells.
        left_s = max(min(moments, default=zero_s) - zero_s, -max(1.2, 1.5 * right_s))
        left_s = min(left_s, *(at_s - zero_s for at_s in fired), -0.1)
        self._left_s, self._span_s = left_s, right_s - left_s

    def axis(self, note: str) -> Line:
        """The labels of the time axis, in seconds."""
        step_s = next(
            (s for s in _STEPS_S if s / self._span_s * self._cells >= _TICK_CELLS), _STEPS_S[-1]
        )
        cells = [" "] * (self._cells + _TICK_CELLS)
        first = -int(-self._left_s / step_s)
        for number in range(first, int((self._left_s + self._span_s) / step_s) + 1):
            label = "0 s" if number == 0 else f"{number * step_s:+.{2 if step_s < 0.1 else 1}f}"
            at = self._cell(self._zero_s + number * step_s) - (0 if number == 0 else 2)
            if at >= 0 and at + len(label) <= self._cells:
                cells[at : at + len(label)] = label
        return self._line("", cells, note, "dim")

    def attempts(self, attempts: Sequence[AttemptRecord]) -> Line:
        """Where an answer was begun before the turn had ended, and what became of it."""
        cells = [" "] * self._cells
        cells[self._cell(self._zero_s)] = self._glyphs.zero
        marks: dict[str, str] = {
            "committed": self._glyphs.committed,
            "aborted": self._glyphs.aborted,
            "superseded": self._glyphs.superseded,
        }
        for attempt in attempts:
            cells[self._cell(attempt.fired_at_s)] = marks[attempt.verdict]
        return self._line("early", cells, f"{len(attempts)} fired", "green")

    def row(self, row: _Row) -> Line:
        """A stage's bar: at work, then with results."""
        cells = [" "] * self._cells
        cells[self._cell(self._zero_s)] = self._glyphs.zero
        bar, glyphs = row.bar, self._glyphs
        assert bar.result_s is not None
        result = self._cell(bar.result_s)
        if bar.begun_s is not None:
            begun = self._cell(bar.begun_s)
            cells[begun:result] = glyphs.working * max(result - begun, 0)
        until = self._cells if bar.goes_on else result + 1
        if bar.until_s is not None:
            until = max(self._cell(bar.until_s), until)
        cells[result:until] = glyphs.result * (until - result)
        if bar.goes_on:
            cells[-1] = glyphs.goes_on
        starts_s = bar.result_s if bar.begun_s is None else bar.begun_s
        if starts_s < self._zero_s + self._left_s:
            cells[0] = glyphs.began_earlier
        return self._line(row.label, cells, row.note, row.style)

    def _cell(self, at_s: float) -> int:
        cell = int((at_s - self._zero_s - self._left_s) / self._span_s * self._cells)
        return min(max(cell, 0), self._cells - 1)

    def _line(self, label: str, cells: Sequence[str], note: str, style: str) -> Line:
        chart = "".join(cells[: self._cells])
        return Line(f"{' ' * _INDENT}{label:<{_LABEL}}{chart} {note}".rstrip(), style)
