"""Kokoro-82M, the voice: text in, speech out in pieces, one model for all sessions."""

from headstart.engines.kokoro.engine import (
    KokoroEngine,
    KokoroOptions,
    Speech,
    WordTime,
)
from headstart.engines.kokoro.silence import SAMPLE_RATE

__all__ = ["SAMPLE_RATE", "KokoroEngine", "KokoroOptions", "Speech", "WordTime"]
