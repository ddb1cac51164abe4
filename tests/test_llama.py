"""The llama engine: a real child process, started, supervised and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headstart import assets
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.errors import AssetError, EngineError

DEADLINE_SECS = 20
SMALL = LlamaOptions(slots=1, context_tokens=256)

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        assets.find("smollm2-135m") is None,
        reason="needs the weights: headstart models pull smollm2-135m",
    ),
]


async def test_a_server_that_dies_again_and_again_is_given_up_with_a_reason() -> None:
    engine = LlamaEngine.load(SMALL)
    try:
        with pytest.raises(EngineError, match=r"killed by SIGKILL.*within a minute"):
            for _ in range(10):
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGKILL)
                await engine.ensure_running(engine.base_url)
    finally:
        engine.close()


async def test_closing_is_quick_to_repeat_and_final() -> None:
    engine = LlamaEngine.load(SMALL)
    pid = engine.pid
    assert pid is not None
    engine.close()
    engine.close()
    assert engine.pid is None
    assert not alive(pid)
    with pytest.raises(EngineError, match="closed"):
        await engine.ensure_running()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_child_outlives_its_parent(end: signal.Signals) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from headstart.engines.llama import *\n"
            "engine = LlamaEngine.load(LlamaOptions(slots=1, context_tokens=256))\n"
            "print(engine.pid, flush=True)\n"
            "signal.pause()",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(end)
        parent.wait(DEADLINE_SECS)
    deadline = time.monotonic() + DEADLINE_SECS
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs; one that is dead but not yet reaped by init does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_no_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("this is no model")
    with pytest.raises(EngineError, match=r"broken.gguf did not load: .*magic") as caught:
        LlamaEngine.load(LlamaOptions(model=str(broken)))
    assert "\n" not in str(caught.value)
    with pytest.raises(AssetError, match="no model file"):
        LlamaEngine.load(LlamaOptions(model=str(tmp_path / "absent.gguf")))
