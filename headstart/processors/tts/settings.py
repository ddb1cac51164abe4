"""Settings of the Kokoro stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipecat.services.settings import TTSSettings
from pipecat.transcriptions.language import Language
from pipecat.utils.types import NOT_GIVEN, NotGiven
from pydantic import Field

from headstart.processors.settings import StageSettings

_LANGUAGES = {
    "a": Language.EN_US,
    "b": Language.EN_GB,
    "e": Language.ES,
    "f": Language.FR,
    "h": Language.HI,
    "i": Language.IT,
    "j": Language.JA,
    "p": Language.PT_BR,
    "z": Language.ZH,
}


class KokoroSettings(StageSettings):
    """Settings of the `tts.kokoro` stage."""

    voice: str = "af_heart"
    """Whose voice. The first letter is the language: a American, b British English, e Spanish,
    f French, h Hindi, i Italian, j Japanese, p Brazilian Portuguese, z Mandarin; the second is
    f(emale) or m(ale)."""

    speed: float = Field(default=1.0, ge=0.5, le=2.0)
    """Rate of speech; 1 is the voice's own."""

    engine: Literal["auto", "onnx", "torch", "kmodel"] = "auto"
    """What runs the network; `auto` takes the faster one of onnx and torch on this machine.
    `kmodel` is the authors' package, a whole clause at a time; torch means it on a CUDA card."""

    threads: int = Field(default=2, ge=1)
    """Threads of the process for one clause, shared by all sessions; no more than cores."""


@dataclass
class KokoroLiveSettings(TTSSettings):
    """What a `TTSUpdateSettingsFrame` may change while the pipeline runs."""

    speed: float | NotGiven = field(default_factory=lambda: NOT_GIVEN)


def language_of(voice: str) -> Language | None:
    """The language that a voice's first letter stands for."""
    return _LANGUAGES.get(voice[:1])
