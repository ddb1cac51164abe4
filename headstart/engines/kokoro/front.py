"""Kokoro's front end: from phonemes to what the generator turns into sound, a clause at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.engines.kokoro.backend import Abort


@dataclass(frozen=True)
class Front:
    """A clause before it is sound."""

    durations: NDArray[np.int64]
    """Frames of 25 ms, for the start mark, each phoneme, and the end mark."""
    x: Tensor
    """Input of the generator, shape (1, 512, frames of 12.5 ms)."""
    source: Tensor
    """Spectrum of the harmonic source, shape (1, 22, 60 * frames + 1)."""
    style: Tensor
    """Of the voice, for the generator; shape (1, 128)."""


def front_end(
    model: Any,
    tokens: NDArray[np.int64],
    style: NDArray[np.float32],
    speed: float,
    abort: Abort,
) -> Front:
    """Everything that `KModel.forward_with_tokens` does before the generator.

    Args:
        model: A `kokoro.KModel`.
        tokens: Of the phonemes, shape (phonemes,).
        style: Shape (1, 256).
        speed: 1 is the voice's own.
        abort: Checked between the steps.

    Raises:
        AbortedError: The result is no longer wanted.
    """
    ids = torch.from_numpy(np.concatenate([[0], tokens, [0]]))[None]
    length = torch.tensor([ids.shape[1]])
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    sound, prosody = torch.from_numpy(style).chunk(2, dim=1)
    predictor, decoder = model.predictor, model.decoder

    meaning = model.bert_encoder(model.bert(ids)).transpose(-1, -2)
    abort.check()
    hidden = predictor.text_encoder(meaning, prosody, length, mask)
    logits = predictor.duration_proj(predictor.lstm(hidden)[0])
    durations = torch.round(torch.sigmoid(logits).sum(-1)[0] / speed).clamp(min=1).long()
    # Each phoneme's columns, repeated for as many frames as it lasts.
    spread = torch.repeat_interleave(torch.arange(ids.shape[1]), durations)
    pitch, energy = predictor.F0Ntrain(hidden.transpose(-1, -2)[:, :, spread], prosody)
    abort.check()
    text = model.text_encoder(ids, length, mask)[:, :, spread]

    curves = [decoder.F0_conv(pitch.unsqueeze(1)), decoder.N_conv(energy.unsqueeze(1))]
    x = decoder.encode(torch.cat([text, *curves], 1), sound)
    aside = [decoder.asr_res(text), *curves]
    for block in decoder.decode:
        abort.check()
        x = block(torch.cat([x, *aside], 1), sound)

    generator = decoder.generator
    wave = generator.m_source(generator.f0_upsamp(pitch[:, None]).transpose(1, 2))[0]
    source = torch.cat(generator.stft.transform(wave.transpose(1, 2).squeeze(1)), 1)
    return Front(durations.numpy(), x, source, sound)
