"""Keeps what environment variables hold out of every message."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

_LEAST_PART = 3
"""A part of a value that is shorter gives nothing away; a whole value that is, is masked where
it is quoted."""
_OWN_WORD = 8
"""A value of fewer letters may be a part of other words; it is looked for as a word."""


@dataclass(frozen=True)
class Secret:
    """What a variable held when it was filled into a value."""

    shown: str
    """What a message says instead: `${NAME}`, or the text that it stands in."""
    value: str = field(repr=False)


def mask(text: str, secrets: Iterable[Secret]) -> str:
    """The text with `${NAME}` in place of what the variables hold.

    A message may quote a value as it stands, escaped or in part: the module of a class path, the
    host of a URL. So parts of values that are one word are masked too.
    """
    shown: dict[str, str] = {}
    """What is to be masked, and what is shown instead."""
    wholes: set[str] = set()
    for secret in secrets:
        whole, parts = _forms(secret.value)
        wholes |= whole
        for form in (*whole, *parts):
            shown.setdefault(form, secret.shown)
    if not shown:
        return text
    ordered = sorted(shown, key=len, reverse=True)  # the whole before its parts
    patterns = [f"({_pattern(form, is_part=form not in wholes)})" for form in ordered]
    found = re.compile("|".join(patterns), re.IGNORECASE)
    return found.sub(lambda match: shown[ordered[(match.lastindex or 1) - 1]], text)


def _forms(value: str) -> tuple[set[str], set[str]]:
    """How a message may put a value, and what parts of it."""
    bare = value.strip()
    whole = {value, bare, " ".join(value.split()), quote(value), quote(value, safe="")}
    whole |= {repr(value)[1:-1], json.dumps(value)[1:-1]}
    parts: set[str] = set()
    if not re.search(r"\s", bare):
        address = re.sub(r"^[a-z]+://", "", bare, flags=re.IGNORECASE)
        parts = {*re.findall(r"[\w-]+", address), *re.findall(r"[\w.-]+", address)}
    return whole - {""}, {part for part in parts if len(part) >= _LEAST_PART}


def _pattern(form: str, *, is_part: bool) -> str:
    escaped = re.escape(form)
    if len(form) < _LEAST_PART:  # such as `7` and `en`
        return rf"(?<=['\"`]){escaped}(?=['\"`])"
    return rf"(?<!\w){escaped}(?!\w)" if is_part or len(form) < _OWN_WORD else escaped
