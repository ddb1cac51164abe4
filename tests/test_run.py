"""`headstart run` as others script against it: real models, real time, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from conftest import Sample, words

from headstart.cli.run import repeat_wav
from headstart.errors import AudioFileError
from headstart.transports.wav import Recording, read_audio

HEADSTART = (sys.executable, "-c", "from headstart.cli import main; main()")
TURN_KEYS = (
    "turn user_text bot_text speech_start_s vad_stop_s turn_end_s first_partial_s "
    "final_transcript_s first_token_s first_clause_s first_audio_ready_s first_audio_out_s "
    "voice_to_voice_s interrupted errors speculation segments"
).split()


def headstart(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [*HEADSTART, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def sounds(samples: np.ndarray) -> np.ndarray:
    """The indices of the samples that can be heard."""
    return np.flatnonzero(np.abs(samples.astype(int)) > 327)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, samples: dict[str, Sample]) -> dict[str, Path]:
    """One question in several formats, and sounds that are none."""
    folder = tmp_path_factory.mktemp("inputs")
    speech, rate = soundfile.read(samples["medium-france"].path)
    wide = soxr.resample(speech, rate, 44100)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    paths = {name: folder / f"{name}.wav" for name in ("phone", "studio", "silence", "tone")}
    soundfile.write(paths["phone"], soxr.resample(speech, rate, 8000), 8000, subtype="PCM_16")
    soundfile.write(paths["studio"], np.column_stack([wide, wide]), 44100, subtype="PCM_24")
    soundfile.write(paths["silence"], np.zeros(2 * rate), rate)
    soundfile.write(paths["tone"], tone, rate)
    return paths


def test_every_format_is_answered_and_what_is_no_speech_is_not(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    run = headstart("run", "local", "--wav", *inputs.values(), "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    turns = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
    assert [list(turn) for turn in turns] == [TURN_KEYS] * 2
    for turn in turns:
        assert words(turn["user_text"]) == "what is the capital of france".split()
        assert words(turn["bot_text"])
        assert turn["errors"] == []
    for name in ("silence", "tone"):
        assert f"{inputs[name]}: no speech in it" in run.stdout
    assert "voice to voice" in run.stdout


def test_the_recording_is_aligned_with_the_record_to_the_sample(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    path = samples["short-joke"].path
    run = headstart("run", "local", "--wav", path, "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    turn = json.loads((tmp_path / "turns.jsonl").read_text())
    stereo, rate = soundfile.read(tmp_path / "conversation.wav", dtype="int16")
    answer, answer_rate = soundfile.read(tmp_path / "answer.wav", dtype="int16")
    assert rate == answer_rate == 24000

    spoken = read_audio(path, rate)
    assert np.corrcoef(stereo[: len(spoken), 0], spoken)[0, 1] > 0.99

    first = sounds(stereo[:, 1])[0] / rate
    assert first == pytest.approx(turn["first_audio_out_s"], abs=0.002)
    assert turn["voice_to_voice_s"] == pytest.approx(
        first - samples["short-joke"].speech_end_s, abs=0.15
    )
    assert np.array_equal(answer[sounds(answer)], stereo[sounds(stereo[:, 1]), 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"this is no audio, whatever its name says", "not an audio file that can be read"),
        (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80>\0\0\0}\0\0\2\0\x10\0data\0\0\0\0",
         "holds no samples"),
    ],
)  # fmt: skip
def test_what_is_no_audio_gives_one_line_and_exit_code_2(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "input.wav"
    if content is not None:
        path.write_bytes(content)
    run = headstart("run", "local", "--wav", path)
    assert run.returncode == 2
    assert run.stderr == f"headstart: {path}: {message}" + run.stderr.split(message, 1)[1]
    assert run.stderr.count("\n") == 1


def test_a_folder_is_no_audio_file(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="is a folder"):
        read_audio(tmp_path, 16000)


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "local"], ["run", "nosuch", "--wav", "x.wav"], ["nosuch"]]
)
def test_bad_usage_is_exit_code_2_without_a_traceback(arguments: Sequence[str]) -> None:
    run = headstart(*arguments)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        ("local --wav a b c --out d", "local --wav a --wav b --wav c --out d"),
        ("local --out d --wav a b", "local --out d --wav a --wav b"),
        ("--wav a local", "--wav a local"),
        ("local --wav a --wav b", "local --wav a --wav b"),
        ("local --wav", "local --wav"),
    ],
)
def test_one_wav_option_takes_several_files(written: str, understood: str) -> None:
    assert repeat_wav(written.split()) == understood.split()


def test_a_recording_puts_silence_where_the_bot_was_silent() -> None:
    ones = np.ones(4, np.int16)
    recording = Recording(8000, 8000, user=[ones, ones], bot=[(2, 2 * ones), (10, 3 * ones)])
    stereo = recording.stereo()
    assert stereo[:, 1].tolist() == [0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 3, 3, 3, 3]
    assert recording.bot_speech().tolist() == [2, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("moment", ["starting", "loading the models", "listening", "answering"])
def test_ctrl_c_ends_at_any_moment_without_orphans_or_half_files(
    moment: str, samples: dict[str, Sample], tmp_path: Path
) -> None:
    out, token = tmp_path / "out", f"{moment}-{time.monotonic_ns()}"
    process = subprocess.Popen(
        [*HEADSTART, "run", "local", "--wav", str(samples["pause-moon"].path), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HEADSTART_TEST_TOKEN": token},
        start_new_session=True,
    )
    assert process.stderr is not None
    if moment != "starting":
        assert any(moment in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    # Before Python has installed its handler, the signal itself ends the process.
    assert process.returncode in ((130, -signal.SIGINT) if moment == "starting" else (130,))
    assert "Traceback" not in errors
    assert not out.exists()
    assert processes_with(token) == []


def processes_with(token: str) -> list[str]:
    """Command lines of the processes whose environment has the token: children inherit it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"HEADSTART_TEST_TOKEN={token}" in (entry / "environ").read_text():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found
