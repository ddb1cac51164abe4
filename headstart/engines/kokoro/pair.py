"""Two threads that share the work on one clause."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
        self._helper = (
            ThreadPoolExecutor(1, "kokoro-helper", torch.set_num_threads, (1,))
            if threads > 1
            else None
        )

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


def _in_inference(work: Callable[[], A]) -> A:
    with torch.inference_mode():
        return work()
