"""The shipped cloud pipelines, with nothing changed but the addresses of its providers."""

from __future__ import annotations

import pytest
from conftest import Sample, words

from headstart import load_config
from headstart.engines.hub import shared
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.pipeline.dialogue import converse
from headstart.testing.deepgram import DeepgramServer
from headstart.transports.wav import read_audio


@pytest.mark.parametrize("pipeline", ["deepgram-claude", "flux-claude"])
async def test_deepgram_and_claude_by_environment_variables_alone(
    pipeline: str, samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    # llama.cpp speaks Anthropic's protocol, and checks the key like Anthropic.
    claude = await shared.get(LlamaEngine, LlamaOptions.from_url("llama://SmolLM2-135M"))
    async with DeepgramServer(key="deepgram-key") as deepgram:
        monkeypatch.setenv("DEEPGRAM_API_KEY", "deepgram-key")
        monkeypatch.setenv("DEEPGRAM_BASE_URL", deepgram.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", claude.api_key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.base_url)
        spec = load_config(pipeline)
        sample = samples["medium-france"]
        dialogue = await converse(spec, [read_audio(sample.path, spec.audio.in_sample_rate)])
    (record,) = dialogue.records
    assert words(record.user_text) == words(sample.text)
    assert "paris" in words(record.bot_text)
    assert record.errors == []
