"""Reads nodes and weights out of an ONNX file, without the package that defines the format.

Only what Kokoro's export holds. Wire format: https://protobuf.dev/programming-guides/encoding;
messages: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.errors import EngineError

_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Node:
    """One operation of the graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    """Names of tensors; empty where an optional one is left out."""
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """The operations of a model and its constant tensors."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, NDArray[np.generic]] = field(default_factory=dict)


def read(path: Path) -> Graph:
    """The graph of the model in a file.

    Raises:
        EngineError: The file is no ONNX model.
    """
    try:
        graph = Graph()
        for number, value in _fields(memoryview(path.read_bytes())):
            if number == 7 and isinstance(value, memoryview):
                _read_graph(value, graph)
    except (IndexError, KeyError, ValueError) as error:
        raise EngineError(f"{path} is no ONNX model that can be read: {error}") from error
    return graph


def _read_graph(message: memoryview, graph: Graph) -> None:
    for number, value in _fields(message):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            graph.nodes.append(_read_node(value))
        elif number == 5:
            name, tensor = _read_tensor(value)
            graph.tensors[name] = tensor


def _read_node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    for number, value in _fields(message):
        if number in texts and isinstance(value, memoryview):
            texts[number].append(bytes(value).decode())
    return Node("".join(texts[3]), "".join(texts[4]), tuple(texts[1]), tuple(texts[2]))


def _read_tensor(message: memoryview) -> tuple[str, NDArray[np.generic]]:
    name, shape, kind = "", [], 1
    values: NDArray[np.generic] = np.zeros(0, np.float32)
    for number, value in _fields(message):
        if isinstance(value, int):
            if number == 1:
                shape.append(value)
            elif number == 2:
                kind = value
            elif number in (5, 7):
                values = np.array([value])
        elif number == 1:
            shape.extend(_varints(value))
        elif number == 4:
            values = np.frombuffer(value, np.float32)
        elif number in (5, 7):
            values = np.array(list(_varints(value)), np.uint64).astype(np.int64)
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            values = np.frombuffer(value, _DTYPES[kind])
    return name, values.astype(_DTYPES[kind], copy=False).reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The numbers and values of a message's fields."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value
