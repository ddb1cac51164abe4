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
            help="Refuse code that the file names: import no class but those of installed stages "
            "and of modules that have been reviewed.",
        ),
    ] = False,
) -> None:
    """Check pipeline files without loading a model.

    Says what is wrong as FILE:LINE:COL: message on standard error and exits with 2.

    What --no-code would refuse is listed before it is imported. The keys that the stages need
    must be set, as for a run.

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
    from headstart.config.registry import is_reviewed

    try:
        document = Document.read(file)
        modules = document.modules()
        foreign = [module for module in modules if not is_reviewed(module)]
        if foreign and allow_code:
            typer.echo(f"{file}: runs code of {', '.join(map(_shown, foreign))}")
        spec = document.check(allow_code=allow_code, environment=True)
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
