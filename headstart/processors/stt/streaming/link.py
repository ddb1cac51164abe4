"""Connections to Deepgram's streaming recogniser: opened ahead, kept alive, passed on warm."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import httpx
from deepgram import AsyncDeepgramClient, DeepgramClientEnvironment
from deepgram.core import ApiError
from deepgram.core.request_options import RequestOptions

# Imported for its own sake: the SDK would import its parts when they are first used, which
# takes a quarter of a second on the event loop.
from deepgram.listen.v1.media import client as _media  # noqa: F401
from deepgram.listen.v1.socket_client import AsyncV1SocketClient
from deepgram.listen.v2 import client as _flux  # noqa: F401
from deepgram.listen.v2.socket_client import AsyncV2SocketClient
from loguru import logger
from pydantic import AnyUrl, SecretStr, TypeAdapter, UrlConstraints, ValidationError
from websockets.exceptions import WebSocketException

from headstart.errors import HeadstartError, UsageError
from headstart.processors.stt.streaming.messages import (
    Connected,
    Message,
    NotUnderstoodError,
    Trouble,
    read,
)

KEEP_ALIVE_SECS = 4.0
"""Deepgram closes a connection that has sent nothing for 10 s (NET-0001) and advises 3 to 5 s."""

_BASE_URL: TypeAdapter[AnyUrl] = TypeAdapter(
    Annotated[
        AnyUrl, UrlConstraints(allowed_schemes=["ws", "wss", "http", "https"], host_required=True)
    ]
)
_CLOSE_SECS = 0.5
_RETRIED = {408, 429}
"""Of the 4xx, those that say "later" and not "never"."""


class RefusedError(HeadstartError):
    """Deepgram will never take this: a bad key, a bad option. Trying again is of no use."""


class LinkLostError(HeadstartError):
    """The connection is gone, or could not be had. Another one may do."""


@dataclass(frozen=True)
class Destination:
    """Where a connection leads: links with equal destinations stand in for one another.

    Deepgram binds options to the connection, so they are part of it.
    """

    base_url: str | None
    """ws://, wss://, http:// or https:// and a host; None for Deepgram's own."""
    api_key: SecretStr
    options: tuple[tuple[str, str | tuple[str, ...]], ...]
    """Query parameters."""
    version: Literal[1, 2] = 1
    """Of the streaming API: 2 is Flux."""

    def query(self) -> dict[str, str | list[str]]:
        """The options as the SDK takes them."""
        return {
            name: value if isinstance(value, str) else list(value) for name, value in self.options
        }

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncDeepgramClient]:
        """An SDK client that leads there, and the HTTP client that it cannot do without."""
        tls = _tls() if _tls.cache_info().currsize else await asyncio.to_thread(_tls)
        async with httpx.AsyncClient(verify=tls) as http:
            yield AsyncDeepgramClient(
                api_key=self.api_key.get_secret_value(),
                environment=_environment(self.base_url),
                httpx_client=http,
            )


def is_base_url(text: str) -> bool:
    """Whether connections can lead there: a known scheme, a host, and perhaps port and path."""
    return _parsed(text) is not None


def query_value(value: object) -> str | tuple[str, ...]:
    """An option's value as it stands in a query: `true`, `300`, or several of them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return tuple(str(query_value(item)) for item in value)
    return str(value)


def options(query: Mapping[str, object]) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """Query parameters in the form that a destination holds; those that are None are left out."""
    given = {name: query_value(value) for name, value in query.items() if value is not None}
    return tuple(sorted((name, value) for name, value in given.items() if value != ()))


def refusal(error: ApiError) -> RefusedError | LinkLostError:
    """What an error of the SDK means for us, in one line. Never names a key."""
    cause = error.__context__
    said = getattr(cause, "headers", None) or {}
    reason = said.get("dg-error") if hasattr(said, "get") else None
    if not reason and isinstance(error.body, dict):
        reason = error.body.get("err_msg") or error.body.get("message")
    reason = " ".join(str(reason or error.body).split())
    status = error.status_code or 0
    if 400 <= status < 500 and status not in _RETRIED:
        return RefusedError(f"Deepgram refused the request ({status}): {reason}")
    return LinkLostError(f"Deepgram answered with status {status}: {reason}")


@dataclass(eq=False)
class Link:
    """One open connection. Used by one session at a time."""

    destination: Destination
    setup_secs: float
    """How long it took to open."""
    _connection: AsyncV1SocketClient | AsyncV2SocketClient
    _stack: AsyncExitStack
    sent_secs: float = 0.0
    """Length of the audio sent so far: where the provider's clock will be."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @classmethod
    async def open(cls, destination: Destination, timeout_secs: float) -> Self:
        """Connect.

        Raises:
            RefusedError: A bad key or option.
            LinkLostError: Anything that may be better next time.
        """
        begun = time.monotonic()
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(destination.client())
            query = destination.query()
            listen = client.listen.v2 if destination.version == 2 else client.listen.v1
            connecting = listen.connect(
                model=str(query.pop("model", "nova-3")),
                request_options=RequestOptions(additional_query_parameters=query),
            )
            try:
                async with asyncio.timeout(timeout_secs):
                    connection = await stack.enter_async_context(connecting)
                    if isinstance(connection, AsyncV2SocketClient):
                        greeting = read(await connection._websocket.recv())
                        if not isinstance(greeting, Connected):
                            reason = greeting.line if isinstance(greeting, Trouble) else ""
                            raise LinkLostError(
                                f"Deepgram did not connect: {reason or 'another greeting'}"
                            )
            except ApiError as error:
                raise refusal(error) from None
            except TimeoutError:
                raise LinkLostError(f"Deepgram did not answer within {timeout_secs:g} s") from None
            except (OSError, WebSocketException) as error:
                raise LinkLostError(f"Deepgram is out of reach: {_line(error)}") from None
            except NotUnderstoodError as error:
                raise LinkLostError(f"Deepgram did not connect: {error}") from None
            # The default of 10 s, applied several times over, is far too long for a session
            # that is ending; the SDK offers no way to set it.
            connection._websocket.close_timeout = _CLOSE_SECS
            return cls(destination, time.monotonic() - begun, connection, stack.pop_all())
        raise AssertionError("unreachable")

    async def send(self, pcm: bytes, secs: float) -> None:
        """Send audio of this length.

        Raises:
            LinkLostError: The connection is gone.
        """
        self.sent_secs += secs
        with _lost():
            await self._connection.send_media(pcm)

    async def finalize(self) -> None:
        """Ask for the final words of what has been sent.

        Raises:
            LinkLostError: The connection is gone.
        """
        assert isinstance(self._connection, AsyncV1SocketClient)
        with _lost():
            await self._connection.send_finalize()

    async def keep_alive(self) -> None:
        """Keep an idle connection open; also tells whether it still is.

        Raises:
            LinkLostError: The connection is gone.
        """
        with _lost():
            if isinstance(self._connection, AsyncV1SocketClient):
                await self._connection.send_keep_alive()
            else:  # Flux knows no such message; it wants pings
                await self._connection._websocket.ping()

    async def messages(self) -> AsyncIterator[Message]:
        """What Deepgram says, but for the kinds of message that are not used here.

        Read from the socket, not from the SDK: the SDK skips what it cannot read and builds its
        types without a check.

        Raises:
            LinkLostError: The connection is gone, or of no use because a message is not what
                it should be; always the end.
        """
        with _lost():
            async for raw in self._connection._websocket:
                try:
                    message = read(raw)
                except NotUnderstoodError as error:
                    raise LinkLostError(f"Deepgram: {error}") from None
                if message is not None:
                    yield message
        raise LinkLostError("Deepgram closed the connection")

    async def close(self) -> None:
        """Say goodbye, but do not wait long for an answer. Leaves no socket and no task.

        Cancelled, it skips the goodbye.
        """
        websocket = self._connection._websocket
        try:
            with suppress(Exception):  # whatever a dying connection raises, it is over
                async with asyncio.timeout(_CLOSE_SECS):
                    await self._connection.send_close_stream()
                    await websocket.wait_closed()
        finally:
            self.abort()
            with suppress(Exception):
                await self._stack.aclose()

    def abort(self) -> None:
        """Drop the connection at once, as a network failure would."""
        self._connection._websocket.transport.abort()


@dataclass(eq=False)
class _Idle:
    link: Link
    keeper: asyncio.Task[None]


class LinkPool:
    """Warm connections of a process that no session uses now.

    A session takes one or opens its own, and gives it back when it ends. Idle ones are kept
    alive for a while, then closed. Being between sessions, a pooled link's task belongs to no
    pipeline; the pool cancels and awaits it.
    """

    def __init__(self, *, idle_secs: float = 20.0, most: int = 4) -> None:
        """Start empty.

        Args:
            idle_secs: How long a link waits for a session before it is closed.
            most: How many may wait; Deepgram limits the open connections of an account.
        """
        self._idle_secs = idle_secs
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[_Idle] = []
        self._opening: set[asyncio.Task[Link]] = set()
        self._keepers: set[asyncio.Task[None]] = set()  # some may be closing their link

    async def take(self, destination: Destination, timeout_secs: float) -> Link:
        """A live link: an idle one if there is one, else a new one.

        If the caller is cancelled meanwhile, the link joins the idle ones, or does so when it
        has opened.

        Raises:
            RefusedError: A bad key or option.
            LinkLostError: Anything that may be better next time.
        """
        while (idle := self._pop(destination)) is not None:
            try:
                await _cancel(idle.keeper)
                await idle.link.keep_alive()
            except LinkLostError:
                await idle.link.close()
            except BaseException:  # cancelled, as a rule; nobody else knows of the link
                self.give(idle.link)
                raise
            else:
                return idle.link
        opening = asyncio.create_task(Link.open(destination, timeout_secs), name="deepgram-open")
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled() and not _being_cancelled():  # but the pool was closed
                raise LinkLostError("the connection was given up while it opened") from None
            opening.add_done_callback(self._adopt)
            raise

    def give(self, link: Link) -> None:
        """Hand a link back: open, and with nothing that was sent on it still unanswered."""
        with self._lock:
            secs = self._idle_secs if len(self._idle) < self._most else 0.0
            keeper = asyncio.create_task(self._keep(link, secs), name="deepgram-idle")
            self._idle.append(_Idle(link, keeper))
            self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    async def close(self) -> None:
        """Close the idle links of the running event loop."""
        loop = asyncio.get_running_loop()
        for opening in [task for task in self._opening if task.get_loop() is loop]:
            await _cancel(opening)
        while (idle := self._pop()) is not None:
            try:
                await _cancel(idle.keeper)
            finally:
                await idle.link.close()
        if closing := [task for task in self._keepers if task.get_loop() is loop]:
            await asyncio.wait(closing)

    def __len__(self) -> int:
        return len(self._idle)

    def _pop(self, destination: Destination | None = None) -> _Idle | None:
        """An idle link of the running event loop, if there is one that leads there."""
        loop = asyncio.get_running_loop()
        with self._lock:
            # Links of a loop that has ended are dead; their sockets went with it.
            self._idle = [idle for idle in self._idle if not idle.link.loop.is_closed()]
            for idle in reversed(self._idle):
                leads_there = destination in (None, idle.link.destination)
                if leads_there and idle.link.loop is loop:
                    self._idle.remove(idle)
                    return idle
        return None

    async def _keep(self, link: Link, secs: float) -> None:
        """Keep a link alive until its time is up, then close it."""
        until = time.monotonic() + secs
        with suppress(Exception):  # whatever is wrong with it, it is closed
            while (left := until - time.monotonic()) > 0:
                await link.keep_alive()
                await asyncio.sleep(min(KEEP_ALIVE_SECS, left))
        with self._lock:
            self._idle = [idle for idle in self._idle if idle.link is not link]
        await link.close()

    def _adopt(self, opening: asyncio.Task[Link]) -> None:
        """Take in a link that opened after the session that wanted it had gone."""
        if opening.cancelled():
            return
        if (error := opening.exception()) is not None:
            logger.debug(f"Deepgram: a connection that nobody waits for any more failed: {error}")
            return
        self.give(opening.result())


pool = LinkPool()
"""The idle links of this process."""


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes tens of milliseconds: once a process is enough."""
    return httpx.create_ssl_context()


def _parsed(base_url: str) -> AnyUrl | None:
    try:
        url = _BASE_URL.validate_python(base_url)
    except ValidationError:
        return None
    return None if url.query or url.fragment else url


def _environment(base_url: str | None) -> DeepgramClientEnvironment:
    """The SDK wants one URL each for streaming and for requests; a user has one host.

    Raises:
        UsageError: The URL has another scheme, or no host.
    """
    if base_url is None:
        return DeepgramClientEnvironment.PRODUCTION
    url = _parsed(base_url)
    if url is None:
        raise UsageError("Deepgram's base URL should be like ws://host:port or https://host")
    scheme, _, host = str(url).rstrip("/").partition("://")
    secure = "s" if scheme in ("wss", "https") else ""
    http, ws = f"http{secure}://{host}", f"ws{secure}://{host}"
    return DeepgramClientEnvironment(base=http, production=ws, agent=ws, agent_rest=http)


@contextmanager
def _lost() -> Iterator[None]:
    """Turn whatever a broken connection raises into `LinkLostError`."""
    try:
        yield
    except (OSError, WebSocketException) as error:
        raise LinkLostError(f"the connection to Deepgram was lost: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
