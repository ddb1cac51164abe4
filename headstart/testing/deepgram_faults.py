"""What may go wrong with a connection to the test server, and what it was sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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
    greeting: str | None = None
    """This text comes instead of Flux's `Connected`."""
    instead: str | None = None
    """This text comes instead of each result of a stream, or instead of a prerecorded answer:
    `{"type": "Results"}`, or no JSON at all."""


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
