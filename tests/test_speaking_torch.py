"""Kokoro on torch: the same voice as the ONNX export's, heard while it is still being made."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st
from kokoro_onnx.config import DEFAULT_VOCAB
from numpy.typing import NDArray

from headstart import assets
from headstart.engines.kokoro import SAMPLE_RATE, KokoroEngine
from headstart.engines.kokoro.backend import Abort, AbortedError
from headstart.engines.kokoro.choose import decide
from headstart.engines.kokoro.engine import MODEL, VOICES, model_file
from headstart.engines.kokoro.front import Front, front_end
from headstart.engines.kokoro.measure import Measurement
from headstart.engines.kokoro.norms import NormPredictor
from headstart.engines.kokoro.onnx import OnnxKokoro
from headstart.engines.kokoro.pace import FRAME_SECS, Pace, Playback
from headstart.engines.kokoro.phonemes import Phonemizer
from headstart.engines.kokoro.silence import loudest
from headstart.engines.kokoro.stream import Generator
from headstart.engines.kokoro.torch_engine import TorchKokoro
from headstart.engines.kokoro.voices import Voices
from headstart.engines.kokoro.weights import load_model
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.errors import EngineError

SENTENCE = "The capital of France is Paris, and it is a very old town."


@pytest.fixture(scope="module")
def weights() -> Path:
    return model_file(assets.path(MODEL))


@pytest.fixture(scope="module")
def voices() -> Voices:
    return Voices(assets.path(VOICES))


@pytest.fixture(scope="module")
def backend(weights: Path) -> Iterator[TorchKokoro]:
    backend = TorchKokoro(weights, threads=2)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def engine(backend: TorchKokoro, voices: Voices) -> KokoroEngine:
    return KokoroEngine(backend, voices)


def tokens_of(text: str, voice: str = "af_heart") -> NDArray[np.int64]:
    clause = next(Phonemizer().clauses(text, voice))
    return np.array([DEFAULT_VOCAB[phoneme] for phoneme in clause.phonemes], np.int64)


def test_the_network_comes_without_spacy_and_leaves_the_package_alone(backend: TorchKokoro) -> None:
    assert "kokoro.model" in sys.modules
    assert "kokoro" not in sys.modules
    assert "spacy" not in sys.modules


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(EngineError, match="is no ONNX model") as caught:
        load_model(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("voice", ["bm_george", "ff_siwis"])
def test_both_runtimes_speak_equally_loud_and_long(
    backend: TorchKokoro, weights: Path, voices: Voices, voice: str
) -> None:
    onnx = OnnxKokoro(weights, threads=2)
    tokens = tokens_of(SENTENCE, voice)
    style = voices.style(voice, len(tokens))
    spoken = []
    for runtime in (onnx, backend):
        rendering = runtime.render(tokens, style, voice=voice, speed=1.0, pause=2400, abort=Abort())
        assert rendering is not None
        spoken.append((rendering.durations, np.concatenate(list(rendering.pieces))))
    onnx.close()
    (durations, audio), (torch_durations, torch_audio) = spoken
    assert np.abs(durations - torch_durations).sum() <= 6
    assert abs(len(audio) - len(torch_audio)) < 0.15 * SAMPLE_RATE
    level_db = 20 * np.log10(torch_audio.std() / audio.std())
    assert abs(level_db) < 1.0
    assert abs(20 * np.log10(loudest(torch_audio) / loudest(audio))) < 1.5


@pytest.fixture(scope="module")
def generator_and_front(backend: TorchKokoro, voices: Voices) -> tuple[Generator, Front]:
    tokens = tokens_of("Yes, of course.")
    style = voices.style("af_heart", len(tokens))
    with torch.inference_mode():
        front = front_end(backend._model, tokens, style, 1.0, Abort())
    return backend._generator, front


def test_chunks_join_without_a_seam(generator_and_front: tuple[Generator, Front]) -> None:
    generator, front = generator_and_front
    with torch.inference_mode():
        whole, statistics = generator.whole(front.x, front.source, front.style, Abort())
        folds = generator.fold(front.style, statistics)
        frames = front.x.shape[2]
        cuts = [0, 16, 40, 41, frames]
        chunks = [
            generator.chunk(front.x, front.source, folds, begin, end, Abort())
            for begin, end in itertools.pairwise(cuts)
        ]
    torch.testing.assert_close(torch.cat(chunks), whole, atol=1e-4, rtol=1e-3)


def test_a_chunk_that_nobody_wants_any_more_ends_at_once(
    generator_and_front: tuple[Generator, Front],
) -> None:
    generator, front = generator_and_front
    abort = Abort()
    abort.request()
    with torch.inference_mode(), pytest.raises(AbortedError):
        generator.whole(front.x, front.source, front.style, abort)


def test_every_english_voice_can_stream(voices: Voices) -> None:
    predictor = NormPredictor.shipped()
    assert predictor is not None
    assert [name for name in voices.names if not predictor.knows(name)] == [
        name for name in voices.names if name[0] not in "ab"
    ]


async def test_a_clause_is_heard_in_pieces_and_understood(engine: KokoroEngine) -> None:
    whisper = WhisperEngine.load(WhisperOptions())
    pieces = [piece async for piece in engine.speak_words(SENTENCE, voice="bf_emma")]
    audio = np.concatenate([piece.samples for piece in pieces])
    heard = await whisper.transcribe(soxr.resample(audio, SAMPLE_RATE, 16_000).astype(np.float32))
    whisper.close()
    assert [c for c in heard.text.lower() if c.isalpha()] == [
        c for c in SENTENCE.lower() if c.isalpha()
    ]
    assert [word.text for word in pieces[0].words] == SENTENCE.split()
    assert not any(piece.words for piece in pieces[1:])


async def test_a_voice_that_was_not_fitted_speaks_whole_clauses(engine: KokoroEngine) -> None:
    pieces = [piece async for piece in engine.speak("Bonjour.", voice="ff_siwis")]
    assert len(pieces) == 1
    assert loudest(pieces[0]) > 0.02


# Pace


@given(st.integers(20, 2000), st.floats(0.1, 0.75), st.floats(0.9, 1.15))
def test_playback_does_not_run_dry_where_frames_are_made_faster_than_played(
    frames: int, factor: float, luck: float
) -> None:
    pace, playback, now = Pace(FRAME_SECS * factor), Playback(), 100.0
    begin, started = 0, False
    while begin < frames:
        end = pace.next_chunk(begin, frames, playback.ahead_secs(now))
        assert begin < end <= frames
        now += (end - begin + 7) * FRAME_SECS * factor * luck
        assert not started or playback.ahead_secs(now) is not None or factor > 0.5
        started = pace.may_start((end - begin) * FRAME_SECS, frames - end)
        playback.given((end - begin) * FRAME_SECS, now)
        begin = end


@given(st.integers(1, 2000), st.floats(1.1, 5.0))
def test_a_machine_too_slow_holds_back_what_the_rest_will_be_late(
    frames: int, factor: float
) -> None:
    pace, begin = Pace(FRAME_SECS * factor), 0
    while begin < frames:
        begin = pace.next_chunk(begin, frames, None)
        if pace.may_start(begin * FRAME_SECS, frames - begin):
            break
    left_secs = (frames - begin) * FRAME_SECS
    assert begin * FRAME_SECS + left_secs >= left_secs * factor


# Choice


@pytest.mark.parametrize(
    ("onnx", "torch_", "chosen"),
    [
        (Measurement(1500, 0.4), Measurement(400, 0.6), "torch"),
        (Measurement(300, 0.4), Measurement(400, 0.6), "onnx"),
        (Measurement(1500, 0.4), Measurement(400, 1.2), "onnx"),
        (Measurement(4500, 1.4), Measurement(900, 1.3), "torch"),
    ],
)
def test_the_runtime_that_is_heard_first_is_chosen_if_it_keeps_up(
    onnx: Measurement, torch_: Measurement, chosen: str
) -> None:
    choice = decide(onnx, torch_)
    assert choice.engine == chosen
    assert "onnx is heard after" in choice.reason
