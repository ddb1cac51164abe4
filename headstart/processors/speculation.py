"""What the stages between the trigger and the release gate know of a speculation."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pipecat.frames.frames import Frame, SystemFrame
from pipecat.processors.frame_processor import FrameDirection
from pipecat.turns.speculation_gate import GatedFrame, SpeculationGate


class SpeculationTracker(SpeculationGate):
    """Pipecat's gate, held open: it knows whether the turn is confirmed, and holds nothing.

    For stages that should work ahead, because the release gate behind them holds what they make.
    """

    def process(self, frame: Frame, direction: FrameDirection) -> list[GatedFrame]:
        """Let the frame pass, noting what it says about the turn."""
        if isinstance(frame, SystemFrame):
            super().process(frame, direction)
        return [(frame, direction)]


@runtime_checkable
class WorksAhead(Protocol):
    """A stage that can work on an answer before the turn has ended, if somebody else holds it."""

    def work_ahead(self) -> None:
        """Let what speculative answers bring out: a release gate further down holds it."""
