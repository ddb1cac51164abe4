"""What can go wrong, and what the command line does about it.

HeadstartError            exit 1
├── UsageError            exit 2   the user asked for something that cannot be
│   ├── ConfigError       exit 2   a pipeline file is wrong; carries every problem in it
│   └── AudioFileError    exit 2   a file that was to be audio is not
├── SessionEndedError     exit 1   the pipeline ended while somebody still needed it
├── AssetError            exit 1   model weights are missing, damaged or out of reach
└── EngineError           exit 1   a model did not load or died
    └── EngineBusyError            the engine's queue is full; the work was not taken
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class HeadstartError(Exception):
    """Base of every error that Headstart raises on purpose. Its text is one clear line."""

    exit_code = 1


class UsageError(HeadstartError):
    """The request itself is wrong: a bad option, file or name."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place of a pipeline file."""

    file: Path
    line: int
    """1-based."""
    column: int
    """1-based."""
    message: str
    """What is wrong and, where there is one, what may have been meant."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigError(UsageError):
    """A pipeline file that cannot be used. All its problems at once, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class AudioFileError(UsageError):
    """A file that was to be heard holds no audio that can be read."""


class SessionEndedError(HeadstartError):
    """The pipeline ended, by itself or at somebody's wish, while its conversation was used."""


class AssetError(HeadstartError):
    """Weights that a model needs are missing, damaged or out of reach."""


class EngineError(HeadstartError):
    """A model did not load, or its process died."""


class EngineBusyError(EngineError):
    """An engine's queue is full; the work was not taken."""
