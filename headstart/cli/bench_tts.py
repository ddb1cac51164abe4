"""`headstart bench tts`: measure the voice against Pipecat's own, and against itself."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headstart.cli.loop import run_to_end
from headstart.cli.out import try_out
from headstart.errors import UsageError

_ENGINES = ("torch", "onnx", "kmodel", "pipecat")
_PARTS = ("speed", "quality", "cancelling", "memory")


def bench_tts(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where tts.json, report.md and the picture go.")
    ],
    texts: Annotated[
        str,
        typer.Option(
            metavar="FILE|N", help="A file with one text a line, or how many of the 100 that ship."
        ),
    ] = "12",
    voices: Annotated[
        str, typer.Option(metavar="NAMES|N", help="English voices: a,b or how many.")
    ] = "2",
    each: Annotated[
        int | None,
        typer.Option(min=1, help="How many of the voices speak each text, in turn; else all do."),
    ] = None,
    engines: Annotated[str, typer.Option(metavar="NAMES", help="Which engines.")] = ",".join(
        _ENGINES
    ),
    only: Annotated[
        str, typer.Option(metavar="PARTS", help="Which parts of the measurement.")
    ] = ",".join(_PARTS),
    repeat: Annotated[int, typer.Option(min=1, help="How often each text is timed.")] = 1,
    sessions: Annotated[
        int, typer.Option(min=1, help="How many speak at once, to measure memory.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of the order, the noise and the intervals.")] = 0,
) -> None:
    """Measure how soon, how fast and how truly the voice speaks.

    Each engine speaks as a service in a Pipecat pipeline, on the same weights; `kmodel` is the
    network of Kokoro's authors, `pipecat` Pipecat's own KokoroTTSService. Quality compares
    torch's streamed clauses with whole ones. Memory is that of a process in which many
    sessions speak at once.

    [bold]Examples[/bold]

      headstart bench tts --out out/voice

      headstart bench tts --only quality --texts 100 --voices 10 --each 2 --out out/quality

      headstart bench tts --only memory --sessions 100 --engines torch,onnx --out out/memory
    """
    from headstart import assets
    from headstart.bench.voice.report import print_voice_summary, write_voice_report
    from headstart.bench.voice.run import VoicePlan, VoiceRun
    from headstart.bench.voice.session import chosen_texts, chosen_voices
    from headstart.cli.models import pull_with_progress
    from headstart.engines.kokoro.engine import MODEL, VOICES
    from headstart.engines.kokoro.voices import Voices

    if (out / "tts.json").exists():
        raise UsageError(f"{out}: holds results already; give another --out")
    parts = _among("--only", only, _PARTS)
    names = _among("--engines", engines, _ENGINES)
    said = chosen_texts(texts)
    try_out(out, "tts.json", "report.md", "first-audible.svg")
    needed = [MODEL, VOICES, *(["whisper-tiny"] if "quality" in parts else [])]
    missing = [name for name in needed if assets.find(name) is None]
    if missing:
        pull_with_progress(missing)
    known = Voices(assets.path(VOICES))
    speakers = chosen_voices(voices, known.names)
    for name in speakers:
        known.check(name)
    command = "headstart " + shlex.join(sys.argv[1:])
    plan = VoicePlan(said, speakers, names, parts, each, repeat, sessions, seed, command)

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bars:
        bar = bars.add_task("starting", total=plan.steps())

        def on_step(what: str) -> None:
            bars.update(bar, advance=0 if what else 1, description=what or "measuring")

        run = VoiceRun(plan, on_step)
        try:
            run_to_end(run.run())
        finally:
            if run.results.rows or run.results.cancellations or run.results.memory:
                write_voice_report(run.results, out)
    print_voice_summary(run.results, Console())
    typer.echo(f"wrote {out}/tts.json and report.md")


def _among(option: str, wanted: str, known: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in wanted.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name}: should be of {', '.join(known)}")
    return names
