"""What a process takes in which many sessions speak at once: one model for all, or one each."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from headstart.bench.machine import resident_mb, usage
from headstart.bench.voice.session import Memory
from headstart.bench.voice.speed import line

_OWN_MODELS = 4
"""Sessions of Pipecat's service: each loads the model again."""
_A_SESSION_SECS = 10.0
"""How long one may take to say its text, with all others before it."""


def sessions_of(engine: str, most: int) -> int:
    """How many are tried with this engine."""
    return min(most, _OWN_MODELS) if engine == "pipecat" else most


def measure(engine: str, sessions: int, text: str, voice: str) -> Memory:
    """Have so many sessions say `text`; for a process of its own.

    Raises:
        EngineError: The engine did not load, or did not speak.
    """
    return asyncio.run(_measure(engine, sessions, text, voice))


async def _measure(engine: str, sessions: int, text: str, voice: str) -> Memory:
    limit_secs = _A_SESSION_SECS * sessions
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(line(engine))]
        await lines[0].speak(text, voice, limit_secs)
        one_mb = resident_mb()
        lines += [await stack.enter_async_context(line(engine)) for _ in range(sessions - 1)]
        silent_mb = resident_mb()
        takes = await asyncio.gather(*(one.speak(text, voice, limit_secs) for one in lines))
        spoken_mb = resident_mb()
        return Memory(
            engine=engine,
            text=text,
            sessions=sessions,
            spoke=sum(bool(take.pieces) for take in takes),
            one_mb=one_mb,
            silent_mb=silent_mb,
            spoken_mb=spoken_mb,
            most_mb=max(spoken_mb, usage().peak_rss_mb),
        )
