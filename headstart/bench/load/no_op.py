"""Services that understand, answer and say nothing: they stand where models would.

For `docs/benchmarks/framework-*.yaml`: a conversation's frames go through as many stages as in a
real pipeline, on both sides through Pipecat's own base classes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from pipecat.frames.frames import Frame
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.llm_service import LLMService
from pipecat.services.stt_service import STTService
from pipecat.services.tts_service import TTSService


class SilentSTT(STTService):
    """Hears everything and understands nothing."""

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Say nothing of it."""
        yield None


class SilentLLM(LLMService[Any]):
    """Answers nothing."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass everything on, as language model services do."""
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class SilentTTS(TTSService):
    """Says nothing."""

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """Make no sound of it."""
        yield None
