"""What `headstart new stage` writes: a processor that works, and its test."""

from __future__ import annotations

from pathlib import Path

_STAGE = '''\
"""A stage for a Headstart pipeline: cuts off answers that go on for too long."""

from __future__ import annotations

from typing import Any

from pipecat.frames.frames import Frame, LLMFullResponseStartFrame, LLMTextFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pydantic import Field

from headstart.processors.settings import StageSettings


class CLASSSettings(StageSettings):
    """What may stand behind the stage's name in YAML."""

    words_max: int = Field(default=40, ge=1)
    """The most words that one answer may have."""


class CLASS(FrameProcessor):
    """Cuts off an answer after so many words."""

    def __init__(self, settings: CLASSSettings | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings = settings or CLASSSettings()
        self._words = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass on what is to be heard; every frame not meant for this stage goes by unchanged."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMFullResponseStartFrame):
            self._words = 0
        elif isinstance(frame, LLMTextFrame):
            if self._words >= self._settings.words_max:
                return
            self._words += len(frame.text.split())
        await self.push_frame(frame, direction)
'''

_TEST = '''\
"""Runs the stage in a pipeline of its own and looks at what comes out."""

import asyncio
import sys
from pathlib import Path

from pipecat.frames.frames import LLMFullResponseEndFrame, LLMFullResponseStartFrame, LLMTextFrame
from pipecat.tests.utils import run_test

sys.path.insert(0, str(Path(__file__).parent))

from MODULE import CLASS, CLASSSettings


def test_an_answer_ends_after_the_most_words_it_may_have() -> None:
    stage = CLASS(CLASSSettings(words_max=2))
    answer = [LLMTextFrame("one "), LLMTextFrame("two "), LLMTextFrame("three")]
    heard, _ = asyncio.run(
        run_test(
            stage,
            frames_to_send=[LLMFullResponseStartFrame(), *answer, LLMFullResponseEndFrame()],
        )
    )
    assert [frame.text for frame in heard if isinstance(frame, LLMTextFrame)] == ["one ", "two "]
'''


def stage_source(class_name: str) -> str:
    """The processor's module."""
    return _STAGE.replace("CLASS", class_name)


def test_source(file: Path, class_name: str) -> str:
    """The module of its test."""
    return _TEST.replace("MODULE", file.stem).replace("CLASS", class_name)
