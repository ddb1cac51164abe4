"""LSTMs that look both ways, one direction on each thread; values are (steps, channels)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headstart.engines.kokoro.torch.pair import Pair

_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Lstm:
    """A layer of an LSTM and one that reads backwards."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, pair: Pair) -> None:
        """Take the weights; `pair` shares the work."""
        self._pair = pair
        self._forth, self._back = (
            _Direction([weights[f"{name}.{kind}_l0{suffix}"] for kind in _KINDS])
            for suffix in ("", "_reverse")
        )

    def __call__(self, value: Tensor) -> Tensor:
        """What both say, side by side."""
        there, again = self._pair.both(
            lambda: self._forth(value), lambda: self._back(value.flip(0)).flip(0)
        )
        return torch.cat([there, again], 1)


class _Direction:
    def __init__(self, weights: list[Tensor]) -> None:
        self._size = weights[1].shape[1]
        self._weights = weights
        self._packed: Any = None
        if torch.backends.quantized.engine in ("x86", "fbgemm"):
            # Half floats, laid out once: for a short clause that takes half of the time, and
            # what rounding adds is 73 dB below the result (on random values).
            self._weights = []
            self._packed = torch.ops.quantized.make_quantized_cell_params_fp16(
                torch.ops.quantized.linear_prepack_fp16(weights[0], weights[2]),
                torch.ops.quantized.linear_prepack_fp16(weights[1], weights[3]),
            )

    def __call__(self, value: Tensor) -> Tensor:
        start = value.new_zeros(1, 1, self._size)
        value, state = value[:, None], (start, start)
        result: Any = (
            torch.quantized_lstm(
                value, state, [self._packed], True, 1, 0.0, False, False, False,
                dtype=torch.float16, use_dynamic=True,
            )
            if self._packed is not None
            else torch.lstm(value, state, self._weights, True, 1, 0.0, False, False, False)
        )  # fmt: skip
        output: Tensor = result[0][:, 0]
        return output
