"""Who runs next on a model: a bounded queue, committed work first, cancellable between pieces."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import numpy as np

from headstart.errors import EngineBusyError, EngineError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_HISTORY = 512


class Priority(IntEnum):
    """Lower runs first."""

    COMMITTED = 0
    SPECULATIVE = 1


@dataclass(eq=False)
class Ticket:
    """The standing of a piece of work, which its owner may change while it waits or runs."""

    priority: Priority = Priority.COMMITTED
    cancelled: bool = False
    due: float | None = None
    """When more of it is needed, by `time.monotonic`; None: since it was asked for."""
    _hooks: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def commit(self) -> None:
        """Let the work overtake everything speculative from now on."""
        self.priority = Priority.COMMITTED

    def cancel(self) -> None:
        """Drop the work: at once if it waits, after the current piece if it runs.

        Work that asked for it by `on_cancel` ends inside its piece.
        """
        self.cancelled = True
        for hook in tuple(self._hooks):
            hook()

    @contextmanager
    def on_cancel(self, hook: Callable[[], None]) -> Iterator[None]:
        """Have `hook` called by `cancel` as long as the block lasts; at once if it is too late."""
        self._hooks.append(hook)
        try:
            if self.cancelled:
                hook()
            yield
        finally:
            self._hooks.remove(hook)


@dataclass(frozen=True)
class QueueStatistics:
    """What a queue is doing and has done. Times are over the last 512 pieces of work."""

    name: str
    depth: int
    """Work waiting now."""
    running: int
    done: int
    cancelled: int
    rejected: int
    wait_ms_p50: float
    wait_ms_p95: float
    run_ms_p50: float
    """Time on the model."""
    run_ms_p95: float


@dataclass(eq=False)
class _Job(Generic[T]):
    number: int
    ticket: Ticket
    pieces: Iterator[T]
    single: bool
    """The first piece is all there is."""
    deliver: Callable[[T], None]
    end: Callable[[BaseException | None], None]
    asked_at: float = field(default_factory=time.monotonic)
    queued_at: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    ran: float = 0.0
    delivered: bool = False
    left: bool = False
    """Nobody awaits the rest. The ticket stays as it is: it may cover other work."""

    @property
    def dropped(self) -> bool:
        return self.left or self.ticket.cancelled

    @property
    def turn(self) -> tuple[Priority, float, int]:
        """The job whose turn is least runs first."""
        due = self.asked_at if self.ticket.due is None else self.ticket.due
        return self.ticket.priority, due, self.number


class InferenceQueue:
    """Feeds a model's worker threads.

    Work comes as an iterator of pieces. Between two pieces the worker looks again at who
    is first: committed before speculative, then who is due first, which is the oldest unless
    their tickets say otherwise. So a committed request waits for one piece of a speculative
    one at most, and a cancelled one frees the worker after it.
    """

    def __init__(self, name: str, *, threads: int = 1, capacity: int = 64) -> None:
        """Start the worker threads.

        Args:
            name: Of the engine, for the threads and the figures.
            threads: How many pieces may run at the same time.
            capacity: How much work may wait.
        """
        self._name = name
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: list[_Job[Any]] = []
        self._running = 0
        self._closed = False
        self._numbers = itertools.count()
        self._done = self._cancelled = self._rejected = 0
        self._waits_ms: deque[float] = deque(maxlen=_HISTORY)
        self._runs_ms: deque[float] = deque(maxlen=_HISTORY)
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], T], ticket: Ticket | None = None) -> T:
        """Run `work` on a worker thread and return what it returns.

        Cancelling the caller cancels the work if it has not begun.

        Raises:
            EngineBusyError: The queue is full.
            EngineError: The queue is closed.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: BaseException | None) -> None:
            if result.done():
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(cast("T", value))

        def end(error: BaseException | None) -> None:
            # Waking the loop is what a short piece of work costs most: once is enough.
            if error is not None or not job.delivered:
                cancelled = EngineError(f"{self._name}: the work was cancelled")
                _post(loop, settle, None, error or cancelled)

        job = _Job(
            next(self._numbers),
            ticket or Ticket(),
            _once(work),
            single=True,
            deliver=lambda value: _post(loop, settle, value, None),
            end=end,
        )
        self._submit(job)
        try:
            return await result
        finally:
            self._leave(job)

    async def stream(
        self, work: Callable[[], Iterator[T]], ticket: Ticket | None = None
    ) -> AsyncGenerator[T]:
        """Run the iterator that `work` returns on the worker threads; yield its pieces.

        Leaving the loop early cancels the rest. Ends early if the ticket is cancelled.

        Raises:
            EngineBusyError: The queue is full.
            EngineError: The queue is closed.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()
        job = _Job(
            next(self._numbers),
            ticket or Ticket(),
            _lazily(work),
            single=False,
            deliver=lambda piece: _post(loop, arrived.put_nowait, (True, piece)),
            end=lambda error: _post(loop, arrived.put_nowait, (False, error)),
        )
        self._submit(job)
        try:
            while True:
                more, value = await arrived.get()
                if more:
                    yield value
                elif value is not None:
                    raise value
                else:
                    return
        finally:
            self._leave(job)

    def statistics(self) -> QueueStatistics:
        """What the queue is doing and has done."""
        with self._changed:
            waits, runs = list(self._waits_ms) or [0.0], list(self._runs_ms) or [0.0]
            return QueueStatistics(
                self._name,
                sum(not job.dropped for job in self._waiting),
                self._running,
                self._done,
                self._cancelled,
                self._rejected,
                *(float(value) for value in np.percentile(waits, (50, 95))),
                *(float(value) for value in np.percentile(runs, (50, 95))),
            )

    def close(self) -> None:
        """End the worker threads; what waits ends with `EngineError`."""
        with self._changed:
            self._closed = True
            abandoned, self._waiting = self._waiting, []
            self._changed.notify_all()
        for job in abandoned:
            job.end(EngineError(f"{self._name} has been closed"))

    def _leave(self, job: _Job[Any]) -> None:
        """Nobody awaits the job any more; if it waits itself, a worker is told to drop it."""
        job.left = True
        with self._changed:
            if job in self._waiting:
                self._changed.notify()

    def _submit(self, job: _Job[Any]) -> None:
        with self._changed:
            if self._closed:
                raise EngineError(f"{self._name} has been closed")
            live = [other for other in self._waiting if not other.dropped]
            if len(live) >= self._capacity:
                # Committed work takes the place of the newest speculation, never the reverse.
                newest = max(live, key=lambda other: (other.ticket.priority, other.number))
                if newest.ticket.priority <= job.ticket.priority:
                    self._rejected += 1
                    raise EngineBusyError(f"{self._name} has {len(live)} requests waiting already")
                self._waiting.remove(newest)
                self._rejected += 1
                newest.end(EngineBusyError(f"{self._name} gave way to committed work"))
            self._waiting.append(job)
            self._changed.notify()

    def _next(self) -> _Job[Any] | None:
        """The job to work on now, or None when the queue is closed."""
        with self._changed:
            while True:
                for job in [job for job in self._waiting if job.dropped]:
                    self._waiting.remove(job)
                    self._finish(job, None, whole=False)
                if self._closed:
                    return None
                if self._waiting:
                    job = min(self._waiting, key=lambda job: job.turn)
                    self._waiting.remove(job)
                    self._running += 1
                    return job
                self._changed.wait()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            begun = time.monotonic()
            job.waited += begun - job.queued_at
            error: BaseException | None = None
            dropped = finished = False
            try:
                piece = next(job.pieces)
            except StopIteration:
                finished, dropped = True, job.dropped
            except BaseException as raised:  # handed to whoever awaits the work
                finished, error = True, raised
            else:
                finished, dropped = job.single, job.dropped
                if not dropped:
                    job.delivered = True
                    job.deliver(piece)
            job.queued_at = time.monotonic()
            job.ran += job.queued_at - begun
            with self._changed:
                self._running -= 1
                if finished or self._closed:
                    self._finish(job, error, whole=finished and not dropped)
                else:
                    self._waiting.append(job)

    def _finish(self, job: _Job[Any], error: BaseException | None, *, whole: bool) -> None:
        if not whole:
            self._cancelled += 1
        else:
            self._done += 1
        self._waits_ms.append(1000 * job.waited)
        self._runs_ms.append(1000 * job.ran)
        job.end(error)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[*Ts], object], *values: *Ts) -> None:
    """Have `callback` called on the event loop of whoever asked; nothing if that has closed.

    Asking before whether it has closed would not do: it may close right after the answer, and
    the thread that asks works for all sessions.
    """
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *values)


def _once(work: Callable[[], T]) -> Iterator[T]:
    yield work()


def _lazily(work: Callable[[], Iterator[T]]) -> Iterator[T]:
    """`work`'s pieces; it is called on the worker thread, not where it is handed over."""
    yield from work()
