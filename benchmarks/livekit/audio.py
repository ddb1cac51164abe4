"""A microphone and a loudspeaker without devices, which keep what they hear and play."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from livekit import rtc
from livekit.agents.voice import io

RATE = 16000
OUT_RATE = 24000
AUDIBLE = 327
"""-40 dBFS of 16 bit."""
_FRAME = RATE // 50


@dataclass(frozen=True)
class Spoken:
    """Where an utterance lies."""

    start_s: float
    """On the clock of the recording."""
    ended: float
    """When its last sample was delivered (`time.monotonic`)."""


class Microphone(io.AudioInput):
    """20 ms frames without a gap, each delivered when its audio has elapsed; silence is zeros."""

    def __init__(self) -> None:
        super().__init__(label="recording")
        self.zero: float | None = None
        """When the first sample began (`time.monotonic`)."""
        self._frames: list[bytes] = []
        self._left = b""
        self._start_s = 0.0
        self._spoken: asyncio.Future[Spoken] | None = None

    async def speak(self, utterance: np.ndarray) -> Spoken:
        """Speak from the next frame on; returns when all of it has been heard."""
        self._left = utterance.tobytes()
        self._start_s = len(self._frames) * 0.02
        self._spoken = asyncio.get_running_loop().create_future()
        return await self._spoken

    def recorded(self) -> np.ndarray:
        """All that was heard."""
        return np.frombuffer(b"".join(self._frames), np.int16)

    async def __anext__(self) -> rtc.AudioFrame:
        if self.zero is None:
            self.zero = time.monotonic()
        size = 2 * _FRAME
        frame, self._left = self._left[:size], self._left[size:]
        self._frames.append(frame.ljust(size, b"\0"))
        await asyncio.sleep(self.zero + len(self._frames) * 0.02 - time.monotonic())
        if self._spoken is not None and not self._spoken.done() and not self._left:
            self._spoken.set_result(Spoken(self._start_s, time.monotonic()))
        return rtc.AudioFrame(self._frames[-1], RATE, 1, _FRAME)


@dataclass
class Played:
    """A stretch of speech that is played without a gap."""

    start: float
    samples: np.ndarray


class Speaker(io.AudioOutput):
    """Plays in real time: what is captured is heard at once, or when what came before is over."""

    def __init__(self) -> None:
        super().__init__(
            label="speaker",
            capabilities=io.AudioOutputCapabilities(pause=False),
            sample_rate=OUT_RATE,
        )
        self.played: list[Played] = []
        self.busy_until = 0.0
        self._segment: list[Played] = []
        self._finishing: asyncio.Task[None] | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Play a frame behind the one before."""
        await super().capture_frame(frame)
        start = max(time.monotonic(), self.busy_until)
        if not self._segment:
            self.on_playback_started(created_at=time.time())
        samples = np.frombuffer(frame.data, np.int16).copy()
        self._segment.append(Played(start, samples))
        self.played.append(self._segment[-1])
        self.busy_until = start + len(samples) / OUT_RATE

    def flush(self) -> None:
        """The answer is complete: say so when it has been played."""
        super().flush()
        if self._segment:
            segment, self._segment = self._segment, []
            self._finishing = asyncio.create_task(self._finish(segment))

    def clear_buffer(self) -> None:
        """The answer was interrupted: what has not been played by now never is."""
        if self._finishing is not None and not self._finishing.done():
            self._finishing.cancel()
        now = time.monotonic()
        if self.busy_until <= now:
            return
        for piece in self.played:
            piece.samples = piece.samples[: max(0, round((now - piece.start) * OUT_RATE))]
        self.busy_until = now
        heard = sum(len(piece.samples) for piece in self._segment) / OUT_RATE
        self._segment = []
        self.on_playback_finished(playback_position=heard, interrupted=True)

    def heard_from(self) -> list[float]:
        """When audible stretches begin, those that follow a silence of a second."""
        found: list[float] = []
        last = -1e9
        for piece in self.played:
            loud = np.flatnonzero(np.abs(piece.samples.astype(np.int32)) > AUDIBLE)
            if len(loud):
                if piece.start + loud[0] / OUT_RATE - last > 1.0:
                    found.append(piece.start + loud[0] / OUT_RATE)
                last = piece.start + loud[-1] / OUT_RATE
        return found

    def recorded(self, zero: float) -> np.ndarray:
        """All that was played, from a moment on."""
        end = max(
            (piece.start + len(piece.samples) / OUT_RATE for piece in self.played), default=zero
        )
        track = np.zeros(max(0, round((end - zero) * OUT_RATE)) + 1, np.int16)
        for piece in self.played:
            at = round((piece.start - zero) * OUT_RATE)
            room = track[at : at + len(piece.samples)]
            room[:] = piece.samples[: len(room)]
        return track

    async def _finish(self, segment: list[Played]) -> None:
        last = segment[-1]
        end = last.start + len(last.samples) / OUT_RATE
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        heard = sum(len(piece.samples) for piece in segment) / OUT_RATE
        self.on_playback_finished(playback_position=heard, interrupted=False)
