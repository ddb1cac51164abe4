"""The llama engine: a real child process, started, supervised and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from headstart import assets
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.engines.llama_prompts import PromptCache
from headstart.engines.llama_slots import Slots
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


# Prompts that are read ahead


class FakeSlots:
    """llama.cpp's slots as it tells of them, filled as they are asked for."""

    def __init__(self, count: int) -> None:
        self.states: list[dict[str, Any]] = [
            {"id": slot, "is_processing": False} for slot in range(count)
        ]
        self.read: list[tuple[str, int]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.reading = asyncio.Event()
        self.slots = Slots()
        self.prompts = PromptCache(self.slots)

    async def look(self) -> list[dict[str, Any]]:
        return [dict(state) for state in self.states]

    def use(self, slot: int) -> None:
        last = max(state.get("id_task", 0) for state in self.states)
        self.states[slot]["id_task"] = last + 1

    async def fill(self, prompt: str, url: str = "http://one") -> None:
        async def read(slot: int) -> None:
            self.reading.set()
            await self.go_on.wait()
            self.use(slot)
            self.read.append((prompt, slot))

        await self.prompts.fill(url, prompt, self.look, read)


async def test_sessions_that_open_together_have_a_prompt_read_once() -> None:
    llama = FakeSlots(2)
    llama.go_on.clear()
    async with asyncio.timeout(DEADLINE_SECS), asyncio.TaskGroup() as tasks:
        for prompt in ("a", "b", "a", "a"):
            tasks.create_task(llama.fill(prompt))
        await llama.reading.wait()
        llama.go_on.set()
    assert llama.read == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


async def test_the_next_session_reads_the_prompt_when_the_one_that_did_is_closed() -> None:
    llama = FakeSlots(1)
    llama.go_on.clear()
    async with asyncio.timeout(DEADLINE_SECS):
        closed, next_one = (asyncio.create_task(llama.fill("a")) for _ in range(2))
        await llama.reading.wait()
        closed.cancel()
        llama.go_on.set()
        await asyncio.wait([closed])
        await next_one
    assert closed.cancelled()
    assert llama.read == [("a", 0)]


async def test_a_prompt_that_could_not_be_read_fails_for_all_who_wait_and_is_tried_again() -> None:
    llama = FakeSlots(1)
    state = llama.states.pop()

    async def look() -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        if not llama.states:
            raise EngineError("it died")
        return await llama.look()

    async def read(slot: int) -> None:
        llama.read.append(("a", slot))

    def fill() -> Awaitable[None]:
        return llama.prompts.fill("http://one", "a", look, read)

    async with asyncio.timeout(DEADLINE_SECS):
        failures = await asyncio.gather(fill(), fill(), return_exceptions=True)
        assert [str(failure) for failure in failures] == ["it died"] * 2
        llama.states.append(state)
        await fill()
    assert llama.read == [("a", 0)]


async def test_only_slots_that_hold_no_conversation_are_filled() -> None:
    llama, conversation, other = FakeSlots(4), FakeSlots(0), FakeSlots(0)
    llama.states[3]["is_processing"] = True
    with llama.slots.answering(conversation):
        llama.use(1)
    await llama.fill("a")
    assert llama.read == [("a", 0), ("a", 2)]
    with llama.slots.answering(other):
        llama.use(2)
    await llama.fill("b")
    assert llama.read[2:] == [("b", 0)], "0 has not been used since it was filled, 2 has"
    llama.slots.left(conversation)
    llama.slots.left(other)
    await llama.fill("c")
    assert llama.read[3:] == [("c", 0), ("c", 1), ("c", 2)]


async def test_a_slot_that_a_conversation_may_have_taken_meanwhile_is_its_own() -> None:
    llama, conversation = FakeSlots(1), FakeSlots(0)
    llama.go_on.clear()
    async with asyncio.timeout(DEADLINE_SECS), asyncio.TaskGroup() as tasks:
        tasks.create_task(llama.fill("a"))
        await llama.reading.wait()
        with llama.slots.answering(conversation):
            llama.go_on.set()
    await llama.fill("b")
    assert llama.read == [("a", 0)]


async def test_a_restart_forgets_what_was_read() -> None:
    llama = FakeSlots(1)
    for url in ("http://one", "http://one", "http://two"):
        await llama.fill("a", url)
    assert llama.read == [("a", 0)] * 2
