"""`headstart check`: is a pipeline file right, and which code would it run?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headstart.errors import ConfigError


def check(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Pipeline files, or names of shipped pipelines."),
    ],
    no_code: Annotated[
        bool,
        typer.Option(
            "--no-code",
            help="Refuse classes outside of Headstart, Pipecat and installed stages; import none.",
        ),
    ] = False,
) -> None:
    """Check pipeline files without loading a model.

    Says what is wrong as FILE:LINE:COL: message on standard error and exits with 2.

    Modules that are neither Headstart's nor Pipecat's are listed before they are imported.

    Examples:
        headstart check local my.yaml

        headstart check --no-code from-the-internet.yaml
    """
    from loguru import logger

    # What Pipecat logs of a service whose packages are missing, the problem's line says too.
    logger.disable("pipecat")
    try:
        right = [_check(file, allow_code=not no_code) for file in files]
    finally:
        logger.enable("pipecat")
    if not all(right):
        raise typer.Exit(ConfigError.exit_code)


def _check(file: str, *, allow_code: bool) -> bool:
    from headstart.config.load import Document
    from headstart.config.registry import TRUSTED_PACKAGES

    try:
        document = Document.read(file)
        modules = document.modules()
        foreign = [m for m in modules if m.partition(".")[0] not in TRUSTED_PACKAGES]
        if foreign and allow_code:
            typer.echo(f"{file}: runs code of {', '.join(map(_shown, foreign))}")
        spec = document.check(allow_code=allow_code)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        return False
    stages = ", ".join(stage.name for stage in spec.stages)
    typer.echo(f"{file}: ok: {stages} (imports {', '.join(map(_shown, modules))})")
    return True


def _shown(module: str) -> str:
    """A module's name, or a file's path from here."""
    here = Path.cwd()
    path = Path(module)
    return str(path.relative_to(here)) if path.is_relative_to(here) else module
