"""Layers of Kokoro that work on a clause piece by piece; values are (steps, channels)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.torch.bfloat import BfloatConv
from headstart.engines.kokoro.torch.convolution import Conv, Int8Conv
from headstart.engines.kokoro.torch.pair import Pair

_EPSILON = 1e-5


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

    def conv(self, name: str, value: Tensor, conv: Conv | BfloatConv) -> Tensor:
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

    def pack(self) -> None:
        """Let the piece go: what is kept are slices of all that the layers made, some 60 MB.

        Together in one place, as a hundred clauses with 150 small ones each would leave the C
        library with gaps that nothing fits into.
        """
        joined = torch.cat([steps.flatten() for steps in self._kept.values()])
        parts = torch.split(joined, [steps.numel() for steps in self._kept.values()])
        self._kept = {
            name: part.view(steps.shape)
            for (name, steps), part in zip(self._kept.items(), parts, strict=True)
        }

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
        matrices = [weights[f"{name}.fc.weight"].chunk(2) for name in names]
        biases = [weights[f"{name}.fc.bias"].chunk(2) for name in names]
        # All gains, then all offsets.
        self._weight = torch.cat([part[half] for half in (0, 1) for part in matrices])
        self._bias = torch.cat([part[half] for half in (0, 1) for part in biases])
        self.sizes = [len(part[0]) for part in biases]
        """Channels of each layer."""

    def joined(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Gains and offsets of all layers, one after the other, for a style of shape (1, 128)."""
        gain, offset = functional.linear(style, self._weight, self._bias)[0].chunk(2)
        return 1 + gain, offset

    def split(self, joined: Tensor) -> dict[str, Tensor]:
        """What belongs to each layer."""
        return dict(zip(self.names, torch.split(joined, self.sizes), strict=True))

    def __call__(self, style: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Gain and offset of each layer, for a style of shape (1, 128)."""
        gains, offsets = map(self.split, self.joined(style))
        return {name: (gain, offsets[name]) for name, gain in gains.items()}


def folded(style: tuple[Tensor, Tensor], mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Norm and style as y = scale * x + shift."""
    gain, offset = style
    scale = gain * torch.rsqrt(variance + _EPSILON)
    return scale, offset - mean * scale


class Block:
    """StyleTTS 2's residual block with adaptive norms, of prosody predictor and decoder.

    It sees a clause whole.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        name: str,
        pair: Pair | None = None,
        int8: tuple[bool, bool] = (False, False),
    ) -> None:
        """Take the block's weights.

        Args:
            weights: By name.
            name: Of the block.
            pair: Shares the work.
            int8: Whether the first and the second convolution compute on bytes.
        """
        self.name = name
        self._convs = [
            _Halves(weights, f"{name}.conv1", None, pair, int8[0]),
            _Halves(weights, f"{name}.conv2", f"{name}.conv1x1", pair, int8[1]),
        ]
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
        change = self._convs[1](change, value)
        return change.mul_(0.5**0.5)

    def _doubled(self, value: Tensor, pool: Tensor) -> Tensor:
        """Channel by channel, a transposed convolution of three taps and stride two."""
        left, middle, right = pool
        later = functional.pad(value[1:], (0, 0, 0, 1))
        pairs = torch.stack([value * middle, value * right + later * left], 1)
        result = pairs.reshape(-1, value.shape[1])
        return result if self._pool_bias is None else result.add_(self._pool_bias)


class _Halves:
    """A padded convolution, of which two threads make half of the channels each.

    What goes past it is added: as it is, or through a convolution of one tap.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        name: str,
        aside: str | None,
        pair: Pair | None,
        int8: bool,
    ) -> None:
        self._pair, parts = pair, 2 if pair else 1
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        self._reach = weight.shape[2] // 2
        self._parts: list[Callable[[Tensor], Tensor]] = [
            (Int8Conv if int8 else Conv)(*part)
            for part in zip(weight.chunk(parts), bias.chunk(parts), strict=True)
        ]
        self._asides: list[Tensor] = []
        if aside is not None and f"{aside}.weight" in weights:
            matrix = weights[f"{aside}.weight"][:, :, 0].t()
            self._asides = [half.contiguous() for half in matrix.chunk(parts, 1)]

    def __call__(self, value: Tensor, past: Tensor | None = None) -> Tensor:
        """The convolution of `value`, and what of `past` is added."""
        value = functional.pad(value, (0, 0, self._reach, self._reach))

        def part(number: int) -> Tensor:
            result = self._parts[number](value)
            if past is None:
                return result
            if self._asides:
                return result.addmm_(past, self._asides[number])
            return result.add_(past.chunk(len(self._parts), 1)[number])

        if self._pair is None:
            return part(0)
        return torch.cat(self._pair.both(lambda: part(0), lambda: part(1)), 1)


def _activated(value: Tensor, style: tuple[Tensor, Tensor]) -> Tensor:
    # `var_mean` over the steps takes ten times as long.
    mean = value.mean(0)
    scale, shift = folded(style, mean, (value - mean).square_().mean(0))
    return functional.leaky_relu_(torch.addcmul(shift, value, scale), 0.2)
