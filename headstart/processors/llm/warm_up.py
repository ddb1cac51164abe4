"""What would make the first answer later than the others, done before somebody waits for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from anthropic import AsyncAnthropic
from anthropic.types.beta import BetaRawMessageStreamEvent

from headstart.engines.llama import LlamaEngine

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


async def cache_prompt(
    client: AsyncAnthropic, request: Mapping[str, Any], engine: LlamaEngine, url: str
) -> None:
    """Have the prompt in the free slots of llama.cpp, so that no turn has to read it first.

    Args:
        client: Of the local server.
        request: Parameters of a request that begins as those of turns do.
        engine: The local server; it remembers what it has read.
        url: Where it serves.
    """
    patient = client.with_options(timeout=_CACHE_PROMPT_SECS)
    chat = _as_chat(request)

    async def read(slot: int) -> None:
        # Of llama.cpp's interfaces for chats, this is the one that lets the slot be chosen.
        await patient.post("/v1/chat/completions", body={**chat, "id_slot": slot}, cast_to=object)

    await engine.prompts.fill(url, json.dumps(chat), lambda: slots_of(patient), read)


async def slots_of(client: AsyncAnthropic) -> list[dict[str, Any]]:
    """What llama.cpp says of its slots."""
    slots: Any = await client.get("/slots", cast_to=object)
    return list(slots)


def _as_chat(request: Mapping[str, Any]) -> dict[str, Any]:
    """The same conversation as OpenAI's protocol has it, with an answer of one token."""
    said = [{"role": "system", "content": request["system"]}] if request.get("system") else []
    chat: dict[str, Any] = {
        "messages": [
            {"role": message["role"], "content": _text(message["content"])}
            for message in [*said, *request["messages"]]
        ],
        "max_tokens": 1,
    }
    if request.get("tools"):
        chat["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool["name"],
                    "description": tool.get("description", ""),
                    "parameters": tool["input_schema"],
                },
            }
            for tool in request["tools"]
        ]
    return chat


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)
