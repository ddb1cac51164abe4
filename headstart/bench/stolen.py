"""Processor time that this machine's host gave to others."""

from __future__ import annotations

import os
from pathlib import Path

_STAT = Path("/proc/stat")
_STEAL = 8
"""Field of its first line, see proc(5): ticks that a virtual processor waited for a real one."""


def stolen_ms(stat: Path = _STAT) -> float:
    """So far, of all processors together; in steps of 10 ms, and 0 where nobody tells."""
    try:
        ticks = int(stat.read_text("utf-8").splitlines()[0].split()[_STEAL])
    except (OSError, IndexError, ValueError):
        return 0.0
    return 1000 * ticks / os.sysconf("SC_CLK_TCK")
