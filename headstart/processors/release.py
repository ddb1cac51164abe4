"""Holds an answer to a turn that has not ended, audio and all, until it has ended on its words."""

from __future__ import annotations

from typing import Any

from pipecat.frames.frames import Frame, LLMFullResponseStartFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.speculation_gate import SpeculationGate

from headstart.frames import is_speculative


class ReleaseGate(FrameProcessor):
    """The last stage before the output transport.

    Hosts Pipecat's `SpeculationGate` where the audio is, instead of inside the language model's
    service, so that the speech is synthesised while the turn is still open. Whatever a
    speculative response brings is held in order. `UserStoppedSpeakingFrame` releases it, all
    within the call that brings that frame; `EagerEndOfTurnCancelFrame` or an interruption
    throws it away, together with what of it is still under way.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Open, until a speculative response comes."""
        super().__init__(**kwargs)
        self._gate = SpeculationGate(name=f"{self}::SpeculationGate")

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Push, hold or drop the frame."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMFullResponseStartFrame):
            self._gate.begin_speculation(is_speculative(frame))
        for released, towards in self._gate.process(frame, direction):
            await self.push_frame(released, towards)
