"""The weights of Kokoro for torch, out of the quantised ONNX export or the author's checkpoint."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.engines.kokoro.onnx import file as onnx_file
from headstart.engines.kokoro.onnx.file import Graph, Node
from headstart.errors import EngineError


class Weights(dict[str, Tensor]):
    """Parameters of `kokoro.KModel` by name, without weight norm."""

    def __missing__(self, name: str) -> Tensor:
        """What is asked for has to be there."""
        raise EngineError(f"the model file is not Kokoro-82M v1.0: it lacks {name}")


def load_weights(path: Path) -> Weights:
    """Kokoro's parameters.

    Args:
        path: The ONNX export (`.onnx`), or the original checkpoint (`.pth`).

    Raises:
        EngineError: The file is neither.
    """
    if path.suffix == ".onnx":
        arrays = weights_of(onnx_file.read(path))
        return Weights((name, torch.from_numpy(value)) for name, value in arrays.items())
    try:
        parts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = Weights(
            (f"{part}.{name.removeprefix('module.')}", value)
            for part, parameters in parts.items()
            for name, value in parameters.items()
        )
    except (OSError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        raise EngineError(f"{path} is no checkpoint of Kokoro: {error}") from error
    for name in [name for name in weights if name.endswith(".weight_v")]:
        base = name.removesuffix("_v")
        weights[base] = torch._weight_norm(weights.pop(name), weights.pop(f"{base}_g"), 0)
    return weights


def under(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """The parameters of a part, by their names in it."""
    return Weights(
        (name.removeprefix(prefix), value)
        for name, value in weights.items()
        if name.startswith(prefix)
    )


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
        if re.search(r"_\d+$", module):
            continue  # ALBERT uses its one layer twelve times
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
