"""Says what is wrong with a mapping in the words of whoever writes YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Issue:
    """One thing wrong with a mapping."""

    loc: Loc
    """The keys that lead there."""
    message: str
    at_key: bool = False
    """The key is wrong, not its value."""
    given: bool = False
    """Whether to add what was given instead."""
    missing: Loc = ()
    """The keys that lead to what is not there, if that is what is wrong."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that may have been meant."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known word is near."""
    near = closest(word, known)
    return f"; did you mean {near!r}?" if near else ""


def nearest_or_all(word: str, known: Iterable[str]) -> str:
    """What may have been meant, else what there is to choose from."""
    names = list(known)
    return nearest(word, names) or (f"; choose from {', '.join(names)}" if names else "")


_WORDS = (
    ("a valid string", "text"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a valid boolean", "true or false"),
    ("a valid list", "a list"),
    ("a valid tuple", "a list"),
    ("a valid array", "a list"),
    ("a valid dictionary", "a mapping"),
    ("an object", "a mapping"),
    ("None", "null"),
)


def issues_of(error: ValidationError, values: Any) -> list[Issue]:
    """Pydantic's findings, one a place, in the words of whoever writes YAML."""
    missing: list[Issue] = []
    wanted: dict[Loc, list[str]] = {}
    for detail in error.errors(include_url=False):
        loc = _within(detail["loc"], values)
        kind = detail["type"]
        if kind == "missing":
            missing.append(Issue(loc, f"needs {detail['loc'][-1]!r}", missing=detail["loc"]))
        elif kind != "is_instance_of":
            wanted.setdefault(loc, []).append(_wish(detail))
    if not wanted and not missing:
        return [Issue((), "takes a Python object, which a file cannot give")]
    return [*_joined(wanted), *missing]


def _joined(wanted: Mapping[Loc, list[str]]) -> list[Issue]:
    found = []
    for loc, wishes in wanted.items():
        unique = list(dict.fromkeys(wishes))
        parts = [wish.removeprefix("should be ") for wish in unique]
        given = all(wish.startswith("should") for wish in unique)
        message = "should be " + " or ".join(parts) if len(unique) > 1 and given else unique[0]
        found.append(Issue(loc, message, given=given))
    return found


def _wish(detail: Any) -> str:
    message: str = detail["msg"]
    if detail["type"] in ("literal_error", "enum"):
        options = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        hint = nearest(str(detail["input"]), options)
        shown = [repr(option) for option in options[:12]]
        more = f" or one of {len(options) - 12} others" if len(options) > 12 else ""
        return f"should be {' or '.join(shown) or detail['ctx']['expected']}{more}{hint}"
    message = message.removeprefix("Input ").removeprefix("Value error, ")
    for theirs, ours in _WORDS:
        message = message.replace(theirs, ours)
    return message


def _within(loc: Loc, values: Any) -> Loc:
    """The part of a place that is really there: pydantic names the members of unions too."""
    found: list[str | int] = []
    for part in loc:
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if not in_list and not (isinstance(values, Mapping) and part in values):
            break
        values = values[part]
        found.append(part)
    return tuple(found)
