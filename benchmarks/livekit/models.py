"""LiveKit plugins around the weights that the other arms use."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from kokoro_onnx import Kokoro
from livekit import rtc
from livekit.agents import stt, tts
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN

VOICE = "af_heart"
SERVER = Path(__file__).parents[2] / "headstart" / "engines" / "llama_server.py"
"""llama.cpp's HTTP server with the settings that all arms have; imports xllamacpp only."""


class Llama:
    """The llama.cpp server: a child that ends with this process."""

    def __init__(self, model: Path) -> None:
        """Load the model."""
        self.key = secrets.token_hex(16)
        options = {
            "model": str(model),
            "api_key": self.key,
            "slots": 2,
            "context_tokens": 2048,
            "threads": max(1, min(4, (os.cpu_count() or 2) // 2)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()
        self.url = str(json.loads(self._process.stdout.readline())["url"])


class WhisperSTT(stt.STT):
    """faster-whisper, int8, asked for each stretch of speech when it is over.

    It gets half a second of silence behind the speech, and leaves out what is probably none: both
    are what Pipecat's service does, too.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))
        self._whisper = WhisperModel(str(folder), device="cpu", compute_type="int8")

    async def _recognize_impl(
        self,
        buffer: Any,
        *,
        language: Any = NOT_GIVEN,
        conn_options: Any = DEFAULT_API_CONNECT_OPTIONS,
    ) -> stt.SpeechEvent:
        frame = rtc.combine_audio_frames(buffer)
        assert frame.sample_rate == 16000
        samples = np.frombuffer(frame.data, np.int16).astype(np.float32) / 32768
        text = await asyncio.to_thread(self._transcribe, np.pad(samples, (0, 8000)))
        return stt.SpeechEvent(
            type=stt.SpeechEventType.FINAL_TRANSCRIPT,
            alternatives=[stt.SpeechData(text=text, language="en")],
        )

    def _transcribe(self, samples: np.ndarray) -> str:
        segments, _ = self._whisper.transcribe(samples, language="en")
        return "".join(one.text for one in segments if one.no_speech_prob < 0.4).strip()


class KokoroTTS(tts.TTS):
    """kokoro-onnx, int8; LiveKit gives it one sentence after the other."""

    def __init__(self, model: Path, voices: Path) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False), sample_rate=24000, num_channels=1
        )
        voice = next(voices.rglob(f"{VOICE}.bin"))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "voices.npz")
            np.savez(file, **{VOICE: np.fromfile(voice, np.float32).reshape(-1, 1, 256)})
            self.kokoro = Kokoro(str(next(model.glob("*.onnx"))), str(file))
        self.on_clause: Callable[[], None] = lambda: None
        """Called when a text has come."""

    def synthesize(
        self, text: str, *, conn_options: Any = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        """Speak a text."""
        return KokoroStream(tts=self, input_text=text, conn_options=conn_options)


class KokoroStream(tts.ChunkedStream):
    """One sentence."""

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        voice = self._tts
        assert isinstance(voice, KokoroTTS)
        voice.on_clause()
        output_emitter.initialize(
            request_id=uuid.uuid4().hex, sample_rate=24000, num_channels=1, mime_type="audio/pcm"
        )
        stream = voice.kokoro.create_stream(self._input_text, voice=VOICE, lang="en-us")
        async for samples, _ in stream:
            output_emitter.push((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes())
        output_emitter.flush()
