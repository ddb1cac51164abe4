"""Settings of the language model stage, and what follows from them: client and request."""

from __future__ import annotations

import os
from typing import Any

from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from pipecat.services.anthropic.llm import AnthropicLLMSettings
from pipecat.utils.http import connection_limits
from pydantic import Field, SecretStr, field_validator

from headstart.engines.llama import SCHEME, LlamaOptions
from headstart.errors import UsageError
from headstart.processors.llm.patience import look_at
from headstart.processors.settings import StageSettings

_KEEPALIVE_SECS = 90.0
"""Turns are further apart than the 5 s for which the SDK keeps an idle connection."""
_LETTERS_PER_TOKEN = 4
"""Of English text. The pieces in which an API sends its text are not tokens."""
_LONGEST_ANSWER = 100_000
"""Letters; two hours of speech."""


class LLMSettings(StageSettings):
    """Settings of `llm.anthropic`. The prompt is the pipeline's."""

    model: str = "claude-haiku-4-5"
    """Model, as the API names it. A llama:// model goes by its own name."""
    base_url: str | None = None
    """Where the API is: `https://...`, `http://...`, or `llama://SmolLM2-135M` and
    `llama:///PATH.gguf` for a model on this machine (`?slots=4&threads=2&context_tokens=4096`
    may follow). Without one: `ANTHROPIC_BASE_URL`, else Anthropic."""
    api_key: SecretStr | None = None
    """Without one: `ANTHROPIC_API_KEY`. A llama:// model needs none."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer, in tokens. Default 256, for a llama:// model 64."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """0 (the likeliest words) to 1 (the most varied). Default the API's, for a llama:// model 0."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Choose among the likeliest tokens that make up this share. Default the API's."""
    stop_sequences: tuple[str, ...] | None = None
    """Texts that end an answer. Default none, for a llama:// model an empty line."""
    prompt_caching: bool = True
    """Let the API keep the prompt and the conversation between turns (`cache_control`)."""
    max_speculative_tokens: int = Field(default=32, ge=1)
    """Length, in tokens (about four letters each), at which an answer begun early pauses until
    the turn has ended. 32 are some eight seconds of speech."""
    safe_tools: tuple[str, ...] = ()
    """Names of tools that change nothing, so that they may run for an answer that is thrown away.
    All others wait until the turn has ended."""
    timeout_secs: float = Field(default=15.0, gt=0)
    """Longest silence of the API, in seconds: before an answer begins, retries included, and
    between two of its pieces."""
    max_retries: int = Field(default=2, ge=1)
    """How often a request that failed before its answer began is sent again. A llama:// model is
    asked again once, and restarted first if it died."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of the request, as the Messages API names them."""

    @field_validator("base_url")
    @classmethod
    def _known_scheme(cls, url: str | None) -> str | None:
        if url is None or url.startswith(("http://", "https://")):
            return url
        if not url.startswith(SCHEME):
            raise ValueError(f"'{url}' should begin with https://, http:// or {SCHEME}")
        try:
            LlamaOptions.from_url(url)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return url

    @property
    def max_speculative_letters(self) -> int:
        """Letters at which an answer begun early pauses."""
        return self.max_speculative_tokens * _LETTERS_PER_TOKEN

    @property
    def max_letters(self) -> int:
        """Letters beyond which an answer is cut off; more than `max_tokens` come to."""
        return max(_LONGEST_ANSWER, (self.max_tokens or 0) * 2 * _LETTERS_PER_TOKEN)

    @property
    def llama(self) -> LlamaOptions | None:
        """The model on this machine, if it is one."""
        if self.base_url is None or not self.base_url.startswith(SCHEME):
            return None
        return LlamaOptions.from_url(self.base_url)


def client_for(settings: LLMSettings) -> AsyncAnthropic:
    """The SDK's client for whom the settings name; it makes no connection yet."""
    if settings.llama is not None:
        return AsyncAnthropic(
            api_key="set with the engine",
            base_url="http://127.0.0.1",  # set with each request
            max_retries=0,  # the stage knows sooner than the SDK whether the server is dead
            timeout=settings.timeout_secs,
            # No proxy of the environment. No connection is used twice: llama.cpp closes one now
            # and then as the next request arrives on it.
            http_client=DefaultAsyncHttpxClient(
                trust_env=False,
                limits=connection_limits(max_keepalive_connections=0),
                event_hooks={"response": [look_at]},
            ),
        )
    key = settings.api_key.get_secret_value().strip() if settings.api_key else None
    return AsyncAnthropic(
        api_key=key or None,
        base_url=settings.base_url,
        max_retries=settings.max_retries,
        timeout=settings.timeout_secs,
        http_client=DefaultAsyncHttpxClient(
            limits=connection_limits(keepalive_expiry=_KEEPALIVE_SECS),
            event_hooks={"response": [look_at]},
        ),
    )


def check_key(settings: LLMSettings, client: AsyncAnthropic) -> None:
    """Check that there is a key where one is needed.

    Raises:
        UsageError: Anthropic wants one and there is none.
    """
    if client.api_key or client.auth_token or client.credentials:
        return
    if settings.base_url is None and "ANTHROPIC_BASE_URL" not in os.environ:
        raise UsageError(
            "ANTHROPIC_API_KEY is not set; set it, give the llm stage an api_key, "
            "or let it use a model on this machine (base_url: llama://SmolLM2-135M)"
        )


def request_settings(settings: LLMSettings) -> AnthropicLLMSettings:
    """What Pipecat's service is to ask for, with the defaults of the settings filled in."""
    llama = settings.llama
    named = llama is None or "model" in settings.model_fields_set
    request = AnthropicLLMSettings(
        model=settings.model if named or llama is None else llama.model,
        max_tokens=settings.max_tokens or (64 if llama else 256),
        enable_prompt_caching=settings.prompt_caching,
    )
    temperature = 0.0 if llama and settings.temperature is None else settings.temperature
    if temperature is not None:
        request.temperature = temperature
    if settings.top_p is not None:
        request.top_p = settings.top_p
    stops = ("\n\n",) if llama and settings.stop_sequences is None else settings.stop_sequences
    request.extra = ({"stop_sequences": list(stops)} if stops else {}) | settings.extra
    return request
