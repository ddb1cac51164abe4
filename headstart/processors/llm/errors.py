"""What an error of the language model's API means, and how it is told in one line."""

from __future__ import annotations

from anthropic import APIConnectionError, APIStatusError, APITimeoutError
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.http import TIMEOUT_EXCEPTIONS

from headstart.errors import HeadstartError

TIMEOUTS: tuple[type[Exception], ...] = (APITimeoutError, *TIMEOUT_EXCEPTIONS)
"""What the SDK and the HTTP client under it raise when nothing comes for too long."""


def in_one_line(error: Exception, *, host: str, timeout_secs: float, key: str | None) -> str:
    """Tell what happened, without the key.

    Args:
        error: Of a request, or of something on the way to it.
        host: Whom the request was for.
        timeout_secs: How long its silence was borne.
        key: What must not be told.
    """
    if isinstance(error, HeadstartError):
        text = str(error)
    elif isinstance(error, APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        said = body.get("error")
        reason = said.get("message") if isinstance(said, dict) else None
        what = error.type or f"status {error.status_code}"
        text = f"{host} answered {what}: {reason or error}"
    elif isinstance(error, (TimeoutError, *TIMEOUTS)):
        text = f"{host} was silent for {timeout_secs:g} s"
    elif isinstance(error, APIConnectionError):
        text = f"no connection to {host}: {error.__cause__ or error}"
    else:
        text = f"the answer of {host} failed: {error or type(error).__name__}"
    text = " ".join(text.split())
    return text.replace(key, "[key]") if key else text


def category_of(error: Exception) -> ErrorCategory | None:
    """What kind of error it is; None where Pipecat knows best."""
    if isinstance(error, APIConnectionError):
        return ErrorCategory.CONNECTIVITY
    # A conversation that has grown too long says nothing about the service.
    if isinstance(error, APIStatusError) and any(
        words in str(error) for words in ("exceed_context_size", "prompt is too long")
    ):
        return ErrorCategory.APPLICATION
    return None
