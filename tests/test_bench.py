"""The benchmark: what is measured, what is made of it, and one real run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLES, Sample
from hypothesis import given
from hypothesis import strategies as st

from headstart.bench import plots
from headstart.bench.conversation import page
from headstart.bench.conversation.measure import STAGES, Failure, Measured, measure, stage_waits
from headstart.bench.conversation.regression import changes
from headstart.bench.conversation.report import markdown, write_reports
from headstart.bench.conversation.results import Results, Run, compare_arms, kinds_of, summarise
from headstart.bench.conversation.run import Plan
from headstart.bench.conversation.utterances import read_utterances
from headstart.bench.conversation.words import compare, words
from headstart.bench.statistics import paired_difference, paired_ratio, percentile
from headstart.cli.repeated import repeat_option
from headstart.errors import UsageError
from headstart.pipeline.timeline.records import SegmentRecord, TurnRecord

HEADSTART = (sys.executable, "-c", "from headstart.cli import main; main()")
RATE = 24000
SAID = "What is the capital of France?"


def turn(**values: object) -> TurnRecord:
    return TurnRecord.model_validate({"turn": 1, "user_text": SAID, "bot_text": "Paris."} | values)


def conversation(*bot_s: tuple[float, float], length_s: float = 6.0) -> np.ndarray:
    """A recording in which the bot can be heard from, to."""
    stereo = np.zeros((int(length_s * RATE), 2), np.int16)
    for start, end in bot_s:
        stereo[round(start * RATE) : round(end * RATE), 1] = 328
    return stereo


def measured(stereo: np.ndarray, *records: TurnRecord) -> Measured:
    return measure(stereo, RATE, records, said=SAID, true_end_s=2.0)


def test_the_wait_is_from_the_true_end_to_the_first_audible_sample() -> None:
    stereo = conversation((2.5, 4.0))
    stereo[round(2.2 * RATE) : round(2.5 * RATE), 1] = 327  # still -40 dBFS, so silent
    found = measured(stereo, turn(vad_stop_s=2.2, turn_end_s=2.3, first_audio_out_s=2.501))
    assert found.voice_to_voice_s == pytest.approx(0.5, abs=1 / RATE)
    assert found.residual_s == pytest.approx(-0.001, abs=1e-6)
    assert found.failures == []


@pytest.mark.parametrize(
    ("bot_s", "records", "failures"),
    [
        ([(1.5, 1.6), (2.5, 3)], [turn(first_audio_out_s=1.5)], [Failure.EARLY]),
        ([], [turn()], [Failure.NONE]),
        ([(1.5, 1.6)], [turn(first_audio_out_s=1.5)], [Failure.EARLY, Failure.NONE]),
        ([(2.5, 3), (4, 5)], [turn(first_audio_out_s=2.5), turn(first_audio_out_s=4.0)],
         [Failure.TWICE]),
        ([(2.5, 3)], [turn(user_text="What is the", first_audio_out_s=2.5)], [Failure.HALF]),
        ([(2.5, 3)], [turn(user_text="What's the capital of Franz", first_audio_out_s=2.5)], []),
        # Both halves were in the conversation when the answer that was heard was written.
        ([(2.5, 3)], [turn(user_text="What is"), turn(user_text="the capital of France",
                                                      first_audio_out_s=2.5)], []),
        # A turn that was taken up again repeats its words.
        ([(2.5, 3)], [turn(user_text="What is"), turn(first_audio_out_s=2.5)], []),
    ],
)  # fmt: skip
def test_what_went_wrong_is_seen(
    bot_s: list[tuple[float, float]], records: list[TurnRecord], failures: list[Failure]
) -> None:
    assert measured(conversation(*bot_s), *records).failures == failures


moment = st.none() | st.floats(0, 10).map(lambda s: round(s, 3))


@given(st.lists(moment, min_size=len(STAGES), max_size=len(STAGES)), st.floats(2, 12))
def test_the_stages_add_up_to_the_wait(moments: list[float | None], out_s: float) -> None:
    record = turn(**dict(zip(STAGES.values(), moments, strict=True)) | {"first_audio_out_s": out_s})
    last = max([2.0, *(at for at in moments[:-1] if at is not None), out_s])
    waits = stage_waits(record, 2.0)
    assert min(waits.values()) >= 0
    assert sum(waits.values()) == pytest.approx(last - 2.0)


finite = st.floats(0.01, 100)
groups = st.dictionaries(
    st.text(min_size=1), st.lists(st.tuples(finite, finite), min_size=1, max_size=4), min_size=2
)


@given(st.lists(finite, min_size=1), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


@given(groups)
def test_an_interval_holds_its_estimate(pairs: dict[str, list[tuple[float, float]]]) -> None:
    for estimate in (paired_ratio(pairs, 0), paired_difference(pairs, 0)):
        assert estimate is not None
        margin = 1e-9 + 1e-9 * abs(estimate.value)
        assert estimate.low - margin <= estimate.value <= estimate.high + margin


@given(groups, st.floats(0.1, 10))
def test_a_ratio_that_all_pairs_have_is_found_with_certainty(
    pairs: dict[str, list[tuple[float, float]]], ratio: float
) -> None:
    scaled = {name: [(a, a * ratio) for a, _ in group] for name, group in pairs.items()}
    estimate = paired_ratio(scaled, 1)
    assert estimate is not None
    assert estimate.low == pytest.approx(ratio)
    assert estimate.high == pytest.approx(ratio)


def test_one_utterance_gives_no_interval() -> None:
    assert paired_ratio({"a": [(1, 2), (1, 2)]}, 0) is None


@pytest.mark.parametrize(
    ("said", "understood", "missing", "errors"),
    [
        ("My number is seven four two nine.", "my number is 7429", 0, 0),
        ("Set it for ten minutes. Make it twenty.", "Set it for 10 minutes make it 20", 0, 0),
        ("Could you tell me how far?", "Could you tell me?", 2, 2),
        ("Yes, please.", "", 2, 2),
        ("It's green", "Its green, no", 0, 1),
    ],
)  # fmt: skip
def test_words_are_compared_as_they_are_said(
    said: str, understood: str, missing: int, errors: int
) -> None:
    difference = compare(said, understood)
    assert difference.missing == missing
    assert difference.rate * difference.reference == pytest.approx(errors)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_the_word_errors_are_a_distance(a: list[str], b: list[str]) -> None:
    there, back = compare(" ".join(a), " ".join(b)), compare(" ".join(b), " ".join(a))
    assert (there.missing, there.added) == (back.added, back.missing)
    assert there.missing - there.added == len(words(" ".join(a))) - len(words(" ".join(b)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "manifest.jsonl:1: is no JSON"),
        ("[]", "manifest.jsonl:1: should be an object"),
        ('{"id": "a"}', "manifest.jsonl:1: file: is missing"),
        ('{"id": "../a", "file": "a.wav", "kind": "k", "text": "t", "speech_end_s": 1}', ": id: "),
        ('{"id": "a", "file": "a.wav", "kind": "k", "text": "t", "speech_end_s": 0}', "speech_end"),
        ('{"id": "a", "file": "a.wav", "kind": "k", "text": "t", "speech_end_s": 1}', "no file"),
        ("", "holds no utterances"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_said_in_one_line(
    line: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError) as raised:
        read_utterances(tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_samples_are_an_utterance_set(samples: dict[str, Sample]) -> None:
    assert list(read_utterances(SAMPLES)) == list(samples)
    with pytest.raises(UsageError, match="did you mean 'short-joke'"):
        read_utterances(SAMPLES, ["short-jok"])


def test_one_arm_option_takes_several_pipelines() -> None:
    written = "--arm a b --out o --arm c --repeat 2 compare".split()
    assert repeat_option(written, "--arm") == (
        "--arm a --arm b --out o --arm c --repeat 2 compare".split()
    )


def run(arm: str, utterance: str, wait_s: float | None, *failures: Failure) -> Run:
    at: dict[str, float | None]
    at = {"speech_start_s": 0.3, "vad_stop_s": 2.2, "final_transcript_s": 2.3, "turn_end_s": 2.4}
    return Run(
        arm=arm, utterance=utterance, kind=utterance.partition("-")[0], repeat=1, order=1,
        failures=list(failures), voice_to_voice_s=wait_s, true_end_s=2.0,
        stages_s=None if wait_s is None else dict.fromkeys(STAGES, 0.0) | {"tts": wait_s},
        residual_s=0.0, moments_s=at, user_text="<script>", words=5, word_errors=1,
        folder=f"runs/{arm}/{utterance}/1",
    )  # fmt: skip


def results(factor: float = 1.0) -> Results:
    both = [(f"{kind}-{n}", 1.0 + n) for kind in ("short", "long") for n in (0, 1)]
    runs = [
        *(run("fast", name, wait_s * factor) for name, wait_s in both),
        *(run("slow", name, wait_s * 2) for name, wait_s in both),
        run("fast", "pause-0", 1.0, Failure.EARLY),
        run("slow", "pause-0", 9.0),
    ]  # fmt: skip
    return Results(
        command="headstart bench", started_at="2026-01-01T00:00:00+00:00", duration_s=60,
        complete=True, seed=0, repeats=1, versions={"python": "3"}, machine={"cores": 2},
        arms={
            arm: summarise(f"{arm}.yaml", [r for r in runs if r.arm == arm], kinds_of(runs))
            for arm in ("fast", "slow")
        },
        comparisons=compare_arms(["fast", "slow"], runs, 0), runs=runs,
    )  # fmt: skip


def test_a_run_that_failed_is_in_no_ratio() -> None:
    found = results()
    whole = found.comparisons[0]
    assert (whole.arm, whole.against, whole.n, whole.failed) == ("slow", "fast", 4, 1)
    assert whole.ratio is not None
    assert whole.ratio.value == pytest.approx(2.0)
    assert found.arms["fast"].voice_to_voice_s.model_dump() == {
        "p50": 1.5, "p95": pytest.approx(2.0), "n": 4, "failed": 1,
    }  # fmt: skip
    assert found.arms["fast"].failures["early"] == 1
    pauses = next(one for one in found.comparisons if one.kind == "pause")
    assert (pauses.n, pauses.failed, pauses.ratio) == (0, 1, None)


def test_the_report_needs_nothing_beside_it_and_plays_the_misses(tmp_path: Path) -> None:
    found = results()
    folder = tmp_path / "runs/fast/pause-0/1"
    folder.mkdir(parents=True)
    soundfile.write(folder / "conversation.wav", conversation((2.5, 3)), RATE)
    write_reports(found, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "url(" not in text
    assert text.count('src="data:audio/mpeg;base64,') == 1
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert Results.read(tmp_path) == found
    assert "| fast | 1.50 |" in markdown(found)
    for picture in ("voice-to-voice.svg", "stages.svg"):
        assert (tmp_path / picture).read_text().startswith("<svg xmlns=")


def test_the_report_says_how_fast_the_words_came_and_which_way() -> None:
    runs = [
        run("only", f"short-{n}", 1.0).model_copy(
            update={
                "segments": [
                    SegmentRecord(final_after_ms=after, partial_gap_ms=gap, path=path),
                    SegmentRecord(path="local"),
                ]
            }
        )
        for n, (after, gap, path) in enumerate([(50, 300, "stream"), (70, 500, "replayed")])
    ]
    arm = summarise("only.yaml", runs, ["short"])
    told = markdown(results().model_copy(update={"runs": runs, "arms": {"only": arm}}))
    assert "| only | 2 | 60 | 69 | 400 | 490 | 500 | - | local 2, replayed 1, stream 1 |" in told


def test_a_report_can_be_made_where_nothing_worked(tmp_path: Path) -> None:
    runs = [run("only", "short-0", None, Failure.NONE)]
    broken = results().model_copy(
        update={
            "runs": runs,
            "comparisons": [],
            "arms": {"only": summarise("only.yaml", runs, ["short"])},
        }
    )
    assert "1 of 1 failed" in plots.distribution(broken)
    assert "no answer was heard" in page.html(broken, tmp_path)


@pytest.mark.parametrize(
    ("factor", "allowed", "worse"), [(1.04, 5, False), (1.06, 5, True), (0.5, 0, False)]
)
def test_a_regression_is_what_grew_by_more_than_may_be(
    factor: float, allowed: float, worse: bool
) -> None:
    fast, slow = changes(results(), results(factor))
    assert fast.percent == pytest.approx(100 * (factor - 1))
    assert fast.exceeds(allowed) is worse
    assert slow.percent == pytest.approx(0)


def test_more_failures_are_a_regression_however_fast() -> None:
    after = results(0.5)
    for at, one in enumerate(after.runs):
        if one.arm == "fast" and one.utterance == "long-0":
            after.runs[at] = one.model_copy(update={"failures": [Failure.TWICE]})
    assert changes(results(), after)[0].exceeds(50)


def test_the_order_is_random_but_the_same_again_and_keeps_arms_together(tmp_path: Path) -> None:
    from headstart.bench.conversation.arms import read_arms

    arms, utterances = read_arms(["local", "deepgram-claude"]), read_utterances(SAMPLES)
    orders = [Plan(arms, utterances, 3, seed, tmp_path, "").order() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == 3 * len(utterances) * 2
    pairs = list(pairwise(orders[0]))[::2]
    assert all(first[:2] == second[:2] for first, second in pairs)


def test_two_arms_of_one_name_are_refused() -> None:
    from headstart.bench.conversation.arms import read_arms

    with pytest.raises(UsageError, match="'local' cannot name one more arm"):
        read_arms(["local", "local"])


@pytest.mark.models
def test_one_run_from_end_to_end_agrees_with_the_script_of_the_docs(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*HEADSTART, "bench", "--utterances", str(SAMPLES), "--only", "short-joke"]
    ran = subprocess.run(
        [*command, "--arm", "local", "--out", str(out)],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = Results.read(out)
    (row,) = found.runs
    assert row.failures == [], row.error
    assert row.voice_to_voice_s is not None
    assert row.residual_s == pytest.approx(0, abs=0.005)
    assert row.cpu_s is not None
    assert 0 < row.cpu_s < 100
    assert row.user_text.startswith("Tell me a joke")
    assert json.loads((out / "results.json").read_text())["arms"]["local"]["voice_to_voice_s"][
        "p50"
    ] == pytest.approx(row.voice_to_voice_s)

    docs = (Path(__file__).parent.parent / "docs" / "bench.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", docs, re.S)
    (tmp_path / "recompute.py").write_text(script)
    independent = subprocess.run(
        [sys.executable, tmp_path / "recompute.py", out / row.folder / "conversation.wav",
         str(samples["short-joke"].speech_end_s)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(independent.stdout) == pytest.approx(row.voice_to_voice_s, abs=0.0005)
    assert not (out / "runs" / "local" / "short-joke" / "2").exists()

    again = subprocess.run([*command, "--arm", "local", "--out", str(out)],
                           capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert again.returncode == 2
    assert "holds results already" in again.stderr


@pytest.mark.models
def test_ctrl_c_ends_the_arms_too(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*HEADSTART, "bench", "--utterances", SAMPLES, "--arm", "local", "--out", tmp_path / "o"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("loading local" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    needle = str((tmp_path / "o").resolve())
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            opened = [str(link.readlink()) for link in (entry / "fd").iterdir()]
        except OSError:
            continue
        assert not any(path.startswith(needle) for path in opened), entry
