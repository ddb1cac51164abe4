"""How long an answer of the API is waited for, and why it did not come."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

from anthropic import APIStatusError

from headstart.processors.llm.errors import retry_after_secs

_patience: ContextVar[Patience | None] = ContextVar("patience", default=None)
"""Of the request that the running task makes."""


class Patience:
    """Bounds the silence of the API: before an answer begins, and between its pieces.

    The SDK repeats refused requests, after the time that the server names. Where that time is
    not left, `look_at` has the SDK report the refusal at once; where the time runs out between
    two attempts, the refusal is what is raised, not the silence.

    An async context manager around the request and the reading of its answer.
    """

    def __init__(self, secs: float) -> None:
        """Take note.

        Args:
            secs: Longest silence, in seconds.
        """
        self._secs = secs
        self._refusal: APIStatusError | None = None

    async def __aenter__(self) -> Self:
        """Begin to wait."""
        self._timeout = asyncio.timeout(self._secs)
        await self._timeout.__aenter__()
        self._outer: Token[Patience | None] = _patience.set(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop waiting.

        Raises:
            APIStatusError: The server refused the request until it was too late.
            TimeoutError: Nothing has come for too long.
        """
        _patience.reset(self._outer)
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._refusal is not None:
                raise self._refusal from None
            raise

    def renew(self) -> None:
        """A piece has come: from now on the next one is waited for."""
        self._refusal = None
        self._timeout.reschedule(asyncio.get_running_loop().time() + self._secs)

    def pause(self) -> None:
        """Nobody waits for the next piece, until `renew`."""
        self._timeout.reschedule(None)

    async def look_at(self, response: Any) -> None:
        """See whether a response refuses the request, and until when."""
        if response.is_success:
            self._refusal = None
            return
        body: Any = (await response.aread()).decode("utf-8", "replace")
        with suppress(ValueError):
            body = json.loads(body)
        self._refusal = APIStatusError(str(body), response=response, body=body)
        secs, until = retry_after_secs(response.headers), self._timeout.when()
        if secs is None or until is None:
            return
        if asyncio.get_running_loop().time() + secs > until:
            response.headers["x-should-retry"] = "false"  # the SDK obeys that


async def look_at(response: Any) -> None:
    """Show a response to whoever waits for it. A hook of the SDK's HTTP client."""
    patience = _patience.get()
    if patience is not None:
        await patience.look_at(response)
