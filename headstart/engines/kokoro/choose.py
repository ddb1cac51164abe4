"""Which runtime speaks: measured once on a kind of machine, remembered beside the weights."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from loguru import logger

from headstart.engines import processor
from headstart.engines.kokoro.backend import Backend
from headstart.engines.kokoro.measure import Measurement, measure
from headstart.engines.kokoro.onnx.engine import OnnxKokoro
from headstart.engines.kokoro.voices import Voices

_VERSION = 3
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

    torch is measured, for four seconds at most; onnx only where torch does not keep up. A
    choice that may be due to other programs' work is not remembered.

    Args:
        model: The ONNX export.
        voices: To speak with while measuring.
        threads: Of one clause's computation.
        memory: File in which earlier choices are kept; machines may share it.
    """
    if not _torch_is_installed():
        logger.info("Kokoro: onnx, because torch is not installed")
        return OnnxKokoro(model, threads=threads)
    key = f"v{_VERSION} {processor.identity()}, {_card()} x{threads}"
    choice = _remembered(memory, key)
    if choice:
        logger.info(f"Kokoro: {choice.engine}, because {choice.reason}")
        return load(choice.engine, model, threads=threads)
    torch = load("torch", model, threads=threads)
    figures = {"torch": measure(torch, voices)}
    if figures["torch"].real_time_factor <= _KEEPS_UP:
        best, choice = torch, decide(figures)
    else:
        onnx = load("onnx", model, threads=threads)
        figures["onnx"] = measure(onnx, voices)
        choice = decide(figures)
        best, other = (torch, onnx) if choice.engine == "torch" else (onnx, torch)
        other.close()
    logger.success(f"Kokoro: {choice.engine}, because {choice.reason}")
    if choice.engine == "torch" or not _busy():
        _remember(memory, key, choice)
    return best


def load(name: str, model: Path, *, threads: int) -> Backend:
    """A runtime by name: `onnx`, `torch`, or `kmodel`, which is what torch means on a CUDA card."""
    if name == "onnx":
        return OnnxKokoro(model, threads=threads)
    import torch

    from headstart.engines.kokoro.torch.engine import TorchKokoro
    from headstart.engines.kokoro.torch.package import KokoroPackage
    from headstart.engines.kokoro.torch.weights import original_checkpoint

    weights = original_checkpoint() or model
    if name == "kmodel" or torch.cuda.is_available():
        return KokoroPackage(weights, threads=threads)
    return TorchKokoro(weights, threads=threads)


def decide(figures: dict[str, Measurement]) -> Choice:
    """torch, which is heard first, unless it does not keep up and onnx does it better.

    Args:
        figures: By engine: of torch, and of onnx unless torch is good enough.
    """
    reason = ", ".join(
        f"{name} is heard after {m.first_ms:.0f} ms at {m.real_time_factor:.2f} of real time"
        for name, m in figures.items()
    )
    torch, onnx = figures["torch"], figures.get("onnx")
    if onnx is None or torch.real_time_factor <= _KEEPS_UP:
        return Choice("torch", f"it keeps up here: {reason}")
    if onnx.real_time_factor < torch.real_time_factor or onnx.first_ms < torch.first_ms:
        return Choice("onnx", f"torch does not keep up here: {reason}")
    return Choice("torch", f"neither keeps up here: {reason}")


def _busy() -> bool:
    """Whether other programs were using the processor, so that figures say little."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)


def _card() -> str:
    """The CUDA card that torch means. It takes seconds to import, so only a build for one is."""
    if version("torch").endswith("+cpu"):
        return "no card"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"


def _torch_is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


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
    except (OSError, ValueError, TypeError) as error:
        logger.debug(f"the choice of Kokoro's engine is not kept: {error}")
