"""The VAD stage: says when a voice begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams, VADState
from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pydantic import Field

from headstart.engines import hub
from headstart.engines.silero import WINDOW, SileroEngine, SileroOptions, SileroStream
from headstart.frames import VoiceFrame
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
    """Broadcasts Pipecat's VAD frames; the model is shared by all sessions.

    It also says when a voice may have begun or ended, before it is sure (`VoiceFrame`).
    """

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
            vad_analyzer=self._analyzer,
            audio_idle_timeout=settings.audio_idle_secs,
            # It only listens and passes on, in order: a queue and a task of its own would be waste.
            enable_direct_mode=True,
            **kwargs,
        )
        self._voice_heard = False
        self._waiting: list[InputAudioRawFrame] = []

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

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Listen, and say what changes; audio goes on when the model has something to look at."""
        if isinstance(frame, InputAudioRawFrame):
            self._waiting.append(frame)
            if sum(map(_secs, self._waiting)) < self._analyzer.lacks_secs - _ROUNDING_SECS:
                return
            frame = _joined(self._waiting)
            self._waiting = []
        await super().process_frame(frame, direction)
        if self._analyzer.hears_voice is not self._voice_heard:
            self._voice_heard = self._analyzer.hears_voice
            await self.push_frame(VoiceFrame(self._voice_heard))


def _secs(frame: InputAudioRawFrame) -> float:
    return frame.num_frames / frame.sample_rate


def _joined(frames: Sequence[InputAudioRawFrame]) -> InputAudioRawFrame:
    """One frame in place of several of one stream."""
    first = frames[0]
    if len(frames) == 1:
        return first
    joined = replace(first, audio=b"".join(frame.audio for frame in frames))
    joined.pts, joined.metadata = first.pts, first.metadata
    joined.transport_source = first.transport_source
    return joined


_CALM_WINDOWS = 32
"""About 1 s."""
_MOST_WINDOWS = 4
"""A run of the model on several windows costs little more than on one."""
_PERHAPS = 0.2
"""Probability from which a window may be the beginning of a voice. Soft beginnings ("how", "for")
are that likely 30 to 100 ms before the model is sure; silence and noise are 0.04 at most."""
_PERHAPS_WINDOWS = 4
"""After so many the model is sure, or it was none."""
_ROUNDING_SECS = 1e-6
_BYTES_A_SEC = 2 * MODEL_RATE


class _Analyzer(VADAnalyzer):
    """Pipecat's start and stop rules over our model, which runs on the engine's thread.

    When nobody has spoken for a while, windows wait for each other, but for no more than it
    takes for a start: that is confirmed with the same window as if each had been looked at
    when it came.
    """

    _engine: SileroEngine
    _stream: SileroStream
    _resample: Resampler

    def __init__(self, params: VADParams) -> None:
        super().__init__(params=params)
        self._calm_windows = 0
        self._perhaps_windows = 0

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
        if len(self._vad_buffer) < self._windows_wanted() * self._vad_frames_num_bytes:
            return self._vad_state
        return await self._engine.run(partial(self._run_analyzer, b""))

    @property
    def lacks_secs(self) -> float:
        """How much more audio the model waits for, in seconds."""
        return self._windows_wanted() * WINDOW / MODEL_RATE - len(self._vad_buffer) / _BYTES_A_SEC

    @property
    def hears_voice(self) -> bool:
        """Whether the newest window sounds like a voice, or may be the beginning of one."""
        perhaps = 0 < self._perhaps_windows <= _PERHAPS_WINDOWS
        return perhaps or self._vad_state in (VADState.STARTING, VADState.SPEAKING)

    def _windows_wanted(self) -> int:
        if self._vad_state is not VADState.QUIET or self._calm_windows < _CALM_WINDOWS:
            return 1
        return max(1, min(self._vad_start_frames, _MOST_WINDOWS))

    def voice_confidence(self, buffer: bytes) -> float:
        quiet = self._vad_state == VADState.QUIET
        self._calm_windows = self._calm_windows + 1 if quiet else 0
        window = as_float(np.frombuffer(buffer, dtype=np.int16))
        probability = self._stream.probability(window, quiet=quiet)
        perhaps = quiet and probability >= _PERHAPS
        self._perhaps_windows = self._perhaps_windows + 1 if perhaps else 0
        return probability

    def _get_smoothed_volume(self, audio: bytes) -> float:
        # Measuring loudness costs more than the model does.
        if self._params.min_volume == 0:
            return 1.0
        return super()._get_smoothed_volume(audio)
