"""Kokoro's decoder: from what is said and how, to the input of the generator."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.backend import Abort
from headstart.engines.kokoro.torch.convolution import Conv
from headstart.engines.kokoro.torch.layers import Block, Styles
from headstart.engines.kokoro.torch.pair import Pair

_INT8 = {
    "encode": (False, True),
    "decode.0": (True, True),
    "decode.1": (True, True),
    "decode.2": (True, True),
    "decode.3": (False, False),
}
"""Which convolutions may compute on bytes. With the other three, too, the noise is 22 dB below
the result (eight clauses); without them, 27 dB (three clauses, the front end on bytes as well)."""


class Decoder:
    """`KModel.decoder` without its generator."""

    def __init__(self, weights: Mapping[str, Tensor], pair: Pair, *, int8: bool) -> None:
        """Take the weights.

        Args:
            weights: Parameters of `KModel.decoder` by name.
            pair: Shares the work.
            int8: Whether to compute on bytes where that costs little accuracy.
        """
        self._curves = [
            (weights[f"{n}_conv.weight"], weights[f"{n}_conv.bias"]) for n in ("F0", "N")
        ]
        self._aside = Conv.of(weights, "asr_res.0")
        self._blocks = [
            Block(weights, name, pair, convs if int8 else (False, False))
            for name, convs in _INT8.items()
        ]
        self._styles = Styles(weights, [norm for block in self._blocks for norm in block.norms])

    def __call__(
        self, text: Tensor, pitch: Tensor, energy: Tensor, style: Tensor, abort: Abort
    ) -> Tensor:
        """What the generator turns into sound, every 12.5 ms; shape (2 * frames, 512).

        Args:
            text: What is said in each frame of 25 ms; shape (frames, 512).
            pitch: Every 12.5 ms; shape (2 * frames,).
            energy: As `pitch`.
            style: Of the voice; shape (1, 128).
            abort: Checked at each block.

        Raises:
            AbortedError: The result is no longer wanted.
        """
        styles = self._styles(style)
        curves = [
            functional.conv1d(curve[None, None], weight, bias, stride=2, padding=1)[0].t()
            for curve, (weight, bias) in zip((pitch, energy), self._curves, strict=True)
        ]
        value = self._blocks[0](torch.cat([text, *curves], 1), styles)
        beside = [self._aside(text), *curves]
        for block in self._blocks[1:]:
            abort.check()
            value = block(torch.cat([value, *beside], 1), styles)
        return value
