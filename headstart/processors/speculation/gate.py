"""Holds an answer to a turn that has not ended, audio and all, until it has ended on its words."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    SystemFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from headstart.frames import SpeculationDroppedFrame, attempt_of
from headstart.processors.speculation.attempts import Attempts, AttemptStatus


class _State(StrEnum):
    OPEN = "open"
    HOLDING = "holding"
    """A response is held until the verdict on its attempt is there."""
    DROPPING = "dropping"
    """The rest of a void response is thrown away as it comes."""


class Hold:
    """Decides what leaves the gate and when; no I/O, so no two frames can race in here.

    Like Pipecat's `SpeculationGate`, but it goes by the number of an attempt. A response is
    judged when it begins and whenever a verdict comes, so that it does not matter which of the
    two is first: a verdict overtakes what it is about, and with unnumbered ones the turn's end
    would release a response that was withdrawn before it had arrived.
    """

    def __init__(self) -> None:
        """Open."""
        self._attempts = Attempts()
        self._state = _State.OPEN
        self._attempt: int | None = None
        self._held: list[Frame] = []
        self._dropped_samples = 0

    @property
    def is_holding(self) -> bool:
        """Whether a response is held."""
        return self._state is _State.HOLDING

    def process(self, frame: Frame) -> list[Frame]:
        """Take the next frame in; returns those that may leave now, in order."""
        if isinstance(frame, SystemFrame):
            self._attempts.hear(frame)
            return [frame, *self._judge(interrupted=isinstance(frame, InterruptionFrame))]
        if isinstance(frame, EndFrame):  # nothing may keep it
            return [*self._drop(), frame]
        leaving: list[Frame] = []
        if isinstance(frame, LLMFullResponseStartFrame):
            # Nothing of the response before can come after this.
            leaving = self._drop()
            self._attempt = attempt_of(frame)
            self._state = {
                AttemptStatus.CONFIRMED: _State.OPEN,
                AttemptStatus.PENDING: _State.HOLDING,
                AttemptStatus.VOID: _State.DROPPING,
            }[self._attempts.status(self._attempt)]
        if self._state is _State.OPEN:
            leaving.append(frame)
        else:
            self._held.append(frame)
            if self._state is _State.DROPPING:
                leaving += self._drop()
        return leaving

    def confirm(self, attempt: int) -> list[Frame]:
        """The turn has ended on an attempt's words; returns the frames that may leave now."""
        self._attempts.settle(attempt, confirmed=True)
        return self._judge()

    def take_dropped_samples(self) -> int:
        """How much speech has been thrown away since this was last asked, in samples."""
        samples, self._dropped_samples = self._dropped_samples, 0
        return samples

    def _judge(self, *, interrupted: bool = False) -> list[Frame]:
        if self._state is not _State.HOLDING:
            return []
        status = self._attempts.status(self._attempt)
        if status is AttemptStatus.VOID or interrupted:
            return self._drop()
        if status is AttemptStatus.CONFIRMED:
            self._state = _State.OPEN
            released, self._held = self._held, []
            return released
        return []

    def _drop(self) -> list[Frame]:
        """Throw away what is held, and what is still to come, but for what must never be lost."""
        held, self._held = self._held, []
        if self._state is not _State.OPEN:
            is_complete = any(isinstance(frame, LLMFullResponseEndFrame) for frame in held)
            self._state = _State.OPEN if is_complete else _State.DROPPING
        self._dropped_samples += sum(
            frame.num_frames for frame in held if isinstance(frame, TTSAudioRawFrame)
        )
        return [frame for frame in held if not frame.interruptible]


class ReleaseGate(FrameProcessor):
    """The last stage before the output transport.

    It holds speculative answers where the audio is, instead of inside the language model's
    service, so that the speech is synthesised while the turn is still open. The turn stage
    tells it of the turn's end itself (`confirm`), and what is held leaves within that call: the
    frame that says the same has to come through every stage between. A withdrawal or an
    interruption throws away what is held, together with what of it is still under way.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Open, until a speculative response comes."""
        super().__init__(**kwargs)
        self._hold = Hold()
        self._ready_ns: int | None = None
        """When the first of the held audio came, on the pipeline's clock."""
        self._late_ns = 0
        """By how much later than it was made the response is played."""
        self._word_pts: int | None = None
        """When the response's last word so far was to be heard, had it not been held."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Push, hold or drop the frame."""
        await super().process_frame(frame, direction)
        if direction is FrameDirection.UPSTREAM:
            await self.push_frame(frame, direction)
            return
        if isinstance(frame, LLMFullResponseStartFrame | InterruptionFrame):
            self._ready_ns, self._late_ns, self._word_pts = None, 0, None
        was_holding = self._hold.is_holding
        leaving = self._hold.process(frame)
        if self._hold.is_holding and self._ready_ns is None and isinstance(frame, TTSAudioRawFrame):
            self._ready_ns = self.get_clock().get_time()
        await self._let_go(leaving, was_holding)

    async def confirm(self, attempt: int) -> None:
        """The turn has ended on the words of an attempt: its answer leaves within this call."""
        was_holding = self._hold.is_holding
        await self._let_go(self._hold.confirm(attempt), was_holding)

    async def _let_go(self, leaving: list[Frame], was_holding: bool) -> None:
        if was_holding and not self._hold.is_holding and self._ready_ns is not None:
            self._late_ns = self.get_clock().get_time() - self._ready_ns
        for passing in leaving:
            self._postpone(passing)
            await self.push_frame(passing)
            if isinstance(passing, LLMFullResponseEndFrame):
                self._late_ns, self._word_pts = 0, None
        if samples := self._hold.take_dropped_samples():
            secs = samples / self.processor_setup.audio_out_sample_rate
            await self.push_frame(SpeculationDroppedFrame(audio_secs=secs))

    def _postpone(self, frame: Frame) -> None:
        """Time a frame by when the response is played, not by when it was made."""
        if not self._late_ns or not frame.pts:
            return
        if isinstance(frame, TTSTextFrame):
            self._word_pts = frame.pts
        elif self._word_pts is not None:
            # What a voice that had waited says next is timed by the clock, and that is late
            # already. Later still, it would hold up the words of the next response.
            frame.pts = min(frame.pts, self._word_pts)
        frame.pts += self._late_ns
