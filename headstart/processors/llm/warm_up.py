"""What would make the first answer later than the others, done before somebody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, get_args

from anthropic import AsyncAnthropic
from anthropic.types.beta import BetaRawMessageStreamEvent

_CONNECT_SECS = 3.0
_CACHE_PROMPT_SECS = 30.0


def prepare_to_read_events() -> None:
    """Have pydantic prepare what the SDK reads events with.

    Left alone it does so at the first event, on the event loop: 0.05 to 0.15 s in which nothing
    else moves, just when the first answer begins.
    """
    union, *_ = get_args(BetaRawMessageStreamEvent)
    for event in get_args(union):
        event.model_rebuild()


async def open_connection(client: AsyncAnthropic, model: str) -> None:
    """Leave an open connection to the API for the first turn; this costs no tokens."""
    await client.with_options(max_retries=0, timeout=_CONNECT_SECS).models.retrieve(model)


async def cache_prompt(client: AsyncAnthropic, request: Mapping[str, Any], slots: int) -> None:
    """Have the prompt in every slot of llama.cpp, so that no turn has to read it first.

    Args:
        client: Of the local server.
        request: Parameters of a request that begins as those of turns do.
        slots: How many the server has. Requests that run at the same time take a slot each.
    """
    patient = client.with_options(timeout=_CACHE_PROMPT_SECS)
    requests = [patient.messages.create(**request, max_tokens=1) for _ in range(slots)]
    await asyncio.gather(*requests)
