"""Text to speech: clauses of the reply become audio while the rest is still being written."""

from headstart.processors.tts.kokoro import KokoroTTS
from headstart.processors.tts.settings import KokoroSettings

__all__ = ["KokoroSettings", "KokoroTTS"]
