"""A server with Deepgram's protocol, the local recogniser behind it, and faults on demand."""

from __future__ import annotations

import asyncio
import io
import json
import random
import time
import uuid
from collections.abc import Callable
from typing import Literal, Self

import numpy as np
import soundfile
import soxr
from aiohttp import web
from numpy.typing import NDArray

from headstart.engines import hub
from headstart.engines.hypothesis import Hypothesis
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.processors.audio import MODEL_RATE
from headstart.processors.stt.streaming.fallback import recognise
from headstart.testing import deepgram_messages as messages
from headstart.testing.deepgram_connection import (
    DEFAULT_RATE,
    Connection,
    Services,
    cut,
    last,
    punctuated,
)
from headstart.testing.deepgram_faults import Faults, Served
from headstart.testing.deepgram_flux import FluxConnection, objection
from headstart.testing.delays import Delays

__all__ = ["DeepgramServer", "Faults", "Served"]

_LEAST_SECS = 0.1


class DeepgramServer:
    """`/v1/listen` over WebSocket and as a request, and Flux's `/v2/listen`, on one port.

    An async context manager.

    The real service's interim results come about twice a second of audio, and so do these.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        idle_timeout_secs: float = 10.0,
        delay_secs: tuple[float, float] = (0.0, 0.0),
        seed: int = 0,
        transcript: Delays | None = None,
    ) -> None:
        """Prepare; entering the context starts it.

        Args:
            host: To bind.
            port: To bind; 0 for any that is free.
            key: The one API key that is taken; any if None.
            idle_timeout_secs: A connection that sends nothing for so long is closed (NET-0001).
            delay_secs: Least and most that a message is late, drawn at random.
            seed: Of those draws.
            transcript: How late the words of a stream are, counted from the audio or the
                `Finalize` that they answer, the local recogniser's own time included.
        """
        self._host, self._port = host, port
        self._key = key
        self._delay_secs = delay_secs
        self._random = random.Random(seed)
        self._transcript = transcript
        self._faults: list[tuple[Faults, int]] = []
        self._changed = asyncio.Condition()
        self._services = Services(
            self._recognise,
            self._wait,
            self.notify,
            idle_timeout_secs,
            ahead=transcript is not None,
        )
        self.served: list[Served] = []
        """Every connection and request, oldest first."""

    @property
    def url(self) -> str:
        """What `DEEPGRAM_BASE_URL` is to be."""
        return f"ws://{self._host}:{self._port}"

    def fail(self, faults: Faults, times: int = 1) -> None:
        """Let the next connections or requests (as `faults.on` says) go wrong.

        Args:
            faults: How.
            times: How many; each call's come after those of earlier calls.
        """
        if times:
            self._faults.append((faults, times))

    def heal(self) -> None:
        """Forget the faults that have not happened yet."""
        self._faults.clear()

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something shows in `served`.

        Args:
            happened: Looked at whenever a connection opens or closes or sends something.
        """
        async with self._changed:
            await self._changed.wait_for(happened)

    async def notify(self) -> None:
        """Something has changed in `served`."""
        async with self._changed:
            self._changed.notify_all()

    async def __aenter__(self) -> Self:
        self._engine = await hub.shared.get(WhisperEngine, WhisperOptions())
        app = web.Application(client_max_size=256 * 2**20)
        app.router.add_get("/v1/listen", self._listen)
        app.router.add_get("/v2/listen", self._listen)
        app.router.add_post("/v1/listen", self._transcribe)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    # -- requests

    async def _admit(self, request: web.Request, served: Served, faults: Faults) -> None:
        """Let the request in, or answer it with an error."""
        self.served.append(served)
        await self.notify()
        request_id = str(uuid.uuid4())
        await asyncio.sleep(faults.handshake_delay_secs)
        if faults.refuse:
            cut(request)
            raise web.HTTPServiceUnavailable
        if faults.status is not None:
            raise _error(faults.status, "FAULT", f"fault on demand: {faults.status}", request_id)
        authorization = request.headers.get("Authorization", "")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() not in ("token", "bearer") or not key:
            raise _error(401, "INVALID_AUTH", "Invalid credentials.", request_id)
        if self._key is not None and key != self._key:
            raise _error(401, "INVALID_AUTH", "Invalid credentials.", request_id)
        if served.on == "stream":
            encoding = last(served.query, "encoding", "linear16")
            rate = last(served.query, "sample_rate", str(DEFAULT_RATE))
            if encoding != "linear16" or not rate.isdigit() or not 8000 <= int(rate) <= 48000:
                raise _error(
                    400,
                    "Bad Request",
                    f"this server takes linear16 at 8000 to 48000 Hz, not {encoding} at {rate}",
                    request_id,
                )
            if request.path == "/v2/listen" and (reason := objection(served.query)) is not None:
                raise _error(400, "Bad Request", reason, request_id)

    def _next_faults(self, on: Literal["stream", "rest"]) -> Faults:
        for at, (faults, times) in enumerate(self._faults):
            if faults.on == on:
                self._faults[at : at + 1] = [(faults, times - 1)] if times > 1 else []
                return faults
        return Faults(on)

    async def _transcribe(self, request: web.Request) -> web.Response:
        served = Served("rest", _query(request))
        faults = self._next_faults("rest")
        await self._admit(request, served, faults)
        try:
            samples, rate = soundfile.read(
                io.BytesIO(await request.read()), dtype="float32", always_2d=True
            )
        except soundfile.LibsndfileError:
            raise _error(
                400, "Bad Request", "failed to process audio: corrupt or unsupported data", ""
            ) from None
        mono = samples.mean(axis=1)
        served.audio_secs = len(mono) / rate
        hypothesis = await self._recognise(mono, rate)
        await self._wait(faults, time.monotonic())
        loud = np.flatnonzero(np.abs(mono) > 0.01)
        first, last = (loud[0] / rate, loud[-1] / rate) if len(loud) else (0.0, len(mono) / rate)
        listed = messages.words(
            hypothesis, float(first), float(last), punctuate=punctuated(served.query)
        )
        best = messages.alternative(hypothesis, listed)
        served.open = False
        await self.notify()
        answer = json.dumps(messages.prerecorded(str(uuid.uuid4()), best, served.audio_secs))
        return web.Response(
            text=answer if faults.instead is None else faults.instead,
            content_type="application/json",
        )

    async def _recognise(self, samples: NDArray[np.float32], rate: int) -> Hypothesis:
        if len(samples) < _LEAST_SECS * rate:
            return Hypothesis()
        if rate != MODEL_RATE:
            samples = soxr.resample(samples, rate, MODEL_RATE)
        return await recognise(self._engine, (samples * 32767).astype(np.int16))

    async def _wait(self, faults: Faults, asked: float, words: str = "") -> None:
        secs = faults.slow_secs + self._random.uniform(*self._delay_secs)
        if words and self._transcript is not None:
            secs += max(0.0, asked + self._transcript.draw_secs(words) - time.monotonic())
        await asyncio.sleep(secs)

    # -- streams

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        served = Served("stream", _query(request))
        faults = self._next_faults("stream")
        await self._admit(request, served, faults)
        socket = web.WebSocketResponse(compress=False, max_msg_size=2**24)
        try:
            await socket.prepare(request)
        except ConnectionResetError:  # the client did not wait for a late handshake
            raise web.HTTPServiceUnavailable from None
        served.open = True
        await self.notify()
        kind = FluxConnection if request.path == "/v2/listen" else Connection
        connection = kind(request, socket, served, faults, self._services)
        try:
            await connection.run()
        finally:
            served.open = False
            await self.notify()
        return socket


def _query(request: web.Request) -> dict[str, list[str]]:
    return {name: request.query.getall(name) for name in request.query}


def _error(status: int, code: str, reason: str, request_id: str) -> web.HTTPException:
    """An error status as Deepgram gives it: in the body, and in `dg-error` for WebSockets."""
    error = web.HTTPException(
        headers={"dg-error": reason, "dg-request-id": request_id},
        text=json.dumps(messages.refusal(code, reason, request_id)),
        content_type="application/json",
    )
    error.set_status(status, reason="Refused")
    return error
