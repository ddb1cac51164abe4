"""What can be set about Deepgram, and where a connection with such settings leads."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, Self

from pipecat.transcriptions.language import Language
from pydantic import Field, SecretStr, field_validator, model_validator

from headstart.errors import UsageError
from headstart.processors.settings import StageSettings
from headstart.processors.stt.streaming.link import Destination, is_base_url, options

_URL_WISH = "must be like ws://host:port or https://host"
"""What is said of a base URL that is none. Its value is not shown: it may hold a password."""

_NOT_EXTRA = {"model", "language", "language_hint"}
"""Query parameters that the stage must know itself, as its fallbacks depend on them."""

_LOCAL_LANGUAGE = "en"
"""The one language of the weights behind the fallback `local` (whisper-tiny is tiny.en)."""


class LinkSettings(StageSettings, ABC):
    """What any of Deepgram's streaming recognisers can be told."""

    api_key: SecretStr | None = None
    """Deepgram API key; without one, the environment's `DEEPGRAM_API_KEY`."""
    base_url: str | None = None
    """ws:// or http:// address of a self-hosted or test server; else `DEEPGRAM_BASE_URL`."""
    model: str
    """Deepgram model."""
    keyterms: tuple[str, ...] = ()
    """Words and names to listen for."""
    extra: Mapping[str, bool | int | float | str | tuple[str, ...]] = Field(default_factory=dict)
    """Any other query parameter of Deepgram's API, by its name there."""
    chunk_ms: int = Field(default=250, ge=20, le=1000)
    """Audio is sent in pieces of this length, in ms."""
    pre_roll_ms: int = Field(default=500, ge=0, le=2000)
    """Audio from before the VAD's start that belongs to the segment, in ms."""
    connect_timeout_secs: float = Field(default=5.0, gt=0)
    """How long opening a connection may take."""
    stall_secs: float = Field(default=3.0, gt=0)
    """Audio was sent and nothing came back for so long: the connection is taken for dead."""
    final_timeout_secs: float = Field(default=1.0, gt=0)
    """How long after VAD stop the final text may take before the fallback is tried."""
    fallback: tuple[Literal["rest", "local"], ...] = ("rest",)
    """What to try, in order, for a segment that the stream does not answer in time: Deepgram's
    prerecorded API, the embedded recogniser (English only)."""
    rest_timeout_secs: float = Field(default=5.0, gt=0)
    """How long the prerecorded API may take."""
    give_up_secs: float = Field(default=10.0, ge=0)
    """How long to go on waiting for the stream when no fallback has helped."""
    retry_min_secs: float = Field(default=0.25, gt=0)
    """Pause after the first failed attempt to connect; it doubles with each."""
    retry_max_secs: float = Field(default=8.0, gt=0)
    """Longest pause between attempts. The user's next word ends any pause."""
    replay_secs: float = Field(default=60.0, gt=0)
    """Most unfinalised audio that is kept to be sent again."""

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, base_url: str | None) -> str | None:
        if base_url is not None and not is_base_url(base_url):
            raise ValueError(_URL_WISH)
        return base_url

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        environment_url = os.environ.get("DEEPGRAM_BASE_URL")
        if not self.base_url and environment_url and not is_base_url(environment_url):
            raise ValueError(f"the environment's DEEPGRAM_BASE_URL {_URL_WISH}")
        if ours := sorted(self.extra.keys() & _NOT_EXTRA):
            raise ValueError(f"extra must not hold {ours[0]!r}: the stage has a setting for it")
        if "local" in self.fallback and not self.local_understands:
            raise ValueError(
                "the fallback local knows English only: leave it out, or let the language be "
                "English"
            )
        return self

    @property
    @abstractmethod
    def languages_spoken(self) -> tuple[str, ...]:
        """BCP-47 tags of the languages that may be spoken; empty if that may be any."""

    @property
    def spoken_language(self) -> Language | None:
        """The one language that is spoken, if it is one."""
        try:
            (tag,) = self.languages_spoken
            return Language(tag)
        except ValueError:
            return None

    @property
    def local_understands(self) -> bool:
        """Whether the embedded recogniser knows every language that may be spoken."""
        tags = self.languages_spoken
        return bool(tags) and all(_primary(tag) == _LOCAL_LANGUAGE for tag in tags)

    @abstractmethod
    def destination(self, sample_rate: int) -> Destination:
        """Where a stream with these settings leads.

        Raises:
            UsageError: There is no API key.
        """

    def prerecorded(self, sample_rate: int) -> Destination:
        """Where a prerecorded request with these settings leads."""
        return self.destination(sample_rate)

    def _address(self) -> tuple[str | None, SecretStr]:
        base_url = self.base_url or os.environ.get("DEEPGRAM_BASE_URL") or None
        key = self.api_key or SecretStr(os.environ.get("DEEPGRAM_API_KEY", ""))
        if not key.get_secret_value():
            if base_url is None:
                raise UsageError(
                    "DEEPGRAM_API_KEY is not set; set it, or give the stt stage an api_key"
                )
            key = SecretStr("none")  # a server of one's own may ask for none; the SDK insists
        return base_url, key


class DeepgramSettings(LinkSettings):
    """Deepgram's streaming recogniser (`/v1/listen`, Nova models)."""

    model: str = "nova-3"
    """Deepgram model."""
    language: str = "en"
    """BCP-47 tag of the spoken language, or `multi`."""
    punctuate: bool = True
    """Punctuation and capitals."""
    smart_format: bool = False
    """Format numbers, dates and the like for reading."""
    numerals: bool = False
    """Write numbers as digits."""
    filler_words: bool = False
    """Keep "uh" and "um"."""
    endpointing: int | Literal[False] = 300
    """Silence in ms after which Deepgram finalises a phrase. The segment's end is the VAD's
    business; this only keeps what would have to be sent again after a drop short."""

    @property
    def languages_spoken(self) -> tuple[str, ...]:
        """See `LinkSettings`."""
        return () if self.language == "multi" else (self.language,)

    def destination(self, sample_rate: int) -> Destination:
        """See `LinkSettings`."""
        query = {
            "model": self.model,
            "language": self.language,
            "keyterm": self.keyterms,
            "punctuate": self.punctuate,
            "smart_format": self.smart_format,
            "numerals": self.numerals or None,
            "filler_words": self.filler_words or None,
            "endpointing": self.endpointing,
            "interim_results": True,
            "encoding": "linear16",
            "channels": 1,
            "sample_rate": sample_rate,
            **self.extra,
        }
        return Destination(*self._address(), options(query))


class FluxSettings(LinkSettings):
    """Deepgram Flux (`/v2/listen`): a recogniser that also hears when the turn ends."""

    model: str = "flux-general-en"
    """Deepgram model: `flux-general-en` or `flux-general-multi`."""
    languages: tuple[str, ...] = ()
    """Languages to expect, as BCP-47 tags (`flux-general-multi` only)."""
    eot_threshold: float = Field(default=0.7, ge=0.5, le=1.0)
    """How sure, 0.5..1, Flux must be that the turn is over to end it."""
    eager_eot_threshold: float | None = Field(default=0.5, ge=0.3, le=0.9)
    """How sure, 0.3..0.9, Flux must be to say early that the turn may be over, on which a
    trigger begins the answer; at most `eot_threshold`, and null for never."""
    eot_timeout_ms: int = Field(default=1500, ge=500, le=60000)
    """Silence in ms that ends the turn however unsure Flux is."""
    chunk_ms: int = Field(default=80, ge=20, le=1000)
    """Audio is sent in pieces of this length, in ms; 80 is what Deepgram advises."""
    rest_model: str = "nova-3"
    """Deepgram model for the prerecorded API, which has no Flux."""
    final_timeout_secs: float = Field(default=1.0, gt=0)
    """How long after VAD stop and `eot_timeout_ms` the final text may take before the fallback
    is tried."""

    @model_validator(mode="after")
    def _eager_is_earlier(self) -> Self:
        if self.eager_eot_threshold is not None and self.eager_eot_threshold > self.eot_threshold:
            raise ValueError("eager_eot_threshold must not be above eot_threshold")
        return self

    @property
    def languages_spoken(self) -> tuple[str, ...]:
        """See `LinkSettings`."""
        return ("en",) if self.model.endswith("-en") else self.languages

    def destination(self, sample_rate: int) -> Destination:
        """See `LinkSettings`."""
        query = {
            "model": self.model,
            "language_hint": self.languages,
            "keyterm": self.keyterms,
            "eot_threshold": self.eot_threshold,
            "eager_eot_threshold": self.eager_eot_threshold,
            "eot_timeout_ms": self.eot_timeout_ms,
            "encoding": "linear16",
            "sample_rate": sample_rate,
            **self.extra,
        }
        return Destination(*self._address(), options(query), version=2)

    def prerecorded(self, sample_rate: int) -> Destination:
        """See `LinkSettings`."""
        query = {
            "model": self.rest_model,
            "language": self.languages_spoken[0] if len(self.languages_spoken) == 1 else "multi",
            "keyterm": self.keyterms,
            "punctuate": True,
            **self.extra,
        }
        return Destination(*self._address(), options(query))


def _primary(tag: str) -> str:
    """The language of a BCP-47 tag, without script and region."""
    return tag.replace("_", "-").partition("-")[0].lower()
