"""Pitch as sound: the harmonic source (Wang et al. 2019, "Neural source-filter models")."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLE_RATE = 24_000
FRAME = 300
"""Samples for each value of the pitch curve."""

N_FFT, HOP = 20, 5
_HARMONICS = 9
_VOICED_HZ = 10.0
_LEVEL, _BREATH = 0.1, 0.003


class Source:
    """`KModel.decoder.generator.m_source` and the spectrum of what it makes."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights: how loud each harmonic is."""
        self._mix = weights["l_linear.weight"][0]
        self._bias = weights["l_linear.bias"]
        self._harmonics = torch.arange(1, _HARMONICS + 1, dtype=torch.float32)
        self._window = torch.hann_window(N_FFT)

    def __call__(self, pitch: Tensor) -> Tensor:
        """Magnitudes and phases; shape (60 * frames + 1, 22).

        Args:
            pitch: In Hz, below 10 where there is no voice; shape (frames,).
        """
        # The phase runs evenly from the middle of one frame to the middle of the next.
        turns = torch.cumsum(pitch.double() / SAMPLE_RATE, 0) * FRAME
        within = (torch.arange(FRAME) + 0.5) / FRAME - 0.5
        before = torch.cat([turns[:1], turns[:-1]])[:, None]
        after = torch.cat([turns[1:], turns[-1:]])[:, None]
        middle = turns[:, None]
        slope = torch.where(within < 0, middle - before, after - middle)
        phase = (2 * math.pi * ((middle + within * slope) % 1)).float().reshape(-1, 1)
        voiced = (pitch > _VOICED_HZ).float().repeat_interleave(FRAME)
        wave = _LEVEL * voiced * (torch.sin(phase * self._harmonics) @ self._mix)
        # Noise is added to each harmonic; the sum of it is noise of this level.
        noise = torch.where(voiced > 0, _BREATH, _LEVEL / 3) * self._mix.norm()
        wave = torch.tanh(wave + noise * torch.randn(len(wave)) + self._bias)
        spectrum = torch.stft(wave, N_FFT, HOP, window=self._window, return_complex=True)
        return torch.cat([spectrum.abs(), spectrum.angle()]).t().contiguous()
