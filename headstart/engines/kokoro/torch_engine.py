"""Kokoro on torch: a clause is heard while the rest of it is still being made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.engines.kokoro.backend import Abort, AbortedError, Rendering
from headstart.engines.kokoro.front import Front, front_end
from headstart.engines.kokoro.norms import NormPredictor
from headstart.engines.kokoro.pace import Pace, Playback
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
from headstart.engines.kokoro.stream import FRAME, Folds, Generator
from headstart.engines.kokoro.weights import load_model

_EARLIEST_ONSET = 12
"""Frames before the end of the start mark at which speech may begin: 150 ms. Measured: at
most 111 ms before it."""
_LEAST_REST = SAMPLE_RATE // 10
"""Samples of silence after which a clause has ended, once its last phoneme has begun."""


class TorchKokoro:
    """Backend: the front end once, then the generator in chunks that grow.

    The norm statistics of the generator are predicted for the voices that the predictor was
    fitted on; with other voices, a clause is made as a whole.
    """

    name = "torch"

    def __init__(self, weights: Path, *, threads: int) -> None:
        """Load the network.

        Args:
            weights: The ONNX export, or the original checkpoint (`.pth`).
            threads: One or two.

        Raises:
            EngineError: The file does not hold the weights, or the package is missing.
        """
        self._model = load_model(weights)
        self._threads = threads
        self._generator = Generator(self._model.decoder.generator, threads)
        _forget_weights(self._model.decoder.generator)
        self._predictor = NormPredictor.shipped()
        self._pace = Pace()

    @property
    def speed_factor(self) -> float:
        """Seconds of computing for a second of audio, in the generator, as measured lately."""
        return self._pace.frame_secs * SAMPLE_RATE / FRAME

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
            with torch.inference_mode():
                torch.set_num_threads(self._threads)
                front = front_end(self._model, tokens, style, speed, abort)
                # The generator shares its work out itself.
                torch.set_num_threads(1)
                if self._predictor is None or not self._predictor.knows(voice):
                    wave, _ = self._generator.whole(front.x, front.source, front.style, abort)
                    audio, skipped = trimmed(wave.numpy(), pause)
                    return Rendering(front.durations, skipped, iter((audio,)))
                folds = self._folds(voice, front, self._predictor)
                begin = max(0, 2 * int(front.durations[0]) - _EARLIEST_ONSET)
                end_mark = front.x.shape[2] - 2 * int(front.durations[-1])
                end = min(front.x.shape[2], end_mark + pause // FRAME)
                first = self._first_piece(front, folds, begin, abort)
        except AbortedError:
            return None
        audio, skipped, begin = first
        return Rendering(
            front.durations,
            skipped,
            self._pieces(front, folds, audio, begin, end, pause, abort),
        )

    def close(self) -> None:
        """End the helping thread and let the weights go."""
        self._generator.close()
        self._model = None

    def _folds(self, voice: str, front: Front, predictor: NormPredictor) -> Folds:
        means, variances = (
            torch.split(part, list(self._generator.channels))
            for part in predictor.predict(voice, front)
        )
        statistics = dict(
            zip(self._generator.layers, zip(means, variances, strict=True), strict=True)
        )
        return self._generator.fold(front.style, statistics)

    def _first_piece(
        self, front: Front, folds: Folds, begin: int, abort: Abort
    ) -> tuple[NDArray[np.float32], int, int]:
        """The first piece with sound, the samples skipped before it, the frame after it."""
        frames = front.x.shape[2]
        while True:
            after = self._pace.next_chunk(begin, frames, None)
            audio = self._chunk(front, folds, begin, after, abort)
            onset, sounds = speech_bounds(audio, max(USUAL_PEAK, loudest(audio)))
            if sounds or after == frames:
                start = max(0, onset - SAMPLE_RATE * LEAD_IN_MS // 1000)
                skipped = begin * FRAME + start
                return faded(audio[start:], start=skipped > 0, end=False), skipped, after
            begin = after

    def _pieces(
        self,
        front: Front,
        folds: Folds,
        audio: NDArray[np.float32],
        begin: int,
        end: int,
        pause: int,
        abort: Abort,
    ) -> Iterator[NDArray[np.float32]]:
        """All pieces; those that come before playback may start are given out together."""
        held: list[NDArray[np.float32]] = []
        playback, tail = Playback(), Tail()
        last_phoneme = front.x.shape[2] - 2 * int(front.durations[-2:].sum())
        enough = max(pause, _LEAST_REST)
        while True:
            held.append(tail.pass_on(audio))
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
            after = self._pace.next_chunk(begin, front.x.shape[2], ahead)
            try:
                with torch.inference_mode():
                    audio = self._chunk(front, folds, begin, after, abort)
            except AbortedError:
                return
            begin = after
        yield np.concatenate([*held, tail.end(pause)])

    def _chunk(
        self, front: Front, folds: Folds, begin: int, end: int, abort: Abort
    ) -> NDArray[np.float32]:
        started = time.monotonic()
        wave: Tensor = self._generator.chunk(front.x, front.source, folds, begin, end, abort)
        self._pace.measured(end - begin, time.monotonic() - started)
        audio: NDArray[np.float32] = wave.numpy()
        return audio


def _forget_weights(generator: Any) -> None:
    """Drop the parts of the module that `Generator` has taken over; the source stays."""
    for part in ("ups", "resblocks", "noise_convs", "noise_res", "conv_post"):
        delattr(generator, part)
