"""Who runs next on a model, and how engines are shared."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.engines.hub import Engine, EngineHub
from headstart.engines.queue import InferenceQueue, Priority, Ticket
from headstart.errors import EngineBusyError, EngineError


@pytest.fixture
async def queue() -> AsyncIterator[InferenceQueue]:
    made = InferenceQueue("test", capacity=3)
    yield made
    made.close()


class Model:
    """Work that begins when it is let, and says in which order it was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.begun = threading.Event()
        self._go = threading.Event()

    def hold(self) -> str:
        self.begun.set()
        assert self._go.wait(10)
        return "held"

    def release(self) -> None:
        self._go.set()

    def work(self, name: str) -> str:
        self.done.append(name)
        return name


async def occupied(queue: InferenceQueue, model: Model) -> asyncio.Task[str]:
    task = asyncio.create_task(queue.run(model.hold))
    await asyncio.to_thread(model.begun.wait)
    return task


async def test_what_the_work_returns_and_raises_reaches_the_caller(queue: InferenceQueue) -> None:
    assert await queue.run(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await queue.run(lambda: 1 // 0)
    assert [piece async for piece in queue.stream(lambda: iter("abc"))] == ["a", "b", "c"]
    assert queue.statistics().done == 3


async def test_committed_work_overtakes_waiting_speculation(queue: InferenceQueue) -> None:
    model = Model()
    holder = await occupied(queue, model)
    speculation = asyncio.create_task(
        queue.run(lambda: model.work("speculative"), Ticket(Priority.SPECULATIVE))
    )
    await asyncio.sleep(0)
    committed = asyncio.create_task(queue.run(lambda: model.work("committed")))
    await asyncio.sleep(0)
    model.release()
    await asyncio.gather(holder, speculation, committed)
    assert model.done == ["committed", "speculative"]


async def test_committing_a_waiting_speculation_lets_it_overtake_another(
    queue: InferenceQueue,
) -> None:
    model = Model()
    holder = await occupied(queue, model)
    tickets = [Ticket(Priority.SPECULATIVE), Ticket(Priority.SPECULATIVE)]
    tasks = []
    for name, ticket in zip(("first", "second"), tickets, strict=True):
        tasks.append(asyncio.create_task(queue.run(partial(model.work, name), ticket)))
        await asyncio.sleep(0)
    tickets[1].commit()
    model.release()
    await asyncio.gather(holder, *tasks)
    assert model.done == ["second", "first"]


async def test_committed_work_waits_for_one_piece_of_a_speculation_only(
    queue: InferenceQueue,
) -> None:
    model = Model()

    def pieces() -> Iterator[str]:
        yield model.hold()
        for number in range(3):
            yield model.work(f"piece {number}")

    async def speculate() -> None:
        async for _ in queue.stream(pieces, Ticket(Priority.SPECULATIVE)):
            pass

    speculation = asyncio.create_task(speculate())
    await asyncio.to_thread(model.begun.wait)
    committed = asyncio.create_task(queue.run(lambda: model.work("committed")))
    await asyncio.sleep(0)
    model.release()
    await asyncio.gather(speculation, committed)
    assert model.done == ["committed", "piece 0", "piece 1", "piece 2"]


async def test_work_that_is_not_due_yet_lets_others_go_first(queue: InferenceQueue) -> None:
    model, now = Model(), time.monotonic()
    holder = await occupied(queue, model)
    tasks = []
    for name, due in (("in 2 s", now + 2), ("in 1 s", now + 1), ("asked now", None)):
        work = lambda name=name: model.work(name)  # noqa: E731
        tasks.append(asyncio.create_task(queue.run(work, Ticket(due=due))))
        await asyncio.sleep(0)
    model.release()
    await asyncio.gather(holder, *tasks)
    assert model.done == ["asked now", "in 1 s", "in 2 s"]


async def test_leaving_a_stream_frees_the_worker(queue: InferenceQueue) -> None:
    forever = queue.stream(lambda: iter(int, 1))
    async for _ in forever:
        break
    await forever.aclose()
    assert await queue.run(lambda: "free") == "free"
    assert queue.statistics().cancelled == 1


async def test_cancelled_work_never_runs(queue: InferenceQueue) -> None:
    model = Model()
    holder = await occupied(queue, model)
    ticket = Ticket()
    waiting = asyncio.create_task(queue.run(lambda: model.work("cancelled"), ticket))
    await asyncio.sleep(0)
    ticket.cancel()
    model.release()
    await holder
    with pytest.raises(EngineError, match="cancelled"):
        await waiting
    assert model.done == []


async def test_a_full_queue_refuses_speculation_and_drops_it_for_committed_work(
    queue: InferenceQueue,
) -> None:
    model = Model()
    holder = await occupied(queue, model)
    speculations = []
    for number in range(3):
        speculations.append(
            asyncio.create_task(
                queue.run(partial(model.work, f"s{number}"), Ticket(Priority.SPECULATIVE))
            )
        )
        await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await queue.run(lambda: model.work("refused"), Ticket(Priority.SPECULATIVE))
    committed = asyncio.create_task(queue.run(lambda: model.work("committed")))
    await asyncio.sleep(0)
    model.release()
    results = await asyncio.gather(holder, *speculations, committed, return_exceptions=True)
    assert isinstance(results[3], EngineBusyError)
    assert model.done == ["committed", "s0", "s1"]
    assert queue.statistics().rejected == 2


async def test_a_closed_queue_ends_what_waits() -> None:
    queue, model = InferenceQueue("closing"), Model()
    holder = await occupied(queue, model)
    waiting = asyncio.create_task(queue.run(lambda: "never"))
    await asyncio.sleep(0)
    queue.close()
    model.release()
    with pytest.raises(EngineError, match="closed"):
        await waiting
    assert await holder == "held"
    with pytest.raises(EngineError, match="closed"):
        await queue.run(lambda: "never")


class JustClosed(asyncio.SelectorEventLoop):
    """Closes right after a worker thread has asked it whether it is closed."""

    def is_closed(self) -> bool:
        return super().is_closed() and threading.current_thread() is threading.main_thread()

    def __del__(self) -> None:
        """Its base class would close it once more, if a worker thread has it last."""


def ask_and_go(queue: InferenceQueue, model: Model, *, stream: bool) -> None:
    """A session that asks for work and closes its event loop before the work is done."""

    async def ask() -> None:
        asked = (
            anext(queue.stream(lambda: iter([model.hold()])))
            if stream
            else queue.run(model.hold, Ticket(Priority.SPECULATIVE))
        )
        task = asyncio.ensure_future(asked)
        await asyncio.to_thread(model.begun.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with asyncio.Runner(loop_factory=JustClosed) as runner:
        runner.run(ask())


@pytest.mark.parametrize("stream", [False, True])
def test_a_session_whose_loop_closes_leaves_the_worker_to_the_others(stream: bool) -> None:
    queue, model = InferenceQueue("test"), Model()
    ask_and_go(queue, model, stream=stream)
    model.release()

    async def other() -> str:
        async with asyncio.timeout(10):
            return await queue.run(lambda: "served")

    assert asyncio.run(other()) == "served"
    queue.close()


@given(st.lists(st.sampled_from(list(Priority)), min_size=1, max_size=12))
def test_work_runs_committed_first_then_oldest_first(priorities: list[Priority]) -> None:
    async def scenario() -> None:
        queue, model = InferenceQueue("ordered"), Model()
        holder = await occupied(queue, model)
        tasks = []
        for number, priority in enumerate(priorities):
            work = lambda name=f"{int(priority)}-{number:02}": model.work(name)  # noqa: E731
            tasks.append(asyncio.create_task(queue.run(work, Ticket(priority))))
            await asyncio.sleep(0)
        model.release()
        await asyncio.gather(holder, *tasks)
        queue.close()
        assert model.done == sorted(model.done)

    asyncio.run(scenario())


@dataclass(frozen=True)
class Options:
    name: str = "one"
    broken: bool = False


class CountedEngine(Engine):
    loads: list[str] = []  # noqa: RUF012
    closed: list[str] = []  # noqa: RUF012

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def load(cls, options: Options) -> CountedEngine:
        cls.loads.append(options.name)
        if options.broken and cls.loads.count(options.name) == 1:
            raise EngineError("the first load fails")
        return cls(options)

    def close(self) -> None:
        self.closed.append(self.options.name)


@pytest.fixture(autouse=True)
def fresh_counts() -> None:
    CountedEngine.loads, CountedEngine.closed = [], []


async def test_callers_at_the_same_time_share_one_load() -> None:
    hub = EngineHub()
    engines = await asyncio.gather(*(hub.get(CountedEngine, Options()) for _ in range(8)))
    assert CountedEngine.loads == ["one"]
    assert all(engine is engines[0] for engine in engines)
    assert await hub.get(CountedEngine, Options("two")) is not engines[0]


async def test_a_load_that_fails_is_tried_again_by_the_next_caller() -> None:
    hub = EngineHub()
    with pytest.raises(EngineError, match="first load fails"):
        await hub.get(CountedEngine, Options("shaky", broken=True))
    assert (await hub.get(CountedEngine, Options("shaky", broken=True))).options.name == "shaky"


async def test_a_cancelled_caller_does_not_spoil_the_load_for_the_others() -> None:
    hub = EngineHub()
    impatient = asyncio.create_task(hub.get(CountedEngine, Options()))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await hub.get(CountedEngine, Options())).options.name == "one"
    assert CountedEngine.loads == ["one"]


async def test_closing_the_hub_closes_its_engines_newest_first() -> None:
    hub = EngineHub()
    for name in ("a", "b", "c"):
        await hub.get(CountedEngine, Options(name))
    hub.close()
    assert CountedEngine.closed == ["c", "b", "a"]
    with pytest.raises(EngineError, match="closed"):
        await hub.get(CountedEngine, Options("d"))
