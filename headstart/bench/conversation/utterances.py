"""Reads a set of utterances whose words, and whose true end, are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headstart.config.messages import nearest_or_all
from headstart.errors import UsageError

MANIFEST = "manifest.jsonl"


class Utterance(BaseModel):
    """One line of a manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(pattern=r"^[\w.-]*\w$")
    """A name that can be a folder."""
    file: str = Field(min_length=1)
    """The audio, relative to the manifest."""
    kind: str = Field(min_length=1)
    """Short, long, with a pause, ...: results are also given by kind."""
    text: str = Field(min_length=1)
    """What is said."""
    speech_end_s: float = Field(gt=0)
    """The true end of the voice, in seconds from the start of the file."""
    pauses_s: tuple[tuple[float, float], ...] = ()
    """Where the voice rests, from and to, in seconds."""


def read_utterances(
    folder: Path, only: list[str] | None = None
) -> dict[str, tuple[Utterance, Path]]:
    """The utterances of a folder and their audio files, by id, in the order of the manifest.

    Args:
        folder: Holds `manifest.jsonl` and the audio.
        only: Ids to keep; all where there are none.

    Raises:
        UsageError: What is wrong, with the line that is.
    """
    manifest = folder / MANIFEST
    try:
        lines = manifest.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"{folder}: holds no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{manifest}: cannot be read ({error})") from None
    found: dict[str, tuple[Utterance, Path]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{manifest}:{number}"
        utterance = _utterance(line, place)
        audio = folder / utterance.file
        if utterance.id in found:
            raise UsageError(f"{place}: there are two utterances with the id {utterance.id!r}")
        if not audio.is_file():
            raise UsageError(f"{place}: there is no file {audio}")
        found[utterance.id] = (utterance, audio)
    if not found:
        raise UsageError(f"{manifest}: holds no utterances")
    for wanted in only or []:
        if wanted not in found:
            raise UsageError(f"no utterance {wanted!r} in {folder}{nearest_or_all(wanted, found)}")
    return {name: value for name, value in found.items() if not only or name in only}


def _utterance(line: str, place: str) -> Utterance:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place}: is no JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise UsageError(f"{place}: should be an object")
    try:
        utterance = Utterance.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = "is missing" if first["type"] == "missing" else first["msg"]
        raise UsageError(f"{place}: {key}: {message}") from None
    if not math.isfinite(utterance.speech_end_s):
        raise UsageError(f"{place}: speech_end_s: should be a finite number")
    return utterance
