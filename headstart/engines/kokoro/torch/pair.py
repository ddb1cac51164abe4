"""Two threads that share the work on one clause."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Pair:
    """The calling thread and, if there are two, a helper.

    Not OpenMP's threads: those spin while they wait, which starves the other engines, and one
    of them that is kept from its core holds up all.
    """

    def __init__(self, threads: int) -> None:
        """Start the helper, unless there is but one thread."""
        self._helper = None
        self._callers_cores: set[int] | None = None
        if threads > 1:
            self._callers_cores, helpers = _halves()
            self._helper = ThreadPoolExecutor(1, "kokoro-helper", _begin, (helpers,))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keep the calling thread off the helper's cores, as the helper is kept off the caller's.

        Left alone, both often run on one core for some 20 ms when they wake after a pause, though
        the other is idle. Probably because a virtual machine's core that sleeps counts as taken
        away by the host (`vcpu_is_preempted` in Linux), so who is woken stays with who wakes it.
        """
        before = _cores() if self._callers_cores else None
        _keep_to(self._callers_cores)
        try:
            yield
        finally:
            _keep_to(before)

    def start(self, work: Callable[[], A]) -> Future[A]:
        """Let the helper do `work`; done at once where there is none."""
        if self._helper:
            return self._helper.submit(_in_inference, work)
        done: Future[A] = Future()
        done.set_result(work())
        return done

    def both(self, one: Callable[[], A], other: Callable[[], B]) -> tuple[A, B]:
        """The results of both, worked out at the same time."""
        future = self.start(other)
        return one(), future.result()

    def close(self) -> None:
        """End the helper."""
        if self._helper:
            self._helper.shutdown(wait=False)


def _begin(cores: set[int] | None) -> None:
    torch.set_num_threads(1)
    _keep_to(cores)


def _cores() -> set[int] | None:
    """Those that the calling thread may use; None where the system does not tell."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else None


def _halves() -> tuple[set[int], set[int]] | tuple[None, None]:
    cores = sorted(_cores() or ())
    half = len(cores) // 2
    return (set(cores[:half]), set(cores[half:])) if half else (None, None)


def _keep_to(cores: set[int] | None) -> None:
    if cores and sys.platform == "linux":
        with suppress(OSError):  # they have been taken from us since
            os.sched_setaffinity(0, cores)


def _in_inference(work: Callable[[], A]) -> A:
    with torch.inference_mode():
        return work()
