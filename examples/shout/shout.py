"""A custom processor: the bot speaks up."""

from typing import Any

import numpy as np
from pipecat.frames.frames import Frame, TTSAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor


class Shout(FrameProcessor):
    """Makes the bot's voice louder."""

    def __init__(self, gain_db: float = 6.0, **kwargs: Any) -> None:
        """Take the settings that may stand in YAML.

        Args:
            gain_db: How much louder, in dB; below 0 the bot whispers.
            **kwargs: For the base class, such as `name`.
        """
        super().__init__(**kwargs)
        self._gain = 10 ** (gain_db / 20)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Amplify what is spoken; everything else goes by unchanged."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            samples = np.frombuffer(frame.audio, np.int16) * self._gain
            frame.audio = samples.clip(-32768, 32767).astype(np.int16).tobytes()
        await self.push_frame(frame, direction)
