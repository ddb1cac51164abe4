"""Kokoro's generator in chunks: the sound of a clause from its front end's output, piece by piece.

The generator (an iSTFTNet: Kaneko et al. 2022, "iSTFTNet: Fast and Lightweight Mel-Spectrogram
Vocoder"; as in StyleTTS 2, Li et al. 2023) looks at the whole clause at once only in its
instance norms. With their statistics given, all else is convolution, and a chunk needs no
more than a few frames of context to come out as the whole clause would.

Two things make it quick on a CPU: channels lie side by side in memory, which convolutions of
this size like better, and norm and activation are folded into four passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.backend import Abort

FRAME = 300
"""Samples in one frame of the generator's input: 12.5 ms. Two make a frame of duration."""

_STEPS = (10, 60)
"""Steps in a frame, after the first and the second upsampling."""
_CONTEXT = (7, 2)
"""Frames that a chunk needs on either side, in the first and in the second stage."""
_N_FFT, _HOP = 20, 5
_EPSILON = 1e-5

Statistics: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of what enters each instance norm; shape (channels,)."""


@dataclass(frozen=True)
class _Fold:
    """Norm, style and snake activation of one layer as factors; shape (1, channels, 1, 1)."""

    scale: Tensor
    shift: Tensor
    phase_scale: Tensor
    phase_shift: Tensor
    depth: Tensor


class Generator:
    """The generator of a `KModel`, rebuilt to run on any stretch of a clause."""

    def __init__(self, module: Any, threads: int) -> None:
        """Take over the weights.

        Args:
            module: `KModel.decoder.generator`, without weight norm.
            threads: One, or two that share the branches of a chunk.
        """
        parameters: dict[str, Tensor] = dict(module.state_dict())
        self._convs = {
            name.removesuffix(".weight"): weight.unsqueeze(2).contiguous(
                memory_format=torch.channels_last
            )
            for name, weight in parameters.items()
            if weight.dim() == 3 and name.endswith(".weight")
        }
        self._biases = {
            name.removesuffix(".bias"): bias
            for name, bias in parameters.items()
            if name.removesuffix(".bias") in self._convs
        }
        self._alphas = {
            name: alpha.reshape(1, -1, 1, 1)
            for name, alpha in parameters.items()
            if ".alpha" in name
        }
        self.layers = tuple(
            name.removesuffix(".fc.weight") for name in parameters if name.endswith(".fc.weight")
        )
        """The instance norms, in the order in which `Statistics` are packed."""
        self._style_weight = torch.cat([parameters[f"{name}.fc.weight"] for name in self.layers])
        self._style_bias = torch.cat([parameters[f"{name}.fc.bias"] for name in self.layers])
        self.channels = tuple(parameters[f"{n}.fc.bias"].numel() // 2 for n in self.layers)
        """Of each instance norm."""
        self._window = torch.hann_window(_N_FFT)
        # Not OpenMP's threads: those spin while they wait, and starve the other engines.
        self._helper = (
            ThreadPoolExecutor(1, "kokoro-helper", torch.set_num_threads, (1,))
            if threads > 1
            else None
        )

    def close(self) -> None:
        """End the helping thread."""
        if self._helper:
            self._helper.shutdown(wait=False)

    def whole(
        self, x: Tensor, source: Tensor, style: Tensor, abort: Abort
    ) -> tuple[Tensor, Statistics]:
        """The sound of a whole clause, and the statistics of its instance norms.

        Args:
            x: Output of the decoder's last block, shape (1, 512, frames).
            source: Spectrum of the harmonic source, shape (1, 22, 60 * frames + 1).
            style: Of the voice, shape (1, 128).
            abort: Checked at every layer.

        Raises:
            AbortedError: The result is no longer wanted.
        """
        statistics: Statistics = {}
        styles = self._styles(style)

        def measure(layer: str, alpha: str, value: Tensor) -> _Fold:
            abort.check()
            variance, mean = torch.var_mean(value, dim=(0, 2, 3), unbiased=False)
            statistics[layer] = (mean, variance)
            return self._folded(alpha, *styles[layer], mean, variance)

        wave = self._stages(x, source, measure, 0, x.shape[2])
        return wave, statistics

    def fold(self, style: Tensor, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> Folds:
        """What `chunk` needs of a clause: style and statistics of all layers, folded."""
        styles = self._styles(style)
        return {
            _alpha_of(layer): self._folded(_alpha_of(layer), *styles[layer], *statistics[layer])
            for layer in self.layers
        }

    def chunk(
        self, x: Tensor, source: Tensor, folds: Folds, begin: int, end: int, abort: Abort
    ) -> Tensor:
        """The sound of the frames from `begin` to `end`; shape (300 * (end - begin),).

        Args:
            x: As for `whole`: of the whole clause.
            source: As for `whole`.
            folds: From `fold`.
            begin: First frame.
            end: One past the last frame.
            abort: Checked at every layer.

        Raises:
            AbortedError: The result is no longer wanted.
        """

        def look_up(layer: str, alpha: str, value: Tensor) -> _Fold:
            abort.check()
            return folds[alpha]

        return self._stages(x, source, look_up, begin, end)

    def _stages(
        self,
        x: Tensor,
        source: Tensor,
        fold: Callable[[str, str, Tensor], _Fold],
        begin: int,
        end: int,
    ) -> Tensor:
        frames = x.shape[2]
        inner = max(0, begin - _CONTEXT[1]), min(frames, end + _CONTEXT[1])
        outer = max(0, inner[0] - _CONTEXT[0]), min(frames, inner[1] + _CONTEXT[0])
        value = x[:, :, outer[0] : outer[1]].unsqueeze(2)
        value = value.contiguous(memory_format=torch.channels_last)
        # The helper begins with the source's branch of the second stage, which waits for nothing.
        noise = self._start(lambda: self._noise(1, source, inner, fold))
        value = self._stage(0, value, self._noise(0, source, outer, fold), fold)
        skip = (inner[0] - outer[0]) * _STEPS[0]
        value = value[..., skip : skip + (inner[1] - inner[0]) * _STEPS[0]]
        value = self._stage(1, value, noise.result(), fold)
        value = self._conv(functional.leaky_relu(value), "conv_post", padding=3)[0, :, 0]
        wave = self._inverse_stft(value)
        return wave[(begin - inner[0]) * FRAME : (end - inner[0]) * FRAME]

    def _noise(
        self,
        stage: int,
        source: Tensor,
        span: tuple[int, int],
        fold: Callable[[str, str, Tensor], _Fold],
    ) -> Tensor:
        """The branch that brings the harmonic source into a stage."""
        part = source[:, :, 60 * span[0] : 60 * span[1] + 1].unsqueeze(2)
        part = part.contiguous(memory_format=torch.channels_last)
        stride, padding = ((6, 3), (1, 0))[stage]
        value = self._conv(part, f"noise_convs.{stage}", stride=stride, padding=padding)
        return self._block(value, f"noise_res.{stage}", (7, 11)[stage], fold)

    def _stage(
        self, stage: int, value: Tensor, noise: Tensor, fold: Callable[[str, str, Tensor], _Fold]
    ) -> Tensor:
        name = f"ups.{stage}"
        value = functional.conv_transpose2d(
            functional.leaky_relu(value, 0.1),
            self._convs[name],
            self._biases[name],
            stride=(1, (10, 6)[stage]),
            padding=(0, (5, 3)[stage]),
        )
        if stage == 1:
            value = functional.pad(value, (1, 0, 0, 0), mode="reflect")
        value = value + noise
        blocks = (
            f"resblocks.{3 * stage}",
            f"resblocks.{3 * stage + 1}",
            f"resblocks.{3 * stage + 2}",
        )
        # The widest kernel costs as much as the other two.
        small = self._start(
            lambda: self._block(value, blocks[0], 3, fold).add_(
                self._block(value, blocks[1], 7, fold)
            )
        )
        wide = self._block(value, blocks[2], 11, fold)
        return wide.add_(small.result()).div_(3)

    def _block(
        self, value: Tensor, name: str, kernel: int, fold: Callable[[str, str, Tensor], _Fold]
    ) -> Tensor:
        for layer, dilation in enumerate((1, 3, 5)):
            change = value
            for part, reach in ((1, dilation), (2, 1)):
                norm, alpha = f"{name}.adain{part}.{layer}", f"{name}.alpha{part}.{layer}"
                change = _snake(change, fold(norm, alpha, change))
                change = self._conv(
                    change,
                    f"{name}.convs{part}.{layer}",
                    padding=reach * (kernel - 1) // 2,
                    dilation=reach,
                )
            value = change.add_(value)
        return value

    def _conv(
        self, value: Tensor, name: str, *, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> Tensor:
        return functional.conv2d(
            value,
            self._convs[name],
            self._biases[name],
            stride=(1, stride),
            padding=(0, padding),
            dilation=(1, dilation),
        )

    def _inverse_stft(self, value: Tensor) -> Tensor:
        bins = _N_FFT // 2 + 1
        spectrum = torch.polar(torch.exp(value[:bins]), torch.sin(value[bins:]))
        return torch.istft(spectrum, _N_FFT, _HOP, _N_FFT, window=self._window)

    def _styles(self, style: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Scale and shift of each layer for a voice."""
        both = functional.linear(style, self._style_weight, self._style_bias)[0]
        parts = torch.split(both, [2 * channels for channels in self.channels])
        return {
            name: (1 + part[: len(part) // 2], part[len(part) // 2 :])
            for name, part in zip(self.layers, parts, strict=True)
        }

    def _folded(
        self, alpha: str, gain: Tensor, offset: Tensor, mean: Tensor, variance: Tensor
    ) -> _Fold:
        # Norm and style: y = scale * x + shift. Snake: y + sin(a y)^2 / a, where
        # sin^2 = (1 - cos(2 a y)) / 2.
        rate = self._alphas[alpha]
        scale = (gain * torch.rsqrt(variance + _EPSILON)).reshape(1, -1, 1, 1)
        shift = offset.reshape(1, -1, 1, 1) - mean.reshape(1, -1, 1, 1) * scale
        half = 0.5 / rate
        return _Fold(scale, shift + half, 2 * rate * scale, 2 * rate * shift, -half)

    def _start(self, work: Callable[[], Tensor]) -> Future[Tensor]:
        """Work for the helping thread; done at once where there is none."""
        if self._helper:
            return self._helper.submit(_in_inference, work)
        done: Future[Tensor] = Future()
        done.set_result(work())
        return done


Folds: TypeAlias = dict[str, _Fold]
"""Of all layers, by the name of their activation."""


def _in_inference(work: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        return work()


def _alpha_of(layer: str) -> str:
    return layer.replace("adain", "alpha")


def _snake(value: Tensor, fold: _Fold) -> Tensor:
    wave = torch.addcmul(fold.phase_shift, value, fold.phase_scale).cos_()
    return torch.addcmul(fold.shift, value, fold.scale).addcmul_(wave, fold.depth)
