"""However and whenever a conversation ends, it ends: within a bound, and nothing is left."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger
from pipecat.frames.frames import CancelWorkerFrame, EndFrame, EndWorkerFrame
from pipecat.processors.frame_processor import FrameDirection
from scripted import Model, World, WorldSession, play
from test_speculation import ASKED, EAGER, ENDED, MODELS, SCRIPTS, Step, perform

from headstart.frames import SpeculationEndedFrame, SpeculationFiredFrame
from headstart.pipeline import gc_freeze
from headstart.pipeline.session import END_TIMEOUT_SECS, Said
from headstart.processors.turn.aggregator import UserTurn

BOUND_SECS = END_TIMEOUT_SECS + 10.0
TRIGGER = {"trigger": EAGER, "turn": {"smart_turn": False}}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Pipecat tells a story of every frame, and a full collection takes longer than a session."""
    logger.disable("pipecat")
    logger.disable("headstart")
    gc_freeze.freeze()
    yield
    gc_freeze.release()
    logger.enable("pipecat")
    logger.enable("headstart")


async def end(session: WorldSession) -> None:
    await session.end()


async def close(session: WorldSession) -> None:
    await session.close()


async def cancel_the_worker(session: WorldSession) -> None:
    await session.world._worker.cancel()


async def end_frame(session: WorldSession) -> None:
    await session.world.send(EndFrame())


async def end_frame_from_a_stage(session: WorldSession) -> None:
    stages = session.world.built.pipeline.processors
    turn = next(stage for stage in stages if isinstance(stage, UserTurn))
    await turn.push_frame(EndFrame())


async def stage_ends_the_session(session: WorldSession) -> None:
    await session.world.llm.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)


async def transport_loses_its_peer(session: WorldSession) -> None:
    await session.world.transport.output().push_frame(CancelWorkerFrame(), FrameDirection.UPSTREAM)


async def stage_hangs(session: WorldSession) -> None:
    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    setattr(session.world.llm, "process_frame", hang)  # noqa: B010
    await session.end()


async def everything_is_cancelled(session: WorldSession) -> None:
    """As `asyncio.run` does when the program ends."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.get_name() not in ("collect", "script"):
            task.cancel()


ENDINGS: list[Callable[[WorldSession], Awaitable[None]]] = [
    end,
    close,
    cancel_the_worker,
    end_frame,
    end_frame_from_a_stage,
    stage_ends_the_session,
    transport_loses_its_peer,
    stage_hangs,
    everything_is_cancelled,
]


class Outcome:
    """What was there when the conversation was over."""

    def __init__(self) -> None:
        self.took_secs = 0.0
        self.said: list[str] = []
        self.left: list[str] = []


def hold(
    steps: list[Step],
    models: list[Model],
    moment: tuple[float, int],
    ending: Callable[[WorldSession], Awaitable[None]],
    **stages: Any,
) -> tuple[World, Outcome]:
    """Hold a conversation that is ended at a moment of its script."""
    world, outcome = World(**(stages or TRIGGER)), Outcome()
    world.llm.script.extend(models)

    async def script() -> None:
        secs, turns = moment
        session = await world.session().__aenter__()

        async def collect() -> None:
            outcome.said = [e.text async for e in session.events() if isinstance(e, Said)]

        collecting = asyncio.create_task(collect(), name="collect")
        performing = asyncio.create_task(perform(world, steps), name="script")
        await asyncio.sleep(secs)
        for _ in range(turns):
            await asyncio.sleep(0)
        performing.cancel()
        await asyncio.wait([performing])
        began = asyncio.get_running_loop().time()
        await ending(session)
        async with asyncio.timeout(BOUND_SECS):
            await collecting  # the events end with the conversation
        outcome.took_secs = asyncio.get_running_loop().time() - began
        await session.close()
        for _ in range(5):
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        outcome.left = [task.get_name() for task in left]

    world.run = lambda script: script()  # type: ignore[method-assign]
    return play(world, script), outcome


def check_ended(world: World, outcome: Outcome) -> None:
    assert outcome.took_secs <= BOUND_SECS
    assert not outcome.left
    assert threading.active_count() == 1 or all(
        thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()
    )
    ended = [frame.attempt for _, frame in world.of(SpeculationEndedFrame)]
    fired = [frame.attempt for _, frame in world.of(SpeculationFiredFrame)]
    assert ended == fired, "I3: every attempt has exactly one end"


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=SCRIPTS,
    models=MODELS,
    moment=st.tuples(st.floats(0, 12), st.integers(0, 60)),
    ending=st.sampled_from(ENDINGS),
    min_silence_secs=st.sampled_from([0.0, 0.8]),
)
def test_a_conversation_that_ends_at_any_moment_is_over_and_leaves_nothing(
    steps: list[Step],
    models: list[Model],
    moment: tuple[float, int],
    ending: Callable[[WorldSession], Awaitable[None]],
    min_silence_secs: float,
) -> None:
    stages = TRIGGER | {"trigger": EAGER | {"min_silence_secs": min_silence_secs}}
    check_ended(*hold(steps, models, moment, ending, **stages))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_long_early_answer_does_not_keep_a_session_open(
    ending: Callable[[WorldSession], Awaitable[None]],
) -> None:
    world, outcome = hold(ASKED, [Model.LONG], (1.0, 0), ending)
    check_ended(world, outcome)
    assert world.of(SpeculationFiredFrame), "there was an early answer"
    assert not world.heard


def test_end_lets_the_bot_finish() -> None:
    world, outcome = hold([*ASKED, *ENDED[:2]], [Model.LONG], (1.3, 0), end)
    check_ended(world, outcome)
    assert world.heard[0].pieces == list(range(1, 41))


def test_words_of_withdrawn_and_cut_answers_are_not_told() -> None:
    other: Step = ("partial", "Set it to ten.")
    withdrawn: list[Step] = [*ASKED, other, ("wait", 1.0), ("stop_speaking",)]
    steps: list[Step] = [*withdrawn, ("final", "Set it to ten."), ("wait", 0.35), *ASKED]
    world, outcome = hold(steps, [Model.FAST, Model.LONG], (4.0, 0), close)
    kept = [message["content"] for message in world.messages if message["role"] == "assistant"]
    assert outcome.said
    assert " ".join(outcome.said) == kept[0]


PROGRAM = """
import asyncio, sys
from headstart import Session, load_config

async def hold(spec):
    async with Session(spec):
        await asyncio.Event().wait()

async def main():
    spec = load_config(sys.argv[1])
    sessions = [await Session(spec).__aenter__() for _ in range(2)]
    holding = asyncio.create_task(hold(spec))
    await asyncio.sleep(0.5)
    print("open", flush=True)
    {then}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("then", "sends", "says"),
    [
        ("raise ValueError('boom')", None, "ValueError: boom"),
        ("await asyncio.Event().wait()", signal.SIGINT, "KeyboardInterrupt"),
        ("return", None, ""),
    ],
)
async def test_a_program_that_ends_with_sessions_open_ends(
    then: str, sends: signal.Signals | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "listen.yaml"
    path.write_text("prompt: Listen.\nstages: [vad]\n")
    program = PROGRAM.replace("{then}", then)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"open\n"
            if sends is not None:
                process.send_signal(sends)
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert says in errors.decode()
    assert "left behind" not in errors.decode()
    assert process.returncode == 0 if not says else process.returncode != 0
