"""Convolutions on bfloat16: where the processor multiplies it, faster than tiles of floats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


def _is_available() -> bool:
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


AVAILABLE = _is_available()
"""Whether this processor multiplies them itself."""

_ROWS = 64, 256
"""A product has a multiple of the first and at most the second. For a number of rows that comes for
the first time oneDNN takes a millisecond more to prepare itself, in each of some fifty layers: with
any number, audio came 20 to 150 ms late now and then."""


class BfloatConv:
    """A convolution over steps, without padding; values are (steps, channels).

    Values and weights keep eight significant bits, sums those of floats. The windows of all taps
    are laid side by side, so that one matrix product does it all.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1) -> None:
        """Take the weights; arguments as for `Conv`."""
        self._taps, self._dilation = weight.shape[2], dilation
        self._matrix = weight.permute(2, 1, 0).flatten(0, 1).bfloat16().contiguous()
        self._bias = bias.bfloat16()

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], name: str, dilation: int = 1) -> BfloatConv:
        """The convolution of that name."""
        return cls(weights[f"{name}.weight"], weights[f"{name}.bias"], dilation)

    @property
    def reach(self) -> int:
        """Steps that it looks to either side."""
        return self._dilation * (self._taps - 1) // 2

    def __call__(self, value: Tensor) -> Tensor:
        """The result is 2 * reach steps shorter."""
        steps, channels = len(value) - 2 * self.reach, value.shape[1]
        missing = -steps % _ROWS[0]
        value = functional.pad(value.bfloat16(), (0, 0, 0, missing))
        windows = value.as_strided(
            (steps + missing, self._taps, channels), (channels, channels * self._dilation, 1)
        )
        parts = torch.split(windows.reshape(steps + missing, -1), _ROWS[1])
        products = [torch.addmm(self._bias, part, self._matrix) for part in parts]
        return torch.cat(products)[:steps].float()
