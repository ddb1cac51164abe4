"""What runs Kokoro's network: the face that the ONNX and the torch engine share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FRAME = 600
"""Samples in a frame, the unit of predicted durations: 25 ms."""


class AbortedError(Exception):
    """A computation ended because its result is no longer wanted."""


class Abort:
    """Ends a computation from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hooks: list[Callable[[], None]] = []
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether the result is no longer wanted."""
        return self._requested

    def request(self) -> None:
        """The result is no longer wanted."""
        with self._lock:
            self._requested = True
            hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook()

    def check(self) -> None:
        """Go on only if the result is still wanted.

        Raises:
            AbortedError: It is not.
        """
        if self._requested:
            raise AbortedError

    def on_request(self, hook: Callable[[], None]) -> None:
        """Have `hook` called when the result is no longer wanted; at once if so already."""
        with self._lock:
            if not self._requested:
                self._hooks.append(hook)
                return
        hook()


@dataclass(frozen=True)
class Rendering:
    """A clause as the network speaks it."""

    durations: NDArray[np.int64]
    """Frames of 25 ms, for the start mark, each phoneme, and the end mark."""
    skipped: int
    """Samples of silence at the start that `pieces` leave out."""
    pieces: Iterator[NDArray[np.float32]]
    """Mono, 24 kHz; joined they are the clause."""


class Backend(Protocol):
    """Kokoro's network on one runtime."""

    name: str

    def render(
        self,
        tokens: NDArray[np.int64],
        style: NDArray[np.float32],
        *,
        voice: str,
        speed: float,
        pause: int,
        abort: Abort,
    ) -> Rendering | None:
        """Speak a clause. Blocks.

        Args:
            tokens: Of the phonemes, without start and end mark; shape (phonemes,).
            style: Shape (1, 256).
            voice: Where the style is from.
            speed: 1 is the voice's own.
            pause: Silence that may stay at the end, in samples.
            abort: Checked between steps.

        Returns:
            None if it was aborted.
        """
        ...

    def close(self) -> None:
        """Release memory and threads."""
        ...
