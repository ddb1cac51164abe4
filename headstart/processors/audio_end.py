"""Where the user's audio ends: no stage behind it listens."""

from __future__ import annotations

from typing import Any

from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor


class InputAudioEnd(FrameProcessor):
    """Keeps fifty frames a second from going through stages that only pass them on."""

    def __init__(self, **kwargs: Any) -> None:
        """Make the stage."""
        super().__init__(enable_direct_mode=True, **kwargs)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass on everything else."""
        await super().process_frame(frame, direction)
        if direction is FrameDirection.UPSTREAM or not isinstance(frame, InputAudioRawFrame):
            await self.push_frame(frame, direction)
