"""What a caller pushes into a session: checked, brought to the pipeline's rate, cut to frames."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import numpy as np
import soxr
from numpy.typing import NDArray

Pcm = bytes | bytearray | memoryview | NDArray[np.int16]
"""Mono 16-bit PCM in the machine's byte order: raw bytes, or an array of samples."""

_SAMPLE_BYTES = 2
_FRAME_SECS = 0.02
_RATES = (1000, 384_000)


class Door:
    """Turns pieces of any length and rate into frames of 20 ms at most, at one rate.

    Stages judge a frame as a whole: a VAD says one thing of each. So a piece that holds a second
    of audio is no frame.
    """

    def __init__(self, sample_rate: int) -> None:
        """Begin a stream.

        Args:
            sample_rate: Of the frames, in Hz.
        """
        self._rate = sample_rate
        self._from = sample_rate
        self._stream: soxr.ResampleStream | None = None

    @property
    def holds_audio(self) -> bool:
        """Whether some milliseconds wait for the audio that follows: `flush` brings them out."""
        return self._stream is not None

    def take(self, audio: bytes, sample_rate: int | None = None) -> Iterator[bytes]:
        """The frames that a piece completes.

        Args:
            audio: What `checked` returned.
            sample_rate: Its rate in Hz, by default that of the frames. Where it changes, the
                stream ends and another begins.
        """
        rate = sample_rate or self._rate
        if rate != self._from:
            yield from self.flush()
            self._from = rate
        # A second at a time: to resample an hour would hold up everybody else.
        for at in range(0, len(audio), rate * _SAMPLE_BYTES):
            piece = audio[at : at + rate * _SAMPLE_BYTES]
            yield from self._cut(piece if rate == self._rate else self._resampled(piece, rate))

    def flush(self) -> Iterator[bytes]:
        """The rest of a stream that goes no further; what comes next begins another."""
        stream, self._stream = self._stream, None
        if stream is not None:
            rest = stream.resample_chunk(np.zeros(0, np.int16), last=True)
            yield from self._cut(rest.tobytes())

    def _resampled(self, audio: bytes, rate: int) -> bytes:
        if self._stream is None:
            self._stream = soxr.ResampleStream(rate, self._rate, 1, dtype="int16", quality="MQ")
        samples: NDArray[np.int16] = self._stream.resample_chunk(np.frombuffer(audio, np.int16))
        return samples.tobytes()

    def _cut(self, audio: bytes) -> Iterator[bytes]:
        size = round(self._rate * _FRAME_SECS) * _SAMPLE_BYTES
        for at in range(0, len(audio), size):
            yield audio[at : at + size]


class Pace:
    """Notices that audio comes faster or slower than it was spoken: its rate is another."""

    _WINDOW_SECS = 2.0
    """Two of these in a row have to be off; a burst after a stall is so in one at most."""
    _GAP_SECS = 0.3
    """After a longer wait for a piece than three times its length and this, measuring starts
    anew: push-to-talk and comfort noise have pauses, and say nothing about the rate."""
    _SLOWEST, _SLOW, _FAST = 0.25, 0.7, 1.4

    def __init__(self) -> None:
        """Nothing has come."""
        self._since = self._last = -math.inf
        self._secs = 0.0
        self._off = 0

    def note(self, secs: float, now: float) -> float | None:
        """Take in that a piece has come.

        Args:
            secs: Its length, by the rate it is said to have.
            now: When it came, on any clock that counts seconds.

        Returns:
            How many times too fast the audio came, if it was off for two windows in a row.
        """
        if now - self._last > 3 * secs + self._GAP_SECS:
            self._off = 0
            self._begin(now)
            return None
        self._last = now
        self._secs += secs
        took = now - self._since
        if max(took, self._secs) < self._WINDOW_SECS:
            return None
        factor = self._secs / took if took else math.inf
        is_off = self._SLOWEST < factor < self._SLOW or factor > self._FAST
        self._off = self._off + 1 if is_off else 0
        self._begin(now)
        return factor if self._off > 1 else None

    def _begin(self, now: float) -> None:
        self._since = self._last = now
        self._secs = 0.0


def checked(audio: object) -> bytes:
    """The bytes of what should be audio.

    Raises:
        TypeError: It is no mono 16-bit PCM, as far as its type says.
        ValueError: It has half a sample.
    """
    if not isinstance(audio, bytes):
        try:
            view = memoryview(audio)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise TypeError(_refusal(type(audio).__name__)) from None
        is_samples = view.format == "h"
        is_bytes = view.format in ("B", "b", "c") and not isinstance(audio, np.ndarray)
        if not (is_samples or is_bytes):
            kind = f"{type(audio).__name__} of {getattr(audio, 'dtype', view.format)}"
            raise TypeError(_refusal(kind))
        shape = view.shape or ()
        if not shape or math.prod(shape) != max(shape):
            raise TypeError(_refusal(f"an array of shape {shape}"))
        audio = view.tobytes()
    if len(audio) % _SAMPLE_BYTES:
        raise ValueError(f"16-bit audio has an even number of bytes, not {len(audio)}")
    return audio


def checked_rate(sample_rate: int | None) -> int | None:
    """A sample rate that can be one.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is out of range.
    """
    if sample_rate is None:
        return None
    rate = operator.index(sample_rate)
    least, most = _RATES
    if not least <= rate <= most:
        raise ValueError(f"sample_rate is in Hz, from {least} to {most}, not {rate}")
    return rate


def _refusal(kind: str) -> str:
    return f"audio is mono 16-bit PCM, as bytes or as an array of int16, not {kind}"
