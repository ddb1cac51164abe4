"""`headstart stages`, `new` and `schema`: what can stand in a pipeline file."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headstart.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from headstart.config.describe import SettingField
    from headstart.config.registry import Reference

new_app = typer.Typer(help="Begin something of your own.", no_args_is_help=True)


def stages(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A stage (stt, stt.whisper), package.module:Class or ./file.py:Class.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the stages, or the settings of one.

    Examples:
        headstart stages

        headstart stages stt.whisper

        headstart stages pipecat.processors.filters.wake_check_filter:WakeCheckFilter
    """
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    if name is None:
        console.print(_catalogue_table())
        console.print("headstart stages NAME prints the settings of one.")
        return
    _print_stage(name, console)


def schema() -> None:
    """Print the JSON Schema of pipeline files, for editors.

    Example:
        headstart schema > headstart.schema.json

    and as the first line of a pipeline file:

        # yaml-language-server: $schema=headstart.schema.json
    """
    from headstart.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@new_app.command("stage")
def new_stage(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The Python file to write, such as shout.py.")
    ],
) -> None:
    """Write a working processor with typed settings, and its test beside it.

    Example:
        headstart new stage shout.py
    """
    from headstart.cli.template import stage_source, test_source

    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UsageError(f"{file.name} should be a Python module's name, such as my_stage.py")
    test = file.with_name(f"test_{file.name}")
    for path in (file, test):
        if path.exists():
            raise UsageError(f"{path} is already there; nothing was written")
    class_name = "".join(part.capitalize() for part in file.stem.split("_")) or "Stage"
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, source in ((file, stage_source(class_name)), (test, test_source(file, class_name))):
        path.write_text(source, encoding="utf-8")
    typer.echo(
        f"wrote {file} and {test}\n"
        f"test it:              pytest {test}\n"
        f"use it in a pipeline: - ./{file.name}:{class_name}: {{words_max: 20}}\n"
        "which goes into the `stages` of a YAML file in the same folder, after `llm`"
    )


def _catalogue_table() -> Table:
    from rich.table import Table

    from headstart.config import registry

    table = Table(box=None, pad_edge=False)
    table.add_column("STAGE", no_wrap=True)
    table.add_column("WHAT IT DOES")
    for name, target in registry.catalogue().items():
        kind, _, provider = name.partition(".")
        default = " (default)" if provider and provider == registry.default_provider(kind) else ""
        try:
            summary = registry.StageType(name, registry.import_processor(target)).summary
        except UsageError as error:
            summary = f"cannot be used: {error}"
        table.add_row(name + default, summary)
    return table


def _print_stage(name: str, console: Console) -> None:
    from headstart.config import registry
    from headstart.config.describe import setting_fields

    reference = registry.resolve(name, None, Path.cwd())
    kind = registry.StageType(name, registry.import_processor(reference.target))
    fields = setting_fields(kind.cls)
    typer.echo(f"{reference.name}: {kind.summary}\n{reference.target}")
    offered = registry.providers(reference.kind) if reference.kind else []
    if len(offered) > 1:
        typer.echo(f"providers of {reference.kind}: {', '.join(offered)}")
    typer.echo("\nsettings:" if fields else "\nno settings")
    for field in fields:
        typer.echo(_setting(field, console.width))
    typer.echo(f"\nin a pipeline:\n{example(reference, fields)}")


def _setting(field: SettingField, width: int) -> str:
    default = " (required)" if field.required else f" = {field.default}" if field.default else ""
    limits = [part for part in (field.type, field.bounds, f"in {field.unit}") if part != "in "]
    head = f"  {field.name}{default}  [{', '.join(part for part in limits if part)}]"
    meaning = textwrap.wrap(field.description, max(width - 6, 40), break_on_hyphens=False)
    return "\n".join([head, *(f"      {line}" for line in meaning)])


def example(reference: Reference, fields: list[SettingField]) -> str:
    """The stage as it would stand in a pipeline file: what it needs and its first setting."""
    top = [field for field in fields if "." not in field.name]
    shown = [field for field in top if field.required]
    shown += [field for field in top if field.default not in ("", "null") and field not in shown][
        :1
    ]
    settings = [f"{field.name}: {'...' if field.required else field.default}" for field in shown]
    if reference.kind is None:
        name = reference.name
    else:
        name, provider = reference.name.split(".", 1)
        settings.insert(0, f"provider: {provider}")
    return f"  - {name}: {{{', '.join(settings)}}}" if settings else f"  - {name}"
