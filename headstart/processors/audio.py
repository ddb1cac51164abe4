"""What the listening stages do to audio before a model hears it."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

MODEL_RATE = 16000
"""Samples a second that the listening models want."""


class Resampler:
    """Converts a stream of 16-bit mono PCM to 16 kHz, piece by piece, without seams."""

    def __init__(self, sample_rate: int) -> None:
        """Begin a stream.

        Args:
            sample_rate: Of what comes in, in Hz.
        """
        self._rate = sample_rate
        self.reset()

    def __call__(self, pcm: bytes, *, last: bool = False) -> NDArray[np.int16]:
        """The next samples at 16 kHz.

        Up to 40 ms stay inside until more comes, however late it comes.

        Args:
            pcm: What follows in the stream.
            last: The stream ends with it, so that nothing stays inside.
        """
        samples = np.frombuffer(pcm, dtype=np.int16)
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples, last=last), dtype=np.int16)

    def reset(self) -> None:
        """Begin another stream; what stayed inside is forgotten."""
        self._stream = (
            None
            if self._rate == MODEL_RATE
            else soxr.ResampleStream(self._rate, MODEL_RATE, 1, dtype="int16", quality="MQ")
        )

    def flush(self) -> NDArray[np.int16]:
        """The samples that stayed inside, at the end of a stream; then another begins."""
        if self._stream is None:
            return np.zeros(0, dtype=np.int16)
        rest = self._stream.resample_chunk(np.zeros(0, dtype=np.int16), last=True)
        self.reset()
        return np.asarray(rest, dtype=np.int16)


class AudioRing:
    """The last few seconds of a stream of samples at 16 kHz."""

    def __init__(self, secs: float) -> None:
        """Begin with nothing heard.

        Args:
            secs: How much to keep.
        """
        self._kept = np.zeros(int(secs * MODEL_RATE), dtype=np.int16)
        self._heard = 0

    @property
    def heard(self) -> int:
        """Samples that were ever heard."""
        return self._heard

    def hear(self, samples: NDArray[np.int16]) -> None:
        """Take in the next samples."""
        size = len(self._kept)
        self._heard += len(samples)
        if size:
            samples = samples[-size:]
            at = (self._heard - len(samples)) % size
            first = min(len(samples), size - at)
            self._kept[at : at + first] = samples[:first]
            self._kept[: len(samples) - first] = samples[first:]

    def since(self, start: int = 0) -> NDArray[np.int16]:
        """A copy of the samples from number `start` on, as far as they are kept."""
        length = min(self._heard - start, self._heard, len(self._kept))
        if length <= 0:
            return np.zeros(0, dtype=np.int16)
        at = self._heard % len(self._kept)
        return np.concatenate((self._kept[at:], self._kept[:at]))[-length:]


def as_float(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Samples in -1..1, as models take them."""
    return samples.astype(np.float32) / 32768.0
