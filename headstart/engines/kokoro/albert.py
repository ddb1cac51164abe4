"""ALBERT (Lan et al. 2020), which tells Kokoro what a clause means, on two threads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.backend import Abort
from headstart.engines.kokoro.int8 import Int8Linear
from headstart.engines.kokoro.pair import Pair

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
        halves = _normed(value, *self._first_norm).tensor_split(2)
        halves = self._widen(halves[0]), self._widen(halves[1])
        for _ in range(_LAYERS):
            abort.check()
            halves = self._layer(*halves)
        return torch.cat(halves)

    def _layer(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._pair.both(lambda: self._attention(one), lambda: self._attention(other))
        key, heads = torch.cat(parts)[:, _WIDTH:].chunk(2, dim=1)
        return self._pair.both(
            lambda: self._attend(one, parts[0][:, :_WIDTH], key, heads),
            lambda: self._attend(other, parts[1][:, :_WIDTH], key, heads),
        )

    def _attend(self, value: Tensor, query: Tensor, key: Tensor, heads: Tensor) -> Tensor:
        seen = functional.scaled_dot_product_attention(_split(query), _split(key), _split(heads))
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
