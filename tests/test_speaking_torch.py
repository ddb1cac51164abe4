"""Kokoro on torch: the same voice as the ONNX export's, heard while it is still being made."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kokoro_onnx.config import DEFAULT_VOCAB
from numpy.typing import NDArray
from torch.nn import functional

from headstart import assets
from headstart.bench.voice.quality import level_difference, log_mel_distance
from headstart.engines import processor
from headstart.engines.kokoro import SAMPLE_RATE, KokoroEngine, choose
from headstart.engines.kokoro.backend import Abort, AbortedError
from headstart.engines.kokoro.choose import decide
from headstart.engines.kokoro.engine import MODEL, VOICES, model_file
from headstart.engines.kokoro.fit.fitting import fit, record
from headstart.engines.kokoro.measure import Measurement
from headstart.engines.kokoro.onnx.engine import OnnxKokoro
from headstart.engines.kokoro.silence import loudest
from headstart.engines.kokoro.text.phonemes import Phonemizer
from headstart.engines.kokoro.torch import bfloat
from headstart.engines.kokoro.torch.bfloat import BfloatConv
from headstart.engines.kokoro.torch.convolution import Conv
from headstart.engines.kokoro.torch.engine import TorchKokoro
from headstart.engines.kokoro.torch.front import Front
from headstart.engines.kokoro.torch.norms import NormPredictor
from headstart.engines.kokoro.torch.pace import FRAME_SECS, Pace, Playback
from headstart.engines.kokoro.torch.package import KokoroPackage
from headstart.engines.kokoro.torch.pair import Pair
from headstart.engines.kokoro.torch.source import FRAME, Source
from headstart.engines.kokoro.torch.stream import Generator
from headstart.engines.kokoro.torch.weights import load_weights, under
from headstart.engines.kokoro.voices import Voices
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.errors import EngineError

pytestmark = pytest.mark.models

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


def test_streamed_speech_is_what_the_kokoro_package_makes(
    backend: TorchKokoro, weights: Path, voices: Voices
) -> None:
    package = KokoroPackage(weights, threads=2, device="cpu")
    exact = TorchKokoro(weights, threads=1, exact=True)
    tokens = tokens_of("Yes, of course.")
    style = voices.style("af_heart", len(tokens))
    spoken = []
    for runtime in (package, exact, backend):
        torch.manual_seed(1)  # for the noise, which weighs in so short a clause
        rendering = runtime.render(
            tokens, style, voice="af_heart", speed=1.0, pause=2400, abort=Abort()
        )
        assert rendering is not None
        spoken.append((rendering.durations.tolist(), np.concatenate(list(rendering.pieces))))
    durations, audio = spoken[0]
    assert spoken[1][0] == durations
    # On bytes, a phoneme may last a frame more or less.
    assert np.abs(np.subtract(spoken[2][0], durations)).max() <= 1
    # The package draws its noise in another order, and leaves more silence before the speech.
    for _, streamed in spoken[1:]:
        assert abs(20 * np.log10(np.linalg.norm(streamed) / np.linalg.norm(audio))) < 0.5
    exact.close()
    abort = Abort()
    abort.request()
    given_up = package.render(tokens, style, voice="", speed=1.0, pause=2400, abort=abort)
    assert given_up is None
    package.close()


def test_speaking_needs_no_package_but_torch(weights: Path) -> None:
    program = (
        "import sys; from headstart.engines.kokoro.torch.engine import TorchKokoro;"
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
    assert np.abs(durations - torch_durations).max() <= 1
    assert (durations != torch_durations).mean() < 0.2
    assert abs(len(audio) - len(torch_audio)) < 0.15 * SAMPLE_RATE
    level_db = 20 * np.log10(torch_audio.std() / audio.std())
    assert abs(level_db) < 1.0
    assert abs(20 * np.log10(loudest(torch_audio) / loudest(audio))) < 1.5


@given(
    taps=st.sampled_from([1, 3, 5, 7, 11]),
    dilation=st.sampled_from([1, 3, 5]),
    steps=st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_a_convolution_in_tiles_is_that_of_torch(
    taps: int, dilation: int, steps: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, 16, taps, generator=random) / (16 * taps) ** 0.5
    bias = torch.randn(24, generator=random)
    value = torch.randn(steps + dilation * (taps - 1), 16, generator=random)
    result = Conv(weight, bias, dilation)(value)
    expected = functional.conv1d(value.t()[None], weight, bias, dilation=dilation)[0].t()
    torch.testing.assert_close(result, expected, atol=5e-5, rtol=1e-4)
    # Two roundings to eight bits, of values and weights, and one of the sum.
    result = BfloatConv(weight, bias, dilation)(value)
    torch.testing.assert_close(result, expected, atol=0.03, rtol=0.01)


@pytest.mark.skipif(not bfloat.AVAILABLE, reason="not used on this processor, and slow there")
def test_on_bfloat16_the_same_clause_is_heard(
    generator_and_front: tuple[Generator, Front], weights: Path
) -> None:
    on_floats, front = generator_and_front
    parameters = under("decoder.generator.", load_weights(weights))
    on_bfloat16 = Generator(parameters, Pair(1), bfloat16=True)
    with torch.inference_mode():
        expected, wave = (g.whole(front, Abort())[0].numpy() for g in (on_floats, on_bfloat16))
    # Noise of another seed makes 0.4 dB and more.
    assert 0 < log_mel_distance(expected, wave) < 0.15
    assert abs(level_difference(expected, wave)) < 0.02


@given(cuts=st.lists(st.integers(1, 400), max_size=6), seed=st.integers(0, 99))
def test_the_source_is_the_same_however_it_is_divided(cuts: list[int], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    source = Source(
        {
            "l_linear.weight": torch.randn(1, 9, generator=random),
            "l_linear.bias": torch.zeros(1),
        }
    )
    pitch = 400 * torch.rand(7, generator=random) - 100
    torch.manual_seed(seed)
    whole = source(pitch).until(1000)
    torch.manual_seed(seed)
    divided = source(pitch)
    for cut in sorted(cuts):
        divided.until(cut)
    torch.testing.assert_close(divided.until(1000), whole)


@pytest.fixture(scope="module")
def generator_and_front(
    backend: TorchKokoro, weights: Path, voices: Voices
) -> tuple[Generator, Front]:
    """On floats, whose sums hardly depend on how many there are."""
    tokens = tokens_of("Yes, of course.")
    style = voices.style("af_heart", len(tokens))
    with torch.inference_mode():
        front = backend._front_end(tokens, style, 1.0, Abort())
    parameters = under("decoder.generator.", load_weights(weights))
    return Generator(parameters, backend._pair, bfloat16=False), front


@pytest.mark.parametrize("cuts", [[16, 40, 41, 1000], [1, 2, 90, 91, 92, 1000], [133, 1000]])
def test_pieces_join_to_what_the_whole_clause_would_be(
    generator_and_front: tuple[Generator, Front], cuts: list[int]
) -> None:
    generator, front = generator_and_front
    with torch.inference_mode():
        whole, *statistics = generator.whole(front, Abort())
        stream = generator.stream(front, generator.fold(front.style, *statistics), 0, Abort())
        pieces = [stream.next(cut) for cut in cuts if stream.position < len(front.x)]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-4, rtol=1e-3)


def test_a_clause_may_begin_in_its_leading_silence(
    generator_and_front: tuple[Generator, Front],
) -> None:
    generator, front = generator_and_front
    begin = 2 * int(front.durations[0]) - 12
    with torch.inference_mode():
        whole, *statistics = generator.whole(front, Abort())
        folds = generator.fold(front.style, *statistics)
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


@pytest.mark.skipif(sys.platform != "linux", reason="cores are chosen on Linux only")
def test_two_threads_work_on_different_cores_and_the_caller_gets_its_own_back() -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("there is but one core")
    pair = Pair(2)
    try:
        with pair.apart():
            mine, other = pair.both(
                lambda: os.sched_getaffinity(0), lambda: os.sched_getaffinity(0)
            )
            with pytest.raises(AbortedError), pair.apart():
                raise AbortedError
            assert os.sched_getaffinity(0) == mine
        assert mine | other == before
        assert not mine & other
        assert os.sched_getaffinity(0) == before
    finally:
        pair.close()


def test_every_english_voice_can_stream(voices: Voices) -> None:
    predictor = NormPredictor.shipped()
    assert predictor is not None
    assert [name for name in voices.names if not predictor.knows(name)] == [
        name for name in voices.names if name[0] not in "ab"
    ]


async def test_a_clause_is_heard_in_pieces_and_understood(engine: KokoroEngine) -> None:
    whisper = WhisperEngine.load(WhisperOptions())
    pieces = [piece async for piece in engine.speak_words(SENTENCE, voice="bf_emma", cut=False)]
    audio = np.concatenate([piece.samples for piece in pieces])
    heard = await whisper.transcribe(soxr.resample(audio, SAMPLE_RATE, 16_000).astype(np.float32))
    whisper.close()
    assert [c for c in heard.text.lower() if c.isalpha()] == [
        c for c in SENTENCE.lower() if c.isalpha()
    ]
    assert [word.text for word in pieces[0].words] == SENTENCE.split()
    assert not any(piece.words for piece in pieces[1:])


def test_a_clause_under_way_keeps_little_of_what_its_pieces_took(
    backend: TorchKokoro, voices: Voices
) -> None:
    """Else a hundred sessions that speak at once take gigabytes beside the one model."""
    tokens = tokens_of(SENTENCE)
    style = voices.style("af_heart", len(tokens))

    def begun() -> Iterator[NDArray[np.float32]]:
        rendering = backend.render(
            tokens, style, voice="af_heart", speed=1.0, pause=0, abort=Abort()
        )
        assert rendering is not None
        next(rendering.pieces)
        return rendering.pieces

    first = begun()
    before = tensor_bytes()
    others = [begun() for _ in range(3)]
    assert (tensor_bytes() - before) / len(others) < 8e6
    assert all(sum(map(len, clause)) for clause in (first, *others))


def tensor_bytes() -> int:
    """What all tensors of the process hold, a shared storage counted once."""
    gc.collect()
    storages = [held.untyped_storage() for held in gc.get_objects() if type(held) is torch.Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


async def test_a_voice_that_was_not_fitted_speaks_whole_clauses(engine: KokoroEngine) -> None:
    pieces = [piece async for piece in engine.speak("Bonjour.", voice="ff_siwis")]
    assert len(pieces) == 1
    assert loudest(pieces[0]) > 0.02


def test_what_is_fitted_on_clauses_tells_more_of_them_than_the_averages_of_their_voice() -> None:
    records = [*record("af_heart", 4), *record("bm_lewis", 4)]
    data = fit(records)
    predictor = NormPredictor(data)
    half = records[0].targets.size // 2
    for one in records:
        tensors = map(torch.from_numpy, (one.x, one.pitch, one.energy, one.style))
        predicted = predictor.predict(one.voice, next(tensors).float(), *tensors)
        measured = torch.from_numpy(one.targets)
        usual = torch.stack(
            [torch.from_numpy(other.targets) for other in records if other.voice == one.voice]
        ).mean(0)
        distance = (predicted[1].log() - measured[half:]).square().mean()
        assert distance < 0.5 * (usual - measured)[half:].square().mean()


# Pace

SILENT_SECS = 0.05
"""Of a clause's first chunk; nobody hears it."""


@given(st.integers(20, 2000), st.floats(0.1, 0.7), st.floats(0.9, 1.25))
@example(146, 0.625, 1.25)  # chunks of ten frames cost more than they last there
def test_playback_does_not_run_dry_where_frames_are_made_faster_than_played(
    frames: int, factor: float, luck: float
) -> None:
    pace, playback, now = Pace(FRAME_SECS * factor), Playback(), 100.0
    begin, held, started = 0, -SILENT_SECS, False
    while begin < frames:
        end = pace.next_chunk(begin, frames, playback.ahead_secs(now))
        assert begin < end <= frames
        now += (end - begin + 3) * FRAME_SECS * factor * luck
        held += (end - begin) * FRAME_SECS
        begin = end
        assert not started or playback.ahead_secs(now) is not None
        if started or pace.may_start(held, frames - begin):
            playback.given(max(0.0, held), now)
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


XEON = """\
processor\t: {number}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: {model}
model name\t: Intel(R) Xeon(R) Processor @ 2.50GHz
stepping\t: 7
cpu MHz\t\t: {mhz}
flags\t\t: fpu sse2 avx2 {more}

"""
XEON_85: dict[str, Any] = {"model": 85, "more": "avx512f avx512_vnni"}


def cpuinfo(file: Path, mhz: float = 2500.0, **kind: Any) -> Path:
    """What Linux says of two cores of a kind."""
    file.write_text("".join(XEON.format(number=n, mhz=mhz + n, **kind) for n in range(2)))
    return file


def test_a_processor_is_known_by_its_model_and_instructions_however_fast_its_clock(
    tmp_path: Path,
) -> None:
    known = processor.identity(cpuinfo(tmp_path / "one", **XEON_85))
    assert known.startswith("Intel(R) Xeon(R) Processor @ 2.50GHz, ")
    assert processor.identity(cpuinfo(tmp_path / "same", 1200.0, **XEON_85)) == known
    for number, other in enumerate(({"model": 143}, {"more": ""})):
        file = cpuinfo(tmp_path / f"other{number}", **XEON_85 | other)
        assert processor.identity(file) != known
    arm = tmp_path / "arm"
    arm.write_text("CPU part\t: 0xd0c\nFeatures\t: fp asimd bf16\n")
    older = tmp_path / "older"
    older.write_text("CPU part\t: 0xd08\nFeatures\t: fp asimd\n")
    assert processor.identity(arm) != processor.identity(older)


def test_an_engine_chosen_on_one_machine_is_measured_anew_on_another_of_the_same_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, identity = tmp_path / "kokoro-engine.json", processor.identity
    measured: list[tuple[str, str]] = []
    slow, fast = Measurement(400, 1.2), Measurement(200, 0.3)
    figures = {
        "small": {"torch": slow, "onnx": fast},
        "large": {"torch": fast},
    }

    def start_on(machine: str) -> str:
        file = cpuinfo(tmp_path / machine, model=machine, more="avx2")
        monkeypatch.setattr(processor, "identity", lambda: identity(file))
        monkeypatch.setattr(choose, "load", lambda name, model, threads: Loaded(name))

        def measure(backend: Loaded, voices: object) -> Measurement:
            measured.append((machine, backend.name))
            return figures[machine][backend.name]

        monkeypatch.setattr(choose, "measure", measure)
        nobody: Any = None
        return choose.load_best(Path("model"), nobody, threads=2, memory=memory).name

    monkeypatch.setattr(choose, "_busy", lambda: False)
    names = [start_on(machine) for machine in ("small", "large", "small", "large")]
    assert names == ["onnx", "torch", "onnx", "torch"]
    assert measured == [("small", "torch"), ("small", "onnx"), ("large", "torch")]


class Loaded:
    """A runtime that takes no time to load."""

    def __init__(self, name: str) -> None:
        self.name = name

    def close(self) -> None:
        pass
