"""Standard output and error that cannot be written: closed, a full disk, a pipe nobody reads."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Discarding(io.FileIO):
    """Discards all from the first thing on that cannot be written, and keeps the reason."""

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int | None:  # type: ignore[override]
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


class Streams:
    """Takes the place of `sys.stdout` and `sys.stderr`.

    A command then ends as it would otherwise, with its files written, whatever becomes of what it
    prints; `failure()` tells in the end.
    """

    def __init__(self) -> None:
        """Take over."""
        self._out, sys.stdout = _guarded(sys.stdout, 1)
        _, sys.stderr = _guarded(sys.stderr, 2)

    def failure(self) -> str | None:
        """Flush, and say in a line why standard output is not whole, if it is not.

        None, too, if whoever read it has left: `| head -n 1` has what it wants.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        error = self._out.failure
        if error is None or error.errno == errno.EPIPE:
            return None
        return f"standard output cannot be written ({error.strerror})"


def _guarded(stream: TextIO | None, number: int) -> tuple[_Discarding, TextIO]:
    if stream is None:
        # It was closed. Nothing that is opened later may get its number, and be written to by
        # child processes; what is only open for reading cannot be written either.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, number)
        if null != number:
            os.close(null)
    raw = _Discarding(number, "w", closefd=False)
    text = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",  # a file's name may hold anything
        line_buffering=number == 2 or raw.isatty(),
        write_through=getattr(stream, "write_through", False),
    )
    return raw, text
