"""Audio in and out of the process itself: for embedding, for files, for tests and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loguru import logger
from pipecat.clocks.base_clock import BaseClock
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    StartFrame,
)
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

from headstart.frames import PLAYED_AT_NS
from headstart.transports.door import Door, Pace, Pcm, checked, checked_rate

_SAMPLE_BYTES = 2
_FRAMES_AT_ONCE = 50
"""After so many frames of one piece, other sessions have their turn."""
_FLUSH_SECS = 0.2
"""If a piece of another rate is so much late, what the resampler holds of the last is let out."""
_ROUNDING_SECS = 1e-6

PARAMS = TransportParams(
    audio_in_enabled=True,
    audio_out_enabled=True,
    # A barge-in silences the bot within one 20 ms frame.
    audio_out_10ms_chunks=2,
    audio_out_end_silence_secs=0,
)


@dataclass(frozen=True)
class PlayedAudio:
    """A piece of the bot's speech, and when it was played."""

    start_sample: int
    """Of its first sample, at the output rate, on the conversation's clock."""
    audio: bytes
    """Mono 16-bit PCM."""
    sample_rate: int


class MemoryTransport(BaseTransport):
    """A transport whose far end is the caller.

    The caller hands over the user's audio as it arrives (`push_audio`) and receives the bot's
    as it is played (`on_played`), paced in real time like a loudspeaker. The conversation's
    clock begins with the first input sample.
    """

    def __init__(self, *, on_played: Callable[[PlayedAudio], None] | None = None) -> None:
        """Make both ends.

        Args:
            on_played: Called on the event loop with every 20 ms the bot says.
        """
        super().__init__()
        self._zero_ns: int | None = None
        self._input = self._make_input()
        self._output = MemoryOutput(self, PARAMS)
        self.on_played = on_played

    @property
    def zero_ns(self) -> int | None:
        """When the first input sample was taken, on the pipeline's clock; None before it."""
        return self._zero_ns

    def input(self) -> MemoryInput:
        """The stage that brings the user's audio."""
        return self._input

    def output(self) -> MemoryOutput:
        """The stage that plays the bot's audio."""
        return self._output

    def _make_input(self) -> MemoryInput:
        return MemoryInput(self, PARAMS)

    async def push_audio(self, audio: Pcm, sample_rate: int | None = None) -> None:
        """Hand over what the user has just said.

        Pieces may have any length; the pipeline gets frames of 20 ms at most. Once the session
        is over, audio is ignored: a microphone may be switched off a little later.

        Args:
            audio: Mono 16-bit PCM, as bytes or as an array of samples, at the pace of real time.
            sample_rate: Of the audio, in Hz, from 1000 to 384000; by default the pipeline's input
                rate. Another one is resampled.

        Raises:
            TypeError: It is something else than 16-bit PCM, or the rate is no whole number.
            ValueError: Half a sample, or a rate that is out of range.
            RuntimeError: The session is not open yet.
        """
        await self._input.push_audio(checked(audio), checked_rate(sample_rate))

    def begin(self, clock: BaseClock, elapsed_ns: int = 0) -> int:
        """Start the conversation's clock if it does not run yet; return its zero."""
        if self._zero_ns is None:
            self._zero_ns = clock.get_time() - elapsed_ns
        return self._zero_ns


class MemoryInput(BaseInputTransport):
    """Turns what the caller hands over into audio frames."""

    _door: Door

    def __init__(self, transport: MemoryTransport, params: TransportParams) -> None:
        """Belong to `transport`."""
        super().__init__(params)
        self._transport = transport
        self._is_started = self._is_over = False
        self._pushing = asyncio.Lock()
        self._pace: Pace | None = Pace()
        self._flush_at = 0.0
        self._flusher: asyncio.Task[None] | None = None

    async def start(self, frame: StartFrame) -> None:
        """Begin to take audio."""
        await super().start(frame)
        self._door = Door(self.sample_rate)
        self._is_started = True
        await self.set_transport_ready(frame)

    async def stop(self, frame: EndFrame) -> None:
        """Take no more."""
        await self._end()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        """Take no more, at once."""
        await self._end()
        await super().cancel(frame)

    async def cleanup(self) -> None:
        """Take no more, if nothing else said so."""
        await self._end()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def push_audio_frame(self, frame: InputAudioRawFrame) -> None:
        """Push a frame on at once: there is no filter, for which Pipecat keeps a queue here."""
        if not self._paused:
            await self.push_frame(frame)

    async def push_audio(self, audio: bytes, sample_rate: int | None) -> None:
        """Pass on a piece of any length and rate, as frames.

        Args:
            audio: Mono 16-bit PCM that has just ended.
            sample_rate: In Hz; None for the pipeline's.

        Raises:
            RuntimeError: The session is not open yet.
        """
        if self._is_over or not audio:
            return
        if not self._is_started:
            raise RuntimeError("the session is not open yet: push audio within `async with`")
        rate = sample_rate or self.sample_rate
        secs = len(audio) / _SAMPLE_BYTES / rate
        self._watch_pace(secs, rate)
        async with self._pushing:  # stages take one frame after the other
            self._transport.begin(self.get_clock(), round(secs * 1e9))
            await self._push(self._door.take(audio, rate))
            self._flush_at = asyncio.get_running_loop().time() + secs + _FLUSH_SECS
            if self._door.holds_audio and self._flusher is None and not self._is_over:
                self._flusher = self.create_task(self._flush(), "flush")

    async def take(self, audio: bytes) -> None:
        """Pass one frame on: mono 16-bit PCM at the input rate, which has just ended."""
        samples = len(audio) // _SAMPLE_BYTES
        self._transport.begin(self.get_clock(), round(samples * 1e9 / self.sample_rate))
        await self._push([audio])

    async def _push(self, frames: Iterable[bytes]) -> None:
        for number, audio in enumerate(frames, 1):
            if self._is_over:
                return
            await self.push_audio_frame(InputAudioRawFrame(audio, self.sample_rate, 1))
            if number % _FRAMES_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _flush(self) -> None:
        """Let out what the resampler holds when no more audio comes."""
        while True:
            if (secs := self._secs_to_flush) > 0:
                await asyncio.sleep(secs)
                continue
            async with self._pushing:
                if self._secs_to_flush <= 0:
                    self._flusher = None  # what follows from the rest is not to be cancelled
                    return await self._push(self._door.flush())

    @property
    def _secs_to_flush(self) -> float:
        secs = self._flush_at - asyncio.get_running_loop().time()
        return secs if secs > _ROUNDING_SECS else 0.0

    async def _end(self) -> None:
        self._is_over = True
        if self._flusher is not None:
            flusher, self._flusher = self._flusher, None
            await self.cancel_task(flusher)

    def _watch_pace(self, secs: float, rate: int) -> None:
        if self._pace is None:
            return
        factor = self._pace.note(secs, asyncio.get_running_loop().time())
        if factor is not None:
            self._pace = None
            logger.warning(
                f"the user's audio comes {factor:.2g} times as fast as it was spoken, if its rate "
                f"is {rate} Hz; if that is wrong, give push_audio the right sample_rate"
            )


class MemoryOutput(BaseOutputTransport):
    """Plays like a loudspeaker with a buffer of one frame, and tells what it played when."""

    def __init__(self, transport: MemoryTransport, params: TransportParams) -> None:
        """Belong to `transport`."""
        super().__init__(params)
        self._transport = transport
        self._free_at = 0
        """The sample, on the conversation's clock, at which the loudspeaker falls silent."""

    async def start(self, frame: StartFrame) -> None:
        """Begin to play."""
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        """Play one frame; returns when there is room for the next."""
        clock = self.get_clock()
        zero_ns = self._transport.begin(clock)
        now = (clock.get_time() - zero_ns) * self.sample_rate // 10**9
        start = max(self._free_at, now)
        samples = len(frame.audio) // _SAMPLE_BYTES
        self._free_at = start + samples
        frame.metadata[PLAYED_AT_NS] = zero_ns + start * 10**9 // self.sample_rate
        if self._transport.on_played is not None:
            self._transport.on_played(PlayedAudio(start, frame.audio, self.sample_rate))
        # One frame of head start, so that the loop's jitter tears no holes into the speech.
        await asyncio.sleep(max(0, start - now) / self.sample_rate)
        return True
