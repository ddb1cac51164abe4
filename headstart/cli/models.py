"""`headstart models`: which weights there are, fetching them, verifying them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from headstart import assets
from headstart.errors import AssetError

app = typer.Typer(
    help="Weights of models: list, fetch and verify them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_CONFIG = "local"


@app.command("list")
def list_models(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="Only what this pipeline needs."),
    ] = None,
) -> None:
    """Show which weights there are and where they lie."""
    names = list(assets.ASSETS) if config is None else _asset_names([config])
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "what for", "licence"):
        table.add_column(heading)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("state")
    for name in names:
        asset = assets.known(name)
        table.add_row(name, asset.purpose, asset.licence, _size(asset.size), _state(asset))
    console = Console()
    console.print(table)
    console.print(f"\nThe cache is {assets.cache().root}", soft_wrap=True, highlight=False)


@app.command("pull")
def pull(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|CONFIG]...",
            help=f"Weights, or pipelines that need them; `{DEFAULT_CONFIG}` if not given.",
        ),
    ] = None,
) -> None:
    """Fetch weights that are not here, with their digests checked.

    An interrupted download goes on where it stopped.
    """
    names = _asset_names(what or [DEFAULT_CONFIG])
    pull_with_progress(names)
    for name in names:
        typer.echo(f"{name}: {assets.path(name)}")


@app.command("verify")
def verify(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|CONFIG]...", help="Weights or pipelines; all that is here if not given."
        ),
    ] = None,
) -> None:
    """Read weights byte for byte and compare them with their digests; exits 1 if any differ."""
    cache = assets.cache()
    names = _asset_names(what or list(assets.ASSETS))
    broken = []
    for name in names:
        asset = assets.known(name)
        location = cache.locate(asset)
        if location is None:
            typer.echo(f"{name}: missing")
            if what:
                broken.append(name)
        elif damaged := cache.damaged(asset):
            files = ", ".join(file.name for file in damaged)
            if location.origin == asset.variable:
                typer.echo(f"{name}: other files than the known ones, as {asset.variable} asks for")
            else:
                typer.echo(f"{name}: damaged: {files} in {location.path}")
                broken.append(name)
        else:
            typer.echo(f"{name}: intact")
    if broken:
        raise AssetError(f"fetch them again with: headstart models pull {' '.join(broken)}")


def pull_with_progress(names: Sequence[str]) -> None:
    """Fetch assets, with a progress bar for each on standard error.

    Raises:
        UsageError: There is no asset of one of these names.
        AssetError: Something could not be fetched, and why from each source.
    """
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def progress(name: str, done_bytes: int, total_bytes: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total_bytes)
        bars.update(tasks[name], completed=done_bytes)

    with bars:
        assets.pull(names, progress=progress)


def _asset_names(what: Sequence[str]) -> list[str]:
    """The assets that are named, or needed by a pipeline that is; each once, in order."""
    names: dict[str, None] = {}
    for item in what:
        names.update(dict.fromkeys([item] if item in assets.ASSETS else _needed_by(item)))
    return list(names)


def _needed_by(config: str) -> list[str]:
    # Here, so that a command that names weights does not pay for loading the pipeline's modules.
    from headstart.config.load import load_config
    from headstart.pipeline.build import required_assets

    return list(required_assets(load_config(config)))


def _state(asset: assets.Asset) -> str:
    try:
        location = assets.cache().locate(asset)
    except AssetError as error:
        return str(error)
    return f"in {location.origin}" if location else "missing"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
