"""Beginning the answer before the user has finished."""

from __future__ import annotations

from typing import Any

from pipecat.frames.frames import Frame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from headstart.processors.turn.trigger.machine import TriggerSettings
from headstart.processors.turn.trigger.policies import load_policy

__all__ = ["EarlyTrigger", "TriggerSettings"]


class EarlyTrigger(FrameProcessor):
    """Begins the answer while the user is still speaking, and holds it until the turn has ended.

    In a pipeline file the trigger stands between the recogniser and the turn. The builder gives
    its settings to the turn stage, where the decision has to be taken (`TurnEndStrategy`), and
    puts a release gate before the output; the trigger itself is left out of the pipeline.
    """

    def __init__(self, settings: TriggerSettings | None = None, **kwargs: Any) -> None:
        """Keep the settings for the turn stage.

        Args:
            settings: When an answer may begin early, and what that may cost.
            **kwargs: For Pipecat's base class.

        Raises:
            UsageError: The settings name no policy that there is.
        """
        super().__init__(enable_direct_mode=True, **kwargs)
        self.settings = settings or TriggerSettings()
        self.policy = load_policy(self.settings.policy)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass the frame on."""
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
