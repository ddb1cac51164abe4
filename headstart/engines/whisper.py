"""Whisper through CTranslate2, fed only as much audio as there is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import ctranslate2
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headstart import assets
from headstart.engines.hub import Engine
from headstart.engines.hypothesis import Hypothesis, Word
from headstart.engines.log_mel import HOP, SAMPLE_RATE, log_mel
from headstart.engines.queue import InferenceQueue, QueueStatistics, Ticket
from headstart.errors import EngineError

LONGEST_SECS = 28.0
"""The most audio that one decode takes: the encoder ends at 30 s, padding included."""

_ENCODER_SECS = 30.0
_TIMESTAMP_SECS = 0.02
_NO_SPEECH = 0.7
"""Above this it is no speech. Measured: 0.82 to 0.99 on silence, noise, tones and chimes;
at most 0.56 on real speech, clipped to its first 250 ms included."""
_TOKENS_PER_SEC = 7.0
"""Faster than anyone speaks; bounds what a decode that loops can cost, and tells a loop from
somebody who says the same again."""
_FRAMES_PER_SEC = 50
"""Of the encoder."""
_TAG = re.compile(r"[\[(*♪][^\])*♪]*[\])*♪]|♪")


@dataclass(frozen=True)
class WhisperOptions:
    """Which weights, and how they run."""

    asset: str = "whisper-tiny"
    """Folder of CTranslate2 weights."""
    language: str = "en"
    """ISO 639-1; anything but "en" wants multilingual weights."""
    threads: int = 1
    """Cores a decode uses. Measured on two busy cores, a second one gains nothing."""
    workers: int = 1
    """Decodes at the same time."""
    padding_secs: float = 4.0
    """Silence after the audio, in seconds. With 2 s the decoder loops now and then."""


class WhisperEngine(Engine):
    """Transcribes a few seconds of speech at a cost that follows their length.

    Whisper (Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak
    Supervision") was trained on windows of 30 s, and usual drivers pad to that. The
    encoder takes shorter ones; the decoder then tends to repeat itself, because it misses
    the long silence after the last word. Asked for timestamps it says where speech ends,
    and stops there.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, options: WhisperOptions) -> None:
        """Take over a loaded model. Use `load`."""
        self._model = model
        self._tokenizer = tokenizer
        self._padding = int(options.padding_secs * SAMPLE_RATE)
        self._end = self._token("<|endoftext|>")
        self._first_timestamp = self._token("<|notimestamps|>") + 1
        self._prompt = [self._token("<|startoftranscript|>")]
        if model.is_multilingual:
            self._prompt += [self._token(f"<|{options.language}|>"), self._token("<|transcribe|>")]
        self._queue = InferenceQueue("whisper", threads=options.workers)

    @classmethod
    def load(cls, options: WhisperOptions) -> Self:
        """Load the weights and decode once.

        Raises:
            AssetError: The weights are missing.
            EngineError: They do not load, or do not know the language.
        """
        folder = assets.path(options.asset)
        try:
            model = ctranslate2.models.Whisper(
                str(folder),
                device="cpu",
                compute_type="int8",
                inter_threads=options.workers,
                intra_threads=options.threads,
            )
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the bindings raise RuntimeError, ValueError and Exception
            raise EngineError(f"whisper did not load from {options.asset}: {error}") from error
        if not model.is_multilingual and options.language != "en":
            raise EngineError(
                f"the weights {options.asset} know English only, not {options.language!r}"
            )
        engine = cls(model, tokenizer, options)
        engine._decode(np.zeros(SAMPLE_RATE, dtype=np.float32))
        return engine

    async def transcribe(
        self, audio: NDArray[np.float32], ticket: Ticket | None = None
    ) -> Hypothesis:
        """What is said in the audio; an empty hypothesis when nobody speaks.

        Args:
            audio: Samples at 16 kHz in -1..1, shape (n,), 25 ms to 28 s.
            ticket: Standing of the work in the queue.

        Raises:
            ValueError: The audio is too long.
            EngineBusyError: The queue is full.
            EngineError: The decoder failed, or the engine is closed.
        """
        if len(audio) > LONGEST_SECS * SAMPLE_RATE:
            raise ValueError(f"one decode takes {LONGEST_SECS:.0f} s of audio at most")
        return await self._queue.run(partial(self._decode, audio), ticket)

    def statistics(self) -> QueueStatistics:
        """What the decoder's queue is doing and has done."""
        return self._queue.statistics()

    def close(self) -> None:
        """End the worker threads and free the weights."""
        self._queue.close()
        self._model.unload_model()

    def _decode(self, audio: NDArray[np.float32]) -> Hypothesis:
        secs = len(audio) / SAMPLE_RATE
        length = min(len(audio) + self._padding, int(_ENCODER_SECS * SAMPLE_RATE))
        length -= length % (2 * HOP)  # the encoder halves the frame rate
        padded = np.zeros(length, dtype=np.float32)
        padded[: len(audio)] = audio[:length]
        features = ctranslate2.StorageView.from_array(log_mel(padded)[None])
        try:
            encoded = self._model.encode(features)
            result = self._model.generate(
                encoded,
                [self._prompt],
                beam_size=1,
                # CTranslate2 takes half of it for what it generates.
                max_length=2 * (6 + int(_TOKENS_PER_SEC * secs)),
                return_no_speech_prob=True,
                return_logits_vocab=True,
            )[0]
        except RuntimeError as error:
            raise EngineError(f"whisper failed to decode: {error}") from error
        if result.no_speech_prob > _NO_SPEECH:
            return Hypothesis(no_speech_prob=result.no_speech_prob)
        tokens = result.sequences_ids[0]
        logprobs = [
            _logprob(np.asarray(logits), token)
            for logits, token in zip(result.logits[0], tokens, strict=False)
        ]
        words, spent = self._words(tokens, logprobs, encoded, secs)
        if not words:
            return Hypothesis(no_speech_prob=result.no_speech_prob)
        avg_logprob = sum(spent) / len(spent)
        return Hypothesis(
            text=" ".join(word.text for word in words),
            confidence=math.exp(avg_logprob),
            words=words,
            avg_logprob=avg_logprob,
            no_speech_prob=result.no_speech_prob,
        )

    def _words(
        self, tokens: Sequence[int], logprobs: Sequence[float], encoded: Any, secs: float
    ) -> tuple[tuple[Word, ...], list[float]]:
        """Words from tokens, up to where the decoder leaves the audio behind."""
        text: list[tuple[int, float]] = []
        for token, logprob in zip(tokens, logprobs, strict=True):
            if token >= self._first_timestamp:
                if text and (token - self._first_timestamp) * _TIMESTAMP_SECS >= secs:
                    break  # what follows is set in the padding
            elif token < self._end:
                text.append((token, logprob))
        pieces = [self._tokenizer.decode([token]) for token, _ in text]
        starts = partial(self._starts, encoded, [token for token, _ in text], secs)
        del text[len(text) - looping(pieces, starts, secs) :]
        grouped: list[tuple[list[int], list[float]]] = []
        for (token, logprob), piece in zip(text, pieces, strict=False):
            if str(self._tokenizer.id_to_token(token)).startswith("Ġ") or not grouped:
                grouped.append(([], []))
            grouped[-1][0].append(token)
            if any(character.isalnum() for character in piece):
                # Where a comma goes is always uncertain, and does not matter.
                grouped[-1][1].append(logprob)
        words = [
            Word(self._tokenizer.decode(ids).strip(), math.exp(min(spoken, default=0.0)))
            for ids, spoken in grouped
        ]
        spent = [logprob for _, spoken in grouped for logprob in spoken]
        return without_tags(words), spent or [0.0]

    def _starts(self, encoded: Any, text: list[int], secs: float) -> list[float]:
        """Where each token of a text begins, in seconds.

        By dynamic time warping of the cross-attention, as in the word timestamps of OpenAI's
        implementation (Giorgino 2009; Radford et al. 2022).
        """
        prompt = [*self._prompt, self._first_timestamp - 1]
        frames = int(secs * SAMPLE_RATE) // HOP
        try:
            (aligned,) = self._model.align(encoded, prompt, [text], [frames])
        except RuntimeError as error:
            raise EngineError(f"whisper failed to align: {error}") from error
        starts = [secs] * len(text)
        for token, frame in reversed(aligned.alignments):
            if token < len(text):
                starts[token] = frame / _FRAMES_PER_SEC
        return starts

    def _token(self, text: str) -> int:
        token = self._tokenizer.token_to_id(text)
        if token is None:
            raise EngineError(f"the whisper weights have no token {text}")
        return int(token)


def looping(pieces: Sequence[str], starts: Callable[[], Sequence[float]], secs: float) -> int:
    """How many pieces of a text, at its end, only repeat what is before them and were not said.

    Without the long silence after the last word that it was trained with, the decoder now
    and then says a phrase again, until it is stopped; the last time may be cut short. People
    say things twice too ("bye bye", a number): what tells them apart is that no audio is left
    for the repeats of a loop, which all come to lie at its end.

    Args:
        pieces: What each token says.
        starts: Asked only if something is repeated: where each piece begins, in seconds.
        secs: Length of the audio.
    """
    said = [(at, plain) for at, piece in enumerate(pieces) if (plain := _plain(piece))]
    repeats = _repeats([plain for _, plain in said])
    if not repeats:
        return 0
    times = starts()
    begins = [*(times[at] for at, _ in said), secs]

    def hurried(first: int, last: int) -> bool:
        return last - first > _TOKENS_PER_SEC * (begins[last] - begins[first])

    for first, last in repeats:
        if hurried(first, last) and hurried(first, len(said)):
            return len(pieces) - said[first][0]
    return 0


def _repeats(said: Sequence[str]) -> list[tuple[int, int]]:
    """Where a phrase begins and ends that stands right before it too.

    At the end of the text it may be cut short.
    """
    found = []
    for at in range(1, len(said)):
        for unit in range(1, at + 1):
            before, again = said[at - unit : at], said[at : at + unit]
            if at + unit >= len(said):  # even within its last piece, but one word alone is none
                whole = len(again) >= min(unit, 2) and before[len(again) - 1].startswith(again[-1])
                before, again = before[: len(again) - 1], again[:-1]
            else:
                whole = True
            if whole and before == again:
                found.append((at, min(at + unit, len(said))))
                break
    return found


def _plain(piece: str) -> str:
    return piece.casefold().strip(" .,!?-")


def without_tags(words: Sequence[Word]) -> tuple[Word, ...]:
    """The words that were spoken: no "[BLANK_AUDIO]", "(sighs)", "*music*"."""
    kept: list[Word] = []
    text = " ".join(word.text for word in words)
    spoken = _TAG.sub(lambda tag: " " * len(tag.group()), text)
    position = 0
    for word in words:
        rest = spoken[position : position + len(word.text)].strip()
        position += len(word.text) + 1
        if any(character.isalnum() for character in rest):
            kept.append(Word(rest, word.probability))
    return tuple(kept)


def _logprob(logits: NDArray[np.float32], token: int) -> float:
    top = logits.max()
    return float(logits[token] - top - np.log(np.exp(logits - top).sum()))
