"""Says what is wrong with YAML that cannot be parsed, in place of PyYAML's own words."""

from __future__ import annotations

from pathlib import Path

import yaml

from headstart.errors import Problem


def syntax_problem(path: Path, error: yaml.MarkedYAMLError) -> Problem:
    """Where a file is no YAML, and why."""
    mark, message = _explain(error)
    if mark is None:
        return Problem(path, 1, 1, message)
    return Problem(path, mark.line + 1, mark.column + 1, message)


def _explain(error: yaml.MarkedYAMLError) -> tuple[yaml.Mark | None, str]:
    problem, context = error.problem or "", error.context or ""
    for where, words, opening, message in _SYNTAX:
        if words in (problem if where == "problem" else context):
            return (error.context_mark if opening else error.problem_mark), message
    return error.problem_mark or error.context_mark, f"this is not YAML: {problem or context}"


# (where PyYAML's words stand, the words, whether the place is where the construct opened,
# what to tell the user); the first that fits.
_SYNTAX: tuple[tuple[str, str, bool, str], ...] = (
    ("problem", r"'\t' that cannot start", False, "a tab cannot indent YAML; use spaces"),
    (
        "context",
        "scanning a quoted scalar",
        True,
        "this quote is not closed, or a '\\' in it is wrong",
    ),
    (
        "context",
        "parsing a flow mapping",
        True,
        "this '{' is not closed, or a ',' is missing in it",
    ),
    (
        "context",
        "parsing a flow sequence",
        True,
        "this '[' is not closed, or a ',' is missing in it",
    ),
    ("context", "scanning a simple key", True, "this line needs a ':' after its key"),
    (
        "problem",
        "mapping values are not allowed",
        False,
        "a ':' cannot stand here; check the indentation and the line above, or quote the text",
    ),
    (
        "problem",
        "expected <block end>",
        False,
        "the indentation does not fit the lines above",
    ),
    (
        "problem",
        "sequence entries are not allowed",
        False,
        "a list cannot start here; put its '- ' on a line of its own",
    ),
    ("problem", "found '<stream end>'", False, "the file ends before a '[' or '{' is closed"),
    ("problem", "expected the node content", False, "a value is missing here"),
    ("problem", "found undefined alias", False, "this alias (*) has no anchor (&) before it"),
    ("problem", "found duplicate anchor", False, "this anchor (&) is already there"),
    (
        "problem",
        "that cannot start any token",
        False,
        "a value that begins with '@', '`' or '%' needs quotes",
    ),
    ("problem", "but found another document", False, "a file holds one pipeline; remove the '---'"),
    ("context", "scanning a tag", True, "a value that begins with '!' needs quotes"),
    ("context", "parsing a node", False, "a value that begins with '!' needs quotes"),
    ("context", "scanning an alias", True, "a value that begins with '*' needs quotes"),
    ("context", "scanning an anchor", True, "a value that begins with '&' needs quotes"),
    ("context", "scanning a block scalar", True, "a text that begins with '|' or '>' needs quotes"),
    ("context", "scanning a directive", True, "a line cannot begin with '%'"),
    (
        "problem",
        "expected '<document start>'",
        False,
        "this does not fit the lines above; does one of them lack a ':'?",
    ),
)
