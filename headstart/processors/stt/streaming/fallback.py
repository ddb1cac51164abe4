"""Where a segment goes that the stream did not answer: whole, to a recogniser that takes files."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

import numpy as np
import soxr
from deepgram.core import ApiError
from deepgram.core.request_options import RequestOptions
from httpx import HTTPError
from loguru import logger
from numpy.typing import NDArray
from pipecat.audio.utils import pcm_to_wav

from headstart.engines import hub
from headstart.engines.hypothesis import Hypothesis, Word
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.errors import HeadstartError
from headstart.processors.audio import MODEL_RATE, as_float
from headstart.processors.stt.recognised import Path
from headstart.processors.stt.segment import Segment
from headstart.processors.stt.streaming.link import Destination, LinkLostError, refusal
from headstart.processors.stt.streaming.messages import NotUnderstoodError, read_prerecorded
from headstart.processors.stt.streaming.segments import understood

_STREAMING_ONLY = {
    "channels",
    "encoding",
    "endpointing",
    "interim_results",
    "no_delay",
    "sample_rate",
    "utterance_end_ms",
    "vad_events",
}


class Batch(ABC):
    """A recogniser that takes a stretch of speech at once."""

    path: Path

    @abstractmethod
    async def transcribe(self, pcm: bytes, sample_rate: int) -> Hypothesis:
        """Recognise 16-bit mono audio.

        Raises:
            HeadstartError: It could not be done; one line says why.
        """


class NobodyError(HeadstartError):
    """None of the fallbacks recognised the speech. Says why each of them did not."""


class Prerecorded(Batch):
    """Deepgram's prerecorded API, with the options of the stream that apply to it."""

    path: Path = "rest"

    def __init__(self, destination: Destination, timeout_secs: float) -> None:
        """Remember where to ask, and for how long."""
        self._destination = destination
        self._timeout_secs = timeout_secs

    async def transcribe(self, pcm: bytes, sample_rate: int) -> Hypothesis:
        """See `Batch`."""
        query = {
            name: value
            for name, value in self._destination.query().items()
            if name not in _STREAMING_ONLY
        }
        try:
            async with asyncio.timeout(self._timeout_secs), self._destination.client() as client:
                answer = await client.listen.v1.media.transcribe_file(
                    request=pcm_to_wav(pcm, sample_rate),
                    request_options=RequestOptions(
                        additional_query_parameters=query,
                        timeout=self._timeout_secs,
                        max_retries=1,
                    ),
                )
        except ApiError as error:
            raise refusal(error) from None
        except TimeoutError:
            raise LinkLostError(f"no answer within {self._timeout_secs:g} s") from None
        except HTTPError as error:
            raise LinkLostError(f"out of reach: {error or type(error).__name__}") from None
        except (TypeError, ValueError, AttributeError):  # the SDK trusts what it is sent
            raise NotUnderstoodError("the answer is not understood") from None
        best = read_prerecorded(answer)
        words = tuple(Word(word.text, word.confidence) for word in best.words or ())
        return understood(best.transcript, best.confidence, words)


class Local(Batch):
    """The embedded recogniser."""

    path: Path = "local"

    def __init__(self, engine: WhisperEngine) -> None:
        """Use an engine that is in memory already."""
        self._engine = engine

    @classmethod
    async def load(cls) -> Self:
        """Have the model in memory before it is needed.

        Raises:
            AssetError: Its weights are missing.
            EngineError: It did not load.
        """
        return cls(await hub.shared.get(WhisperEngine, WhisperOptions()))

    async def transcribe(self, pcm: bytes, sample_rate: int) -> Hypothesis:
        """See `Batch`."""
        samples = np.frombuffer(pcm, np.int16)
        if sample_rate != MODEL_RATE:
            samples = soxr.resample(samples, sample_rate, MODEL_RATE)
        return await recognise(self._engine, samples)


async def transcribe_by_first(
    batches: Iterable[Batch], pcm: bytes, sample_rate: int, *, asker: str
) -> tuple[Path, Hypothesis]:
    """What the first that can do it makes of 16-bit mono audio, and which that was.

    Whatever goes wrong with one of them, the next is asked.

    Args:
        batches: In the order in which to ask.
        pcm: The audio.
        sample_rate: Its rate, in Hz.
        asker: Who asks, for the log.

    Raises:
        NobodyError: None of them can, or there is none.
    """
    failures = []
    for batch in batches:
        try:
            return batch.path, await batch.transcribe(pcm, sample_rate)
        except HeadstartError as error:
            failures.append(f"{batch.path}: {error}")
            logger.warning(f"{asker}: fallback {batch.path!r}: {error}")
        except Exception as error:
            failures.append(f"{batch.path}: {error!r}")
            logger.opt(exception=error).error(f"{asker}: fallback {batch.path!r} broke")
    raise NobodyError("; ".join(failures) or "there is no fallback")


async def recognise(engine: WhisperEngine, samples: NDArray[np.int16]) -> Hypothesis:
    """What is said in audio of any length at 16 kHz, which is cut in pauses if it is long.

    Raises:
        EngineError: The engine is busy, closed or broken.
    """
    segment = Segment(samples)
    segment.close(stop_secs=0.0)
    while (decode := segment.wants()) is not None:
        segment.understood(decode, await engine.transcribe(as_float(segment.audio(decode))))
    return segment.final() or Hypothesis()
