"""Listening without a model, to see what the framework costs: loud is a voice.

For `docs/benchmarks/framework-*-bare.yaml`: both sides find the same voice in the same windows, by
Pipecat's rules of start and stop, and what is left of the cost is how they get there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pipecat.audio.vad.vad_analyzer import VADAnalyzer
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameProcessorSetup

from headstart.engines.silero import WINDOW, SileroEngine, SileroOptions
from headstart.processors.audio import as_float
from headstart.processors.settings import StageSettings
from headstart.processors.vad import SileroVAD

_LOUD = 0.01
"""Root mean square of a voice: -40 dBFS."""


def _probability(window: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(window * window)) > _LOUD)


class EnergyAnalyzer(VADAnalyzer):
    """For Pipecat's aggregator, in place of its SileroVADAnalyzer."""

    def num_frames_required(self) -> int:
        """As Silero's."""
        return WINDOW

    def voice_confidence(self, buffer: bytes) -> float:
        """1 if the window is loud, else 0."""
        return _probability(as_float(np.frombuffer(buffer, dtype=np.int16)))


class _Session:
    """Answers as the model's session does."""

    def run(self, _: None, inputs: dict[str, Any]) -> tuple[NDArray[np.float32], Any]:
        window = inputs["input"][0, -WINDOW:]
        return np.array([[_probability(window)]], dtype=np.float32), inputs["state"]


class EnergyVAD(SileroVAD):
    """Headstart's VAD stage, its engine without the model."""

    @classmethod
    def required_assets(cls, settings: StageSettings) -> tuple[str, ...]:
        """None."""
        return ()

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Use an engine of one's own."""
        await VADProcessor.setup(self, setup)
        self._analyzer.use(SileroEngine(_Session(), SileroOptions()))
