"""What an error of the language model's API means, and how it is told in one line."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from anthropic import APIConnectionError, APIStatusError, APITimeoutError
from pipecat.adapters.llm.base_llm_adapter import LLMContextConversionError
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.http import TIMEOUT_EXCEPTIONS

from headstart.errors import HeadstartError

TIMEOUTS: tuple[type[Exception], ...] = (APITimeoutError, *TIMEOUT_EXCEPTIONS)
"""What the SDK and the HTTP client under it raise when nothing comes for too long."""

_LONGEST_LINE = 300
"""Characters. A proxy's page about an error can be a hundred times as long."""
_LONGEST_READ = 4000
"""Characters of a message that are looked at."""
_LEAST_KEY_PART = 8
"""Characters of a key that are replaced wherever they stand. Fewer occur in words by chance."""
_MASKED = re.compile(r"[*\u2022\u2026]|\.\.\.|(?:x|X){4}")
"""What stands for the middle of a key of which a message shows the two ends."""


def in_one_line(error: Exception, *, host: str, timeout_secs: float) -> str:
    """Tell what failed: the server, the way to it, its answer, or what was to be sent.

    Args:
        error: Of a request, or of something on the way to it.
        host: Where the request was sent.
        timeout_secs: The longest silence of the server that was tolerated.
    """
    if isinstance(error, HeadstartError):
        return str(error)
    if isinstance(error, LLMContextConversionError):
        return f"the conversation cannot be sent to {host}: {described(error)}"
    if isinstance(error, APIStatusError):
        return _refusal(error, host)
    if isinstance(error, (TimeoutError, *TIMEOUTS)):
        return f"{host} was silent for {timeout_secs:g} s"
    if isinstance(error, APIConnectionError):
        cause = error.__cause__
        return f"no connection to {host}: {described(error if cause is None else cause)}"
    if isinstance(error, json.JSONDecodeError):
        return f"{host} sent what is no JSON: {described(error)}"
    return f"the answer of {host} failed: {described(error)}"


def tidy(text: str, secrets: Iterable[str | None] = ()) -> str:
    """Make one line of a message: printable, of bounded length, and without secrets.

    Args:
        text: The message, parts of which a server may have written.
        secrets: Keys that must not be shown. Servers repeat them in full, in part ("sk-ant-a..."),
            or with a mask in the middle.
    """
    printable = (c if c.isprintable() else " " for c in text[:_LONGEST_READ])
    text = " ".join("".join(printable).split())
    for secret in secrets:
        if secret and secret.strip():
            text = _without(text, secret.strip())
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 3] + "..."


def described(error: BaseException) -> str:
    """What an exception says, or its name where it says nothing."""
    return str(error).strip() or type(error).__name__


def retry_after_secs(headers: Mapping[str, str]) -> float | None:
    """Seconds after which the server takes requests again; None if it does not say.

    The Anthropic SDK reads the same headers: `retry-after-ms`, and `retry-after` as a number of
    seconds or as a date.
    """
    after = headers.get("retry-after")
    secs: float | None = None
    with suppress(ValueError):
        secs = float(headers.get("retry-after-ms") or "") / 1000
    if secs is None and after is not None:
        try:
            secs = float(after)
        except ValueError:
            if date := email.utils.parsedate_tz(after):
                secs = email.utils.mktime_tz(date) - time.time()
    return secs if secs is not None and math.isfinite(secs) and secs > 0 else None


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


def _refusal(error: APIStatusError, host: str) -> str:
    line = f"{host} answered {error.type or f'status {error.status_code}'}: {_reason(error)}"
    secs = retry_after_secs(error.response.headers)
    if secs is not None and secs >= 1:
        line += f"; it takes requests again in {secs:.0f} s"
    if error.status_code == 401:
        line += "; check ANTHROPIC_API_KEY, or the api_key of the llm stage"
    return line


def _reason(error: APIStatusError) -> str:
    """The server's own words, wherever it puts them; not its HTML pages."""
    body = error.body
    if isinstance(body, dict):
        said = body.get("error", body)
        if isinstance(said, dict):
            said = said.get("message") or said.get("detail")
        if isinstance(said, str) and said.strip():
            return said
    elif isinstance(body, str) and body.strip() and not body.lstrip().startswith("<"):
        return body
    return error.response.reason_phrase or described(error)


def _without(text: str, secret: str) -> str:
    if len(secret) < _LEAST_KEY_PART:
        return re.sub(rf"\b{re.escape(secret)}\b", "[key]", text)
    text = text.replace(secret, "[key]")
    return re.sub(r"[^\s\"'()\[\]{}<>,;=]+", lambda word: _hidden(word[0], secret), text)


def _hidden(word: str, secret: str) -> str:
    """The word, or a placeholder if it shows a part of the secret."""
    size = _LEAST_KEY_PART
    shows = (
        any(word[at : at + size] in secret for at in range(len(word) - size + 1))
        or (len(word) >= 4 and (secret.startswith(word) or secret.endswith(word)))
        or (_MASKED.search(word) and (secret[:4] in word or secret[-4:] in word))
    )
    return "[key]" if shows else word
