"""Settings that name a class, as a stage's name does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Choice:
    """Marks a setting that chooses a class: `Annotated[str | Mapping[str, Any], Choice(...)]`.

    It has to be a setting of the stage itself; within other settings the mark is not seen.

    The value is a registered name or a class path; or a mapping with that name as `class` and
    the settings of the class.
    """

    noun: str
    """What is chosen, in a word."""
    base: type
    """What the class has to be."""
    builtin: Mapping[str, str]
    """Class paths by name."""
    group: str
    """Entry point group in which installed packages name more."""
