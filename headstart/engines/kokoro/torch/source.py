"""Pitch as sound: the harmonic source (Wang et al. 2019, "Neural source-filter models")."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

SAMPLE_RATE = 24_000
FRAME = 300
"""Samples for each value of the pitch curve."""

N_FFT, HOP = 20, 5
_STEPS = FRAME // HOP
_HARMONICS = 9
_VOICED_HZ = 10.0
_LEVEL, _BREATH = 0.1, 0.003


class Source:
    """`KModel.decoder.generator.m_source` and the spectrum of what it makes."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights: how loud each harmonic is."""
        self.mix = weights["l_linear.weight"][0]
        self.bias = weights["l_linear.bias"]
        self.harmonics = torch.arange(1, _HARMONICS + 1, dtype=torch.float32)
        self.window = torch.hann_window(N_FFT)

    def __call__(self, pitch: Tensor) -> Excitation:
        """The source of a clause.

        Args:
            pitch: In Hz, below 10 where there is no voice; shape (frames,).
        """
        return Excitation(self, pitch)


class Excitation:
    """What the source makes of a clause, as far as it has been asked for."""

    def __init__(self, source: Source, pitch: Tensor) -> None:
        """Use `Source`."""
        self._source, self._pitch = source, pitch
        self._turns = torch.cumsum(pitch.double() / SAMPLE_RATE, 0) * FRAME
        # Drawn at once, so that it is the same however the clause is divided.
        self._noise = torch.randn(len(pitch) * FRAME)
        self._spectrum = torch.empty(len(self._noise) // HOP + 1, N_FFT + 2)
        self._made = 0

    def __len__(self) -> int:
        """Steps, 60 for a frame and one more."""
        return len(self._spectrum)

    def until(self, last: int) -> Tensor:
        """Magnitudes and phases of the steps before `last`, and of what is left of its frame.

        Shape (steps, 22). Not to be called by two threads at once.
        """
        frames = min(-(-last // _STEPS), len(self._pitch))
        # The last frame takes the last step with it.
        first, last = self._made, frames * _STEPS + (frames == len(self._pitch))
        if first < last:
            begin, end = HOP * first - N_FFT // 2, HOP * (last - 1) + N_FFT // 2
            wave = self._wave(max(0, begin), min(end, len(self._noise)))
            outside = (max(0, -begin), max(0, end - len(self._noise)))
            wave = functional.pad(wave[None], outside, mode="reflect")[0]
            spectrum = torch.stft(
                wave, N_FFT, HOP, window=self._source.window, center=False, return_complex=True
            )
            self._spectrum[first:last] = torch.cat([spectrum.abs(), spectrum.angle()]).t()
            self._made = last
        return self._spectrum[: self._made]

    def _wave(self, begin: int, end: int) -> Tensor:
        """Samples from `begin` to `end`."""
        source, first, last = self._source, begin // FRAME, -(-end // FRAME)
        # The phase runs evenly from the middle of one frame to the middle of the next.
        within = (torch.arange(FRAME) + 0.5) / FRAME - 0.5
        frames = torch.arange(first - 1, last + 1).clamp(0, len(self._turns) - 1)
        before, middle, after = (self._turns[frames[n : n + last - first], None] for n in range(3))
        slope = torch.where(within < 0, middle - before, after - middle)
        phase = (2 * math.pi * ((middle + within * slope) % 1)).float().reshape(-1, 1)
        voiced = (self._pitch[first:last] > _VOICED_HZ).float().repeat_interleave(FRAME)
        wave = _LEVEL * voiced * (torch.sin(phase * source.harmonics) @ source.mix)
        # Noise is added to each harmonic; the sum of it is noise of this level.
        noise = torch.where(voiced > 0, _BREATH, _LEVEL / 3) * source.mix.norm()
        wave += noise * self._noise[first * FRAME : last * FRAME]
        return torch.tanh(wave + source.bias)[begin - first * FRAME : end - first * FRAME]
