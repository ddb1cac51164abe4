"""Fills `${VAR}` and `${VAR:-default}` into text: a pure function of the text and the variables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headstart.config.secrets import Secret

MAX_FAILURES = 20
"""Failures that one text reports. Looking for what was meant takes time for each."""

_TOKEN = re.compile(
    r"\$\$"
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:[^}$]|\$(?!\{))*))?\}"
    r"|\$\{(?P<malformed>[^}\n]*\}?)"
)


@dataclass(frozen=True)
class Failure:
    """A variable that could not be filled in."""

    offset: int
    """Where its `$` is in the text."""
    token: str
    message: str


@dataclass(frozen=True)
class Expansion:
    """A text with its variables filled in."""

    text: str
    whole: bool = False
    """The text was exactly one variable, so that its value may be more than text."""
    used: bool = False
    """A variable was named, so that the text may be secret."""
    secrets: tuple[Secret, ...] = ()
    """What came from outside the text."""
    failures: tuple[Failure, ...] = ()


def expand(text: str, variables: Mapping[str, str]) -> Expansion:
    """Fill the variables into a text.

    `${VAR}` must be set; `${VAR:-default}` takes the default where VAR is unset or empty, as
    in a shell; `$$` is one dollar; a dollar before anything else stands for itself.
    """
    failures: list[Failure] = []
    secrets: dict[str, Secret] = {}

    def fail(match: re.Match[str], message: Callable[[], str]) -> str:
        if len(failures) < MAX_FAILURES:
            failures.append(Failure(match.start(), match[0], message()))
        return ""

    def fill(match: re.Match[str]) -> str:
        token, name, default = match[0], match["name"], match["default"]
        if token == "$$":
            return "$"
        if name is None:
            return fail(match, lambda: _malformed(token))
        value = variables.get(name)
        if value:
            secrets[name] = Secret(f"${{{name}}}", value)
        if default is not None:
            return value or default
        if value is None:
            return fail(match, lambda: _unset(name, variables))
        return value

    filled = _TOKEN.sub(fill, text)
    only = _TOKEN.fullmatch(text)
    whole = only is not None and only["name"] is not None
    used = any(match["name"] for match in _TOKEN.finditer(text))
    return Expansion(filled, whole, used, tuple(secrets.values()), tuple(failures))


def _malformed(token: str) -> str:
    if not token.endswith("}"):
        return "'${' is never closed; write ${NAME}, or $$ for a dollar"
    return f"'{token}' is no variable; write ${{NAME}} or ${{NAME:-default}}, or $$ for a dollar"


def _unset(name: str, variables: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, variables, n=1, cutoff=0.8)
    hint = f"; did you mean {near[0]}?" if near else f"; ${{{name}:-...}} would give it a default"
    return f"the environment variable {name} is not set{hint}"
