"""What the stages between the trigger and the release gate know of the attempts."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol, runtime_checkable

from pipecat.frames.frames import (
    CancelFrame,
    EagerEndOfTurnCancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    StopFrame,
    UserStoppedSpeakingFrame,
)

from headstart.engines.queue import Priority
from headstart.frames import SpeculationAwaitedFrame, attempt_of

SESSION_ENDS = (EndFrame, CancelFrame, StopFrame)
"""Frames after which no verdict comes any more."""


class AttemptStatus(StrEnum):
    """Whether an answer may be heard."""

    PENDING = "pending"
    """The turn that it answers has not ended."""
    CONFIRMED = "confirmed"
    """It is the answer of its turn. An answer that belongs to no attempt always is."""
    VOID = "void"
    """It was withdrawn or interrupted, or the session ended: nothing more of it counts."""


class Attempts:
    """The status of all attempts, as far as one stage has heard.

    Verdicts are system frames: they overtake the frames that they judge, and each stage hears
    them at a different moment. A stage therefore asks for the status of an attempt by its
    number. Attempts are numbered in the order in which they begin, at most one is pending, and
    a verdict is final: an attempt older than the last verdict is void.
    """

    def __init__(self) -> None:
        """Start with no attempt."""
        self._settled = 0
        self._confirmed = False
        self._awaited: int | None = None
        self._closed = False

    def hear(self, frame: Frame) -> None:
        """Note what the frame says about an attempt, if it says anything."""
        if isinstance(frame, SESSION_ENDS):
            self._closed = True
        elif isinstance(frame, InterruptionFrame):
            self._confirmed = False
        elif isinstance(frame, SpeculationAwaitedFrame):
            self._awaited = frame.attempt
        elif isinstance(frame, EagerEndOfTurnCancelFrame | UserStoppedSpeakingFrame):
            attempt = attempt_of(frame)
            if attempt is not None:
                self.settle(attempt, confirmed=isinstance(frame, UserStoppedSpeakingFrame))

    def settle(self, attempt: int, *, confirmed: bool) -> None:
        """Note the verdict on an attempt; the first verdict counts."""
        if attempt > self._settled:
            self._settled = attempt
            self._confirmed = confirmed

    def close(self) -> None:
        """The session ends: pending attempts are void from now on."""
        self._closed = True

    def status(self, attempt: int | None) -> AttemptStatus:
        """The status of an attempt; None stands for an answer that belongs to no attempt."""
        if attempt is None or (attempt == self._settled and self._confirmed):
            return AttemptStatus.CONFIRMED
        if attempt > self._settled and not self._closed:
            return AttemptStatus.PENDING
        return AttemptStatus.VOID

    def priority(self, attempt: int | None) -> Priority:
        """The priority of work on an attempt: committed as soon as the user waits for it."""
        pending = self.status(attempt) is AttemptStatus.PENDING
        return Priority.SPECULATIVE if pending and attempt != self._awaited else Priority.COMMITTED


@runtime_checkable
class SharesModel(Protocol):
    """A stage that makes answers with a model which other sessions use, too."""

    @property
    def model_is_busy(self) -> bool:
        """Whether the model works on committed work."""
        ...
