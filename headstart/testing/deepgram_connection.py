"""One stream of the test server: audio and commands in, results out."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web
from loguru import logger
from numpy.typing import NDArray

from headstart.engines.hypothesis import Hypothesis
from headstart.testing import deepgram_messages as messages
from headstart.testing.deepgram_faults import Faults, Served
from headstart.testing.deepgram_stream import FADE_SECS, Due, Kind, Pace, Stream

DEFAULT_RATE = 16000
"""Samples a second, where the client does not say."""


@dataclass(frozen=True)
class Services:
    """What a connection needs of its server."""

    recognise: Callable[[NDArray[np.float32], int], Awaitable[Hypothesis]]
    wait: Callable[[Faults, float, str], Awaitable[None]]
    """Before each message: when it was asked for (`time.monotonic`), and its words, if any."""
    notify: Callable[[], Awaitable[None]]
    """Something was sent."""
    idle_timeout_secs: float
    ahead: bool = False
    """Recognise what was said as soon as the voice fades, so that it is there when asked for."""


class Connection:
    """One WebSocket: what comes in is queued, so that a late answer holds nothing up."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        served: Served,
        faults: Faults,
        services: Services,
    ) -> None:
        """Take over an accepted WebSocket."""
        self._services = services
        self._request = request
        self._socket = socket
        self._served = served
        self._faults = faults
        self._request_id = str(uuid.uuid4())
        self._rate = int(last(served.query, "sample_rate", str(DEFAULT_RATE)))
        self._interims = last(served.query, "interim_results", "false") == "true"
        self._events = last(served.query, "vad_events", "false") == "true"
        self._stream = Stream(self._rate, _pace(served.query))
        self._inbox: asyncio.Queue[tuple[float, bytes | str] | None] = asyncio.Queue()
        self._asked = 0.0  # when what is being answered came in
        self._chunks = 0
        self._interim_due = False
        self._understood = (0.0, 0.0, Hypothesis())  # from, until, what

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
                message = await self._socket.receive(timeout=self._services.idle_timeout_secs)
            except TimeoutError:
                await self._socket.close(
                    code=WSCloseCode.INTERNAL_ERROR, message=messages.IDLE_REASON.encode()
                )
                break
            await self._services.notify()
            if message.type is WSMsgType.BINARY:
                if not message.data:
                    self._inbox.put_nowait((time.monotonic(), '{"type": "CloseStream"}'))
                elif self._cut_off(message.data):
                    cut(self._request)
                    break
                else:
                    self._inbox.put_nowait((time.monotonic(), message.data))
            elif message.type is WSMsgType.TEXT:
                self._inbox.put_nowait((time.monotonic(), message.data))
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
        while (item := await self._inbox.get()) is not None:
            self._asked, message = item
            if isinstance(message, bytes):
                await self._hear(message)
                # A recogniser that has fallen behind skips what will be replaced anyway.
                if self._interim_due and self._inbox.empty():
                    self._interim_due = False
                    await self._answer(self._stream.interim())
                elif self._services.ahead and self._stream.fading and self._inbox.empty():
                    await self._understand(self._stream.interim())
            elif not await self._obey(message):
                break

    async def _decode(self, pcm: bytes) -> NDArray[np.float32]:
        if len(pcm) % 2:
            await self._socket.close(
                code=WSCloseCode.POLICY_VIOLATION, message=messages.UNDECODABLE_REASON.encode()
            )
            pcm = b""
        return np.frombuffer(pcm, np.int16).astype(np.float32) / np.float32(32768)

    async def _hear(self, pcm: bytes) -> None:
        samples = await self._decode(pcm)
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
            hypothesis = await self._understand(due)
        if final:
            self._interim_due = False
            self._stream.settle(due)
        listed = messages.words(
            hypothesis,
            first,
            max(min(last, due.until_secs), first),
            punctuate=punctuated(self._served.query),
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
            ),
            hypothesis.text,
        )

    async def _understand(self, due: Due) -> Hypothesis:
        start, until, hypothesis = self._understood
        heard = start == due.start_secs and due.last_sound_secs + FADE_SECS <= until
        if not (self._services.ahead and heard and until <= due.until_secs):
            audio = self._stream.audio(due.until_secs)
            hypothesis = await self._services.recognise(audio, self._rate)
            self._understood = (due.start_secs, due.until_secs, hypothesis)
        return hypothesis

    async def _say(self, message: dict[str, Any], words: str = "") -> None:
        stall = self._faults.stall_after_secs
        if stall is not None and self._served.audio_secs >= stall:
            return
        await self._services.wait(self._faults, self._asked, words)
        instead = {
            "Connected": self._faults.greeting,
            "Results": self._faults.instead,
            "TurnInfo": self._faults.instead,
        }.get(message["type"])
        if not self._socket.closed:
            try:
                await self._socket.send_str(json.dumps(message) if instead is None else instead)
            except ConnectionError:
                logger.debug("the test server's client has gone")


def last(query: dict[str, list[str]], name: str, default: str) -> str:
    """A parameter that is wanted once."""
    return query.get(name, [default])[-1]


def punctuated(query: dict[str, list[str]]) -> bool:
    """Whether punctuation and capitals were asked for."""
    return "true" in (last(query, "punctuate", "false"), last(query, "smart_format", "false"))


def _pace(query: dict[str, list[str]]) -> Pace:
    endpointing = last(query, "endpointing", "10")
    utterance_end = last(query, "utterance_end_ms", "")
    return Pace(
        endpointing_secs=int(endpointing) / 1000 if endpointing.isdigit() else None,
        utterance_end_secs=int(utterance_end) / 1000 if utterance_end.isdigit() else None,
    )


def cut(request: web.Request) -> None:
    """End the connection as a broken network does: with no goodbye."""
    if request.transport is not None:
        request.transport.abort()
