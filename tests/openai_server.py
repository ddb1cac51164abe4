"""A server that speaks the parts of OpenAI's protocol that Pipecat's services use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from aiohttp import web

SPEECH_RATE = 24_000
WORD_SECS = 0.2
"""Each word is a tone of this length."""
_TOKEN_SECS = 0.01
_PIECE_SECS = 0.05


@dataclass
class Request:
    """A request, and whether its answer was sent to the end."""

    text: str
    """The last message, or the text to speak."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """The answer is over, whole or not."""
    whole: bool = False


@dataclass
class OpenAIServer:
    """Answers chats with a script and speaks texts as tones."""

    url: str = ""
    answers: list[str] = field(default_factory=list)
    """What to say, answer by answer; an empty one is a server error."""
    chats: list[Request] = field(default_factory=list)
    speeches: list[Request] = field(default_factory=list)
    faster_than_real_time: float = 4.0

    async def chat(self, http: web.Request) -> web.StreamResponse:
        messages = (await http.json())["messages"]
        assert all(message.get("content") for message in messages), "no message is empty"
        request = Request(messages[-1]["content"])
        self.chats.append(request)
        answer = self.answers.pop(0)
        if not answer:
            request.done.set()
            return web.json_response({"error": {"message": "overloaded"}}, status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(http)
            for word in answer.split():
                delta = {"content": f"{word} "}
                chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
                chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": None}]
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
                await asyncio.sleep(_TOKEN_SECS)
            await response.write(b"data: [DONE]\n\n")
            request.whole = True
            return response
        finally:
            request.done.set()

    async def speech(self, http: web.Request) -> web.StreamResponse:
        request = Request((await http.json())["input"])
        self.speeches.append(request)
        samples = round(len(request.text.split()) * WORD_SECS * SPEECH_RATE)
        tone = np.sin(np.arange(samples) * 2 * np.pi * 220 / SPEECH_RATE) * 10_000
        audio, piece = tone.astype("<i2").tobytes(), round(_PIECE_SECS * SPEECH_RATE) * 2
        response = web.StreamResponse()
        try:
            await response.prepare(http)
            for start in range(0, len(audio), piece):
                await response.write(audio[start : start + piece])
                await asyncio.sleep(_PIECE_SECS / self.faster_than_real_time)
            request.whole = True
            return response
        finally:
            request.done.set()


@asynccontextmanager
async def openai_server(*answers: str) -> AsyncIterator[OpenAIServer]:
    """Serve on a free port of this machine."""
    server = OpenAIServer(answers=list(answers))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/audio/speech", server.speech)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()
