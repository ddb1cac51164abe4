"""Which commands there are."""

from __future__ import annotations

from typing import Annotated

import typer

from headstart import __version__
from headstart.cli import bench, bench_tts, check, models, run, stages, testing

app = typer.Typer(
    name="headstart",
    help="Voice agents that begin to answer at human turn-taking speed.",
    epilog="Try:  headstart run early --wav samples/speech/medium-france.wav --out out/demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", cls=run.RunCommand)(run.run)
app.command("check")(check.check)
app.add_typer(models.app, name="models")
bench.app.command("tts")(bench_tts.bench_tts)
app.add_typer(bench.app, name="bench")
app.command("stages")(stages.stages)
app.add_typer(stages.new_app, name="new")
app.command("schema")(stages.schema)
app.add_typer(testing.app, name="testing")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headstart {__version__}")
        raise typer.Exit


@app.callback()
def headstart(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Voice agents that begin to answer at human turn-taking speed."""
