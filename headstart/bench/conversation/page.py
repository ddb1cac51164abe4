"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import soundfile
import soxr

from headstart.bench import plots
from headstart.bench.conversation.results import Results, Run
from headstart.bench.tables import Rows

_AUDIO_BYTES = 6_000_000
"""No more sound than this goes into the page; the rest is where the runs are kept."""
_AUDIO_RATE = 16000

_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 900px; margin: 2rem auto;
  padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right }
th:first-child, td:first-child { text-align: left; white-space: nowrap }
th.text, td.text { text-align: left }
svg { width: 100%; height: auto }
pre { background: #f6f8fa; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
details { border-bottom: 1px solid #d8dee4; padding: .4rem 0 } summary { cursor: pointer }
.dim { color: #6e7781 } .bad { color: #cf222e; font-weight: 600 }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em }
audio { height: 2rem; width: 16rem }
"""


def html(results: Results, folder: Path) -> str:
    """The page.

    Args:
        results: What to tell.
        folder: Where the runs were kept; misses whose sound is not there are silent.
    """
    from headstart.bench.conversation.report import FAILURES, tables

    parts = [
        "<h1>Headstart benchmark</h1>",
        f"<pre>{escape(results.command)}</pre>",
        f'<p class="dim">{_about(results)}</p>',
        plots.distribution(results),
        plots.stages(results),
    ]
    for title, head, rows in tables(results):
        parts.append(f"<h2>{escape(title)}</h2>{_table(head, rows)}")
    parts.append(
        '<h2>Turn by turn</h2><p>Zero is the end of the user\'s voice. <span class="key" '
        'style="background:#2da44e"></span>work done before it, <span class="key" '
        'style="background:#d4a72c"></span>work the user waited for, <span class="key" '
        'style="background:#0969da"></span>the answer.</p>'
    )
    names = dict.fromkeys(run.utterance for run in results.runs)
    for at, name in enumerate(sorted(names)):
        runs = [run for run in results.runs if run.utterance == name and run.moments_s]
        runs.sort(key=lambda run: (list(results.arms).index(run.arm), run.repeat))
        opened = " open" if at < 3 else ""
        parts.append(f"<details{opened}><summary>{escape(name)}</summary>")
        parts.append(plots.waterfall(runs) + "</details>")
    meanings = "".join(f"<li><b>{key}</b>: {text}</li>" for key, text in FAILURES.items())
    parts.append(f"<h2>Misses</h2><ul>{meanings}</ul>{_misses(results, folder)}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Headstart benchmark</title><style>{_STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _about(results: Results) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in results.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    early = "" if results.complete else " <span class=bad>Broken off early.</span>"
    return (
        f"{escape(results.started_at)}, {len(results.runs)} runs, seed {results.seed}.{early}<br>"
        f"{escape(machine)}<br>{escape(versions)}"
    )


def _table(head: Sequence[str], rows: Rows) -> str:
    columns = zip(*rows, strict=True)
    kinds = [" class=text" if any(c[:1].isalpha() for c in cells) else "" for cells in columns]

    def line(cells: Sequence[str], tag: str) -> str:
        pairs = zip(kinds or [""] * len(cells), cells, strict=True)
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in pairs)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _misses(results: Results, folder: Path) -> str:
    failed = [run for run in results.runs if run.failures]
    if not failed:
        return "<p>None.</p>"
    left, rows = _AUDIO_BYTES, []
    for run in failed:
        sound = _sound(folder / run.folder / "conversation.wav") if left > 0 else None
        left -= len(sound or "")
        player = f'<audio controls preload="none" src="{sound}"></audio>' if sound else ""
        rows.append(_miss(run, player or f'<span class="dim">{escape(run.folder)}</span>'))
    names = ("arm", "utterance", "what", "heard, said", "")
    head = "".join(f"<th class=text>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _miss(run: Run, player: str) -> str:
    said = f"{escape(run.user_text)}<br><i>{escape(run.bot_text)}</i>"
    error = f'<br><span class="dim">{escape(run.error)}</span>' if run.error else ""
    return (
        f'<tr><td>{escape(run.arm)}</td><td class="text">{escape(run.utterance)}</td>'
        f'<td class="text bad">{", ".join(run.failures)}</td>'
        f'<td class="text">{said}{error}</td><td>{player}</td></tr>'
    )


def _sound(path: Path) -> str | None:
    """A recording as a `data:` address: MP3, which is a tenth of it."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError):
        return None
    buffer = io.BytesIO()
    smaller = np.asarray(soxr.resample(samples, rate, _AUDIO_RATE))
    soundfile.write(buffer, smaller, _AUDIO_RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
