"""The VAD stage: says when a voice begins and ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams, VADState
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameProcessorSetup
from pydantic import Field

from headstart.engines import hub
from headstart.engines.silero import WINDOW, SileroEngine, SileroOptions, SileroStream
from headstart.processors.audio import MODEL_RATE, Resampler, as_float
from headstart.processors.settings import StageSettings


class VADSettings(StageSettings):
    """Settings of `vad.silero`."""

    threshold: float = Field(default=0.7, gt=0, lt=1)
    """Probability of a voice, 0..1, from which a window of 32 ms counts as speech."""
    start_secs: float = Field(default=0.2, ge=0)
    """Speech this long, in seconds, is a start."""
    stop_secs: float = Field(default=0.2, gt=0)
    """Silence this long, in seconds, is a stop."""
    min_volume: float = Field(default=0.0, ge=0, le=1)
    """Least loudness of speech, 0..1 (EBU R128, -60 to -20 LUFS). 0 leaves it to the model;
    Pipecat's 0.6 keeps distant voices out, and delays the start of near ones."""
    audio_idle_secs: float = Field(default=1.0, ge=0)
    """No audio for this long, in seconds, ends speech (the microphone was muted). 0 never."""


class SileroVAD(VADProcessor):
    """Broadcasts Pipecat's VAD frames; the model is shared by all sessions."""

    def __init__(self, settings: VADSettings | None = None, **kwargs: Any) -> None:
        """Make the stage; its engine is fetched when the pipeline sets up."""
        settings = settings or VADSettings()
        self._analyzer = _Analyzer(
            VADParams(
                confidence=settings.threshold,
                start_secs=settings.start_secs,
                stop_secs=settings.stop_secs,
                min_volume=settings.min_volume,
            )
        )
        super().__init__(
            vad_analyzer=self._analyzer, audio_idle_timeout=settings.audio_idle_secs, **kwargs
        )

    @classmethod
    def required_assets(cls, settings: VADSettings) -> tuple[str, ...]:
        """The weights that the stage needs."""
        return (SileroOptions().asset,)

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Fetch the shared model.

        Raises:
            AssetError: The weights are missing.
            EngineError: They do not load.
        """
        await super().setup(setup)
        self._analyzer.use(await hub.shared.get(SileroEngine, SileroOptions()))


class _Analyzer(VADAnalyzer):
    """Pipecat's start and stop rules over our model, which runs on the engine's thread."""

    _engine: SileroEngine
    _stream: SileroStream
    _resample: Resampler

    def __init__(self, params: VADParams) -> None:
        super().__init__(params=params)

    def use(self, engine: SileroEngine) -> None:
        self._engine = engine
        self._stream = engine.stream()

    def set_sample_rate(self, sample_rate: int) -> None:
        self._resample = Resampler(sample_rate)
        super().set_sample_rate(MODEL_RATE)

    def num_frames_required(self) -> int:
        return WINDOW

    async def analyze_audio(self, buffer: bytes) -> VADState:
        self._vad_buffer += self._resample(buffer).tobytes()
        if len(self._vad_buffer) < self._vad_frames_num_bytes:
            return self._vad_state
        return await self._engine.run(partial(self._run_analyzer, b""))

    def voice_confidence(self, buffer: bytes) -> float:
        window = as_float(np.frombuffer(buffer, dtype=np.int16))
        return self._stream.probability(window, quiet=self._vad_state == VADState.QUIET)

    def _get_smoothed_volume(self, audio: bytes) -> float:
        # Measuring loudness costs more than the model does.
        if self._params.min_volume == 0:
            return 1.0
        return super()._get_smoothed_volume(audio)
