"""ALBERT (Lan et al. 2020), which tells Kokoro what a clause means, on two threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.backend import Abort
from headstart.engines.kokoro.torch.int8 import Int8Linear
from headstart.engines.kokoro.torch.pair import Pair

A = TypeVar("A")

_LAYERS, _HEADS, _WIDTH = 12, 12, 768
_EPSILON = 1e-12
_PREFIX = "bert.encoder.albert_layer_groups.0.albert_layers.0."


class Linear:
    """A linear layer, or a convolution of one tap, on values of shape (steps, channels)."""

    def __init__(self, weights: Mapping[str, Tensor], *names: str, int8: bool = False) -> None:
        """Several names make one layer, whose outputs stand side by side."""
        weight = torch.cat([weights[f"{name}.weight"].flatten(1) for name in names])
        bias = torch.cat([weights[f"{name}.bias"] for name in names])
        self._product = (
            Int8Linear(weight, bias)
            if int8
            else lambda value: functional.linear(value, weight, bias)
        )

    def __call__(self, value: Tensor) -> Tensor:
        """Shape (steps, out)."""
        return self._product(value)


class _Half(NamedTuple):
    """Half of the phonemes, on their way through a layer."""

    value: Tensor
    query: Tensor
    seen: Tensor
    """Keys and values, side by side: what the other half sees of this one."""


class Albert:
    """`KModel.bert`."""

    def __init__(self, weights: Mapping[str, Tensor], pair: Pair, *, int8: bool) -> None:
        """Take the weights.

        Args:
            weights: Parameters of `KModel` by name.
            pair: Shares the work: half of the phonemes each.
            int8: Whether to compute on bytes: one duration in sixteen then differs, mostly by a
                frame.
        """
        self._pair = pair
        embeddings = "bert.embeddings."
        self._words = weights[f"{embeddings}word_embeddings.weight"]
        self._positions = (
            weights[f"{embeddings}position_embeddings.weight"]
            + weights[f"{embeddings}token_type_embeddings.weight"][0]
        )
        self._first_norm = _norm_weights(weights, f"{embeddings}LayerNorm")
        self._widen = Linear(weights, "bert.encoder.embedding_hidden_mapping_in")
        self._attention = Linear(
            weights,
            *(f"{_PREFIX}attention.{part}" for part in ("query", "key", "value")),
            int8=int8,
        )
        self._attended = Linear(weights, f"{_PREFIX}attention.dense", int8=int8)
        self._attention_norm = _norm_weights(weights, f"{_PREFIX}attention.LayerNorm")
        self._inner = Linear(weights, f"{_PREFIX}ffn", int8=int8)
        self._outer = Linear(weights, f"{_PREFIX}ffn_output", int8=int8)
        self._last_norm = _norm_weights(weights, f"{_PREFIX}full_layer_layer_norm")

    def __call__(self, ids: Tensor, abort: Abort) -> Tensor:
        """What each phoneme means here; shape (phonemes, 768).

        Raises:
            AbortedError: The result is no longer wanted.
        """
        value = self._words[ids] + self._positions[: len(ids)]
        one, other = _normed(value, *self._first_norm).tensor_split(2)
        halves = self._pair.both(
            lambda: self._seeing(self._widen(one)), lambda: self._seeing(self._widen(other))
        )
        for _ in range(_LAYERS - 1):
            abort.check()
            halves = self._layer(self._seeing, *halves)
        return torch.cat(self._layer(lambda value: value, *halves))

    def _layer(self, after: Callable[[Tensor], A], one: _Half, other: _Half) -> tuple[A, A]:
        """A layer, and `after` it the next one's beginning: so the halves meet once a layer."""
        key, heads = torch.cat([one.seen, other.seen]).chunk(2, dim=1)
        return self._pair.both(
            lambda: after(self._attend(one, key, heads)),
            lambda: after(self._attend(other, key, heads)),
        )

    def _seeing(self, value: Tensor) -> _Half:
        query, seen = torch.split(self._attention(value), [_WIDTH, 2 * _WIDTH], dim=1)
        return _Half(value, query, seen)

    def _attend(self, half: _Half, key: Tensor, heads: Tensor) -> Tensor:
        value = half.value
        seen = functional.scaled_dot_product_attention(
            _split(half.query), _split(key), _split(heads)
        )
        seen = seen[0].transpose(0, 1).reshape(len(value), -1)
        value = _normed(self._attended(seen) + value, *self._attention_norm)
        inner = functional.gelu(self._inner(value), approximate="tanh")
        return _normed(self._outer(inner) + value, *self._last_norm)


def _split(value: Tensor) -> Tensor:
    """By heads: (1, heads, phonemes, channels)."""
    return value.reshape(len(value), _HEADS, -1).transpose(0, 1)[None]


def _norm_weights(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _normed(value: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return functional.layer_norm(value, gain.shape, gain, offset, _EPSILON)
