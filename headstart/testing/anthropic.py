"""A server with Anthropic's protocol: the local model behind it, as late as one in the cloud."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

import aiohttp
from aiohttp import web

from headstart.engines import hub
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.testing.delays import Delays

_FIRST_TOKEN = b"content_block_delta"


class AnthropicServer:
    """`/v1/messages` and what else llama.cpp knows of the protocol. An async context manager.

    A drawn delay counts from the request to the first token, the local model's own time
    included; the rest of the answer follows at the pace at which the local model wrote it. A
    client that hangs up ends the local model's work, too.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        model: str = "llama://SmolLM2-135M",
        first_token: Delays | None = None,
    ) -> None:
        """Prepare; entering the context starts it.

        Args:
            host: To bind.
            port: To bind; 0 for any that is free.
            key: The one API key that is taken; any if None.
            model: Who answers, whatever model is asked for.
            first_token: How late the first token is; None: as soon as it is there.
        """
        self._host, self._port = host, port
        self._key = key
        self._model = model
        self._first_token = first_token

    @property
    def url(self) -> str:
        """What `ANTHROPIC_BASE_URL` is to be."""
        return f"http://{self._host}:{self._port}"

    async def __aenter__(self) -> Self:
        self._engine = await hub.shared.get(LlamaEngine, LlamaOptions.from_url(self._model))
        # llama.cpp closes a kept connection now and then just as a request arrives on it.
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/v1/models/{model}", self._tell_model)
        app.router.add_post("/v1/{rest:.+}", self._forward)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _tell_model(self, request: web.Request) -> web.Response:
        self._admit(request)
        name = request.match_info["model"]
        return web.json_response({"type": "model", "id": name, "display_name": name,
                                  "created_at": "1970-01-01T00:00:00Z"})  # fmt: skip

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        self._admit(request)
        body = await request.read()
        due = asyncio.get_running_loop().time()
        if self._first_token is not None and request.path == "/v1/messages":
            due += self._first_token.draw_secs(_last_words(body))
        url = await self._engine.ensure_running()
        headers = {"x-api-key": self._engine.api_key, "content-type": "application/json"}
        async with self._client.post(url + request.path_qs, data=body, headers=headers) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
            )
            pieces: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_receive(answer.content, due, pieces), name="anthropic-server")
                while (piece := await pieces.get()) is not None:
                    at, content = piece
                    await asyncio.sleep(at - asyncio.get_running_loop().time())
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(content)
        await response.write_eof()
        return response

    def _admit(self, request: web.Request) -> None:
        given = request.headers.get("x-api-key")
        if given is None or self._key not in (None, given):
            error = {"type": "authentication_error", "message": "invalid x-api-key"}
            raise web.HTTPUnauthorized(
                text=json.dumps({"type": "error", "error": error}), content_type="application/json"
            )


async def _receive(
    content: aiohttp.StreamReader, due: float, pieces: asyncio.Queue[tuple[float, bytes] | None]
) -> None:
    """Queue an answer's pieces, each with its time to leave: all are as late as the first token."""
    now = asyncio.get_running_loop().time
    held, late = b"", None
    async for piece in content.iter_any():
        held += piece
        if late is None and _FIRST_TOKEN in held:
            late = max(0.0, due - now())
        if late is not None:
            pieces.put_nowait((now() + late, held))
            held = b""
    pieces.put_nowait((max(due, now()) if late is None else now() + late, held))
    pieces.put_nowait(None)


def _last_words(body: bytes) -> str:
    """The text of the last message of a request."""
    try:
        content: Any = json.loads(body)["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        return " ".join(block.get("text", "") for block in content)
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""  # llama.cpp will say what is wrong
