"""Background work of a stage that never ends without anybody hearing of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from pipecat.processors.frame_processor import FrameProcessor

_PAUSE_SECS = 0.1
_LONGEST_PAUSE_SECS = 8.0
_HEALTHY_SECS = 30.0
"""Work that ran for so long before it failed counts as new: its first restart is quick again."""


def supervise(
    stage: FrameProcessor,
    work: Callable[[], Coroutine[Any, Any, None]],
    name: str,
    *,
    restart: bool = True,
) -> asyncio.Task[None]:
    """Run background work of a stage; report it if it fails, and begin it anew.

    Pipecat's task manager logs an exception and lets the task end, so that the stage goes on
    without the work it depends on. Here each failure becomes an `ErrorFrame`. The pause before
    a restart doubles from 0.1 s to 8 s. Cancelling the task ends the work for good, and work
    that returns is done.

    Args:
        stage: Its task manager runs the task, and it pushes the errors.
        work: Begins the work; called again for each restart.
        name: Of the task, and of the work in errors.
        restart: False for work that cannot be begun anew: its failure makes the stage unusable.

    Returns:
        The task; the stage cancels it with `cancel_task`.
    """
    return stage.create_task(_run(stage, work, name, restart), name)


async def _run(
    stage: FrameProcessor, work: Callable[[], Coroutine[Any, Any, None]], name: str, restart: bool
) -> None:
    clock = asyncio.get_running_loop().time
    pause_secs = _PAUSE_SECS
    while True:
        begun = clock()
        try:
            await work()
        except asyncio.CancelledError:
            if _cancelled():
                raise
            # Something that the work waited for was cancelled, not the work.
            message, failure = (
                f"background task {name!r} stopped: what it awaited was cancelled",
                None,
            )
        except Exception as error:
            message, failure = f"background task {name!r} failed: {_line(error)}", error
        else:
            return
        await stage.push_error(message, exception=failure, force_treat_as_permanent=not restart)
        if not restart:
            return
        if clock() - begun > _HEALTHY_SECS:
            pause_secs = _PAUSE_SECS
        await asyncio.sleep(pause_secs * random.uniform(0.75, 1.0))
        pause_secs = min(2 * pause_secs, _LONGEST_PAUSE_SECS)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
