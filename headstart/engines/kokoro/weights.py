"""The weights of Kokoro for torch, out of the quantised ONNX export, into `kokoro.KModel`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from kokoro_onnx.config import DEFAULT_VOCAB
from numpy.typing import NDArray

from headstart.engines.kokoro import onnx_file
from headstart.engines.kokoro.onnx_file import Graph, Node
from headstart.errors import EngineError

CONFIG: dict[str, Any] = {
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

_UNUSED = re.compile(r"\.norm\.(weight|bias)$|^bert\.pooler\.")
"""Parameters of `KModel` that the export has folded away: identity, or not used in speaking."""


def load_model(path: Path) -> Any:
    """Kokoro's network with its weights, ready to speak; a `kokoro.KModel`.

    Args:
        path: The ONNX export (`.onnx`), or the original checkpoint (`.pth`).

    Raises:
        EngineError: The file does not hold the weights of Kokoro-82M v1.0.
    """
    if path.suffix == ".onnx":
        model = _new_model(None)
        _fill(model, weights_of(onnx_file.read(path)))
    else:
        model = _new_model(path)
        _without_weight_norm(model)
    return model.eval().requires_grad_(False)


def original_checkpoint() -> Path | None:
    """The author's checkpoint, if it is in this user's Hugging Face cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    path = try_to_load_from_cache("hexgrad/Kokoro-82M", "kokoro-v1_0.pth")
    return Path(path) if isinstance(path, str) else None


def weights_of(graph: Graph) -> dict[str, NDArray[np.float32]]:
    """The parameters of `KModel` (without weight norm) that the export holds, dequantised."""
    weights: dict[str, NDArray[np.float32]] = {}
    for name, tensor in graph.tensors.items():
        if not name.startswith(("/", "onnx::")) and not name.endswith(
            ("_quantized", "_scale", "_zero_point")
        ):
            weights[_parameter(name)] = tensor.astype(np.float32)
    for node in graph.nodes:
        module = _parameter(node.name.rpartition("/")[0].strip("/").replace("/", "."))
        if node.op == "DynamicQuantizeLSTM":
            weights |= _lstm(graph, node, module)
        elif node.op in ("ConvInteger", "MatMulInteger"):
            weight = _dequantised(graph, node.inputs[1], graph.tensors.get(node.inputs[3]))
            if weight is not None:
                # ONNX multiplies by (in, out); torch keeps linear layers as (out, in).
                transposed = node.op == "MatMulInteger"
                weights[f"{module}.weight"] = weight.T.copy() if transposed else weight
        elif node.op in ("Conv", "ConvTranspose", "MatMul") and node.inputs[1] in graph.tensors:
            plain: NDArray[np.float32] = graph.tensors[node.inputs[1]].astype(np.float32)
            weights[f"{module}.weight"] = plain.T.copy() if node.op == "MatMul" else plain
        elif node.op == "Gather" and node.inputs[0].endswith(".weight_quantized"):
            # The zero point of embeddings is that of the first; the export keeps equals once.
            zero = graph.tensors["encoder.bert.embeddings.word_embeddings.weight_zero_point"]
            weight = _dequantised(graph, node.inputs[0], zero)
            if weight is not None:
                weights[_parameter(node.inputs[0].removesuffix("_quantized"))] = weight
    return weights


def _dequantised(
    graph: Graph, name: str, zero: NDArray[np.generic] | None
) -> NDArray[np.float32] | None:
    if name not in graph.tensors or zero is None:
        return None
    quantised = graph.tensors[name].astype(np.float32)
    scale = graph.tensors[name.removesuffix("_quantized") + "_scale"].astype(np.float32)
    weight: NDArray[np.float32] = (quantised - zero.astype(np.float32)) * scale
    return weight


def _lstm(graph: Graph, node: Node, module: str) -> dict[str, NDArray[np.float32]]:
    """An LSTM's weights; ONNX orders the gates i, o, f, c and torch i, f, c (g), o."""
    tensors = [graph.tensors.get(name) for name in node.inputs]
    weights: dict[str, NDArray[np.float32]] = {}
    bias = tensors[3]
    for kind, quantised, scale, zero in (
        ("ih", tensors[1], tensors[8], tensors[9]),
        ("hh", tensors[2], tensors[10], tensors[11]),
    ):
        if quantised is None or scale is None or zero is None or bias is None:
            raise EngineError(f"{node.name} has not the weights of an LSTM")
        for direction, suffix in enumerate(("", "_reverse")):
            whole = quantised[direction].astype(np.float32) - np.float32(zero[direction])
            weights[f"{module}.weight_{kind}_l0{suffix}"] = _gates(
                (whole * np.float32(scale[direction])).T
            )
            half = bias[direction].astype(np.float32).reshape(2, -1)[0 if kind == "ih" else 1]
            weights[f"{module}.bias_{kind}_l0{suffix}"] = _gates(half)
    return weights


def _gates(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    i, o, f, c = np.split(weight, 4)
    return np.concatenate([i, f, c, o])


def _parameter(name: str) -> str:
    """The export's name of a module or parameter as `KModel` has it."""
    name = re.sub(r"^decoder\.decoder\.", "decoder.", name)
    name = re.sub(r"^encoder\.(?=bert|predictor|text_encoder)", "", name)
    name = re.sub(r"^encoder\.(?=F0|N\b|N_|shared|lstm|duration_proj)", "predictor.", name)
    name = re.sub(r"cnn\.(\d)\.cnn\.\1\.0", r"cnn.\1.0", name)
    return name.replace("asr_res.asr_res.0", "asr_res.0")


def _fill(model: Any, weights: dict[str, NDArray[np.float32]]) -> None:
    _without_weight_norm(model)
    wanted = model.state_dict()
    missing = [
        name
        for name, value in wanted.items()
        if not _UNUSED.search(name)
        and (name not in weights or weights[name].shape != tuple(value.shape))
        and value.is_floating_point()
    ]
    if missing:
        raise EngineError(
            f"the model file lacks {len(missing)} of Kokoro's weights, among them {missing[0]}"
        )
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.items() if name in wanted},
        strict=False,
    )


def _without_weight_norm(model: Any) -> None:
    """Fold each weight's norm into the weight, so that it is not computed at every step."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)


def _new_model(checkpoint: Path | None) -> Any:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The package builds its layers in ways that torch would have it change.
        warnings.simplefilter("ignore")
        if checkpoint is None:
            checkpoint = Path(folder, "empty.pth")
            torch.save({}, checkpoint)
        return _kokoro_model().KModel(
            repo_id="hexgrad/Kokoro-82M", config=CONFIG, model=str(checkpoint)
        )


def _kokoro_model() -> ModuleType:
    """The module `kokoro.model`, without what `import kokoro` does besides.

    The package's `__init__` imports misaki with spaCy, which takes seconds and may download,
    and replaces loguru's handlers. So a bare package stands in for it while the module loads.
    """
    if "kokoro" in sys.modules:
        return importlib.import_module("kokoro.model")
    spec = importlib.util.find_spec("kokoro")
    if spec is None:
        raise EngineError('the torch engine needs the package kokoro: pip install "kokoro>=0.9.4"')
    bare = ModuleType("kokoro")
    bare.__path__ = list(spec.submodule_search_locations or ())
    bare.__spec__ = spec
    sys.modules["kokoro"] = bare
    try:
        return importlib.import_module("kokoro.model")
    finally:
        # Whoever wants the whole package later gets it.
        del sys.modules["kokoro"]
