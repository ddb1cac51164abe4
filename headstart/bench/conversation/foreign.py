"""Reads arms that are no pipelines: programs of any kind that speak the worker's protocol."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from headstart.config.constructor import validate_model
from headstart.config.load import located
from headstart.config.source import Table, fill, read
from headstart.errors import ConfigError, Problem


class Foreign(BaseModel):
    """A file that names a worker instead of stages."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    """What to call the arm; the file's name where the file does not say."""
    description: str | None = None
    """One line for whoever chooses between arms."""
    worker: list[str] = Field(min_length=1)
    """The program and its arguments, as seen from the file's folder, where it runs."""
    assets: list[str] = []
    """The weights that it needs; it finds them by the environment variable `HEADSTART_ASSETS`."""


def read_foreign(path: Path) -> Foreign | None:
    """Read an arm's file; None where it names no worker, and so is a pipeline.

    Raises:
        ConfigError: It names one, and something is wrong.
    """
    problems: list[Problem] = []
    own = read(path)
    if "worker" not in own.entries:
        return None
    top = fill(own, os.environ, problems)
    assert isinstance(top, Table)
    arm, issues = validate_model(Foreign, {"name": path.stem, **top.plain()})
    problems += located(issues, top, "")
    if problems or not isinstance(arm, Foreign):
        raise ConfigError(problems)
    return arm
