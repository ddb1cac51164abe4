"""Which processor this machine has, so that what was measured on one is not believed of another."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_TELLING = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)
"""Model and instruction set; other lines of `/proc/cpuinfo` change from boot to boot."""


def name(cpuinfo: Path = _CPUINFO) -> str:
    """What its maker calls it, or the next best that the system tells."""
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    if sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if said:
            return said
    return platform.processor() or platform.machine()


def identity(cpuinfo: Path = _CPUINFO) -> str:
    """Its name, model, instruction set and number of cores, in one short line.

    The name alone is not enough: a cloud calls several models the same, and one of its guests may
    use instructions that another one may not.
    """
    telling = {line for line in _lines(cpuinfo) if line.partition(":")[0].strip() in _TELLING}
    digest = hashlib.sha256("\n".join(sorted(telling)).encode()).hexdigest()[:12]
    return f"{name(cpuinfo)}, {digest}, {os.cpu_count()} cores"


def _lines(cpuinfo: Path) -> list[str]:
    try:
        return cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return []
