"""Stages that ask servers on this machine, which answer as late as the real ones in the cloud.

The stages are Headstart's own, and so is all that they do; the servers speak the providers'
protocols over real sockets, with local models behind. Simulated are the delays, nothing else:
quality is that of the local models, whose work costs this machine's CPU.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any, Literal, Self

from pipecat.processors.frame_processor import FrameProcessorSetup
from pydantic import Field, SecretStr, model_validator

from headstart.engines import hub
from headstart.engines.hub import Engine
from headstart.engines.llama import LlamaOptions
from headstart.processors.llm import AnthropicLLM, LLMSettings
from headstart.processors.settings import StageSettings
from headstart.processors.stt.deepgram import DeepgramSTT
from headstart.processors.stt.deepgram_settings import DeepgramSettings, LinkSettings
from headstart.testing.anthropic import AnthropicServer
from headstart.testing.deepgram import DeepgramServer
from headstart.testing.delays import CLAUDE_HAIKU_4_5, NOVA_3, Delays, Latency

_LOCAL_LLM = "llama://SmolLM2-135M"
_CLOSE_SECS = 2.0


class Delayed(StageSettings):
    """What the settings of a simulated service have in common."""

    p50_ms: float
    p95_ms: float
    seed: int = 0
    """Of the delays. The same seed and words give the same delays, in every pipeline."""

    @property
    def latency(self) -> Latency:
        """The distribution that the delays are drawn from."""
        return Latency(self.p50_ms, self.p95_ms)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.latency
        return self

    def simulation(self) -> str:
        """What is simulated, for reports."""
        model = getattr(self, "model", "")
        return f"{model}: p50 {self.p50_ms:g} ms, p95 {self.p95_ms:g} ms, seed {self.seed}"


class SimulatedDeepgramSettings(Delayed, DeepgramSettings):
    """Deepgram's settings, and how late it is."""

    p50_ms: float = Field(default=NOVA_3.p50_ms, gt=NOVA_3.included_ms)
    """Median time from the end of the voice to the final transcript, in ms, as measured with a
    VAD that takes 200 ms of it. Default: as published of nova-3."""
    p95_ms: float = Field(default=NOVA_3.p95_ms, gt=NOVA_3.included_ms)
    """The 95th percentile, in ms."""

    @property
    def latency(self) -> Latency:
        """From the audio, or from `Finalize`, to the words."""
        return Latency(self.p50_ms, self.p95_ms, NOVA_3.included_ms)


class SimulatedLLMSettings(Delayed, LLMSettings):
    """The language model's settings, and how late it is."""

    p50_ms: float = Field(default=CLAUDE_HAIKU_4_5.p50_ms, gt=0)
    """Median time from the request to the first token, in ms. Default: as published of
    claude-haiku-4-5."""
    p95_ms: float = Field(default=CLAUDE_HAIKU_4_5.p95_ms, gt=0)
    """The 95th percentile, in ms."""


class Deepgram(DeepgramSTT):
    """Speech-to-text by Deepgram's protocol; the embedded Whisper answers, with drawn delays."""

    def __init__(self, settings: SimulatedDeepgramSettings | None = None, **kwargs: Any) -> None:
        """Create the stage; its server starts with the pipeline."""
        self._simulated = settings or SimulatedDeepgramSettings()
        super().__init__(_unaddressed(self._simulated, "ws://127.0.0.1"), **kwargs)

    @classmethod
    def check_environment(cls, settings: LinkSettings) -> None:
        """The server on this machine needs no key."""

    @classmethod
    def required_assets(cls, settings: LinkSettings) -> tuple[str, ...]:
        """The weights behind the protocol."""
        return ("whisper-tiny",)

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Start the server, or find the one that runs, and connect."""
        service = Service("deepgram", self._simulated.latency, self._simulated.seed)
        server = await hub.shared.get(SimulatedCloud, service)
        self._options = self._options.model_copy(update={"base_url": server.url})
        await super().setup(setup)


class Claude(AnthropicLLM):
    """Claude by Anthropic's protocol; the embedded SmolLM2 answers, with drawn delays."""

    def __init__(self, settings: SimulatedLLMSettings | None = None, **kwargs: Any) -> None:
        """Create the stage; its server starts with the pipeline."""
        self._simulated = settings or SimulatedLLMSettings()
        super().__init__(_unaddressed(self._simulated, "http://127.0.0.1"), **kwargs)

    @classmethod
    def check_environment(cls, settings: LLMSettings) -> None:
        """The server on this machine needs no key."""

    @classmethod
    def required_assets(cls, settings: LLMSettings) -> tuple[str, ...]:
        """The weights behind the protocol."""
        asset = LlamaOptions.from_url(_LOCAL_LLM).asset
        return (asset,) if asset else ()

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Start the server, or find the one that runs."""
        await super().setup(setup)
        service = Service("anthropic", self._simulated.latency, self._simulated.seed)
        server = await hub.shared.get(SimulatedCloud, service)
        self._client.base_url = server.url


@dataclass(frozen=True)
class Service:
    """A service that is simulated."""

    protocol: Literal["deepgram", "anthropic"]
    latency: Latency
    seed: int

    def server(self) -> DeepgramServer | AnthropicServer:
        """Its server, not started."""
        delays = Delays(self.latency, self.seed)
        if self.protocol == "deepgram":
            return DeepgramServer(transcript=delays)
        return AnthropicServer(model=_LOCAL_LLM, first_token=delays)


class SimulatedCloud(Engine):
    """A protocol server on an event loop in a thread of its own, as long as the process lives."""

    def __init__(self, server: DeepgramServer | AnthropicServer) -> None:
        """Take over a server that is not started; `load` starts it."""
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="simulated-cloud", daemon=True
        )

    @classmethod
    def load(cls, options: Service) -> Self:
        """Start the server.

        Raises:
            AssetError: Weights are missing.
            EngineError: The model behind it did not load.
        """
        cloud = cls(options.server())
        cloud._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(cloud._server.__aenter__(), cloud._loop).result()
        except BaseException:
            cloud._stop()
            raise
        return cloud

    @property
    def url(self) -> str:
        """Where it serves."""
        return self._server.url

    def close(self) -> None:
        """End the server and its thread."""
        if self._thread.is_alive():
            closing = asyncio.run_coroutine_threadsafe(self._server.__aexit__(), self._loop)
            try:
                closing.result(_CLOSE_SECS)
            finally:
                self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECS)
        if not self._thread.is_alive():
            self._loop.close()


def _unaddressed(settings: Any, base_url: str) -> Any:
    """The settings with an address to come, and a key that nobody else has use for."""
    return settings.model_copy(update={"base_url": base_url, "api_key": SecretStr("simulated")})
