"""What to send a recogniser again after its connection broke, and where its times then lie."""

from __future__ import annotations

_SAMPLE_BYTES = 2


class ReplayRing:
    """All audio that no final result covers yet, on a clock that outlives connections.

    The stream's clock counts the audio pushed, in seconds since the first sample. A provider's
    clock counts what one connection was sent, so it starts anew with every connection (or goes
    on from where an earlier session left a pooled one). The ring maps one to the other.

    Audio is 16-bit mono PCM.
    """

    def __init__(self, sample_rate: int, max_secs: float) -> None:
        """Start empty, with no connection.

        Args:
            sample_rate: Of the audio, in Hz.
            max_secs: How much is held; beyond it the oldest audio is given up.
        """
        self._rate = sample_rate
        self._most = int(max_secs * sample_rate)
        self._audio = bytearray()
        self._start = 0
        self._cursor = 0
        self._lost = 0
        # (sample of the provider's clock, sample of ours) from where on both run alike.
        self._anchors: list[tuple[int, int]] = [(0, 0)]

    @property
    def start_secs(self) -> float:
        """Stream time of the first sample that is held."""
        return self._start / self._rate

    @property
    def end_secs(self) -> float:
        """Stream time after the last sample pushed."""
        return self._end / self._rate

    @property
    def lost_secs(self) -> float:
        """How much was given up unfinalised because the ring was full."""
        return self._lost / self._rate

    def push(self, pcm: bytes) -> None:
        """Add audio to the end of the stream."""
        self._audio += pcm
        excess = self._end - self._start - self._most
        if excess > 0:
            self._lost += excess
            self._release(self._start + excess)

    def connect(self, provider_secs: float = 0.0) -> None:
        """A connection has opened: everything held is to be sent on it.

        Args:
            provider_secs: Audio that the connection has been sent already, by another stream.
        """
        self._cursor = self._start
        self._anchors = [(round(provider_secs * self._rate), self._start)]

    def unsent_secs(self, until_secs: float | None = None) -> float:
        """How much is still to be sent, up to a stream time or to the end."""
        until = self._end if until_secs is None else round(until_secs * self._rate)
        return max(until - self._cursor, 0) / self._rate

    def take(self, secs: float) -> bytes:
        """The next audio to send on this connection, at most so much of it."""
        first = self._cursor - self._start
        last = min(first + round(secs * self._rate), self._end - self._start)
        self._cursor = self._start + last
        return bytes(self._audio[first * _SAMPLE_BYTES : last * _SAMPLE_BYTES])

    def finalise(self, until_secs: float) -> None:
        """Nothing before this stream time will be needed again."""
        self._release(min(round(until_secs * self._rate), self._end))

    def since(self, secs: float, until_secs: float) -> bytes:
        """The audio held between two stream times."""
        first = max(round(secs * self._rate) - self._start, 0)
        last = max(round(until_secs * self._rate) - self._start, 0)
        return bytes(self._audio[first * _SAMPLE_BYTES : last * _SAMPLE_BYTES])

    def stream_secs(self, provider_secs: float) -> float:
        """Stream time of a time that the provider gave on this connection.

        Whatever the provider says, it has heard no more than it was sent.
        """
        sample = provider_secs * self._rate
        provider, stream = next(
            (anchor for anchor in reversed(self._anchors) if anchor[0] <= sample),
            self._anchors[0],
        )
        return min(stream + sample - provider, self._cursor) / self._rate

    @property
    def _end(self) -> int:
        return self._start + len(self._audio) // _SAMPLE_BYTES

    def _release(self, until: int) -> None:
        if until <= self._start:
            return
        del self._audio[: (until - self._start) * _SAMPLE_BYTES]
        self._start = until
        if self._cursor < until:
            # Unsent audio is gone: from here on the provider's clock is further behind.
            provider, stream = self._anchors[-1]
            self._anchors.append((provider + self._cursor - stream, until))
            self._cursor = until
