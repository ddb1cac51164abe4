"""Lets observers watch a pipeline for less than Pipecat's way costs."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence

from loguru import logger
from pipecat.frames.frames import Frame
from pipecat.observers.base_observer import (
    BaseObserver,
    FrameProcessed,
    FramePushed,
    ProcessorSetUp,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.frame_processor import FrameProcessorSetup


class WatchedPipeline(Pipeline):
    """A pipeline that calls its watchers directly.

    Pipecat hands each step of each frame to every observer through a queue and a task. That is
    what observers need that wait for something, and they are given to the worker as ever. Those
    that only look cost less here.
    """

    _watchers: Sequence[BaseObserver] = ()

    def watch(self, watchers: Sequence[BaseObserver]) -> None:
        """Tell these observers of each frame when it is pushed, right then.

        Args:
            watchers: Must neither wait nor take long. As with Pipecat, those that were made with
                `observe_every_push=False` hear of a frame's first push only.
        """
        self._watchers = watchers

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Set up the stages, watched."""
        watched = copy.copy(setup)
        watched.observer = _Watch(self._watchers, setup.observer)
        await super().setup(watched)

    async def cleanup(self) -> None:
        """Clean up the stages, then the watchers."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        for watcher in self._watchers:
            await watcher.cleanup()  # type: ignore[no-untyped-call]


class _Watch(BaseObserver):
    def __init__(self, watchers: Sequence[BaseObserver], others: BaseObserver | None) -> None:
        super().__init__()
        self._watchers = watchers
        self._of_every_push = [w for w in watchers if w.observe_every_push]
        self._others = others or BaseObserver()
        self._seen: weakref.WeakValueDictionary[int, Frame] = weakref.WeakValueDictionary()

    async def on_push_frame(self, data: FramePushed) -> None:
        frame = data.frame
        data.first_push = frame.id not in self._seen
        if data.first_push:
            self._seen[frame.id] = frame
        for watcher in self._watchers if data.first_push else self._of_every_push:
            try:
                await watcher.on_push_frame(data)
            except Exception:  # the conversation goes on without its observer
                logger.exception(f"{watcher} failed on {frame}")
        await self._others.on_push_frame(data)

    async def on_process_frame(self, data: FrameProcessed) -> None:
        await self._others.on_process_frame(data)

    async def on_processor_setup(self, data: ProcessorSetUp) -> None:
        await self._others.on_processor_setup(data)
