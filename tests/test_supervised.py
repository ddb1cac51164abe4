"""Background work of a stage: whatever becomes of it, somebody hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pipecat.frames.frames import ErrorFrame, Frame, StartFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.tests.utils import QueuedFrameProcessor
from pipecat.workers.runner import WorkerRunner

from headstart.processors.supervised import supervise


class Worker(FrameProcessor):
    """A stage with nothing but background work."""

    def __init__(self, work: Callable[[], Awaitable[None]], *, restart: bool = True) -> None:
        super().__init__()
        self._work, self._restart = work, restart
        self.task: asyncio.Task[None] | None = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            self.task = supervise(self, self._run, "work", restart=self._restart)
        await self.push_frame(frame, direction)

    async def _run(self) -> None:
        await self._work()

    async def cleanup(self) -> None:
        await super().cleanup()  # type: ignore[no-untyped-call]
        if self.task:
            await self.cancel_task(self.task)


@asynccontextmanager
async def running(stage: Worker) -> AsyncIterator[asyncio.Queue[Frame]]:
    """The stage in a pipeline; what it pushes upstream."""
    up: asyncio.Queue[Frame] = asyncio.Queue()
    above = QueuedFrameProcessor(queue=up, queue_direction=FrameDirection.UPSTREAM)
    worker = PipelineWorker(Pipeline([above, stage]), enable_rtvi=False)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    task = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(30):
            yield up
    finally:
        await worker.cancel()
        await task


async def error(up: asyncio.Queue[Frame]) -> ErrorFrame:
    while not isinstance(frame := await up.get(), ErrorFrame):
        pass
    return frame


async def test_work_that_fails_is_reported_and_begun_anew() -> None:
    begun, going = 0, asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise ValueError(f"no reason,\nnumber {begun}")
        going.set()
        await asyncio.Event().wait()

    stage = Worker(work)
    async with running(stage) as up:
        await going.wait()
        for number in (1, 2):
            frame = await error(up)
            assert frame.error == f"background task 'work' failed: no reason, number {number}"
            assert frame.processor is stage
        assert stage.is_usable


async def test_work_whose_awaited_future_is_cancelled_does_not_just_vanish() -> None:
    begun, going = asyncio.Event(), asyncio.Event()
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        if not begun.is_set():
            begun.set()
            await future
        going.set()
        await asyncio.Event().wait()

    async with running(Worker(work)) as up:
        await begun.wait()
        future.cancel()
        assert (await error(up)).error.startswith("background task 'work' stopped")
        await going.wait()


async def test_work_that_can_not_be_begun_anew_makes_its_stage_unusable() -> None:
    async def work() -> None:
        raise ValueError("no reason")

    stage = Worker(work, restart=False)
    async with running(stage) as up:
        assert (await error(up)).error == "background task 'work' failed: no reason"
        assert not stage.is_usable
        assert stage.task is not None
        await asyncio.wait([stage.task])


async def test_work_that_is_cancelled_ends_at_once_and_without_an_error() -> None:
    going, over = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        going.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    stage = Worker(work)
    async with running(stage) as up:
        await going.wait()
        assert stage.task is not None
        await stage.cancel_task(stage.task)
        assert over.is_set() and stage.task.cancelled()
        assert not any(isinstance(up.get_nowait(), ErrorFrame) for _ in range(up.qsize()))
