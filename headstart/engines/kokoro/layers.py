"""Layers of Kokoro that work on a clause piece by piece; values are (steps, channels)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.pair import Pair

_EPSILON = 1e-5


@dataclass(frozen=True)
class Conv:
    """A convolution over steps, as a matrix for each of its taps.

    That costs as little as the convolutions of oneDNN, and nothing for a length that comes
    for the first time.
    """

    taps: tuple[Tensor, ...]
    """Each of shape (in, out)."""
    bias: Tensor | None
    dilation: int = 1

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], name: str, dilation: int = 1) -> Conv:
        """The convolution of that name."""
        # (out, in, taps) -> (taps, in, out)
        weight = weights[f"{name}.weight"].permute(2, 1, 0).contiguous()
        bias = f"{name}.bias"
        return cls(tuple(weight), weights.get(bias), dilation)

    @property
    def reach(self) -> int:
        """Steps that it looks to either side."""
        return self.dilation * (len(self.taps) - 1) // 2

    def __call__(self, value: Tensor) -> Tensor:
        """Without padding: the result is 2 * reach steps shorter."""
        steps = len(value) - 2 * self.reach
        if self.bias is None:
            result = value[:steps] @ self.taps[0]
        else:
            result = torch.addmm(self.bias, value[:steps], self.taps[0])
        for number, tap in enumerate(self.taps[1:], 1):
            begin = number * self.dilation
            result.addmm_(value[begin : begin + steps], tap)
        return result


class Flow:
    """What the layers remember of a clause between two of its pieces.

    A layer that looks ahead gives out fewer steps than it got; the rest follows with the next
    piece, so that nothing is computed twice. Before the first piece and after the last one
    are zeros, as in a network that sees the clause whole.
    """

    def __init__(self) -> None:
        self.last = False
        """Whether the piece under way is the last."""
        self._kept: dict[str, Tensor] = {}
        self._position: dict[str, int] = {}

    def first(self, name: str) -> bool:
        """Whether the layer has not been used for this clause yet."""
        return name not in self._kept

    def conv(self, name: str, value: Tensor, conv: Conv) -> Tensor:
        """A convolution that goes on where it was left."""
        reach = conv.reach
        if not reach:
            return conv(value)
        return conv(self.extended(name, value, keep=2 * reach, lead=reach, trail=reach))

    def extended(self, name: str, value: Tensor, *, keep: int, lead: int, trail: int) -> Tensor:
        """The last steps of the piece before, and `value`.

        Args:
            name: Of the layer.
            value: The piece under way.
            keep: How many steps of the piece before.
            lead: How many zeros stand before the first piece.
            trail: How many zeros follow the last.
        """
        parts = [self._kept.get(name, value.new_zeros(lead, value.shape[1])), value]
        if self.last:
            parts.append(value.new_zeros(trail, value.shape[1]))
        whole = torch.cat(parts)
        self._kept[name] = whole[max(0, len(whole) - keep) :]
        return whole

    def together(self, name: str, *values: Tensor) -> list[Tensor]:
        """As much of each as there is of all; the rest is kept for the next piece."""
        for number, value in enumerate(values):
            kept = self._kept.get(f"{name}:{number}")
            values = (
                *values[:number],
                value if kept is None or not len(kept) else torch.cat([kept, value]),
                *values[number + 1 :],
            )
        steps = min(map(len, values))
        for number, value in enumerate(values):
            self._kept[f"{name}:{number}"] = value[steps:]
        return [value[:steps] for value in values]

    def count(self, name: str, steps: int) -> int:
        """How many steps passed here before these."""
        before = self._position.get(name, 0)
        self._position[name] = before + steps
        return before


class Styles:
    """What the style of a voice makes of the instance norms: one product for all of them."""

    def __init__(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> None:
        """Take the layers of these names."""
        self.names = tuple(names)
        self._weight = torch.cat([weights[f"{name}.fc.weight"] for name in names])
        self._bias = torch.cat([weights[f"{name}.fc.bias"] for name in names])
        self._sizes = [len(weights[f"{name}.fc.bias"]) for name in names]

    def __call__(self, style: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Gain and offset of each layer, for a style of shape (1, 128)."""
        both = functional.linear(style, self._weight, self._bias)[0]
        return {
            name: (1 + part[: len(part) // 2], part[len(part) // 2 :])
            for name, part in zip(self.names, torch.split(both, self._sizes), strict=True)
        }


def folded(style: tuple[Tensor, Tensor], mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Norm and style as y = scale * x + shift."""
    gain, offset = style
    scale = gain * torch.rsqrt(variance + _EPSILON)
    return scale, offset - mean * scale


class Block:
    """StyleTTS 2's residual block with adaptive norms, of prosody predictor and decoder.

    It sees a clause whole.
    """

    def __init__(self, weights: Mapping[str, Tensor], name: str, pair: Pair | None = None) -> None:
        """Take the block's weights; `pair` shares the work."""
        self.name = name
        self._convs = [_Halves(weights, f"{name}.conv{part}", pair) for part in (1, 2)]
        aside = f"{name}.conv1x1"
        self._aside = Conv.of(weights, aside) if f"{aside}.weight" in weights else None
        pool = f"{name}.pool.weight"
        self._pool = weights[pool][:, 0].t().contiguous() if pool in weights else None
        self._pool_bias = weights.get(f"{name}.pool.bias")

    @property
    def norms(self) -> tuple[str, str]:
        """Names of the block's instance norms."""
        return f"{self.name}.norm1", f"{self.name}.norm2"

    def __call__(self, value: Tensor, styles: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Twice as many steps where the block is one that doubles the rate."""
        change = _activated(value, styles[self.norms[0]])
        if self._pool is not None:
            change = self._doubled(change, self._pool)
            value = value.repeat_interleave(2, 0)
        change = _activated(self._convs[0](change), styles[self.norms[1]])
        change = self._convs[1](change)
        if self._aside is not None:
            value = self._aside(value)
        return change.add_(value).mul_(0.5**0.5)

    def _doubled(self, value: Tensor, pool: Tensor) -> Tensor:
        """Channel by channel, a transposed convolution of three taps and stride two."""
        left, middle, right = pool
        later = functional.pad(value[1:], (0, 0, 0, 1))
        pairs = torch.stack([value * middle, value * right + later * left], 1)
        result = pairs.reshape(-1, value.shape[1])
        return result if self._pool_bias is None else result.add_(self._pool_bias)


class _Halves:
    """A padded convolution, of which two threads make half of the channels each."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, pair: Pair | None) -> None:
        conv = Conv.of(weights, name)
        self._pair, self._reach = pair, conv.reach
        taps = [tap.chunk(2 if pair else 1, 1) for tap in conv.taps]
        biases = () if conv.bias is None else conv.bias.chunk(2 if pair else 1)
        self._parts = [
            Conv(tuple(tap[n].contiguous() for tap in taps), biases[n] if biases else None)
            for n in range(len(taps[0]))
        ]

    def __call__(self, value: Tensor) -> Tensor:
        value = functional.pad(value, (0, 0, self._reach, self._reach))
        if self._pair is None:
            return self._parts[0](value)
        return torch.cat(
            self._pair.both(lambda: self._parts[0](value), lambda: self._parts[1](value)), 1
        )


def _activated(value: Tensor, style: tuple[Tensor, Tensor]) -> Tensor:
    variance, mean = torch.var_mean(value, dim=0, unbiased=False)
    scale, shift = folded(style, mean, variance)
    return functional.leaky_relu_(torch.addcmul(shift, value, scale), 0.2)
