"""What can be set about Deepgram, and where a connection with such settings leads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, SecretStr

from headstart.errors import UsageError
from headstart.processors.settings import StageSettings
from headstart.processors.stt.deepgram_link import Destination, options


class DeepgramSettings(StageSettings):
    """Deepgram's streaming recogniser (`/v1/listen`, Nova models)."""

    api_key: SecretStr | None = None
    """Deepgram API key; without one, the environment's `DEEPGRAM_API_KEY`."""
    base_url: str | None = None
    """ws:// or http:// address of a self-hosted or test server; else `DEEPGRAM_BASE_URL`."""
    model: str = "nova-3"
    """Deepgram model."""
    language: str = "en"
    """BCP-47 tag of the spoken language, or `multi`."""
    keyterms: tuple[str, ...] = ()
    """Words and names to listen for (Nova-3)."""
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
    prerecorded API, the embedded recogniser."""
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

    def destination(self, sample_rate: int) -> Destination:
        """Where a connection with these settings leads.

        Raises:
            UsageError: There is no API key.
        """
        base_url = self.base_url or os.environ.get("DEEPGRAM_BASE_URL") or None
        key = self.api_key or SecretStr(os.environ.get("DEEPGRAM_API_KEY", ""))
        if not key.get_secret_value():
            if base_url is None:
                raise UsageError(
                    "Deepgram needs a key: set DEEPGRAM_API_KEY in the environment, "
                    "or api_key in the stage's settings"
                )
            key = SecretStr("none")  # a server of one's own may ask for none; the SDK insists
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
        return Destination(base_url, key, options(query))
