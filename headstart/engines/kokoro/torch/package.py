"""Kokoro as its authors' package runs it: `kokoro.KModel`, a whole clause at a time.

On a graphics card a clause takes a few tens of milliseconds, and there is nothing to gain from
pieces. On a CPU this is the yardstick of the engine that streams.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from kokoro_onnx.config import DEFAULT_VOCAB
from numpy.typing import NDArray

from headstart.engines.kokoro.backend import Abort, AbortedError, Rendering
from headstart.engines.kokoro.silence import trimmed
from headstart.engines.kokoro.torch.weights import load_weights
from headstart.errors import EngineError

_CONFIG: dict[str, Any] = {
    "vocab": DEFAULT_VOCAB,
    "n_token": 178,
    "hidden_dim": 512,
    "style_dim": 128,
    "n_layer": 3,
    "max_dur": 50,
    "dropout": 0.2,
    "text_encoder_kernel_size": 5,
    "n_mels": 80,
    "plbert": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "max_position_embeddings": 512,
        "num_hidden_layers": 12,
        "dropout": 0.1,
    },
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
        "resblock_kernel_sizes": [3, 7, 11],
        "upsample_initial_channel": 512,
    },
}
"""Of Kokoro-82M v1.0, as its model card's `config.json` has it."""

_importing = threading.Lock()


class KokoroPackage:
    """Backend: the package's own network; checks for an abort at each of its modules."""

    name = "kmodel"

    def __init__(self, weights: Path, *, threads: int, device: str | None = None) -> None:
        """Load the network.

        Args:
            weights: The ONNX export, or the original checkpoint (`.pth`).
            threads: Of torch, on a CPU.
            device: Of torch; by default a CUDA card where there is one.

        Raises:
            EngineError: The file does not hold the weights, or the package is missing.
        """
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._threads = threads
        self._model: Any = _kmodel(weights).to(self._device)
        self._abort = Abort()
        for module in self._model.modules():
            module.register_forward_pre_hook(lambda *_: self._abort.check())

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
        """See `Backend.render`."""
        self._abort = abort
        torch.set_num_threads(self._threads)
        ids = torch.from_numpy(np.concatenate([[0], tokens, [0]]))[None].to(self._device)
        try:
            with torch.inference_mode():
                wave, durations = self._model.forward_with_tokens(
                    ids, torch.from_numpy(style).to(self._device), speed
                )
        except AbortedError:
            return None
        audio, skipped = trimmed(wave.cpu().numpy(), pause)
        return Rendering(durations.reshape(-1).cpu().numpy(), skipped, iter((audio,)))

    def close(self) -> None:
        """Let the weights go."""
        self._model = None


def _kmodel(weights: Path) -> Any:
    """`kokoro.KModel` with these weights, without weight norm."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _class()("hexgrad/Kokoro-82M", _CONFIG, empty)
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    left = model.load_state_dict(load_weights(weights), strict=False).missing_keys
    # Identity norms and a pooler are all that the export has folded away.
    if lacking := [name for name in left if not re.search(r"\.norm\.\w+$|^bert\.pooler", name)]:
        raise EngineError(f"{weights} is not Kokoro-82M v1.0: it lacks {lacking[0]}")
    return model.eval().requires_grad_(False)


def _class() -> Any:
    """`kokoro.model.KModel`; importing `kokoro` itself would load spaCy, which may be broken."""
    spec = importlib.util.find_spec("kokoro")
    if spec is None:
        raise EngineError("this engine needs the package: pip install kokoro")
    with _importing:
        there = sys.modules.get("kokoro")
        bare = ModuleType("kokoro")
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["kokoro"] = there or bare
        try:
            return importlib.import_module("kokoro.model").KModel
        finally:
            if there is None:
                del sys.modules["kokoro"]
