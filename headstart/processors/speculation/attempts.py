"""What the stages between the trigger and the release gate know of the attempts."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol, runtime_checkable

from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    Frame,
    InterruptionFrame,
    SystemFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.turns.speculation_gate import GatedFrame, SpeculationGate

from headstart.engines.queue import Priority
from headstart.frames import SpeculationAwaitedFrame, attempt_of


class Standing(StrEnum):
    """What an answer is worth."""

    PENDING = "pending"
    """Its turn has not ended."""
    CONFIRMED = "confirmed"
    """It is the answer of its turn; so is every answer that belongs to no attempt."""
    VOID = "void"
    """Withdrawn or interrupted: nothing more of it counts, however late it comes."""


class Attempts:
    """How the attempts stand, as far as one stage has heard.

    Verdicts are system frames: they overtake what they are about, and reach each stage in a
    moment of its own. What belongs to an attempt therefore never follows the last verdict but
    the verdict on its own number. Attempts are numbered in the order in which they are begun,
    at most one is pending, and a verdict is final: what came before the last one is void.
    """

    def __init__(self) -> None:
        """No attempt has been heard of."""
        self._settled = 0
        self._confirmed = False
        self._awaited: int | None = None

    def hear(self, frame: Frame) -> None:
        """Note what the frame says about an attempt, if it does."""
        if isinstance(frame, InterruptionFrame):
            self._confirmed = False
            return
        if isinstance(frame, SpeculationAwaitedFrame):
            self._awaited = frame.attempt
            return
        attempt = attempt_of(frame)
        if attempt is not None and isinstance(
            frame, EagerEndOfTurnCancelFrame | UserStoppedSpeakingFrame
        ):
            self.settle(attempt, confirmed=isinstance(frame, UserStoppedSpeakingFrame))

    def settle(self, attempt: int, *, confirmed: bool) -> None:
        """Note the verdict on an attempt; of two, the first counts."""
        if attempt > self._settled:
            self._settled = attempt
            self._confirmed = confirmed

    def standing(self, attempt: int | None) -> Standing:
        """How an attempt stands; None: an answer that belongs to no attempt."""
        if attempt is None or (attempt == self._settled and self._confirmed):
            return Standing.CONFIRMED
        return Standing.PENDING if attempt > self._settled else Standing.VOID

    def priority(self, attempt: int | None) -> Priority:
        """How urgent work on an attempt is: it is committed as soon as the user waits for it."""
        pending = self.standing(attempt) is Standing.PENDING
        return Priority.SPECULATIVE if pending and attempt != self._awaited else Priority.COMMITTED


class SpeculationTracker(SpeculationGate):
    """Pipecat's gate, held open: it knows whether the turn is confirmed, and holds nothing.

    For language model services that should work ahead, because the release gate holds what they
    make.
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


@runtime_checkable
class SharesModel(Protocol):
    """A stage that makes answers with a model which other sessions use, too."""

    @property
    def model_is_busy(self) -> bool:
        """Whether the model works for somebody who waits."""
        ...
