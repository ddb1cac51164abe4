"""What the framework saves changes nothing, and what `bench load` says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import SAMPLES, Sample
from pipecat.audio.vad.vad_analyzer import VADState
from pipecat.frames.frames import InputAudioRawFrame, TextFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.kokoro.tts import KokoroTTSService

from headstart.bench.load.results import Level, LoadResults
from headstart.bench.load.run import LoadPlan, run_load
from headstart.bench.load.session import Load, waits_s
from headstart.bench.stock.session import is_stock
from headstart.config.load import load_config
from headstart.engines.silero import SileroEngine, SileroOptions
from headstart.pipeline.build import build
from headstart.pipeline.converse import converse
from headstart.pipeline.session import Session
from headstart.processors import vad
from headstart.processors.audio_end import InputAudioEnd
from headstart.processors.turn.aggregator import UserTurn
from headstart.processors.vad import SileroVAD
from headstart.transports.memory import MemoryTransport
from headstart.transports.wav import Recording, Spoken, read_audio

BENCHMARKS = Path(__file__).parent.parent / "docs" / "benchmarks"


async def changes(audio: np.ndarray, frame: int) -> list[tuple[int, VADState]]:
    """Where, in windows, the VAD is sure of a change, fed so many samples at a time."""
    engine = SileroEngine.load(SileroOptions())
    analyzer = SileroVAD()._analyzer
    analyzer.use(engine)
    analyzer.set_sample_rate(16000)
    found = [(0, VADState.QUIET)]
    for at in range(0, len(audio), frame):
        state = await analyzer.analyze_audio(audio[at : at + frame].tobytes())
        if state in (VADState.QUIET, VADState.SPEAKING) and state is not found[-1][1]:
            found.append(((at + frame) // 512, state))
    engine.close()
    return found


async def test_windows_that_wait_for_each_other_confirm_no_start_later(
    samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = read_audio(samples["pause-moon"].path, 16000)
    audio = np.concatenate([np.zeros(40_000, np.int16), speech, np.zeros(48_123, np.int16), speech])
    together = await changes(audio, 512)
    monkeypatch.setattr(vad, "_CALM_WINDOWS", 10**9)
    assert together == await changes(audio, 512)
    assert sum(state is VADState.SPEAKING for _, state in together) >= 3


class Heard(IdentityFilter):
    """Notes the audio that comes by."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.audio = bytearray()
        self.frames = 0

    async def process_frame(self, frame, direction) -> None:  # type: ignore[no-untyped-def]
        if isinstance(frame, InputAudioRawFrame):
            self.audio += frame.audio
            self.frames += 1
        await super().process_frame(frame, direction)


class Watcher(BaseObserver):
    """Notes what is pushed, or fails."""

    def __init__(self, see: Callable[[FramePushed], None]) -> None:
        super().__init__(observe_every_push=False)
        self.on_push = see

    async def on_push_frame(self, data: FramePushed) -> None:
        self.on_push(data)


async def test_the_vad_passes_all_audio_on_in_order_in_fewer_frames(tmp_path: Path) -> None:
    config = tmp_path / "vad.yaml"
    config.write_text(f"prompt: x\nstages: [vad, '{__name__}:Heard']\n")
    transport = MemoryTransport()
    audio = np.random.default_rng(0).integers(-9, 9, 16000, np.int16)
    async with Session(load_config(str(config)), transport) as session:
        heard = next(x for x in _processors(session) if isinstance(x, Heard))
        for piece in audio.reshape(-1, 320):
            await session.push_audio(piece.tobytes())
        await session.end()
    assert audio.tobytes().startswith(bytes(heard.audio))
    assert len(heard.audio) > 2 * (16000 - 512)
    assert heard.frames < 40


def _processors(session: Session) -> list[FrameProcessor]:
    assert session._worker is not None
    found: list[FrameProcessor] = []
    todo: list[FrameProcessor] = [session._worker.pipeline]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += one.processors
    return found


async def test_a_watcher_hears_of_each_frame_once_and_may_fail(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    stage = "pipecat.processors.filters.identity_filter:IdentityFilter"
    config.write_text(f"prompt: x\nstages: ['{stage}', '{stage}']\n")
    watched: list[int] = []
    proxied: list[int] = []

    def note(seen: list[int]) -> Watcher:
        return Watcher(
            lambda data: seen.append(data.frame.id) if isinstance(data.frame, TextFrame) else None
        )

    def fail(_: FramePushed) -> None:
        raise RuntimeError("a watcher that fails")

    session = Session(load_config(str(config)), observers=[note(proxied)])
    session._watchers = [Watcher(fail), note(watched)]
    async with session:
        assert session._worker is not None
        frame = TextFrame("once")
        await session._worker.queue_frame(frame)
        await session.end()
    assert watched == proxied == [frame.id]


def test_audio_ends_behind_the_last_stage_that_may_listen(tmp_path: Path) -> None:
    listener = tmp_path / "listener.yaml"
    stage = "pipecat.processors.filters.identity_filter:IdentityFilter"
    listener.write_text(f"extends: local\nstages: [vad, stt, turn, llm, tts, '{stage}']\n")
    for config, last in (
        (load_config("local"), UserTurn),
        (load_config(str(listener)), IdentityFilter),
    ):
        stages = build(config, MemoryTransport()).pipeline.processors
        (at,) = [at for at, one in enumerate(stages) if isinstance(one, InputAudioEnd)]
        assert isinstance(stages[at - 1], last)


def test_only_answers_after_the_end_and_before_the_next_utterance_count() -> None:
    recording = Recording(in_sample_rate=16000, out_sample_rate=1000)
    loud, silent = np.full(100, 5000, np.int16), np.zeros(100, np.int16)
    recording.bot = [(1500, silent), (1600, loud), (4200, loud), (8000, silent), (9300, loud)]
    spoken = [Spoken(0, 1.2), Spoken(4, 5), Spoken(7, 8), Spoken(9, 9.2)]
    first, early, unanswered, last = waits_s(recording, spoken, [1.0, 0.9, 0.8, 0.1])
    assert [first, last] == pytest.approx([0.6, 0.2])
    assert early is None
    assert unanswered is None


def test_the_stock_pipelines_are_run_in_pipecats_own_way() -> None:
    names = ("stock", BENCHMARKS / "framework-stock.yaml", "local", "early")
    assert [is_stock(load_config(str(name))) for name in names] == [True, True, False, False]


@pytest.mark.models
def test_load_of_two_arms_is_told_side_by_side(tmp_path: Path) -> None:
    arms = [str(BENCHMARKS / f"framework-{name}.yaml") for name in ("headstart", "stock")]
    headstart = [sys.executable, "-c", "from headstart.cli import main; main()"]
    command = [*headstart, "bench", "load", *arms]
    options = ["--only", "short-joke", "--sessions", "2", "--pause", "0.5", "--out", str(tmp_path)]
    ran = subprocess.run(
        [*command, "--utterances", SAMPLES, *options],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = LoadResults.model_validate_json((tmp_path / "results.json").read_text())
    assert [(level.arm, level.sessions) for level in found.levels] == [
        ("framework-headstart", 2),
        ("framework-stock", 2),
    ]
    for level in found.levels:
        assert (level.utterances, level.answered, level.broken) == (2, 0, 0), level.error
        assert 0 < level.cpu_ms_per_s < 1000
        assert level.late_ms.p50 is not None
    assert (
        "| framework-headstart | framework-stock | 2 | - | - | x "
        in (tmp_path / "report.md").read_text()
    )
    assert (tmp_path / "load.svg").read_text().startswith("<svg")


@pytest.mark.models
def test_load_that_is_broken_off_keeps_its_figures_and_says_so(samples: dict[str, Sample]) -> None:
    def on_measure(what: str) -> None:
        if "2 sessions" in what:
            raise KeyboardInterrupt

    sample = samples["short-joke"]
    plan = LoadPlan(
        configs=[str(BENCHMARKS / "framework-headstart-bare.yaml")],
        utterances={"short-joke": (sample.path, sample.speech_end_s)},
        block=1, steps=[1, 2], pause_s=0.1, break_at=2, rounds=1, seed=0, command="",
    )  # fmt: skip
    results = run_load(plan, on_measure=on_measure)
    assert [level.sessions for level in results.levels] == [1]
    assert not results.complete


def test_pipelines_are_compared_utterance_by_utterance() -> None:
    def level(arm: str, parts: list[dict[str, list[float | None]]]) -> Level:
        figures: dict[str, Any] = {
            "sessions": 2,
            "utterances": 4,
            "cpu_ms_per_s": 1,
            "open_cpu_ms": 1,
        }
        figures |= {"late_ms": [], "pacing_ms": [], "peak_rss_mb": 1, "broken": 0}
        return Level.of(arm, 2, [Load(**figures, waits_s=part) for part in parts], None)

    slow = level("slow", [{"a": [2.0, 4.0], "b": [1.0, None]}, {"c": [6.0, 3.0]}])
    fast = level("fast", [{"a": [1.0, 2.0], "b": [0.5, 0.1]}, {"c": [3.0, None]}])
    results = LoadResults(
        command="", started_at="", pause_s=None, seed=0, versions={}, machine={},
        levels=[fast, slow],
    )  # fmt: skip
    assert (slow.answered, slow.voice_to_voice_s.p50) == (5, 3.0)
    assert "| fast | slow | 2 | -2.00 | x 0.50 (0.50-0.50) | x 1.00 |" in results.markdown()


def test_a_level_breaks_when_its_p95_does() -> None:
    def level(waits: list[float], broken: int = 0) -> Level:
        row = json.loads(
            '{"sessions": 1, "utterances": 2, "cpu_ms_per_s": 1, "open_cpu_ms": 1, "late_ms": [],'
            '"pacing_ms": [], "peak_rss_mb": 1}'
        )
        told: dict[str, list[float | None]] = {
            str(number): [wait] for number, wait in enumerate(waits)
        }
        return Level.of("a", 1, [Load(**row, waits_s=told, broken=broken)], None)

    alone = level([1.0, 1.1])
    assert not level([1.9, 2.0]).has_broken(alone, 2)
    assert level([1.9, 2.4]).has_broken(alone, 2)
    assert level([1.0]).has_broken(alone, 2)  # one was not answered
    assert level([1.0, 1.0], broken=1).has_broken(alone, 2)


@pytest.mark.models
async def test_stock_holds_a_conversation(samples: dict[str, Sample]) -> None:
    pytest.importorskip("faster_whisper")
    spec = load_config("stock")
    sample = samples["short-joke"]
    dialogue = await converse(spec, [read_audio(sample.path, 16000)])
    stages = build(spec, MemoryTransport()).pipeline.processors
    assert any(isinstance(stage, KokoroTTSService) for stage in stages)
    assert any("joke" in record.user_text.lower() for record in dialogue.records)
    assert all(not record.errors for record in dialogue.records)
    (wait,) = waits_s(dialogue.recording, dialogue.spoken, [sample.speech_end_s])
    assert 0 < wait < 60
    sound = np.concatenate([samples for _, samples in dialogue.recording.bot])
    assert len(sound) > soundfile.SoundFile(sample.path).samplerate / 4
