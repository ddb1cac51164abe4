"""Kokoro on torch: a clause is heard while the rest of it is still being made."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.engines.kokoro.backend import Abort, AbortedError, Rendering
from headstart.engines.kokoro.silence import (
    LEAD_IN_MS,
    SAMPLE_RATE,
    USUAL_PEAK,
    Tail,
    faded,
    loudest,
    speech_bounds,
    trimmed,
)
from headstart.engines.kokoro.torch import bfloat, int8
from headstart.engines.kokoro.torch.front import Front, FrontEnd
from headstart.engines.kokoro.torch.norms import LOUDER_DB, NormPredictor
from headstart.engines.kokoro.torch.pace import Pace, Playback
from headstart.engines.kokoro.torch.pair import Pair
from headstart.engines.kokoro.torch.source import FRAME
from headstart.engines.kokoro.torch.stream import Folds, Generator, Stream
from headstart.engines.kokoro.torch.weights import load_weights, under

_SPEECH_ENERGY = -3.0
"""Predicted energy from which on there is speech; in silence it mostly is -5 or less. Of 112
clauses by 28 voices, none was heard earlier than 3 ms before the first such frame, half of them
not until 12 ms and one of twenty not until 36 ms after it."""
_BEFORE_SPEECH = 3
"""Frames that are made before it: the generator's layers look back, and the further back they do,
the less it matters. With 3, the first 20 ms of a clause are 19 dB, the next 37 dB above what they
differ from the whole clause (median of 16)."""
_GAIN = 10 ** (-LOUDER_DB / 20)
_LEAST_REST = SAMPLE_RATE // 10
"""Samples of silence after which a clause has ended, once its last phoneme has begun."""


class TorchKokoro:
    """Backend: the front end once, then the generator in chunks that grow.

    The norm statistics of the generator are predicted for the voices that the predictor was
    fitted on; with other voices, a clause is made as a whole.
    """

    name = "torch"

    def __init__(
        self, weights: Path, *, threads: int, pace: Pace | None = None, exact: bool = False
    ) -> None:
        """Load the network.

        Args:
            weights: The ONNX export, or the original checkpoint (`.pth`).
            threads: One or two.
            pace: How a clause is divided; by default as this machine's speed suggests.
            exact: Compute on floats throughout, as `KModel` does, also where this processor is
                faster on bytes and bfloat16.

        Raises:
            EngineError: The file does not hold the weights.
        """
        parameters = load_weights(weights)
        self._pair = Pair(threads)
        self._front_end = FrontEnd(parameters, self._pair, int8=int8.AVAILABLE and not exact)
        self._generator = Generator(
            under("decoder.generator.", parameters),
            self._pair,
            bfloat16=bfloat.AVAILABLE and not exact,
        )
        del parameters
        _return_memory()
        self._predictor = NormPredictor.shipped(self._pair)
        self._pace = pace or Pace()

    def render(
        self,
        tokens: NDArray[np.int64],
        style: NDArray[np.float32],
        *,
        voice: str,
        speed: float,
        pause: int,
        abort: Abort,
    ) -> Rendering | None:
        """See `Backend.render`."""
        try:
            with torch.inference_mode(), self._pair.apart():
                # The work is shared out by `Pair`.
                torch.set_num_threads(1)
                front = self._front_end(tokens, style, speed, abort)
                if self._predictor is None or not self._predictor.knows(voice):
                    wave, *_ = self._generator.whole(front, abort)
                    audio, skipped = trimmed(wave.numpy(), pause)
                    return Rendering(front.durations, skipped, iter((audio,)))
                folds = self._folds(voice, front, self._predictor)
                begin = _before_speech(front)
                stream = self._generator.stream(front, folds, begin, abort)
                audio, skipped = self._first_piece(stream, begin, len(front.x))
        except AbortedError:
            return None
        return Rendering(
            front.durations, skipped, self._pieces(stream, front.durations, audio, pause)
        )

    def close(self) -> None:
        """End the helping thread and let the weights go."""
        self._pair.close()

    def _folds(self, voice: str, front: Front, predictor: NormPredictor) -> Folds:
        means, variances = predictor.predict(voice, front.x, front.pitch, front.energy, front.style)
        return self._generator.fold(front.style, means, variances)

    def _first_piece(
        self, stream: Stream, begin: int, frames: int
    ) -> tuple[NDArray[np.float32], int]:
        """The first piece with sound, and the samples skipped before it."""
        while True:
            before = stream.position
            audio = self._piece(stream, self._pace.next_chunk(before, frames, None))
            onset, sounds = speech_bounds(audio, max(USUAL_PEAK, loudest(audio)))
            if sounds or stream.position >= frames:
                start = max(0, onset - SAMPLE_RATE * LEAD_IN_MS // 1000)
                skipped = stream.samples - len(audio) + begin * FRAME + start
                return faded(audio[start:], start=skipped > 0, end=False), skipped

    def _pieces(
        self,
        stream: Stream,
        durations: NDArray[np.int64],
        audio: NDArray[np.float32],
        pause: int,
    ) -> Iterator[NDArray[np.float32]]:
        """All pieces; those that come before playback may start are given out together."""
        held: list[NDArray[np.float32]] = []
        playback, tail = Playback(), Tail()
        frames = 2 * int(durations.sum())
        last_phoneme = frames - 2 * int(durations[-2:].sum())
        end = min(frames, frames - 2 * int(durations[-1]) + pause // FRAME)
        enough = max(pause, _LEAST_REST)
        while True:
            held.append(tail.pass_on(audio))
            begin = stream.position
            if begin >= end or (begin > last_phoneme and tail.held >= enough):
                break
            ahead = playback.ahead_secs(time.monotonic())
            held_secs = sum(map(len, held)) / SAMPLE_RATE
            if held_secs and (
                ahead is not None or self._pace.may_start(held_secs, last_phoneme - begin)
            ):
                yield np.concatenate(held)
                held.clear()
                playback.given(held_secs, time.monotonic())
            ahead = playback.ahead_secs(time.monotonic())
            try:
                with torch.inference_mode(), self._pair.apart():
                    audio = self._piece(stream, self._pace.next_chunk(begin, frames, ahead))
            except AbortedError:
                return
        yield np.concatenate([*held, tail.end(pause)])

    def _piece(self, stream: Stream, end: int) -> NDArray[np.float32]:
        started, begin = time.monotonic(), stream.position
        audio: NDArray[np.float32] = stream.next(end).mul_(_GAIN).numpy()
        self._pace.measured(stream.position - begin, time.monotonic() - started)
        return audio


def _before_speech(front: Front) -> int:
    """The frame from which on a clause is made: what comes before it is silence."""
    loud = (front.energy > _SPEECH_ENERGY).nonzero()
    first = int(loud[0]) if len(loud) else 0
    return max(0, min(first, 2 * int(front.durations[0])) - _BEFORE_SPEECH)


def _return_memory() -> None:
    """Have glibc give back what loading has freed: a quarter of a gigabyte."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
