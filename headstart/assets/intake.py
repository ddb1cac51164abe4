"""Takes files in safely: partial under a name of their own, verified, then in place at once."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ABANDONED_SECS = 120.0
"""A partial file not written to for so long belongs to a process that was killed."""


class SourceError(Exception):
    """A source did not deliver; the reason, in one line."""


class DamagedError(SourceError):
    """What a source delivered is not the file that was expected."""


@dataclass(frozen=True)
class AssetFile:
    """One file of an asset, byte for byte."""

    name: str
    size: int
    """Bytes."""
    sha256: str

    def is_at(self, path: Path) -> bool:
        """Whether there is a file of the right size there; quick, reads no content."""
        try:
            return path.stat().st_size == self.size
        except OSError:
            return False

    def is_intact_at(self, path: Path) -> bool:
        """Whether the file there has the right content; reads all of it."""
        if not self.is_at(path):
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256


class Intake:
    """Where sources deliver the files of one asset.

    Any number of processes may take in the same asset: each writes to partial files of its
    own, and whole, verified files replace each other atomically.
    """

    def __init__(
        self,
        folder: Path,
        partial: Path,
        report: Callable[[int], None],
        unreachable: set[str],
    ) -> None:
        """Take files in.

        Args:
            folder: Where whole files go.
            partial: Where partial files are kept; on the same file system.
            report: Told how many bytes have arrived so far.
            unreachable: Hosts found unreachable, shared by all intakes of one pull, so that
                none is waited for twice.
        """
        self.unreachable = unreachable
        self._folder = folder
        self._partial = partial
        self._report = report
        self._accepted_bytes = 0

    def progress(self, arrived_bytes: int) -> None:
        """Report bytes that have arrived but are not accepted yet."""
        self._report(self._accepted_bytes + arrived_bytes)

    @contextmanager
    def part(self, file: AssetFile) -> Iterator[Path]:
        """A path to write the file to; what an earlier attempt left is there already.

        On leaving, the file is verified and moved to its place. If the writer fails or is
        interrupted, what it has written is kept for the next attempt.

        Raises:
            DamagedError: The file is not the expected one; it has been deleted.
        """
        self._partial.mkdir(parents=True, exist_ok=True)
        part = self._claim(file)
        try:
            yield part
        except BaseException:
            if part.exists() and part.stat().st_size:
                part.replace(self._partial / f"{file.sha256}.part")
            else:
                part.unlink(missing_ok=True)
            raise
        if not file.is_intact_at(part):
            part.unlink(missing_ok=True)
            raise DamagedError(f"{file.name} is not the expected file (size or sha256 differs)")
        self._folder.mkdir(parents=True, exist_ok=True)
        part.replace(self._folder / file.name)
        self._accepted_bytes += file.size
        self.progress(0)

    def _claim(self, file: AssetFile) -> Path:
        """A path of our own, holding what an earlier attempt left, if there is any.

        A rename succeeds for one process only, so no two can continue the same partial file.
        """
        mine = self._partial / f"{file.sha256}.{uuid.uuid4().hex}.part"
        released = self._partial / f"{file.sha256}.part"
        for left in [released, *self._partial.glob(f"{file.sha256}.*.part")]:
            with suppress(FileNotFoundError):
                if left == released or time.time() - left.stat().st_mtime > ABANDONED_SECS:
                    os.rename(left, mine)
                    break
        return mine
