"""The shipped cloud pipelines against servers of this machine, up to the words that are heard."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Sample, words

from headstart import load_config
from headstart.engines.hub import shared
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.pipeline.converse import converse
from headstart.processors.stt.streaming.fallback import Local
from headstart.testing.deepgram import DeepgramServer
from headstart.transports.wav import read_audio

pytestmark = pytest.mark.models

# The providers are asked for nothing that depends on luck, and given the time that a busy
# machine takes to be all of them: the stages would turn to the fallback, or go on without.
OURS = """\
extends: {pipeline}
override:
  stt: {{final_timeout_secs: 60, stall_secs: 60, connect_timeout_secs: 60}}
  turn: {{final_timeout_secs: 60}}
  llm: {{temperature: 0, timeout_secs: 60}}
"""


@pytest.mark.parametrize("pipeline", ["deepgram-claude", "flux-claude"])
async def test_deepgram_and_claude_where_environment_variables_say(
    pipeline: str, tmp_path: Path, samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "ours.yaml"
    config.write_text(OURS.format(pipeline=pipeline))
    # llama.cpp speaks Anthropic's protocol, and checks the key like Anthropic.
    claude = await shared.get(LlamaEngine, LlamaOptions.from_url("llama://SmolLM2-135M"))
    async with DeepgramServer(key="deepgram-key") as deepgram:
        monkeypatch.setenv("DEEPGRAM_API_KEY", "deepgram-key")
        monkeypatch.setenv("DEEPGRAM_BASE_URL", deepgram.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", claude.api_key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.base_url)
        spec = load_config(config)
        sample = samples["medium-france"]
        dialogue = await converse(spec, [read_audio(sample.path, spec.audio.in_sample_rate)])
    (record,) = dialogue.records
    assert words(record.user_text) == words(sample.text)
    assert [segment.path for segment in record.segments] == ["stream"]
    assert "paris" in words(record.bot_text)
    assert record.errors == []
    played = dialogue.recording.bot_speech().tobytes()
    heard = await (await Local.load()).transcribe(played, spec.audio.out_sample_rate)
    assert words(heard.text) == words(record.bot_text)
