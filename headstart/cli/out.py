"""Tries a folder for results before the work begins whose results it is to hold."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from headstart.errors import UsageError

_PROBE_BYTES = 1 << 20


def try_out(folder: Path, *files: str) -> None:
    """Make a folder and write something into it, which is gone again afterwards.

    Args:
        folder: Made if it is not there.
        files: The names of the files that are to be written there.

    Raises:
        UsageError: That cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder")
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())  # some file systems look for room only then
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be written ({error.strerror}); give another --out"
        ) from None
