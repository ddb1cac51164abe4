"""What the tests share: the samples, and words to compare."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from loguru import logger

# Developers explore new examples with every run; what CI says must not depend on luck.
settings.register_profile("explore", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
# `pytest --hypothesis-profile=thousands`: 25 times as many examples wherever a test asks for
# `examples`, and 5000 whole conversations among them (docs/speculation.md).
settings.register_profile("thousands", deadline=None, max_examples=2500)
settings.load_profile("ci" if os.environ.get("CI") else "explore")


def examples(usual: int) -> int:
    """How many examples a test is to try that usually tries so many."""
    return usual * settings().max_examples // 100


# What a script starts in the background ignores SIGINT; programs that tests interrupt shall not.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
