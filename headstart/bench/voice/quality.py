"""How true streamed speech is to the same clause made as a whole.

The log-mel distance is the root mean square over 80 mel bands (1024 samples, steps of 256), in
dB, averaged over the frames within 45 dB of the loudest. The yardstick of distance, level and
words is a second whole clause, which differs in nothing but the seed of Kokoro's noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
import torch
from kokoro_onnx.config import DEFAULT_VOCAB
from numpy.typing import NDArray

from headstart.engines.kokoro.backend import Abort, Backend
from headstart.engines.kokoro.silence import SAMPLE_RATE, pause_after
from headstart.engines.kokoro.text.phonemes import Phonemizer
from headstart.engines.kokoro.torch.pace import Pace
from headstart.engines.kokoro.voices import Voices
from headstart.engines.whisper import WhisperEngine
from headstart.errors import EngineError

_FRAME = SAMPLE_RATE // 80
_WINDOW, _STEP, _BANDS = 1024, 256, 80
_FIRST, _LATER = 16, (16, 24, 32, 48)


class FixedPace(Pace):
    """Chunks as on a fast machine, whatever this one does; remembers where they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[int] = []

    def next_chunk(self, begin: int, end: int, ahead_secs: float | None) -> int:
        """The next chunk, in frames of 12.5 ms."""
        size = _LATER[min(len(self.cuts), len(_LATER)) - 1] if self.cuts else _FIRST
        after = end if end - begin < size + _FIRST else begin + size
        self.cuts.append(after)
        return after

    def may_start(self, held_secs: float, left: int) -> bool:
        """At once."""
        return True


@dataclass(frozen=True)
class Quality:
    """See `Row`."""

    lmd_db: float
    floor_db: float
    level_db: float
    floor_level_db: float
    seam_db: float | None
    same_transcript: bool
    floor_same_transcript: bool


class Judge:
    """Compares streamed speech with whole clauses."""

    def __init__(
        self, backend: Backend, pace: FixedPace, voices: Voices, listener: WhisperEngine
    ) -> None:
        """Use a torch backend whose chunks `pace` decides on."""
        self._backend = backend
        self._pace = pace
        self._voices = voices
        self._listener = listener
        self._phonemizer = Phonemizer()

    async def judge(self, text: str, voice: str, seed: int) -> Quality:
        """Speak the text's first clause in both ways, with the same noise."""
        whole, whole_from = self._spoken(text, voice, "", seed)
        other, other_from = self._spoken(text, voice, "", seed + 1)
        self._pace.cuts.clear()
        streamed, streamed_from = self._spoken(text, voice, voice, seed)
        cuts = [cut * _FRAME - max(whole_from, streamed_from) for cut in self._pace.cuts[:-1]]
        floor = _aligned((whole, whole_from), (other, other_from))
        reference, ours = _aligned((whole, whole_from), (streamed, streamed_from))
        heard, *again = [await self._heard(audio) for audio in (whole, streamed, other)]
        return Quality(
            lmd_db=log_mel_distance(reference, ours),
            floor_db=log_mel_distance(*floor),
            level_db=level_difference(reference, ours),
            floor_level_db=level_difference(*floor),
            seam_db=seam_energy(reference, ours, cuts),
            same_transcript=heard == again[0],
            floor_same_transcript=heard == again[1],
        )

    def _spoken(
        self, text: str, voice: str, norms_of: str, seed: int
    ) -> tuple[NDArray[np.float32], int]:
        """The audio and what was skipped before; without norms of a voice, made as a whole."""
        clause = next(self._phonemizer.clauses(text, voice))
        tokens = np.array([DEFAULT_VOCAB[phoneme] for phoneme in clause.phonemes], np.int64)
        torch.manual_seed(seed)
        rendering = self._backend.render(
            tokens,
            self._voices.style(voice, len(tokens)),
            voice=norms_of,
            speed=1.0,
            pause=pause_after(clause.phonemes),
            abort=Abort(),
        )
        if rendering is None:
            raise EngineError("Kokoro ended a clause that nobody stopped")
        return np.concatenate(list(rendering.pieces)), rendering.skipped

    async def _heard(self, audio: NDArray[np.float32]) -> list[str]:
        at_16k = soxr.resample(audio, SAMPLE_RATE, 16_000).astype(np.float32)
        text = (await self._listener.transcribe(at_16k)).text.lower()
        return "".join(c if c.isalnum() or c == "'" else " " for c in text).split()


def log_mel_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Between two pieces of audio of the same length, in dB."""
    first, second = _log_mel(a), _log_mel(b)
    level = first.mean(1)
    apart = np.sqrt(((first - second) ** 2).mean(1))
    return float(apart[level > level.max() - 45].mean())


def level_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """How much louder `b` is, in dB."""
    return float(10 * np.log10((np.mean(b**2) + 1e-12) / (np.mean(a**2) + 1e-12)))


def seam_energy(
    whole: NDArray[np.float32], streamed: NDArray[np.float32], seams: list[int]
) -> float | None:
    """How much more `streamed` jumps at its seams than `whole` does there, in dB.

    The energy of the difference from sample to sample, in five samples around each seam; what
    the two differ by everywhere is taken off. None where there is no seam.
    """
    inside = [seam for seam in seams if 3 <= seam < len(whole) - 3]
    if not inside:
        return None
    around = np.concatenate([np.arange(seam - 3, seam + 2) for seam in inside])
    jumps = [np.diff(audio) ** 2 + 1e-12 for audio in (streamed, whole)]
    here, everywhere = (
        10 * np.log10(jumps[0][at].mean() / jumps[1][at].mean()) for at in (around, slice(None))
    )
    return float(here - everywhere)


def _aligned(
    a: tuple[NDArray[np.float32], int], b: tuple[NDArray[np.float32], int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The stretch of time that both cover; each comes with where it begins."""
    begin = max(a[1], b[1])
    end = min(a[1] + len(a[0]), b[1] + len(b[0]))
    return a[0][begin - a[1] : end - a[1]], b[0][begin - b[1] : end - b[1]]


def _log_mel(audio: NDArray[np.float32]) -> NDArray[np.float64]:
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, _WINDOW // 2), _WINDOW)
    power = np.abs(np.fft.rfft(frames[::_STEP] * np.hanning(_WINDOW))) ** 2
    mel: NDArray[np.float64] = 10 * np.log10(power @ _filters().T + 1e-4)
    return mel


def _filters() -> NDArray[np.float64]:
    """Triangles, evenly spread over the mel scale (O'Shaughnessy 1987); (bands, bins)."""
    bins = np.linspace(0, SAMPLE_RATE / 2, _WINDOW // 2 + 1)
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _BANDS + 2) / 2595) - 1)
    low, middle, high = (edges[at : at + _BANDS, None] for at in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    triangles: NDArray[np.float64] = np.clip(np.minimum(rising, falling), 0, None)
    return triangles
