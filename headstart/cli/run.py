"""`headstart run`: speak WAV files into a pipeline and keep what it answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from headstart.cli.loop import run_to_end
from headstart.cli.out import try_out
from headstart.cli.repeated import repeat_option
from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.pipeline.timeline.observer import TurnRecord


class RunCommand(TyperCommand):
    """Lets one `--wav` take several files, as shells expand `--wav *.wav`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each file behind `--wav` an option of its own."""
        return super().parse_args(ctx, repeat_wav(args))


def repeat_wav(args: list[str]) -> list[str]:
    """`CONFIG --wav a b c` as `CONFIG --wav a --wav b --wav c`.

    Before CONFIG has been seen, `--wav` takes one file only, for the next word may be CONFIG.
    """
    return repeat_option(args, "--wav", behind_argument=True, valued=("--out",))


def run(
    config: Annotated[
        str, typer.Argument(help="A pipeline file, or the name of one that ships, such as local.")
    ],
    wav: Annotated[
        list[Path],
        typer.Option(
            "--wav",
            metavar="FILE...",
            help="What the user says, a file a turn: any sample rate, mono or stereo.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where to write conversation.wav (left the user, right the bot, in real time), "
            "answer.wav (the bot alone) and turns.jsonl.",
        ),
    ] = None,
) -> None:
    """Speak WAV files into a pipeline in real time, as turns of one conversation.

    Prints for every turn how its stages overlapped.

    [bold]Examples[/bold]

      headstart run local --wav question.wav --out out/

      headstart run my-agent.yaml --wav hello.wav order.wav goodbye.wav --out out/
    """
    from headstart import assets
    from headstart.cli.models import pull_with_progress
    from headstart.cli.waterfall import render
    from headstart.config.load import load_config
    from headstart.pipeline.build import required_assets
    from headstart.pipeline.converse import ANSWER, CONVERSATION, TURNS, Dialogue, converse
    from headstart.transports.wav import read_audio

    spec = load_config(config)
    utterances = [read_audio(path, spec.audio.in_sample_rate) for path in wav]
    if out is not None:
        try_out(out, CONVERSATION, ANSWER, TURNS)
    missing = [name for name in required_assets(spec) if assets.find(name) is None]
    if missing:
        pull_with_progress(missing)

    console, progress = Console(), Console(stderr=True)
    dialogue = Dialogue()
    failed = False

    def show(record: TurnRecord) -> None:
        nonlocal failed
        failed = failed or bool(record.errors)
        render([record], console=console)

    def keep() -> None:
        if out is not None and dialogue.begun:
            dialogue.save(out)
            console.print(f"wrote {out}/{CONVERSATION}, {ANSWER} and {TURNS}", soft_wrap=True)

    try:
        with progress.status("starting") as status:
            # Without a terminal there is nothing to spin on; a log wants lines.
            tell = status.update if progress.is_terminal else progress.print
            run_to_end(converse(spec, utterances, dialogue=dialogue, on_turn=show, on_stage=tell))
    except BaseException:  # whatever it was, what has been said is kept
        try:
            keep()
        except HeadstartError as unsaved:
            typer.echo(f"headstart: {unsaved}", err=True)
        raise
    for path, spoken in zip(wav, dialogue.spoken, strict=True):
        if not any(spoken.holds(record.speech_start_s) for record in dialogue.records):
            console.print(f"{path}: no speech in it, so there was nothing to answer")
    keep()
    if failed:
        raise typer.Exit(1)
