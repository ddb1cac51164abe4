"""What a benchmark ran on, and what its processes used of it."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from headstart.engines import processor

_PACKAGES = (
    "headstart pipecat-ai anthropic openai ctranslate2 faster-whisper onnxruntime torch xllamacpp "
    "kokoro-onnx numpy"
).split()


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter, those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory and load."""
    described: dict[str, str | int | float] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor.name(),
        "cores": os.cpu_count() or 1,
        "load_1m": round(os.getloadavg()[0], 2),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        described["memory_gb"] = round(memory / 1e9, 1)
    return described


@dataclass(frozen=True)
class Usage:
    """What this process and its children have used so far."""

    cpu_s: float
    peak_rss_mb: float


def usage() -> Usage:
    """Of this process and, where there is a /proc, of the children that live."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    in_kib = 1024 if sys.platform != "darwin" else 1
    cpu_s = own.ru_utime + own.ru_stime
    try:
        # `ru_maxrss` is not less than what the process took that this one was forked from.
        rss_bytes = _peak_bytes("self")
    except OSError:
        rss_bytes = own.ru_maxrss * in_kib
    for pid in _children(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            rss_bytes += _peak_bytes(pid)
        except OSError:  # it has just ended
            continue
        cpu_s += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Usage(cpu_s, rss_bytes / 1e6)


def _peak_bytes(pid: int | str) -> int:
    """The most memory that a process has had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peaks[0]) * 1024 if peaks else 0


def resident_mb() -> float:
    """Memory of this process now; the most so far where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return usage().peak_rss_mb
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _children(pid: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in found:
            yield child
            yield from _children(child)
