"""Runs the coroutine of a command so that Ctrl-C ends it, whatever it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_to_end(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine as `asyncio.run` does, but wait for nothing that it left behind.

    The first Ctrl-C cancels the coroutine, which may still put things in order; a second one ends
    it at once. The loop is never closed: closing waits for every task and thread without limit,
    and the process is about to end anyway.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    runner = asyncio.Runner()
    _never_closed.append(runner)  # tasks that are collected unfinished complain
    return runner.run(main)


_never_closed: list[asyncio.Runner] = []
