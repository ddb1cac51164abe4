"""What the tests share: the samples, and words to compare."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings
from loguru import logger

from headstart import assets

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


_SLOW_SECS = 300
"""Limit of a test with real models, or with a hundred generated examples."""
_LIGHT_BYTES = 10_000_000
"""Weights up to this size (Silero, Smart Turn) any test may load: they take milliseconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give more time than the usual to what needs it."""
    for item in items:
        if item.get_closest_marker("timeout") is not None:
            continue
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.timeout(_SLOW_SECS * max(1, examples(1))))
        elif item.get_closest_marker("models") is not None:
            item.add_marker(pytest.mark.timeout(_SLOW_SECS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let only tests marked with `models` load real models, so that the others stay fast."""
    find = assets.path

    def path(name: str) -> Path:
        found = find(name)
        if assets.known(name).size > _LIGHT_BYTES:
            pytest.fail(f"loads {name}: mark the test with `models`")
        return found

    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("models") is None:
            patch.setattr(assets, "path", path)
        return (yield)


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
