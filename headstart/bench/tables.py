"""Tables of a report, on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

Rows = list[list[str]]
Titled = tuple[str, Sequence[str], Rows]
"""Title, head and rows; the first column names, the others are figures."""


def print_tables(tables: Iterable[Titled], console: Console) -> None:
    """Print tables, one below the other."""
    for title, head, rows in tables:
        table = Table(*head, title=title, title_justify="left", box=None, pad_edge=False)
        table.columns[0].min_width = max((len(row[0]) for row in rows), default=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()


def markdown_tables(tables: Iterable[Titled]) -> list[str]:
    """The lines of tables as Markdown, each below its title."""
    lines = []
    for title, head, rows in tables:
        cells = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
        lines += ["", f"## {title}", "", *(f"| {' | '.join(row)} |" for row in cells)]
    return lines


def markdown_origin(
    machine: Mapping[str, str | int | float], versions: Mapping[str, str]
) -> list[str]:
    """The lines of Markdown that say on what it was measured."""
    return [
        f"Machine: {', '.join(f'{key} {value}' for key, value in machine.items())}.  ",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
    ]
