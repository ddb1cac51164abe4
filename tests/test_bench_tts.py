"""The benchmark of voices: what it measures, on audio whose truth is known."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.bench.machine import resident_mb
from headstart.bench.stolen import stolen_ms
from headstart.bench.voice.quality import (
    FixedPace,
    level_difference,
    log_mel_distance,
    seam_energy,
)
from headstart.bench.voice.report import write_voice_report
from headstart.bench.voice.run import VoicePlan, VoiceRun
from headstart.bench.voice.session import (
    Cancellation,
    Memory,
    Row,
    VoiceResults,
    chosen_texts,
    chosen_voices,
    shipped_texts,
)
from headstart.bench.voice.speed import Take
from headstart.engines.kokoro import SAMPLE_RATE
from headstart.engines.kokoro.fit.fitting import sentences
from headstart.errors import HeadstartError, UsageError


def tone(secs: float, level: float = 0.1) -> NDArray[np.float32]:
    at = np.arange(round(secs * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * 220 * at)).astype(np.float32)


def silence(secs: float) -> NDArray[np.float32]:
    return np.zeros(round(secs * SAMPLE_RATE), np.float32)


def plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def test_a_hundred_texts_of_four_lengths_ship_and_none_was_fitted_on() -> None:
    texts = shipped_texts()
    assert len({plain(text) for text in texts}) == 100
    assert [len(text.split()) for text in texts] == [3] * 25 + [6] * 25 + [12] * 25 + [25] * 25
    assert not {plain(text) for text in texts} & {plain(text) for text in sentences()}


def test_a_few_texts_are_of_all_lengths() -> None:
    assert [len(text.split()) for text in chosen_texts("4")] == [3, 6, 12, 25]


def test_silence_at_the_start_counts_as_waiting() -> None:
    take = Take(10.0, [(10.5, np.concatenate([silence(0.25), tone(0.75)]))])
    row = take.row("onnx", "af_heart", "Three little words.")
    assert row.first_chunk_ms == pytest.approx(500)
    assert row.first_audible_ms == pytest.approx(750, abs=1)
    assert row.rtf == pytest.approx(0.5)
    assert (row.underruns, row.words) == (0, 3)


def test_audio_that_comes_after_the_playback_has_run_dry_is_an_underrun() -> None:
    pieces = [(0.1, tone(0.2)), (0.25, tone(0.1)), (0.7, tone(0.5))]
    row = Take(0.0, pieces).row("torch", "af_heart", "Some words.")
    assert row.underruns == 1
    assert row.gap_ms == pytest.approx(300)


def test_time_that_the_host_took_is_read_in_ticks_of_ten_ms(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 20 30 40 50 60 70 7 0 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    assert stolen_ms(stat) == 7 * 1000 / os.sysconf("SC_CLK_TCK")
    assert stolen_ms(tmp_path / "none") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="told by /proc")
def test_the_memory_of_a_process_is_not_that_of_its_parent() -> None:
    held = np.ones(100_000_000)  # 800 MB
    before = resident_mb()
    script = "from headstart.bench.machine import usage; print(usage().peak_rss_mb)"
    # Forked, as the benchmark's processes are.
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, preexec_fn=bool
    )
    assert float(child.stdout) < 400 < before
    del held


def test_nothing_heard_has_no_figures() -> None:
    assert Take(0.0).row("torch", "af_heart", "...").first_audible_ms is None


def test_the_same_audio_is_no_distance_apart_and_a_louder_one_is_louder() -> None:
    audio = tone(0.5) + np.random.default_rng(1).normal(0, 0.01, 12_000).astype(np.float32)
    assert log_mel_distance(audio, audio) == 0
    assert level_difference(audio, 2 * audio) == pytest.approx(6.02, abs=0.01)
    assert log_mel_distance(audio, 2 * audio) == pytest.approx(6.0, abs=0.2)


def test_a_click_at_a_seam_is_found_and_one_elsewhere_is_not() -> None:
    whole = tone(0.5)
    clicked = whole.copy()
    clicked[6000] += 0.05
    at_seam, elsewhere = (seam_energy(whole, clicked, [seam]) for seam in (6000, 3000))
    assert at_seam is not None and at_seam > 12
    assert elsewhere is not None and elsewhere < 1
    assert seam_energy(whole, clicked, []) is None


def test_chunks_cover_the_clause_whatever_the_machine_does() -> None:
    pace, begin = FixedPace(), 0
    while begin < 307:
        begin = pace.next_chunk(begin, 307, None)
    assert pace.cuts[0] == 16
    assert pace.cuts[-1] == 307
    assert all(after - before >= 16 for before, after in itertools.pairwise(pace.cuts))


def test_wrong_choices_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are 1 to 100"):
        chosen_texts("0")
    with pytest.raises(HeadstartError, match="cannot be read"):
        chosen_texts(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("...\n")
    with pytest.raises(UsageError, match="holds no text"):
        chosen_texts(str(tmp_path / "empty.txt"))
    with pytest.raises(UsageError, match="knows English only"):
        chosen_voices("ff_siwis", ["af_heart", "ff_siwis"])
    assert chosen_voices("1", ["af_heart", "ff_siwis"]) == ["af_heart"]


def test_no_package_of_the_stock_pipeline_is_needed_to_measure_voices() -> None:
    without = "import sys; sys.modules['faster_whisper'] = None; import headstart.bench.voice.run"
    subprocess.run([sys.executable, "-c", without], check=True)


def test_voices_take_turns_at_the_texts() -> None:
    def clauses(each: int | None) -> list[tuple[str, str]]:
        return VoicePlan(["1", "2", "3"], ["a", "b", "c"], [], [], each, 1, 100, 0, "").clauses

    assert clauses(2) == [("a", "1"), ("b", "1"), ("c", "2"), ("a", "2"), ("b", "3"), ("c", "3")]
    assert len(set(clauses(None))) == 9


@pytest.mark.models
async def test_both_services_speak_in_one_run_and_a_cancelled_request_ends(tmp_path: Path) -> None:
    plan = VoicePlan(
        texts=["Yes, of course."],
        voices=["af_heart"],
        engines=["onnx", "pipecat"],
        parts=["speed", "cancelling", "memory"],
        each=None,
        repeat=1,
        sessions=5,
        seed=0,
        command="test",
    )
    steps: list[str] = []
    run = VoiceRun(plan, steps.append)
    await run.run()
    rows = {row.engine: row for row in run.results.rows}
    assert set(rows) == {"onnx", "pipecat"}
    for row in rows.values():
        assert row.first_audible_ms is not None and row.first_chunk_ms is not None
        assert row.first_audible_ms >= row.first_chunk_ms > 0
    assert steps.count("") == plan.steps()
    assert {one.engine for one in run.results.cancellations} == {"onnx"}
    memory = {one.engine: one for one in run.results.memory}
    assert [(name, one.sessions, one.spoke) for name, one in memory.items()] == [
        ("onnx", 5, 5),
        ("pipecat", 4, 4),
    ]
    shared, own = ((one.silent_mb - one.one_mb) / (one.sessions - 1) for one in memory.values())
    assert shared < 10 < 100 < own


def test_the_report_tells_speed_quality_and_cancelling(tmp_path: Path) -> None:
    rows = [
        Row(engine=engine, voice="af_heart", text=f"text {n}", words=3, first_audible_ms=ms + n,
            first_chunk_ms=ms, rtf=0.5, underruns=0, gap_ms=0.0, audio_s=1.0)
        for engine, ms in (("torch", 200), ("pipecat", 1500))
        for n in range(3)
    ]  # fmt: skip
    rows[0].underruns, rows[0].stolen_ms = 1, 10.0
    rows[1].underruns, rows[2].stolen_ms = 2, 20.0
    for row in rows[:3]:
        row.lmd_db, row.floor_db, row.level_db, row.seam_db = 1.2, 0.8, -0.1, 0.4
        row.same_transcript, row.floor_same_transcript = True, False
        row.floor_level_db = 0.05
    results = VoiceResults(
        command="headstart bench tts",
        started_at="now",
        seed=0,
        versions={"python": "3"},
        machine={"cores": 2},
        rows=rows,
        cancellations=[Cancellation(engine="torch", after_ms=100, freed_ms=12)],
        memory=[
            Memory(
                engine="torch",
                text="Yes.",
                sessions=100,
                spoke=99,
                one_mb=800,
                silent_mb=820,
                spoken_mb=1100,
                most_mb=1200,
            )
        ],
    )
    write_voice_report(results, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "| 3, torch | 201 | 202 | 200 | 0.50 | 2 | 1 |" in report
    assert "| torch | 0.13 (" in report
    assert (
        "| af_heart | 1.20 | 0.80 | 1.50 | -0.10 | -0.10 | +0.05 | 0.4 | 0.4 | 3 of 3 | 0 |"
        in report
    )
    assert "| torch | 12 | 12 | 12 | 1 |" in report
    assert "| torch | 100 | 99 | 800 | 820 | 1100 | 1200 |" in report
    assert (tmp_path / "first-audible.svg").read_text().startswith("<svg")
    assert VoiceResults.model_validate_json((tmp_path / "tts.json").read_text()) == results
