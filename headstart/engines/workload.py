"""What an engine has in hand for whom: work whose user waits for it, and work done on trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headstart.engines.queue import Priority, Ticket


class Workload:
    """The tickets of all work of an engine, waiting or running."""

    def __init__(self) -> None:
        """Nothing is in hand."""
        self._tickets: list[Ticket] = []

    @contextmanager
    def holding(self, ticket: Ticket) -> Iterator[None]:
        """The work of the ticket is in hand as long as the block lasts."""
        self._tickets.append(ticket)
        try:
            yield
        finally:
            self._tickets.remove(ticket)

    @property
    def is_committed(self) -> bool:
        """Whether somebody waits for any of it."""
        return any(
            ticket.priority is Priority.COMMITTED and not ticket.cancelled
            for ticket in self._tickets
        )
