"""`headstart run` as others script against it: real models, real time, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import soundfile
import soxr
from conftest import Sample, words
from pipecat.frames.frames import CancelFrame, EndFrame, Frame, InputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner
from typer.testing import CliRunner

from headstart.cli.app import app
from headstart.cli.out import try_out
from headstart.cli.run import repeat_wav
from headstart.errors import AudioFileError, HeadstartError, SessionEndedError, UsageError
from headstart.pipeline.converse import Dialogue
from headstart.transports.wav import Recording, WavTransport, read_audio

FILES = {"conversation.wav", "answer.wav", "turns.jsonl"}
BARE = Path(__file__).parent.parent / "docs" / "benchmarks" / "framework-headstart-bare.yaml"
"""Hears and ends turns, and has no models."""
HEADSTART = (sys.executable, "-c", "from headstart.cli import main; main()")
TURN_KEYS = (
    "turn user_text bot_text speech_start_s vad_stop_s turn_end_s first_partial_s "
    "final_transcript_s first_token_s first_clause_s first_audio_ready_s first_audio_out_s "
    "voice_to_voice_s interrupted errors speculation segments"
).split()


def headstart(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [*HEADSTART, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command that runs meanwhile, and is killed if it has not ended behind the block."""
    with subprocess.Popen(
        [*HEADSTART, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def kept_turns(out: Path) -> list[int]:
    """The numbers of the turns in `out`, whose files are all there and whole."""
    assert {path.name for path in out.iterdir()} == FILES
    for name in ("conversation.wav", "answer.wav"):
        soundfile.read(out / name)
    lines = (out / "turns.jsonl").read_text().splitlines()
    return [json.loads(line)["turn"] for line in lines]


def pipeline(folder: Path, stage: str) -> Path:
    """A pipeline file whose second stage is `Stage`, behind a VAD without a model."""
    imports = """
        import asyncio, sys
        from contextlib import suppress
        from pipecat.frames.frames import EndWorkerFrame, VADUserStoppedSpeakingFrame
        from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    """
    (folder / "stage.py").write_text(dedent(imports) + dedent(stage))
    config = folder / "pipeline.yaml"
    stages = "[headstart.bench.energy:EnergyVAD, ./stage.py:Stage]"
    config.write_text(f"prompt: Nobody answers.\nstages: {stages}\n")
    return config


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """As on a disk that is nearly full: no file may become larger."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


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


@pytest.mark.models
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


@pytest.mark.models
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
def test_what_is_no_audio_is_bad_usage(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "input.wav"
    if content is not None:
        path.write_bytes(content)
    refused = CliRunner().invoke(app, ["run", "local", "--wav", str(path)]).exception
    assert isinstance(refused, UsageError)
    assert str(refused).startswith(f"{path}: {message}")


def test_an_error_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "nosuch.wav"
    run = headstart("run", "local", "--wav", path)
    assert (run.returncode, run.stderr) == (2, f"headstart: {path}: no such file\n")


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


@pytest.mark.models
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
    kept = {path.name for path in out.glob("*")}
    if moment == "answering":
        assert kept == FILES
    else:
        assert kept in (set(), FILES)  # all that was heard yet, if anything
    assert processes_with(token) == []


@pytest.mark.models
def test_ctrl_c_keeps_the_turns_that_were_finished(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    path, out = samples["short-joke"].path, tmp_path / "out"
    with started("run", BARE, "--wav", path, path, "--out", out) as process:
        assert process.stderr is not None
        assert any("utterance 2 of 2: listening" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert kept_turns(out)[0] == 1


def test_a_second_ctrl_c_ends_at_once_and_keeps_what_was_said(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = pipeline(
        tmp_path,
        """
        class Stage(FrameProcessor):
            async def process_frame(self, frame, direction):
                await super().process_frame(frame, direction)
                await self.push_frame(frame, direction)

            async def cleanup(self):
                print("never ends", file=sys.stderr, flush=True)
                while True:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(3600)
        """,
    )
    with started("run", config, "--wav", samples["short-joke"].path, "--out", out) as process:
        assert process.stderr is not None
        assert any("answering" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert any("never ends" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    kept_turns(out)


def test_a_pipeline_that_ends_itself_ends_the_run(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    path, out = samples["short-joke"].path, tmp_path / "out"
    config = pipeline(
        tmp_path,
        """
        class Stage(FrameProcessor):
            async def process_frame(self, frame, direction):
                await super().process_frame(frame, direction)
                await self.push_frame(frame, direction)
                if isinstance(frame, VADUserStoppedSpeakingFrame):
                    await self.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)
        """,
    )
    run = headstart("run", config, "--wav", path, path, "--out", out)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "headstart: the pipeline ended: no stage said why"
    assert kept_turns(out) == [1]


@pytest.mark.parametrize("end", [EndFrame, CancelFrame])
async def test_who_speaks_is_told_that_nobody_listens_any_more(end: type[Frame]) -> None:
    transport = WavTransport()
    started, heard = asyncio.Event(), asyncio.Event()

    class Listener(FrameProcessor):
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, InputAudioRawFrame):
                heard.set()
            await self.push_frame(frame, direction)

    worker = PipelineWorker(
        Pipeline([transport.input(), Listener()]), enable_rtvi=False, idle_timeout_secs=None
    )

    @worker.event_handler("on_pipeline_started")  # type: ignore[untyped-decorator]
    async def on_started(worker: PipelineWorker, frame: Frame) -> None:
        started.set()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    async with asyncio.timeout(30):
        running = asyncio.create_task(runner.run())
        await started.wait()
        speaking = asyncio.create_task(transport.speak(np.ones(3600 * 16000, np.int16)))
        await heard.wait()
        await worker.queue_frame(end())
        with pytest.raises(SessionEndedError):
            await speaking
        await running
    with pytest.raises(SessionEndedError):
        await transport.speak(np.ones(16000, np.int16))


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("schema >/dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("--version >&-", 1, "standard output cannot be written (Bad file descriptor)"),
        # `head` reads nothing, and has ended before the first line is printed.
        ("stages --help | head -c 0", 0, None),
        ("--version 2>&-", 0, None),
        ("nosuch >&- 2>&-", 2, None),
        ("--version >/dev/full 2>&1", 1, None),
    ],
)
def test_what_cannot_be_printed_is_told_in_one_line(
    command: str, code: int, message: str | None
) -> None:
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shlex.join(HEADSTART)} {command}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == code
    assert run.stderr == (f"headstart: {message}\n" if message else "")


@pytest.mark.models
def test_a_run_whose_reader_has_left_still_writes_its_files(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    path, out = samples["short-joke"].path, tmp_path / "out"
    with started("run", BARE, "--wav", path, "--out", out) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert kept_turns(out) == [1]


@pytest.mark.parametrize(
    "command",
    [
        "run local --wav {wav}",
        "bench --utterances {samples} --arm local",
        "bench load local --utterances {samples}",
        "bench tts",
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    command: str, samples: dict[str, Sample], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    wav, out = samples["short-joke"].path, str(tmp_path / "file" / "below")
    words = command.format(wav=wav, samples=wav.parent).split()
    refused = CliRunner().invoke(app, [*words, "--out", out]).exception
    assert isinstance(refused, UsageError)
    assert str(refused) == f"{out}: cannot be written (Not a directory); give another --out"


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answer.wav").mkdir()
    with pytest.raises(UsageError, match=r"answer\.wav is a folder"):
        try_out(tmp_path, "turns.jsonl", "answer.wav")


def test_trying_a_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    try_out(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_a_disk_that_is_full_is_noticed_at_once(tmp_path: Path) -> None:
    with room_for(1000), pytest.raises(UsageError, match="cannot be written"):
        try_out(tmp_path)


def test_a_disk_that_fills_up_leaves_no_half_files(tmp_path: Path) -> None:
    second = np.ones(16000, np.int16)
    dialogue = Dialogue(Recording(16000, 16000, user=[second, second], bot=[(0, second)]))
    with room_for(40_000), pytest.raises(HeadstartError, match=f"{tmp_path}: cannot be written"):
        dialogue.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"turns.jsonl", "answer.wav"}
    assert len(soundfile.read(tmp_path / "answer.wav")[0]) == 16000


@pytest.mark.parametrize("rate", [0, 1, 3999, 384_001, 10_000_000, 4_000_000_000])
def test_a_wav_of_an_impossible_rate_is_refused(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "odd.wav"
    fields = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate % 2**32, 2, 16)
    path.write_bytes(b"RIFF\xec\0\0\0WAVEfmt " + fields + b"data\xc8\0\0\0" + bytes(200))
    with pytest.raises(AudioFileError, match=f"claims {rate} Hz" if 0 < rate < 2**31 else "odd"):
        read_audio(path, 16000)


def test_five_hours_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", samplerate=8000, channels=1) as file:
        for _ in range(5 * 60):
            file.write(np.zeros(60 * 8000, np.int16))
    with pytest.raises(AudioFileError, match=r"claims 5\.0 hours"):
        read_audio(path, 16000)


def test_a_file_without_a_header_and_a_device_are_no_audio(tmp_path: Path) -> None:
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    for path in (tmp_path / "samples.raw", Path("/dev/zero"), tmp_path / ("n" * 300)):
        with pytest.raises(AudioFileError, match=re.escape(f"{path}: ")):
            read_audio(path, 16000)


def test_what_is_read_piece_by_piece_is_what_one_piece_would_be(tmp_path: Path) -> None:
    rate = 44100
    sound = 0.5 * np.sin(np.arange(60 * rate) * 2 * np.pi * 440 / rate)
    soundfile.write(tmp_path / "long.wav", np.column_stack([sound, sound]), rate)
    whole = soxr.resample(soundfile.read(tmp_path / "long.wav")[0][:, 0], rate, 16000)
    read = read_audio(tmp_path / "long.wav", 16000)
    assert len(read) == 60 * 16000
    assert np.abs(read - whole * 32768).max() < 2


@pytest.mark.models
@pytest.mark.parametrize("server", ["deepgram", "anthropic"])
@pytest.mark.parametrize("port", [99999, -1])
def test_an_impossible_port_is_bad_usage(server: str, port: int) -> None:
    assert CliRunner().invoke(app, ["testing", server, "--port", str(port)]).exit_code == 2


@pytest.mark.models
def test_a_host_that_cannot_be_one_is_bad_usage() -> None:
    refused = CliRunner().invoke(app, ["testing", "deepgram", "--host", "a..b"]).exception
    assert isinstance(refused, UsageError)


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
