"""A conversation held with WAV files: spoken into the pipeline in real time, recorded in stereo."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pipecat.frames.frames import CancelFrame, EndFrame, StartFrame
from pipecat.processors.frame_processor import FrameProcessorSetup

from headstart.errors import AudioFileError, HeadstartError, SessionEndedError
from headstart.transports.memory import PARAMS, MemoryInput, MemoryTransport, PlayedAudio

Samples = NDArray[np.int16]

_FRAME_SECS = 0.02
_SPEAK_MARGIN_SECS = 60.0
"""So much longer than it lasts may an utterance take: on a machine that hardly gets on."""
_MIN_RATE = 4_000
_MAX_RATE = 384_000
"""Hz: from what a bad telephone gives to what a studio has."""
_MAX_SECS = 3600
_BLOCK_VALUES = 1 << 20
"""Samples of all channels that are read at once."""


def read_audio(path: Path, sample_rate: int) -> Samples:
    """The samples of an audio file, mixed to mono and resampled.

    Args:
        path: A WAV (or anything else libsndfile reads), any rate, any number of channels.
        sample_rate: Wanted, in Hz.

    Returns:
        Shape (samples,).

    Raises:
        AudioFileError: No such file, not audio, no samples in it, or more of them than anybody
            says at a stretch.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise AudioFileError(f"{path}: no such file") from None
    except OSError as error:
        raise AudioFileError(f"{path}: cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(found.st_mode):
        raise AudioFileError(f"{path}: is a folder, not an audio file")
    if not stat.S_ISREG(found.st_mode):
        raise AudioFileError(f"{path}: is a device or a pipe, not an audio file")
    if found.st_size == 0:
        raise AudioFileError(f"{path}: is empty")
    try:
        with soundfile.SoundFile(path) as file:
            return _read(file, path, sample_rate)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: of *.raw
        reason = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
        raise AudioFileError(f"{path}: not an audio file that can be read ({reason})") from None


def _read(file: soundfile.SoundFile, path: Path, sample_rate: int) -> Samples:
    rate: int = file.samplerate
    # A header may claim anything, and all memory follows from it.
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise AudioFileError(
            f"{path}: claims {rate} Hz; recordings have {_MIN_RATE} to {_MAX_RATE} Hz"
        )
    if file.frames > _MAX_SECS * rate:
        raise AudioFileError(
            f"{path}: claims {file.frames / rate / 3600:.1f} hours; "
            f"an utterance has at most {_MAX_SECS // 60} minutes"
        )
    resample = soxr.ResampleStream(rate, sample_rate, 1) if rate != sample_rate else None
    pieces: list[Samples] = []
    for block in file.blocks(_BLOCK_VALUES // file.channels, dtype="float32", always_2d=True):
        if not np.isfinite(block).all():
            raise AudioFileError(f"{path}: holds samples that are not numbers")
        mono = block.mean(axis=1)
        pieces.append(_to_int16(resample.resample_chunk(mono) if resample else mono))
    if resample:
        pieces.append(_to_int16(resample.resample_chunk(np.zeros(0, np.float32), last=True)))
    if not sum(map(len, pieces)):
        raise AudioFileError(f"{path}: holds no samples")
    return np.concatenate(pieces)


def _to_int16(audio: NDArray[np.floating]) -> Samples:
    return np.clip(np.round(audio * 32768), -32768, 32767).astype(np.int16)


@dataclass
class Recording:
    """What was said by whom, aligned on the conversation's clock."""

    in_sample_rate: int = 0
    out_sample_rate: int = 0
    user: list[Samples] = field(default_factory=list)
    """Without gaps from zero, at the input rate."""
    bot: list[tuple[int, Samples]] = field(default_factory=list)
    """(first sample, samples) at the output rate; gaps between them are silence."""

    def add_bot(self, played: PlayedAudio) -> None:
        """Note a piece of the bot's speech."""
        self.out_sample_rate = played.sample_rate
        self.bot.append((played.start_sample, np.frombuffer(played.audio, np.int16)))

    @property
    def user_secs(self) -> float:
        """How long the conversation has lasted: the user's side has no gaps."""
        return sum(map(len, self.user)) / self.in_sample_rate

    def bot_speech(self) -> Samples:
        """The bot alone, gaps closed up: shape (samples,) at the output rate."""
        return np.concatenate([np.zeros(0, np.int16), *(samples for _, samples in self.bot)])

    def stereo(self) -> Samples:
        """Left the user, right the bot, in real time: shape (samples, 2) at the output rate."""
        user = np.concatenate([np.zeros(0, np.int16), *self.user])
        left = soxr.resample(user, self.in_sample_rate, self.out_sample_rate)
        length = max([len(left), *(start + len(samples) for start, samples in self.bot)])
        stereo = np.zeros((length, 2), np.int16)
        stereo[: len(left), 0] = left
        for start, samples in self.bot:
            stereo[start : start + len(samples), 1] = samples
        return stereo


@dataclass(frozen=True)
class Spoken:
    """Where an utterance lies on the conversation's clock."""

    start_secs: float
    end_secs: float

    def holds(self, at_secs: float | None) -> bool:
        """Whether this moment lies in it; half a second of leeway, as a detector dates it."""
        return at_secs is not None and self.start_secs - 0.5 <= at_secs <= self.end_secs + 0.5


class WavTransport(MemoryTransport):
    """The user's side is silence, into which utterances are spoken at the pace of real time."""

    def __init__(self) -> None:
        """Nothing has been said yet."""
        self.recording = Recording()
        super().__init__(on_played=self.recording.add_bot)

    def _make_input(self) -> WavInput:
        self._microphone = WavInput(self, self.recording)
        return self._microphone

    async def speak(self, utterance: Samples) -> Spoken:
        """Speak an utterance; returns when its last sample has been heard.

        Args:
            utterance: Shape (samples,), at the pipeline's input rate.

        Raises:
            SessionEndedError: The pipeline ended before all of it was heard.
            HeadstartError: It took a minute longer than it lasts.
            ValueError: There are no samples in it.
        """
        return await self._microphone.speak(utterance)

    @property
    def over(self) -> bool:
        """Whether the pipeline has ended, or is about to: nobody listens any more."""
        return self._microphone.over


class WavInput(MemoryInput):
    """A microphone: 20 ms frames without a gap, each delivered when its audio has elapsed."""

    def __init__(self, transport: WavTransport, recording: Recording) -> None:
        """Belong to `transport`; note what the user says in `recording`."""
        super().__init__(transport, PARAMS)
        self._recording = recording
        self._utterance: Samples = np.zeros(0, np.int16)
        self._spoken: asyncio.Future[Spoken] | None = None
        self._microphone: asyncio.Task[None] | None = None
        self.over = False
        """Whether the microphone has been switched off, which is for good."""

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Note the rate of the answer, for it may stay away."""
        await super().setup(setup)
        self._recording.out_sample_rate = setup.audio_out_sample_rate

    async def start(self, frame: StartFrame) -> None:
        """Get ready to take audio; the microphone is switched on for the first utterance."""
        await super().start(frame)
        self._recording.in_sample_rate = self.sample_rate

    async def stop(self, frame: EndFrame) -> None:
        """Switch the microphone off."""
        await self._switch_off()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        """Switch the microphone off at once."""
        await self._switch_off()
        await super().cancel(frame)

    async def cleanup(self) -> None:
        """Switch the microphone off, should the pipeline end without having told."""
        await self._switch_off()
        await super().cleanup()

    async def speak(self, utterance: Samples) -> Spoken:
        """Speak `utterance` from the next frame on; returns when all of it has been heard.

        Raises:
            SessionEndedError: The pipeline ended before that.
            HeadstartError: It took a minute longer than it lasts.
            ValueError: There are no samples in it.
        """
        if self._spoken is not None:
            raise RuntimeError("the last utterance is still being spoken")
        if not len(utterance):
            raise ValueError("an utterance without samples")
        if self.over:
            raise SessionEndedError("the pipeline has ended; nobody listens")
        if self._microphone is None:
            self._microphone = self.create_task(self._run(), "microphone")
            # However it ends: who speaks into it must hear of it.
            self._microphone.add_done_callback(lambda _: self._note_end())
        self._utterance = utterance
        self._spoken = asyncio.get_running_loop().create_future()
        secs = len(utterance) / self.sample_rate + _SPEAK_MARGIN_SECS
        try:
            async with asyncio.timeout(secs):
                return await self._spoken
        except TimeoutError:
            raise HeadstartError(f"an utterance was not heard within {secs:.0f} s") from None
        finally:
            self._spoken = None

    async def _switch_off(self) -> None:
        self._note_end()
        if self._microphone is not None:
            await self.cancel_task(self._microphone)
            self._microphone = None

    def _note_end(self) -> None:
        self.over = True
        if self._spoken is not None and not self._spoken.done():
            self._spoken.set_exception(
                SessionEndedError("the pipeline ended while the user was speaking")
            )

    async def _run(self) -> None:
        clock = self.get_clock()
        size = round(self.sample_rate * _FRAME_SECS)
        zero_ns = self._transport.begin(clock)
        taken = 0
        start_secs: float | None = None
        while True:
            now = self._utterance[:size]
            self._utterance = self._utterance[size:]
            if len(now) and start_secs is None:
                start_secs = taken / self.sample_rate
            samples = np.zeros(size, np.int16)
            samples[: len(now)] = now
            taken += size
            due_ns = zero_ns + taken * 10**9 // self.sample_rate
            await asyncio.sleep(max(0, due_ns - clock.get_time()) / 1e9)
            self._recording.user.append(samples)
            await self.take(samples.tobytes())
            if start_secs is not None and not len(self._utterance):
                if self._spoken is not None and not self._spoken.done():
                    end_secs = (taken - size + len(now)) / self.sample_rate
                    self._spoken.set_result(Spoken(start_secs, end_secs))
                start_secs = None
