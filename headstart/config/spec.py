"""What a pipeline file means once it has been read: names, prompt, audio and stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from headstart.config.secrets import Secret, mask
from headstart.errors import Problem


@dataclass(frozen=True)
class Position:
    """A place in a pipeline file."""

    file: Path
    line: int
    """1-based."""
    column: int
    """1-based."""

    secrets: tuple[Secret, ...] = field(default=(), repr=False, compare=False)
    """What variables put there. No problem of this place shows it."""

    def problem(self, message: str) -> Problem:
        """Something wrong at this place."""
        return Problem(self.file, self.line, self.column, mask(message, self.secrets))

    def keeping(self, secrets: tuple[Secret, ...]) -> Position:
        """The same place, whose problems do not show these either."""
        return replace(self, secrets=(*self.secrets, *secrets)) if secrets else self


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


SampleRate = Annotated[int, Field(ge=8000, le=48000)]


class AudioSpec(_Spec):
    """The sample rates inside the pipeline; transports resample to and from them."""

    in_sample_rate: SampleRate = 16000
    """Rate of the audio that the stages hear, in Hz."""

    out_sample_rate: SampleRate = 24000
    """Rate of the audio that the stages speak, in Hz."""


class PipelineHeader(_Spec):
    """Everything in a pipeline file but its stages."""

    name: str = Field(min_length=1)
    """What to call the pipeline; the file's name where the file does not say."""

    description: str | None = None
    """One line for whoever chooses between pipelines."""

    prompt: str = Field(min_length=1)
    """The system prompt: who the bot is and how it answers."""

    audio: AudioSpec = AudioSpec()
    """The sample rates inside the pipeline."""


class StageSpec(_Spec):
    """One stage: which class, with which settings, and where the file says so."""

    name: str
    """The full name: `stt.whisper`, or the class path as it was written."""

    kind: str | None
    """What the stage is for (`stt`, `llm`, ...), or None for a class that has no such role."""

    target: str
    """`package.module:Class`, or `/absolute/file.py:Class`."""

    settings: Mapping[str, Any]
    """The settings as they stand in the file, variables filled in."""

    position: Position
    """Where the stage is named."""


class PipelineSpec(PipelineHeader):
    """A pipeline, ready to be built."""

    stages: tuple[StageSpec, ...] = Field(min_length=1)
    """The stages in the order in which frames meet them."""

    def mask(self, message: str) -> str:
        """The message, of a stage at work, less what variables put into the stages' settings."""
        return mask(message, [s for stage in self.stages for s in stage.position.secrets])
