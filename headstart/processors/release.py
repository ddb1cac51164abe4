"""Holds an answer to a turn that has not ended, audio and all, until it has ended on its words."""

from __future__ import annotations

from typing import Any

from pipecat.frames.frames import (
    Frame,
    LLMFullResponseStartFrame,
    TTSAudioRawFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.speculation_gate import SpeculationGate, SpeculationState

from headstart.frames import SpeculationDroppedFrame, is_speculative


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
        self._held_samples = 0
        self._ready_ns: int | None = None
        """When the first of the held audio came, on the pipeline's clock."""
        self._late_ns = 0
        """By how much later than it was made the response is played."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Push, hold or drop the frame."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMFullResponseStartFrame):
            await self._report_dropped()
            self._ready_ns, self._late_ns = None, 0
            self._gate.begin_speculation(is_speculative(frame))
        elif isinstance(frame, UserStoppedSpeakingFrame) and self._ready_ns is not None:
            self._late_ns = self.get_clock().get_time() - self._ready_ns
            self._ready_ns = None
        elif isinstance(frame, TTSAudioRawFrame):
            self._held_samples += frame.num_frames
        passed = self._gate.process(frame, direction)
        is_holding = self._gate.state is SpeculationState.HOLDING
        if is_holding and self._held_samples and self._ready_ns is None:
            self._ready_ns = self.get_clock().get_time()
        for passing, towards in passed:
            if isinstance(passing, TTSAudioRawFrame):
                self._held_samples -= passing.num_frames
            if passing.pts:
                # Words are timed by when their audio was made; they are heard later.
                passing.pts += self._late_ns
            await self.push_frame(passing, towards)
        if not is_holding:
            await self._report_dropped()

    async def _report_dropped(self) -> None:
        if self._held_samples:
            samples, self._held_samples = self._held_samples, 0
            secs = samples / self.processor_setup.audio_out_sample_rate
            await self.push_frame(SpeculationDroppedFrame(audio_secs=secs))
