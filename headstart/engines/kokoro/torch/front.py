"""Kokoro's front end: what a clause shall sound like, before any of it is sound.

The parameters are those of `kokoro.KModel`, and so is the result; what is computed side by
side is chosen for a CPU with two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.backend import Abort
from headstart.engines.kokoro.torch.albert import Albert, Linear
from headstart.engines.kokoro.torch.convolution import Conv, Int8Conv
from headstart.engines.kokoro.torch.decoder import Decoder
from headstart.engines.kokoro.torch.int8 import AVAILABLE
from headstart.engines.kokoro.torch.layers import Block, Styles
from headstart.engines.kokoro.torch.lstm import Lstm
from headstart.engines.kokoro.torch.pair import Pair
from headstart.engines.kokoro.torch.source import Excitation, Source
from headstart.engines.kokoro.torch.weights import under

_EPSILON = 1e-5
_TEXT_REACH = 2
"""Phonemes that a convolution of the text encoder looks to either side."""


@dataclass(frozen=True)
class Front:
    """A clause before it is sound."""

    durations: NDArray[np.int64]
    """Frames of 25 ms, for the start mark, each phoneme, and the end mark."""
    pitch: Tensor
    """In Hz, every 12.5 ms; shape (frames,)."""
    energy: Tensor
    """Every 12.5 ms; shape (frames,)."""
    x: Tensor
    """Input of the generator, every 12.5 ms; shape (frames, 512)."""
    source: Excitation
    """The harmonic source."""
    style: Tensor
    """Of the voice, for the generator; shape (1, 128)."""


class FrontEnd:
    """ALBERT, text encoder, the predictors of duration, pitch and energy, and the decoder."""

    def __init__(
        self, weights: Mapping[str, Tensor], pair: Pair, *, int8: bool = AVAILABLE
    ) -> None:
        """Take the weights.

        Args:
            weights: Parameters of `KModel` by name.
            pair: Shares the work.
            int8: Whether to compute on bytes where that costs little accuracy, as the ONNX
                export does everywhere.
        """
        self._pair = pair
        self._albert = Albert(weights, pair, int8=int8)
        self._meaning = Linear(weights, "bert_encoder")
        self._embedding = weights["text_encoder.embedding.weight"]
        self._text_convs = [
            (Int8Conv if int8 else Conv)(weights[f"{name}.weight"], weights[f"{name}.bias"])
            for name in (f"text_encoder.cnn.{n}.0" for n in range(3))
        ]
        self._text_norms = [
            (weights[f"text_encoder.cnn.{n}.1.gamma"], weights[f"text_encoder.cnn.{n}.1.beta"])
            for n in range(3)
        ]
        self._lstms = {
            name: Lstm(weights, name, pair)
            for name in (
                "text_encoder.lstm",
                *(f"predictor.text_encoder.lstms.{n}" for n in (0, 2, 4)),
                "predictor.lstm",
                "predictor.shared",
            )
        }
        self._duration = Linear(weights, "predictor.duration_proj.linear_layer")
        self._curves = {
            curve: [Block(weights, f"predictor.{curve}.{n}", int8=(int8, int8)) for n in range(3)]
            for curve in ("F0", "N")
        }
        self._ends = {curve: Linear(weights, f"predictor.{curve}_proj") for curve in ("F0", "N")}
        self._decoder = Decoder(under("decoder.", weights), pair, int8=int8)
        self._source = Source(under("decoder.generator.m_source.", weights))
        blocks = [block for curve in self._curves.values() for block in curve]
        self._styles = Styles(
            weights,
            [f"predictor.text_encoder.lstms.{n}" for n in (1, 3, 5)]
            + [norm for block in blocks for norm in block.norms],
        )

    def __call__(
        self, tokens: NDArray[np.int64], style: NDArray[np.float32], speed: float, abort: Abort
    ) -> Front:
        """Everything that `KModel.forward_with_tokens` does before the generator.

        Args:
            tokens: Of the phonemes, shape (phonemes,).
            style: Shape (1, 256).
            speed: 1 is the voice's own.
            abort: Checked between the steps.

        Raises:
            AbortedError: The result is no longer wanted.
        """
        ids = torch.from_numpy(np.concatenate([[0], tokens, [0]]))
        sound, prosody = torch.from_numpy(style).chunk(2, dim=1)
        styles = self._styles(prosody)
        meaning = self._meaning(self._albert(ids, abort))
        hidden = self._with_style(meaning, styles, prosody, abort)
        logits = self._duration(self._lstms["predictor.lstm"](hidden))
        durations = torch.round(torch.sigmoid(logits).sum(-1) / speed).clamp(min=1).long()
        # Each phoneme's row, repeated for as many frames as it lasts.
        spread = torch.repeat_interleave(torch.arange(len(ids)), durations)
        abort.check()
        shared = self._lstms["predictor.shared"](hidden[spread])
        pitch, energy = self._pair.both(
            lambda: self._curve("F0", shared, styles), lambda: self._curve("N", shared, styles)
        )
        abort.check()
        text = self._text(ids)[spread]
        x = self._decoder(text, pitch, energy, sound, abort)
        return Front(durations.numpy(), pitch, energy, x, self._source(pitch), sound)

    def _text(self, ids: Tensor) -> Tensor:
        value = self._embedding[ids]
        for conv, (gain, offset) in zip(self._text_convs, self._text_norms, strict=True):
            value = conv(functional.pad(value, (0, 0, _TEXT_REACH, _TEXT_REACH)))
            value = functional.layer_norm(value, gain.shape, gain, offset, _EPSILON)
            value = functional.leaky_relu_(value, 0.2)
        return self._lstms["text_encoder.lstm"](value)

    def _with_style(
        self, value: Tensor, styles: dict[str, tuple[Tensor, Tensor]], prosody: Tensor, abort: Abort
    ) -> Tensor:
        """Three rounds of LSTM and norm; the style stands beside each phoneme."""
        beside = prosody.expand(len(value), -1)
        value = torch.cat([value, beside], 1)
        for round_ in range(3):
            abort.check()
            name = "predictor.text_encoder.lstms."
            value = self._lstms[f"{name}{2 * round_}"](value)
            value = functional.layer_norm(value, value.shape[1:], eps=_EPSILON)
            gain, offset = styles[f"{name}{2 * round_ + 1}"]
            value = torch.cat([torch.addcmul(offset, value, gain), beside], 1)
        return value

    def _curve(self, curve: str, value: Tensor, styles: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Pitch or energy, every 12.5 ms."""
        for block in self._curves[curve]:
            value = block(value, styles)
        return self._ends[curve](value)[:, 0]
