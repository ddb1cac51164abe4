"""What a stage's settings are: their types, units, defaults, bounds and meaning, for people."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import types
from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr

from headstart.config.constructor import (
    Parameter,
    alternatives,
    dataclass_parameters,
    injected_parameters,
    is_structure,
    parameters,
    settings_model,
)
from headstart.config.registry import INJECTED

UNITS = (
    ("_secs", "s"),
    ("_ms", "ms"),
    ("_hz", "Hz"),
    ("sample_rate", "Hz"),
    ("_db", "dB"),
    ("_tokens", "tokens"),
    ("_mb", "MB"),
)
"""The unit that the end of a name says."""

_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"), ("multiple_of", "multiple of"))
_DEEPEST = 2


@dataclass(frozen=True)
class SettingField:
    """One setting of a stage."""

    name: str
    """Dotted where it stands inside another: `settings.model`."""
    type: str
    unit: str
    default: str
    """As it would stand in YAML; empty where there is none to show."""
    required: bool
    description: str
    bounds: str


def setting_fields(cls: type) -> list[SettingField]:
    """The settings that a stage's class takes, in the order of its signature."""
    model = settings_model(cls)
    if model is not None:
        return list(_fields(model, "", 0))
    injected = injected_parameters(cls, INJECTED)
    own = [parameter for parameter in parameters(cls) if parameter.name not in injected]
    return list(_from_parameters(own, _documented(cls), "", 0))


def yaml_value(value: Any) -> str:
    """A default as YAML, or nothing where it has no plain form."""
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value.value, str) else value.name
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./:-]+", value) and ": " not in value else repr(value)
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)) and all(yaml_value(item) for item in value):
        return f"[{', '.join(yaml_value(item) for item in value)}]"
    return ""


def _fields(cls: Any, prefix: str, depth: int) -> Iterator[SettingField]:
    if inspect.isclass(cls) and issubclass(cls, BaseModel):
        documented = _documented(cls)
        for name, info in cls.model_fields.items():
            default = inspect.Parameter.empty
            if not info.is_required():
                default = info.get_default(call_default_factory=True)
            limits = [
                f"{sign} {getattr(m, key)}"
                for m in info.metadata
                for key, sign in _BOUNDS
                if hasattr(m, key)
            ]
            parameter = Parameter(info.alias or name, info.annotation, default)
            meaning = info.description or documented.get(name, "")
            yield from _one(parameter, meaning, ", ".join(limits), prefix, depth)
    else:
        found = dataclass_parameters(cls) if dataclasses.is_dataclass(cls) else parameters(cls)
        yield from _from_parameters(found, _documented(cls), prefix, depth)


def _from_parameters(
    found: Any, documented: dict[str, str], prefix: str, depth: int
) -> Iterator[SettingField]:
    for parameter in found:
        yield from _one(parameter, documented.get(parameter.name, ""), "", prefix, depth)


def _one(
    parameter: Parameter, meaning: str, bounds: str, prefix: str, depth: int
) -> Iterator[SettingField]:
    name = prefix + parameter.name
    kind = type_words(parameter.annotation)
    if kind == "null":  # a Python object, or nothing: a file has no say in it
        return
    nested = [kind for kind in alternatives(parameter.annotation) if is_structure(kind)]
    yield SettingField(
        name,
        kind,
        next((unit for end, unit in UNITS if parameter.name.endswith(end)), ""),
        "" if parameter.required else yaml_value(parameter.default),
        parameter.required,
        " ".join(meaning.split()),
        bounds,
    )
    if len(nested) == 1 and depth < _DEEPEST:
        yield from _fields(nested[0], f"{name}.", depth + 1)


def type_words(annotation: Any) -> str:
    """A type in the words of whoever writes YAML."""
    words = [_kind_words(kind) for kind in alternatives(annotation)]
    return " or ".join(dict.fromkeys(word for word in words if word)) or "anything"


def _kind_words(kind: Any) -> str:
    arguments = get_args(kind)
    origin = get_origin(kind)
    if kind in _NAMES:
        return _NAMES[kind]
    if kind in (None, types.NoneType):
        return "null"
    if origin is Literal:
        return " | ".join(yaml_value(option) for option in arguments)
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        options = [yaml_value(member) for member in kind]
        return (
            " | ".join(options) if len(options) <= 8 else f"one of {len(options)} {kind.__name__}"
        )
    if is_structure(kind):
        return "mapping"
    if (origin or kind) in (dict, abc.Mapping):
        return "mapping"
    if (origin or kind) in (list, tuple, set, frozenset, abc.Sequence):
        return f"list of {type_words(arguments[0])}" if arguments else "list"
    if kind is SecretStr:
        return "text"
    if inspect.isclass(kind) and kind.__module__ in ("pathlib", "datetime", "decimal", "uuid"):
        return "text"
    return ""


_ENTRY = re.compile(r"\s*\*{0,2}(\w+)(?: \([^)]*\))?:\s+(.*)")


def _documented(cls: type) -> dict[str, str]:
    """What Google-style docstrings say of the parameters of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        for text in (base.__doc__, vars(base).get("__init__", base).__doc__):
            found |= _entries(inspect.cleandoc(text or ""))
    return {name: _first_sentence(text) for name, text in found.items()}


def _first_sentence(text: str) -> str:
    """Enough for a list; a deprecated parameter says only that."""
    if ".. deprecated::" in text:
        return "Deprecated."
    return re.split(r"(?<=[.!?]) (?=[A-Z.])", text, maxsplit=1)[0]


def _entries(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    section = name = ""
    depth = 0
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and not indent:
            section, name, depth = line.strip(), "", 0
        elif section in ("Args:", "Parameters:", "Attributes:"):
            match = _ENTRY.fullmatch(line)
            if match and indent <= (depth or indent):
                name, depth = match[1], indent
                found[name] = match[2]
            elif name:
                found[name] += f" {line.strip()}"
    return found
