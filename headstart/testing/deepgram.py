"""A server with Deepgram's protocol, the local recogniser behind it, and faults on demand."""

from __future__ import annotations

import asyncio
import io
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import soundfile
import soxr
from aiohttp import WSCloseCode, WSMsgType, web
from loguru import logger
from numpy.typing import NDArray

from headstart.engines import hub
from headstart.engines.hypothesis import Hypothesis
from headstart.engines.whisper import WhisperEngine, WhisperOptions
from headstart.processors.stt.deepgram_batch import recognise
from headstart.testing import deepgram_messages as messages
from headstart.testing.deepgram_stream import Due, Kind, Pace, Stream

_RATE = 16000
_LEAST_SECS = 0.1


@dataclass(frozen=True)
class Faults:
    """What goes wrong with one connection or request.

    `..._at_secs` and `..._after_secs` count its audio, `..._delay_secs` and `slow_secs` the clock.
    """

    on: Literal["stream", "rest"] = "stream"
    """The WebSocket, or the prerecorded API."""
    refuse: bool = False
    """The connection is cut before any answer."""
    status: int | None = None
    """The HTTP status given instead of an answer: 401, 429, 503 and so on."""
    handshake_delay_secs: float = 0.0
    """How late the connection opens (or the request is looked at)."""
    drop_after_chunks: int | None = None
    """Cut after so many audio messages, without a close frame."""
    drop_at_secs: float | None = None
    """Cut once so much audio has come, without a close frame."""
    stall_after_secs: float | None = None
    """From there on audio is taken and nothing is said."""
    half_open: bool = False
    """Accepted, then neither read nor answered."""
    slow_secs: float = 0.0
    """How late every message is."""
    close_before_answer: bool = False
    """The close frame comes instead of the answer to `Finalize` or `CloseStream`."""


@dataclass
class Served:
    """What one connection or request was sent."""

    on: Literal["stream", "rest"]
    query: dict[str, list[str]]
    audio_secs: float = 0.0
    texts: list[str] = field(default_factory=list)
    """Types of the text messages: `KeepAlive`, `Finalize`, `CloseStream`."""
    open: bool = False
    """It was let in, and is not over."""


class DeepgramServer:
    """`/v1/listen` over WebSocket and as a request, on one port. An async context manager.

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
    ) -> None:
        """Prepare; entering the context starts it.

        Args:
            host: To bind.
            port: To bind; 0 for any that is free.
            key: The one API key that is taken; any if None.
            idle_timeout_secs: A connection that sends nothing for so long is closed (NET-0001).
            delay_secs: Least and most that a message is late, drawn at random.
            seed: Of those draws.
        """
        self._host, self._port = host, port
        self._key = key
        self._idle_timeout_secs = idle_timeout_secs
        self._delay_secs = delay_secs
        self._random = random.Random(seed)
        self._faults: list[Faults] = []
        self._changed = asyncio.Condition()
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
        self._faults += [faults] * times

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
            _cut(request)
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
            encoding = _last(served.query, "encoding", "linear16")
            rate = _last(served.query, "sample_rate", str(_RATE))
            if encoding != "linear16" or not rate.isdigit() or not 8000 <= int(rate) <= 48000:
                raise _error(
                    400,
                    "Bad Request",
                    f"this server takes linear16 at 8000 to 48000 Hz, not {encoding} at {rate}",
                    request_id,
                )

    def _next_faults(self, on: Literal["stream", "rest"]) -> Faults:
        for faults in self._faults:
            if faults.on == on:
                self._faults.remove(faults)
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
        await self._wait(faults)
        loud = np.flatnonzero(np.abs(mono) > 0.01)
        first, last = (loud[0] / rate, loud[-1] / rate) if len(loud) else (0.0, len(mono) / rate)
        listed = messages.words(
            hypothesis, float(first), float(last), punctuate=_punctuated(served.query)
        )
        best = messages.alternative(hypothesis, listed)
        served.open = False
        await self.notify()
        return web.json_response(messages.prerecorded(str(uuid.uuid4()), best, served.audio_secs))

    async def _recognise(self, samples: NDArray[np.float32], rate: int) -> Hypothesis:
        if len(samples) < _LEAST_SECS * rate:
            return Hypothesis()
        if rate != _RATE:
            samples = soxr.resample(samples, rate, _RATE)
        return await recognise(self._engine, (samples * 32767).astype(np.int16))

    async def _wait(self, faults: Faults) -> None:
        await asyncio.sleep(faults.slow_secs + self._random.uniform(*self._delay_secs))

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
        connection = _Connection(self, request, socket, served, faults)
        try:
            await connection.run()
        finally:
            served.open = False
            await self.notify()
        return socket


class _Connection:
    """One WebSocket: what comes in is queued, so that a late answer holds nothing up."""

    def __init__(
        self,
        server: DeepgramServer,
        request: web.Request,
        socket: web.WebSocketResponse,
        served: Served,
        faults: Faults,
    ) -> None:
        self._server = server
        self._request = request
        self._socket = socket
        self._served = served
        self._faults = faults
        self._request_id = str(uuid.uuid4())
        self._rate = int(_last(served.query, "sample_rate", str(_RATE)))
        self._interims = _last(served.query, "interim_results", "false") == "true"
        self._events = _last(served.query, "vad_events", "false") == "true"
        self._stream = Stream(self._rate, _pace(served.query))
        self._inbox: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self._chunks = 0
        self._interim_due = False

    async def run(self) -> None:
        """Serve the connection to its end."""
        if self._faults.half_open:
            await asyncio.Event().wait()
        working = asyncio.create_task(self._work(), name="deepgram-server")
        try:
            await self._receive()
            await working
        finally:
            working.cancel()
            await asyncio.wait([working])

    async def _receive(self) -> None:
        """Queue what comes, until the client is done, gone, or cut off."""
        while not self._socket.closed:
            try:
                message = await self._socket.receive(timeout=self._server._idle_timeout_secs)
            except TimeoutError:
                await self._socket.close(
                    code=WSCloseCode.INTERNAL_ERROR, message=messages.IDLE_REASON.encode()
                )
                break
            await self._server.notify()
            if message.type is WSMsgType.BINARY:
                if not message.data:
                    self._inbox.put_nowait('{"type": "CloseStream"}')
                elif self._cut_off(message.data):
                    _cut(self._request)
                    break
                else:
                    self._inbox.put_nowait(message.data)
            elif message.type is WSMsgType.TEXT:
                self._inbox.put_nowait(message.data)
            else:
                break
        self._inbox.put_nowait(None)

    def _cut_off(self, pcm: bytes) -> bool:
        self._chunks += 1
        self._served.audio_secs += len(pcm) / 2 / self._rate
        faults = self._faults
        return (
            faults.drop_after_chunks is not None and self._chunks >= faults.drop_after_chunks
        ) or (faults.drop_at_secs is not None and self._served.audio_secs >= faults.drop_at_secs)

    async def _work(self) -> None:
        """Answer what was queued, in order."""
        while (message := await self._inbox.get()) is not None:
            if isinstance(message, bytes):
                await self._hear(message)
                # A recogniser that has fallen behind skips what will be replaced anyway.
                if self._interim_due and self._inbox.empty():
                    self._interim_due = False
                    await self._answer(self._stream.interim())
            elif not await self._obey(message):
                break

    async def _hear(self, pcm: bytes) -> None:
        if len(pcm) % 2:
            await self._socket.close(
                code=WSCloseCode.POLICY_VIOLATION, message=messages.UNDECODABLE_REASON.encode()
            )
            return
        samples = np.frombuffer(pcm, np.int16).astype(np.float32) / np.float32(32768)
        more = True
        while more:
            dues = self._stream.feed(samples)
            samples = samples[:0]
            more = bool(dues) and dues[-1].kind is Kind.FINAL
            for due in dues:
                if due.kind is Kind.INTERIM:
                    self._interim_due = self._interims
                else:
                    await self._answer(due)

    async def _obey(self, text: str) -> bool:
        """Do what a text message says; False when it was the last."""
        try:
            kind = json.loads(text)["type"]
        except (ValueError, KeyError, TypeError):
            kind = None
        self._served.texts.append(str(kind))
        if kind == "KeepAlive":
            return True
        if kind not in ("Finalize", "CloseStream"):
            await self._say(messages.schema_error(text))
            return True
        if self._faults.close_before_answer:
            await self._socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"NET-0000")
            return False
        await self._answer(self._stream.finalize(), final_of_stream=kind == "CloseStream")
        if kind == "Finalize":
            return True
        await self._say(messages.metadata(self._request_id, self._stream.heard_secs))
        await self._socket.close()
        return False

    async def _answer(self, due: Due, *, final_of_stream: bool = False) -> None:
        if due.kind is Kind.SPEECH_STARTED:
            if self._events:
                await self._say(messages.speech_started(due.until_secs))
            return
        if due.kind is Kind.UTTERANCE_END:
            await self._say(messages.utterance_end(due.last_sound_secs))
            return
        final = due.kind is Kind.FINAL
        hypothesis, first, last = Hypothesis(), *self._stream.sound()
        if due.speech:
            hypothesis = await self._server._recognise(
                self._stream.audio(due.until_secs), self._rate
            )
        if final:
            self._interim_due = False
            self._stream.settle(due)
        listed = messages.words(
            hypothesis,
            first,
            max(min(last, due.until_secs), first),
            punctuate=_punctuated(self._served.query),
        )
        await self._say(
            messages.results(
                self._request_id,
                messages.alternative(hypothesis, listed),
                start_secs=due.start_secs,
                end_secs=due.until_secs,
                is_final=final,
                speech_final=due.speech_final or due.from_finalize,
                from_finalize=due.from_finalize and not final_of_stream,
            )
        )

    async def _say(self, message: dict[str, Any]) -> None:
        stall = self._faults.stall_after_secs
        if stall is not None and self._served.audio_secs >= stall:
            return
        await self._server._wait(self._faults)
        if not self._socket.closed:
            try:
                await self._socket.send_json(message)
            except ConnectionError:
                logger.debug("the test server's client has gone")


def _query(request: web.Request) -> dict[str, list[str]]:
    return {name: request.query.getall(name) for name in request.query}


def _last(query: dict[str, list[str]], name: str, default: str) -> str:
    return query.get(name, [default])[-1]


def _punctuated(query: dict[str, list[str]]) -> bool:
    return "true" in (_last(query, "punctuate", "false"), _last(query, "smart_format", "false"))


def _pace(query: dict[str, list[str]]) -> Pace:
    endpointing = _last(query, "endpointing", "10")
    utterance_end = _last(query, "utterance_end_ms", "")
    return Pace(
        endpointing_secs=int(endpointing) / 1000 if endpointing.isdigit() else None,
        utterance_end_secs=int(utterance_end) / 1000 if utterance_end.isdigit() else None,
    )


def _cut(request: web.Request) -> None:
    """End the connection as a broken network does: with no goodbye."""
    if request.transport is not None:
        request.transport.abort()


def _error(status: int, code: str, reason: str, request_id: str) -> web.HTTPException:
    """An error status as Deepgram gives it: in the body, and in `dg-error` for WebSockets."""
    error = web.HTTPException(
        headers={"dg-error": reason, "dg-request-id": request_id},
        text=json.dumps(messages.refusal(code, reason, request_id)),
        content_type="application/json",
    )
    error.set_status(status, reason="Refused")
    return error
