"""Convolutions over steps with fewer multiplications; values are (steps, channels)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.polynomial import polynomial
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.torch.int8 import Int8Linear

_TILES = {3: (6, 3), 5: (4, 5)}
"""Steps that are made at once, and taps that one product covers, by the number of taps."""
_TILE = (4, 4)
"""With any other number of taps, which are taken four at a time."""
_POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)
"""Where polynomials are evaluated. With seven at most, float32 keeps five digits."""


class Conv:
    """A convolution over steps, without padding.

    By the method of Toom and Cook (Winograd 1980, "Arithmetic Complexity of Computations";
    Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"): a tile of steps
    and some taps, taken as polynomials, are multiplied by their values at a few points. That
    takes about half of the multiplications and is exact but for rounding. All the rest is
    matrix products, which cost nothing for a length that comes for the first time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> None:
        """Take the weights.

        Args:
            weight: Shape (out, in, taps).
            bias: Shape (out,).
            dilation: Steps from one tap to the next.
        """
        taps = weight.shape[2]
        self._dilation, self._span = dilation, dilation * (taps - 1)
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias
        if taps == 1:
            self._products = [weight[:, :, 0].t()[None].contiguous()]
            return
        self._tile, covered = _TILES.get(taps, _TILE)
        inward, outward, kernel = _transforms(self._tile, covered)
        self._inward, self._outward = inward, outward
        weight = functional.pad(weight, (0, -taps % covered))
        # Beginning `tile` steps later, the next taps meet the values of the next tile.
        self._products = [
            torch.einsum("pt,oit->pio", kernel, part).contiguous()
            for part in torch.split(weight, covered, dim=2)
        ]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], name: str, dilation: int = 1) -> Conv:
        """The convolution of that name."""
        return cls(weights[f"{name}.weight"], weights.get(f"{name}.bias"), dilation)

    @property
    def reach(self) -> int:
        """Steps that it looks to either side."""
        return self._span // 2

    def __call__(self, value: Tensor) -> Tensor:
        """The result is 2 * reach steps shorter."""
        if not self._span:
            return torch.addmm(self._bias, value, self._products[0][0])
        steps, channels = len(value) - self._span, value.shape[1]
        # Neighbours in a tile are `dilation` steps apart; what is between them goes beside.
        beside, points = self._dilation, len(self._inward)
        tiles = -(-steps // (self._tile * beside))
        all_tiles = tiles + len(self._products) - 1
        missing = ((all_tiles - 1) * self._tile + points) * beside - len(value)
        value = functional.pad(value, (0, 0, 0, max(0, missing))).contiguous()
        row = beside * channels
        overlapping = value.as_strided((points, all_tiles, row), (row, self._tile * row, 1))
        values = self._inward @ overlapping.reshape(points, -1)
        values = values.view(points, all_tiles * beside, channels)
        result = torch.bmm(values[:, : tiles * beside], self._products[0])
        for later, product in enumerate(self._products[1:], 1):
            result.baddbmm_(values[:, later * beside : (later + tiles) * beside], product)
        outputs = (self._outward @ result.view(points, -1)).view(self._tile, tiles, beside, -1)
        ordered = outputs.new_empty(tiles, self._tile, beside, outputs.shape[3])
        torch.add(outputs.transpose(0, 1), self._bias, out=ordered)
        return ordered.view(-1, ordered.shape[3])[:steps]


class Int8Conv:
    """A convolution without dilation whose products are those of bytes."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take the weights; arguments as for `Conv`."""
        self._taps, self._channels = weight.shape[2], weight.shape[1]
        self._product = Int8Linear(weight.transpose(1, 2).flatten(1), bias)

    def __call__(self, value: Tensor) -> Tensor:
        """The result is `taps - 1` steps shorter."""
        steps, row = len(value) - self._taps + 1, self._channels
        windows = value.contiguous().as_strided((steps, self._taps * row), (row, 1))
        return self._product(windows)


@cache
def _transforms(tile: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices from steps to points, from points to a tile, and from taps to points."""
    count = tile + taps - 1
    finite = np.array(_POINTS[: count - 1])
    inward, outward, kernel = (
        np.zeros((count, count)),
        np.zeros((tile, count)),
        np.zeros((count, taps)),
    )
    for row, point in enumerate(finite):
        others = np.delete(finite, row)
        inward[row, : count - 1] = polynomial.polyfromroots(others)
        outward[:, row] = point ** np.arange(tile)
        kernel[row] = point ** np.arange(taps) / np.prod(point - others)
    # The last point is infinity.
    inward[-1] = polynomial.polyfromroots(finite)
    outward[-1, -1] = kernel[-1, -1] = 1
    scale = np.abs(inward).max(1, keepdims=True)
    return _tensor(inward / scale), _tensor(outward), _tensor(kernel * scale)


def _tensor(matrix: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(matrix.astype(np.float32))
