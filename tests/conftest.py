"""What the tests share: the samples, and words to compare."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from loguru import logger

# Pipecat tells every frame's story otherwise.
logger.remove()
logger.add(sys.stderr, level="WARNING")

SAMPLES = Path(__file__).parent.parent / "samples" / "speech"


@dataclass(frozen=True)
class Sample:
    """An utterance whose words and end are known."""

    path: Path
    text: str
    speech_end_s: float


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    lines = (SAMPLES / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        row["id"]: Sample(SAMPLES / row["file"], row["text"], row["speech_end_s"]) for row in rows
    }


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()
