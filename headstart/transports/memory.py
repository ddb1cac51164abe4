"""Audio in and out of the process itself: for embedding, for files, for tests and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pipecat.clocks.base_clock import BaseClock
from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame, StartFrame
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

from headstart.frames import PLAYED_AT_NS

_SAMPLE_BYTES = 2

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

    async def push_audio(self, audio: bytes) -> None:
        """Hand over what the user has just said.

        Args:
            audio: Mono 16-bit PCM at the pipeline's input rate, at the pace of real time.

        Raises:
            ValueError: Half a sample.
        """
        await self._input.take(audio)

    def begin(self, clock: BaseClock, elapsed_ns: int = 0) -> int:
        """Start the conversation's clock if it does not run yet; return its zero."""
        if self._zero_ns is None:
            self._zero_ns = clock.get_time() - elapsed_ns
        return self._zero_ns


class MemoryInput(BaseInputTransport):
    """Turns what the caller hands over into audio frames."""

    def __init__(self, transport: MemoryTransport, params: TransportParams) -> None:
        """Belong to `transport`."""
        super().__init__(params)
        self._transport = transport

    async def start(self, frame: StartFrame) -> None:
        """Begin to take audio."""
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def push_audio_frame(self, frame: InputAudioRawFrame) -> None:
        """Push a frame on at once: there is no filter, for which Pipecat keeps a queue here."""
        if not self._paused:
            await self.push_frame(frame)

    async def take(self, audio: bytes) -> None:
        """Pass `audio` (mono 16-bit PCM at the input rate), which has just ended, on."""
        if len(audio) % _SAMPLE_BYTES:
            raise ValueError("16-bit audio has an even number of bytes")
        samples = len(audio) // _SAMPLE_BYTES
        self._transport.begin(self.get_clock(), round(samples * 1e9 / self.sample_rate))
        await self.push_audio_frame(InputAudioRawFrame(audio, self.sample_rate, 1))


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
