"""Pipecat's own services, told where this machine's weights and its llama.cpp server are.

Each class is Pipecat's service with its defaults; the only thing added is an address. They exist
because a pipeline file cannot know the folder of a cache or the port of a server yet to start. The
voice is in `stock_voice`, because it needs no package that Headstart does not need itself.
"""

from __future__ import annotations

from typing import Any

from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.whisper.stt import WhisperSTTService

from headstart import assets
from headstart.engines import hub
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.processors.settings import StageSettings


class WhisperSettings(StageSettings):
    """Settings of Pipecat's Whisper."""

    model: str = "whisper-tiny"
    """Name of an asset: a CTranslate2 folder."""
    compute_type: str = "int8"
    """How CTranslate2 computes."""


class WhisperSTT(WhisperSTTService):
    """Pipecat's WhisperSTTService (faster-whisper) on weights of the cache."""

    def __init__(self, settings: WhisperSettings | None = None, **kwargs: Any) -> None:
        """Load the model, as Pipecat's service does."""
        ours = settings or WhisperSettings()
        super().__init__(
            device="cpu",
            compute_type=ours.compute_type,
            settings=WhisperSTTService.Settings(model=str(assets.path(ours.model))),
            **kwargs,
        )

    @classmethod
    def required_assets(cls, settings: WhisperSettings) -> tuple[str, ...]:
        """The weights that the stage needs."""
        return (settings.model,)


class OpenAISettings(StageSettings):
    """Settings of Pipecat's OpenAI service on a local server."""

    base_url: str = "llama://SmolLM2-135M"
    """A model that a llama.cpp server of this process serves."""
    max_tokens: int = 64
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 (the likeliest words) to 1."""
    stop: tuple[str, ...] = ("\n\n",)
    """Texts that end an answer."""


class OpenAILLM(OpenAILLMService):
    """Pipecat's OpenAILLMService, as its documentation uses it for local servers."""

    def __init__(self, settings: OpenAISettings | None = None, **kwargs: Any) -> None:
        """Set the service up; the server is started when the pipeline is."""
        ours = settings or OpenAISettings()
        self._llama = LlamaOptions.from_url(ours.base_url)
        super().__init__(
            api_key="none yet",
            settings=OpenAILLMService.Settings(
                model=self._llama.model,
                max_tokens=ours.max_tokens,
                temperature=ours.temperature,
                extra={"stop": list(ours.stop)},
            ),
            **kwargs,
        )

    @classmethod
    def required_assets(cls, settings: OpenAISettings) -> tuple[str, ...]:
        """The weights of a model that is named, not given as a file."""
        asset = LlamaOptions.from_url(settings.base_url).asset
        return (asset,) if asset else ()

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Start the server, or find the one that runs, and talk to it."""
        await super().setup(setup)
        engine = await hub.shared.get(LlamaEngine, self._llama)
        url = await engine.ensure_running()
        self._client = self.create_client(  # type: ignore[no-untyped-call]
            api_key=engine.api_key, base_url=f"{url}/v1"
        )
