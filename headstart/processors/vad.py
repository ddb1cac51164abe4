"""The VAD stage: says when a voice begins and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from loguru import logger
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams, VADState
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    StartFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pydantic import Field

from headstart.engines import hub
from headstart.engines.silero import WINDOW, SileroEngine, SileroOptions, SileroStream
from headstart.frames import AudioGapFrame, VoiceFrame
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
    """No audio for this long, in seconds, ends speech (the microphone was muted), and what was
    heard before is forgotten. 0 never."""


class SileroVAD(VADProcessor):
    """Broadcasts Pipecat's VAD frames; the model is shared by all sessions.

    It also says when a voice may have begun or ended, before it is sure (`VoiceFrame`), and when
    no more audio comes (`AudioGapFrame`).
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
            # Pipecat's way ends speech, but its analyser goes on where it was: in a word.
            audio_idle_timeout=0,
            # It only listens and passes on, in order: a queue and a task of its own would be waste.
            enable_direct_mode=True,
            **kwargs,
        )
        self._voice_heard = False
        self._waiting: list[InputAudioRawFrame] = []
        self._idle_secs = settings.audio_idle_secs
        self._listening = asyncio.Lock()
        self._audio_at = 0.0
        self._audio_came = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

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

    async def cleanup(self) -> None:
        """Stop to watch for a gap, if nothing else did."""
        await self._stop_watching()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Listen, and say what changes; audio goes on when the model has something to look at."""
        if isinstance(frame, InputAudioRawFrame):
            self._audio_at = asyncio.get_running_loop().time()
            self._audio_came.set()
            async with self._listening:
                for piece in _pieces(frame):
                    await self._hear(piece, direction)
            return
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame) and self._idle_secs and self._watcher is None:
            self._watcher = self.create_task(self._watch_for_gaps(), "audio-gaps")
        elif isinstance(frame, EndFrame | CancelFrame):
            await self._stop_watching()

    async def _hear(self, frame: InputAudioRawFrame, direction: FrameDirection) -> None:
        self._waiting.append(frame)
        if sum(map(_secs, self._waiting)) < self._analyzer.lacks_secs - _ROUNDING_SECS:
            return
        frame, self._waiting = _joined(self._waiting), []
        await super().process_frame(frame, direction)
        await self._tell_voice()

    async def _tell_voice(self) -> None:
        if self._analyzer.hears_voice is not self._voice_heard:
            self._voice_heard = self._analyzer.hears_voice
            await self.push_frame(VoiceFrame(self._voice_heard))

    async def _watch_for_gaps(self) -> None:
        while True:
            await self._audio_came.wait()
            if (secs := self._secs_to_gap) > _ROUNDING_SECS:
                await asyncio.sleep(secs)
                continue
            async with self._listening:
                if self._secs_to_gap <= _ROUNDING_SECS:
                    self._audio_came.clear()
                    await self._forget(self._idle_secs)

    @property
    def _secs_to_gap(self) -> float:
        return self._audio_at + self._idle_secs - asyncio.get_running_loop().time()

    async def _forget(self, idle_secs: float) -> None:
        """End what was going on, and begin anew with the audio that comes next."""
        for frame in self._waiting:
            await self.push_frame(frame)
        self._waiting = []
        was_speaking = self._vad_controller._vad_state is VADState.SPEAKING
        self._vad_controller._vad_state = VADState.QUIET
        self._analyzer.forget()
        await self.push_frame(AudioGapFrame())
        await self._tell_voice()
        if was_speaking:
            logger.debug(f"{self}: no audio for {idle_secs:.1f} s ends the user's speech")
            await self.broadcast_frame(VADUserStoppedSpeakingFrame, stop_secs=idle_secs)

    async def _stop_watching(self) -> None:
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            await self.cancel_task(watcher)


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


def _pieces(frame: InputAudioRawFrame) -> Iterator[InputAudioRawFrame]:
    """Frames of one window at most in place of a long one: one state is told of each."""
    size = WINDOW * frame.sample_rate // MODEL_RATE
    if frame.num_frames <= size:
        yield frame
        return
    width = len(frame.audio) // frame.num_frames
    for at in range(0, frame.num_frames, size):
        piece = replace(frame, audio=frame.audio[at * width : (at + size) * width])
        if frame.pts is not None:
            piece.pts = frame.pts + at * 10**9 // frame.sample_rate
        piece.metadata, piece.transport_source = frame.metadata, frame.transport_source
        yield piece


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

    def forget(self) -> None:
        """The audio that comes next does not go on with what was heard."""
        self._vad_buffer = b""
        self._calm_windows = self._perhaps_windows = 0
        self._stream.reset()
        self._resample.reset()
        self.set_params(self._params)

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
