"""Pipecat's own voice, told where this machine's weights are; the rest of it is in `stock`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pipecat.services.kokoro.tts import KokoroTTSService

from headstart import assets
from headstart.processors.settings import StageSettings

_KOKORO = "kokoro-v1.0"
_VOICES = "kokoro-voices"


class KokoroSettings(StageSettings):
    """Settings of Pipecat's Kokoro."""

    voice: str = "af_heart"
    """One of the voices of the asset."""
    stop_frame_timeout_s: float = 30.0
    """How long a sentence may take. Pipecat's default of 3 s is shorter than a slow machine
    needs for one, which then ends as "completed with no audio"."""


class KokoroTTS(KokoroTTSService):
    """Pipecat's KokoroTTSService (kokoro-onnx) on weights of the cache."""

    def __init__(self, settings: KokoroSettings | None = None, **kwargs: Any) -> None:
        """Load the model, as Pipecat's service does."""
        ours = settings or KokoroSettings()
        super().__init__(
            model_path=str(next(assets.path(_KOKORO).glob("*.onnx"))),
            voices_path=str(_voices_file()),
            settings=KokoroTTSService.Settings(voice=ours.voice),
            stop_frame_timeout_s=ours.stop_frame_timeout_s,
            **kwargs,
        )

    @classmethod
    def required_assets(cls, settings: KokoroSettings) -> tuple[str, ...]:
        """The weights that the stage needs."""
        return (_KOKORO, _VOICES)


def _voices_file() -> Path:
    """All voices in the one .npz file that kokoro-onnx wants, made once beside the cache."""
    file = assets.cache().root / "kokoro-onnx-voices.npz"
    if not file.exists():
        voices = {
            path.stem: np.fromfile(path, np.float32).reshape(-1, 1, 256)
            for path in sorted(assets.path(_VOICES).rglob("*.bin"))
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as part:
            np.savez(part, **voices)  # type: ignore[arg-type]
        Path(part.name).replace(file)
    return file
