"""Follows the attempt behind the answer that a stage is making, up to its verdict."""

from __future__ import annotations

import asyncio

from pipecat.frames.frames import Frame, InterruptionFrame

from headstart.engines.queue import Priority, Ticket
from headstart.processors.speculation.attempts import Attempts, AttemptStatus


class Follower:
    """Owns what a stage knows of its current attempt: number, status, ticket and the wait.

    Every stage that makes part of an answer has one: language model, voice, and adapted services
    of other packages. It hears each frame that the stage processes. This is the only place that
    waits for a verdict. Withdrawal, interruption and the end of the session all end that wait.
    """

    def __init__(self) -> None:
        """Start with an answer that belongs to no attempt."""
        self._attempts = Attempts()
        self._interrupted = False
        self._decided = asyncio.Event()
        self._decided.set()
        self.attempt: int | None = None
        """The attempt that the current answer belongs to; None if to none."""
        self.ticket = Ticket()
        """Priority of the work on the current answer."""

    @property
    def status(self) -> AttemptStatus:
        """The status of the current answer."""
        if self._interrupted:
            return AttemptStatus.VOID
        return self._attempts.status(self.attempt)

    @property
    def is_pending(self) -> bool:
        """Whether the current answer waits for its verdict."""
        return self.status is AttemptStatus.PENDING

    def status_of(self, attempt: int | None) -> AttemptStatus:
        """The status of any attempt."""
        return self._attempts.status(attempt)

    def begin(self, attempt: int | None) -> AttemptStatus:
        """A new answer begins; returns its status.

        Args:
            attempt: The attempt that it belongs to; None if to none.
        """
        self._decided.set()  # whoever still waits on the answer before
        self._decided = asyncio.Event()
        self._interrupted = False
        self.attempt = attempt
        self.ticket = Ticket(Priority.SPECULATIVE)
        self._update()
        return self.status

    def hear(self, frame: Frame) -> AttemptStatus:
        """Note what a frame says; returns the status of the current answer."""
        if isinstance(frame, InterruptionFrame) and self.is_pending:
            self._interrupted = True
        self._attempts.hear(frame)
        self._update()
        return self.status

    def close(self) -> None:
        """The session ends: a pending answer is void, and nothing waits any more."""
        self._attempts.close()
        self._update()

    async def verdict(self) -> AttemptStatus:
        """Wait until the current answer is no longer pending; returns its status.

        An answer that another one has replaced meanwhile is void.
        """
        decided = self._decided
        await decided.wait()
        return self.status if decided is self._decided else AttemptStatus.VOID

    def _update(self) -> None:
        if self._attempts.priority(self.attempt) is Priority.COMMITTED:
            self.ticket.commit()
        if not self.is_pending:
            self._decided.set()
