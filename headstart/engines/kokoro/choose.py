"""Which runtime speaks: measured once on a machine, remembered beside the weights."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from loguru import logger

from headstart.engines.kokoro.backend import Backend
from headstart.engines.kokoro.measure import Measurement, measure
from headstart.engines.kokoro.onnx import OnnxKokoro
from headstart.engines.kokoro.voices import Voices

_VERSION = 1
"""Of the engines, for the memory: what was measured with others does not count."""
_KEEPS_UP = 0.9
"""Real-time factor up to which a runtime is trusted to play without stopping."""


@dataclass(frozen=True)
class Choice:
    """A runtime and why."""

    engine: str
    reason: str


def load_best(model: Path, voices: Voices, *, threads: int, memory: Path) -> Backend:
    """The runtime that lets the user hear the first word sooner, and keeps up.

    Args:
        model: The ONNX export.
        voices: To speak with while measuring.
        threads: Of one clause's computation.
        memory: File in which earlier choices are kept.
    """
    if not _torch_is_installed():
        logger.info("Kokoro: onnx, because torch or kokoro is not installed")
        return OnnxKokoro(model, threads=threads)
    key = f"v{_VERSION} {platform.processor() or platform.machine()} {os.cpu_count()} x{threads}"
    choice = _remembered(memory, key)
    if choice:
        logger.info(f"Kokoro: {choice.engine}, because {choice.reason}")
        return load(choice.engine, model, threads=threads)
    backends = [load(name, model, threads=threads) for name in ("onnx", "torch")]
    figures = [measure(backend, voices) for backend in backends]
    choice = decide(*figures)
    logger.info(f"Kokoro: {choice.engine}, because {choice.reason}")
    _remember(memory, key, choice)
    best = backends[choice.engine == "torch"]
    for backend in backends:
        if backend is not best:
            backend.close()
    return best


def load(name: str, model: Path, *, threads: int) -> Backend:
    """A runtime by name, `onnx` or `torch`."""
    if name == "onnx":
        return OnnxKokoro(model, threads=threads)
    from headstart.engines.kokoro.torch_engine import TorchKokoro
    from headstart.engines.kokoro.weights import original_checkpoint

    return TorchKokoro(original_checkpoint() or model, threads=threads)


def decide(onnx: Measurement, torch: Measurement) -> Choice:
    """The one that is heard first, unless it cannot keep up and the other can."""
    figures = ", ".join(
        f"{name} is heard after {m.first_ms:.0f} ms at {m.real_time_factor:.2f} of real time"
        for name, m in (("onnx", onnx), ("torch", torch))
    )
    if torch.real_time_factor > max(_KEEPS_UP, onnx.real_time_factor):
        return Choice("onnx", f"torch does not keep up here: {figures}")
    if torch.first_ms < onnx.first_ms:
        return Choice("torch", f"it is heard first: {figures}")
    return Choice("onnx", f"it is heard first: {figures}")


def _torch_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "kokoro"))


def _remembered(memory: Path, key: str) -> Choice | None:
    try:
        return Choice(**json.loads(memory.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(memory: Path, key: str, choice: Choice) -> None:
    """Keep the choice; a machine that cannot write measures again next time."""
    try:
        kept = json.loads(memory.read_text()) if memory.exists() else {}
        draft = memory.with_suffix(f".{time.monotonic_ns()}")
        draft.write_text(json.dumps(kept | {key: asdict(choice)}, indent=1))
        draft.replace(memory)
    except (OSError, ValueError) as error:
        logger.debug(f"the choice of Kokoro's engine is not kept: {error}")
