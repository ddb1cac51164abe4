"""Kokoro's generator in pieces: the sound of a clause from its decoder's output.

The generator (an iSTFTNet: Kaneko et al. 2022, "iSTFTNet: Fast and Lightweight Mel-Spectrogram
Vocoder"; as in StyleTTS 2, Li et al. 2023) looks at the whole clause at once only in its
instance norms. With their statistics given, all else is convolution: piece by piece comes out
what the whole clause would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from headstart.engines.kokoro.backend import Abort
from headstart.engines.kokoro.torch import bfloat
from headstart.engines.kokoro.torch.bfloat import BfloatConv
from headstart.engines.kokoro.torch.convolution import Conv
from headstart.engines.kokoro.torch.front import Front
from headstart.engines.kokoro.torch.layers import Flow, Styles, folded
from headstart.engines.kokoro.torch.pair import Pair
from headstart.engines.kokoro.torch.source import FRAME, HOP, N_FFT, Excitation

_LOOKAHEAD = 8
"""Frames of 12.5 ms that the generator needs beyond those that it gives out."""

_RATES = (10, 6)
"""By which the two stages upsample."""
_STEPS = (10, 60)
"""Steps in a frame, in the first and the second stage."""
_NOISE_AHEAD = (40, 64)
"""Steps by which a stage's branch for the source looks ahead; its pitch is known."""
_SOURCE_AHEAD = 300
"""Steps of the source, of which there are 60 in a frame, that they need for that."""


@dataclass(frozen=True)
class Fold:
    """Norm, style and snake activation of one layer as factors; shape (channels,)."""

    scale: Tensor
    shift: Tensor
    phase_scale: Tensor
    phase_shift: Tensor
    depth: Tensor

    @classmethod
    def of(cls, scale: Tensor, shift: Tensor, rate: Tensor) -> Fold:
        """Norm and style: y = scale * x + shift. Snake: y + sin(rate * y)^2 / rate."""
        # sin^2 = (1 - cos(2 * rate * y)) / 2
        half = 0.5 / rate
        return cls(scale, shift + half, 2 * rate * scale, 2 * rate * shift, -half)

    def __call__(self, value: Tensor) -> Tensor:
        """Of shape (steps, channels)."""
        wave = torch.addcmul(self.phase_shift, value, self.phase_scale).cos_()
        return torch.addcmul(self.shift, value, self.scale).addcmul_(wave, self.depth)


Folds: TypeAlias = dict[str, Fold]
"""Of all layers, by the name of their instance norm."""

_FoldOf: TypeAlias = Callable[[str, Tensor], Fold]
"""Gets the name of an instance norm and its input."""


class Generator:
    """`KModel.decoder.generator`, rebuilt to run on any stretch of a clause."""

    def __init__(
        self, weights: Mapping[str, Tensor], pair: Pair, *, bfloat16: bool = bfloat.AVAILABLE
    ) -> None:
        """Take the weights.

        Args:
            weights: Parameters of `KModel.decoder.generator` by name, without weight norm.
            pair: Shares the branches of a stage.
            bfloat16: Whether the residual blocks, which are most of the work, compute on it.
        """
        self._pair = pair
        self._ups = [_upsampling(weights[f"ups.{n}.weight"], _RATES[n]) for n in (0, 1)]
        self._up_biases = [weights[f"ups.{n}.bias"] for n in (0, 1)]
        self._noise = [
            (weights[f"noise_convs.{n}.weight"].flatten(1), weights[f"noise_convs.{n}.bias"])
            for n in (0, 1)
        ]
        self._blocks = [f"resblocks.{n}" for n in range(6)]
        self._convs = {
            f"{name}.convs{part}.{layer}": (BfloatConv if bfloat16 else Conv).of(
                weights, f"{name}.convs{part}.{layer}", dilation if part == 1 else 1
            )
            for name in (*self._blocks, "noise_res.0", "noise_res.1")
            for layer, dilation in enumerate((1, 3, 5))
            for part in (1, 2)
        }
        self._styles = Styles(
            weights,
            [
                f"{name}.adain{part}.{layer}"
                for name in ("noise_res.0", "noise_res.1", *self._blocks)
                for part in (1, 2)
                for layer in range(3)
            ],
        )
        self._rates = torch.cat(
            [weights[name.replace("adain", "alpha")].flatten() for name in self._styles.names]
        )
        self._post = Conv.of(weights, "conv_post")
        self._window = torch.hann_window(N_FFT)

    def fold(self, style: Tensor, means: Tensor, variances: Tensor) -> Folds:
        """What `Stream` needs of a clause: style and statistics of all layers, folded.

        Args:
            style: Shape (1, 128).
            means: Of all channels of all instance norms, as `whole` gives them.
            variances: As `means`.
        """
        joined = Fold.of(*folded(self._styles.joined(style), means, variances), self._rates)
        parts = [self._styles.split(getattr(joined, part.name)) for part in fields(Fold)]
        return {name: Fold(*(part[name] for part in parts)) for name in self._styles.names}

    def whole(self, front: Front, abort: Abort) -> tuple[Tensor, Tensor, Tensor]:
        """The sound of a whole clause, shape (samples,), and what its instance norms measure.

        Returns:
            Sound, means and variances; the latter of all channels of all norms, in the order in
            which `NormPredictor` has them.

        Raises:
            AbortedError: The result is no longer wanted.
        """
        means: dict[str, Tensor] = {}
        variances: dict[str, Tensor] = {}
        styles, rates = self._styles(front.style), self._styles.split(self._rates)

        def measure(name: str, value: Tensor) -> Fold:
            abort.check()
            variances[name], means[name] = torch.var_mean(value, dim=0, unbiased=False)
            return Fold.of(*folded(styles[name], means[name], variances[name]), rates[name])

        flow = Flow()
        flow.last = True
        wave = self._piece(front.x, front.source, 0, measure, flow)
        means_of_all, variances_of_all = (
            torch.cat([measured[name] for name in self._styles.names])
            for measured in (means, variances)
        )
        return wave, means_of_all, variances_of_all

    def stream(self, front: Front, folds: Folds, begin: int, abort: Abort) -> Stream:
        """A clause from frame `begin` on, piece by piece; `abort` is checked at every layer."""

        def look_up(name: str, value: Tensor) -> Fold:
            abort.check()
            return folds[name]

        def piece(x: Tensor, flow: Flow) -> Tensor:
            return self._piece(x, front.source, begin, look_up, flow)

        return Stream(front.x, begin, piece)

    def _piece(
        self, x: Tensor, source: Excitation, begin: int, fold: _FoldOf, flow: Flow
    ) -> Tensor:
        """The sound that follows; it comes late, by what the layers look ahead.

        Args:
            x: The next frames.
            source: Of the clause.
            begin: Frame of the clause at which it all began.
            fold: Gives the factors of each norm.
            flow: Of the clause.
        """
        end = begin + flow.count("x", len(x)) + len(x)
        known = source.until(len(source) if flow.last else end * _STEPS[1] + _SOURCE_AHEAD)
        # The helper begins with the second stage's source, which waits for nothing.
        late = self._pair.start(lambda: self._sourced(1, known, begin, end, fold, flow))
        value = self._stage(0, x, self._sourced(0, known, begin, end, fold, flow), fold, flow)
        value = self._stage(1, value, late.result(), fold, flow)
        value = flow.conv("conv_post", functional.leaky_relu(value), self._post)
        return self._sound(value, flow)

    def _sourced(
        self, stage: int, source: Tensor, begin: int, end: int, fold: _FoldOf, flow: Flow
    ) -> Tensor:
        """The branch that brings the harmonic source into a stage."""
        weight, bias = self._noise[stage]
        name, steps = f"noise_res.{stage}", _STEPS[stage]
        first = begin * steps + flow.count(name, 0)
        whole = len(source) if stage else (len(source) - 1) // _RATES[1]
        last = whole if flow.last else min(whole, end * steps + _NOISE_AHEAD[stage])
        flow.count(name, last - first)
        value = source[first:last]
        if not stage:
            # Windows of 12 steps, 6 apart; one too many, so that there may be none.
            begin, end = 6 * first - 3, 6 * last + 9
            near = source[max(0, begin) : end]
            near = functional.pad(near, (0, 0, max(0, -begin), max(0, end - len(source))))
            value = near.unfold(0, 12, 6)[:-1].flatten(1)
        return self._block(functional.linear(value, weight, bias), name, fold, flow)

    def _stage(self, stage: int, value: Tensor, noise: Tensor, fold: _FoldOf, flow: Flow) -> Tensor:
        value = self._upsampled(stage, value, flow)
        value, noise = flow.together(f"noise_sum.{stage}", value, noise)
        value = value + noise
        small, middle, wide = self._blocks[3 * stage : 3 * stage + 3]
        # The widest kernel costs as much as the other two.
        others = self._pair.start(
            lambda: (self._block(value, small, fold, flow), self._block(value, middle, fold, flow))
        )
        parts = flow.together(
            f"sum.{stage}", self._block(value, wide, fold, flow), *others.result()
        )
        return (parts[0] + parts[1]).add_(parts[2]).div_(3)

    def _upsampled(self, stage: int, value: Tensor, flow: Flow) -> Tensor:
        """A transposed convolution whose kernel is twice its stride: each step meets two."""
        name, rate = f"ups.{stage}", _RATES[stage]
        start = flow.first(name)
        value = functional.leaky_relu(value, 0.1)
        value = flow.extended(name, value, keep=1, lead=1, trail=1)
        now, before = self._ups[stage]
        result = (value[1:] @ now).addmm_(value[:-1], before)
        result = result.reshape(-1, len(self._up_biases[stage])) + self._up_biases[stage]
        result = result[rate // 2 if start else 0 : len(result) - (rate // 2 if flow.last else 0)]
        if stage == 1 and start:
            result = torch.cat([result[1:2], result])
        return result

    def _block(self, value: Tensor, name: str, fold: _FoldOf, flow: Flow) -> Tensor:
        for layer in range(3):
            change = value
            for part in (1, 2):
                own = f"{name}.convs{part}.{layer}"
                change = fold(own.replace("convs", "adain"), change)(change)
                change = flow.conv(own, change, self._convs[own])
            change, value = flow.together(f"{name}.{layer}", change, value)
            value = change + value
        return value

    def _sound(self, value: Tensor, flow: Flow) -> Tensor:
        """Overlap-add of the inverse Fourier transforms; a sample needs two steps either side."""
        start = flow.first("stft")
        value = flow.extended("stft", value, keep=4, lead=0, trail=0)
        bins = N_FFT // 2 + 1
        spectrum = torch.polar(torch.exp(value[:, :bins]), torch.sin(value[:, bins:])).t()
        wave = torch.istft(spectrum, N_FFT, HOP, N_FFT, window=self._window)
        return wave[0 if start else 2 * HOP : len(wave) if flow.last else len(wave) - HOP]


class Stream:
    """A clause that is being spoken."""

    def __init__(self, x: Tensor, begin: int, piece: Callable[[Tensor, Flow], Tensor]) -> None:
        """Use `Generator.stream`."""
        self._x, self._piece = x, piece
        self._begin = self._read = begin
        self.samples = 0
        """Spoken so far."""
        self._flow = Flow()

    @property
    def position(self) -> int:
        """Frame up to which the clause has been spoken."""
        return self._begin + self.samples // FRAME

    def next(self, end: int) -> Tensor:
        """The sound up to frame `end`, or up to the clause's end if little is left after it.

        Shape (samples,).

        Raises:
            AbortedError: The result is no longer wanted.
        """
        read = max(end + _LOOKAHEAD, self._read + 1)
        if read + _LOOKAHEAD >= len(self._x):
            read, self._flow.last = len(self._x), True
        wave = self._piece(self._x[self._read : read], self._flow)
        self._flow.pack()
        self._read = read
        self.samples += len(wave)
        return wave


def _upsampling(weight: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """What a step adds to its own outputs, and to those of the step after it."""
    now, later = weight[:, :, :rate], weight[:, :, rate:]
    return (
        now.permute(0, 2, 1).reshape(len(weight), -1).contiguous(),
        later.permute(0, 2, 1).reshape(len(weight), -1).contiguous(),
    )
