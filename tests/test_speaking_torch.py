"""Kokoro on torch: the same voice as the ONNX export's, heard while it is still being made."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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
from headstart.engines.kokoro.front import Front
from headstart.engines.kokoro.measure import Measurement
from headstart.engines.kokoro.norms import NormPredictor
from headstart.engines.kokoro.onnx import OnnxKokoro
from headstart.engines.kokoro.pace import FRAME_SECS, Pace, Playback
from headstart.engines.kokoro.phonemes import Phonemizer
from headstart.engines.kokoro.silence import loudest
from headstart.engines.kokoro.source import FRAME
from headstart.engines.kokoro.stream import Generator
from headstart.engines.kokoro.torch_engine import TorchKokoro
from headstart.engines.kokoro.voices import Voices
from headstart.engines.kokoro.weights import load_weights
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.errors import EngineError

CONFIG: dict[str, Any] = {
    "vocab": DEFAULT_VOCAB,
    "n_token": 178,
    "hidden_dim": 512,
    "style_dim": 128,
    "n_layer": 3,
    "max_dur": 50,
    "dropout": 0.2,
    "text_encoder_kernel_size": 5,
    "n_mels": 80,
    "plbert": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "max_position_embeddings": 512,
        "num_hidden_layers": 12,
        "dropout": 0.1,
    },
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
        "resblock_kernel_sizes": [3, 7, 11],
        "upsample_initial_channel": 512,
    },
}
"""Of Kokoro-82M v1.0, as its model card's `config.json` has it."""

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


@pytest.fixture(scope="module")
def reference(weights: Path) -> Any:
    """The package's own network with the same weights, without spaCy and what else it imports."""
    spec = importlib.util.find_spec("kokoro")
    assert spec is not None
    bare = ModuleType("kokoro")
    bare.__path__ = list(spec.submodule_search_locations or ())
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        patch.setitem(sys.modules, "kokoro", bare)
        torch.save({}, Path(folder, "empty.pth"))
        model: Any = importlib.import_module("kokoro.model").KModel(
            "hexgrad/Kokoro-82M", CONFIG, str(Path(folder, "empty.pth"))
        )
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    left = model.load_state_dict(load_weights(weights), strict=False)
    # Identity norms and a pooler are all that the export has folded away.
    assert all(re.search(r"\.norm\.(weight|bias)$|^bert\.pooler", n) for n in left.missing_keys)
    return model.eval().requires_grad_(False)


def test_the_network_is_the_one_of_the_kokoro_package(
    backend: TorchKokoro, reference: Any, voices: Voices
) -> None:
    tokens = tokens_of("Yes, of course.")
    style = voices.style("af_heart", len(tokens))
    with torch.inference_mode():
        front = backend._front_end(tokens, style, 1.0, Abort())
        wave, _ = backend._generator.whole(front, Abort())
        ids = torch.from_numpy(np.concatenate([[0], tokens, [0]]))[None]
        audio, durations = reference.forward_with_tokens(ids, torch.from_numpy(style))
    assert durations.tolist() == front.durations.tolist()
    # Both add noise of their own.
    assert abs(20 * np.log10(float(wave.std() / audio.std()))) < 0.2


def test_speaking_needs_no_package_but_torch(weights: Path) -> None:
    program = (
        "import sys; from headstart.engines.kokoro.torch_engine import TorchKokoro;"
        f"TorchKokoro(__import__('pathlib').Path({str(weights)!r}), threads=1);"
        "sys.exit(bool({'kokoro', 'spacy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program]).returncode == 0


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(EngineError, match="is no ONNX model") as caught:
        load_weights(tmp_path / "bad.onnx")
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
        front = backend._front_end(tokens, style, 1.0, Abort())
    return backend._generator, front


@pytest.mark.parametrize("cuts", [[16, 40, 41, 1000], [1, 2, 90, 91, 92, 1000], [133, 1000]])
def test_pieces_join_to_what_the_whole_clause_would_be(
    generator_and_front: tuple[Generator, Front], cuts: list[int]
) -> None:
    generator, front = generator_and_front
    with torch.inference_mode():
        whole, statistics = generator.whole(front, Abort())
        stream = generator.stream(front, generator.fold(front.style, statistics), 0, Abort())
        pieces = [stream.next(cut) for cut in cuts if stream.position < len(front.x)]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-4, rtol=1e-3)


def test_a_clause_may_begin_in_its_leading_silence(
    generator_and_front: tuple[Generator, Front],
) -> None:
    generator, front = generator_and_front
    begin = 2 * int(front.durations[0]) - 12
    with torch.inference_mode():
        whole, statistics = generator.whole(front, Abort())
        folds = generator.fold(front.style, statistics)
        piece = generator.stream(front, folds, begin, Abort()).next(begin + 30)
    expected = whole[begin * FRAME :][: len(piece)]
    assert float((piece - expected).std()) < 0.01 * float(expected.std())


def test_a_chunk_that_nobody_wants_any_more_ends_at_once(
    generator_and_front: tuple[Generator, Front],
) -> None:
    generator, front = generator_and_front
    abort = Abort()
    abort.request()
    with torch.inference_mode(), pytest.raises(AbortedError):
        generator.whole(front, abort)


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


@given(st.integers(20, 2000), st.floats(0.1, 0.7), st.floats(0.9, 1.25))
def test_playback_does_not_run_dry_where_frames_are_made_faster_than_played(
    frames: int, factor: float, luck: float
) -> None:
    pace, playback, now = Pace(FRAME_SECS * factor), Playback(), 100.0
    begin, held, started = 0, 0.0, False
    while begin < frames:
        end = pace.next_chunk(begin, frames, playback.ahead_secs(now))
        assert begin < end <= frames
        now += (end - begin + 3) * FRAME_SECS * factor * luck
        held += (end - begin) * FRAME_SECS
        begin = end
        assert not started or playback.ahead_secs(now) is not None
        if started or pace.may_start(held, frames - begin):
            playback.given(held, now)
            started, held = True, 0.0
    assert started


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
    ("torch_", "onnx", "chosen"),
    [
        (Measurement(300, 0.6), None, "torch"),
        (Measurement(400, 1.2), Measurement(1500, 0.4), "onnx"),
        (Measurement(900, 1.3), Measurement(4500, 1.4), "torch"),
    ],
)
def test_torch_is_chosen_unless_only_onnx_keeps_up(
    torch_: Measurement, onnx: Measurement | None, chosen: str
) -> None:
    choice = decide({"torch": torch_} | ({"onnx": onnx} if onnx else {}))
    assert choice.engine == chosen
    assert "torch is heard after" in choice.reason
