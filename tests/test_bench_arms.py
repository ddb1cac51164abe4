"""Arms of the benchmark that are not all real, or not ours: simulated delays, foreign workers."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from anthropic import AsyncAnthropic, AuthenticationError
from conftest import SAMPLES, Sample, words
from deepgram.listen.v1.types import ListenV1Results
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr, ValidationError

from headstart import load_config
from headstart.bench import raster
from headstart.bench.conversation.arms import read_arms
from headstart.bench.conversation.run import Plan, run_benchmark
from headstart.bench.conversation.simulated import SimulatedDeepgramSettings, SimulatedLLMSettings
from headstart.bench.conversation.utterances import read_utterances
from headstart.engines import hub
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.errors import ConfigError, HeadstartError
from headstart.pipeline.converse import converse
from headstart.processors.audio import MODEL_RATE
from headstart.processors.stt.streaming.link import Destination, Link, options
from headstart.testing.anthropic import AnthropicServer
from headstart.testing.deepgram import DeepgramServer
from headstart.testing.delays import CLAUDE_HAIKU_4_5, NOVA_3, Delays, Latency
from headstart.transports.wav import read_audio

QUESTION = "What is the capital of France?"
ENDLESS = "Count to one thousand, and tell a story about each number."


@pytest.fixture(scope="module", autouse=True)
def engines() -> Iterator[hub.EngineHub]:
    """Engines of the module's own, so that its servers have answered nobody else."""
    shared, hub.shared = hub.shared, hub.EngineHub()
    yield hub.shared
    hub.shared.close()
    hub.shared = shared


# -- delays


percentiles = st.tuples(st.floats(1, 5000), st.floats(1.01, 10), st.floats(0, 0.9))


@given(percentiles, st.integers())
@settings(max_examples=20)
def test_drawn_delays_have_the_percentiles_asked_for(
    shape: tuple[float, float, float], seed: int
) -> None:
    p50_ms, ratio, included = shape
    latency = Latency(p50_ms, p50_ms * ratio, included * p50_ms)
    delays = Delays(latency, seed)
    drawn = np.array([delays.draw_secs("same") for _ in range(2000)]) * 1000 + latency.included_ms
    assert np.mean(drawn <= latency.p50_ms) == pytest.approx(0.5, abs=0.07)
    assert np.mean(drawn <= latency.p95_ms) == pytest.approx(0.95, abs=0.03)
    assert drawn.min() >= latency.included_ms


@pytest.mark.parametrize(("latency", "p99_ms"), [(NOVA_3, 326)])
def test_the_fit_agrees_with_the_published_p99(latency: Latency, p99_ms: float) -> None:
    delays = Delays(latency)
    drawn = [delays.draw_secs("same") * 1000 + latency.included_ms for _ in range(20_000)]
    assert np.percentile(drawn, 99) == pytest.approx(p99_ms, rel=0.05)


@given(st.integers(), st.lists(st.sampled_from(["a", "b", "c"]), max_size=6))
def test_the_same_seed_and_words_wait_the_same_whatever_else_was_asked(
    seed: int, others: list[str]
) -> None:
    one, two = Delays(CLAUDE_HAIKU_4_5, seed), Delays(CLAUDE_HAIKU_4_5, seed)
    for other in others:
        two.draw_secs(other)
    first = one.draw_secs("Set it for ten minutes.")
    assert first == two.draw_secs("set it for ten minutes")
    assert one.draw_secs("Set it for ten minutes.") != first
    assert Delays(CLAUDE_HAIKU_4_5, seed + 1).draw_secs("Set it for ten minutes.") != first


@pytest.mark.parametrize(
    "wrong", [{"p50_ms": 900.0, "p95_ms": 800.0}, {"p50_ms": 0.0}, {"p50_ms": -1.0}]
)
def test_percentiles_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    for kind in (SimulatedLLMSettings, SimulatedDeepgramSettings):
        with pytest.raises(ValidationError):
            kind.model_validate(wrong)


# -- servers


@pytest.fixture
async def claude() -> AsyncIterator[tuple[AnthropicServer, AsyncAnthropic]]:
    server = AnthropicServer(key="right", first_token=Delays(Latency(300, 301)))
    async with server, AsyncAnthropic(api_key="right", base_url=server.url) as client:
        yield server, client


async def ask(
    client: AsyncAnthropic, tokens: int = 32, question: str = QUESTION
) -> tuple[float, str]:
    """When the first token of an answer came, and all of it."""
    begun, first = time.monotonic(), None
    async with client.messages.stream(
        model="claude-haiku-4-5", max_tokens=tokens, extra_body={"temperature": 0},
        messages=[{"role": "user", "content": question}],
    ) as stream:  # fmt: skip
        text = ""
        async for piece in stream.text_stream:
            first = first or time.monotonic() - begun
            text += piece
    assert first is not None
    return first, text


@pytest.mark.models
async def test_claude_answers_with_the_real_model_and_never_before_its_time(
    claude: tuple[AnthropicServer, AsyncAnthropic],
) -> None:
    _, client = claude
    first, text = await ask(client)
    assert first >= Delays(Latency(300, 301)).draw_secs(QUESTION)
    async with AnthropicServer() as undelayed:
        bare = AsyncAnthropic(api_key="any", base_url=undelayed.url)
        assert (await ask(bare))[1] == text
        await bare.close()
    assert words(text)
    whole = await client.messages.create(
        model="claude-haiku-4-5", max_tokens=4, messages=[{"role": "user", "content": QUESTION}]
    )
    assert whole.usage.output_tokens
    assert (await client.models.retrieve("claude-haiku-4-5")).id == "claude-haiku-4-5"
    with pytest.raises(AuthenticationError, match="invalid x-api-key"):
        await client.with_options(api_key="wrong").models.retrieve("claude-haiku-4-5")


@pytest.mark.models
async def test_an_answer_given_up_while_it_is_held_back_frees_the_model() -> None:
    llama = await hub.shared.get(LlamaEngine, LlamaOptions.from_url("llama://SmolLM2-135M"))
    hour = Latency(3_600_000, 3_600_001)
    async with (
        AnthropicServer(first_token=Delays(hour)) as server,
        AsyncAnthropic(api_key="any", base_url=server.url, max_retries=0) as client,
        httpx.AsyncClient(base_url=llama.base_url, headers={"x-api-key": llama.api_key}) as slots,
    ):

        async def until_busy(busy: bool) -> None:
            while busy is not any(s["is_processing"] for s in (await slots.get("/slots")).json()):
                pass  # asking takes a while by itself

        asking = asyncio.create_task(ask(client, tokens=1500, question=ENDLESS))
        async with asyncio.timeout(20):  # the whole answer would take longer
            await until_busy(True)
            asking.cancel()
            await until_busy(False)


@pytest.mark.models
async def test_deepgram_never_answers_before_its_time(samples: dict[str, Sample]) -> None:
    audio = read_audio(samples["short-joke"].path, MODEL_RATE)
    latency = Latency(600, 601, included_ms=200)
    async with DeepgramServer(transcript=Delays(latency)) as server:
        query = {"encoding": "linear16", "sample_rate": MODEL_RATE, "punctuate": True}
        link = await Link.open(Destination(server.url, SecretStr("any"), options(query)), 5.0)
        await link.send(audio.tobytes(), len(audio) / MODEL_RATE)
        asked = time.monotonic()
        await link.finalize()
        async for message in link.messages():
            if isinstance(message, ListenV1Results) and message.from_finalize:
                break
        took = time.monotonic() - asked
        await link.close()
    said = message.channel.alternatives[0].transcript
    assert words(said) == words(samples["short-joke"].text)
    assert took >= Delays(latency).draw_secs(said)


# -- arms


@pytest.mark.models
@pytest.mark.parametrize("arm", ["simulated-cloud", "simulated-cloud-early"])
async def test_a_simulated_arm_answers_without_keys(
    arm: str, samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DEEPGRAM_API_KEY", "DEEPGRAM_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")  # is not asked
    spec = load_config(arm)
    sample = samples["medium-france"]
    dialogue = await converse(spec, [read_audio(sample.path, spec.audio.in_sample_rate)])
    record = dialogue.records[-1]  # a machine that is too busy hears more than one turn
    assert words(record.user_text) == words(sample.text)
    assert "paris" in words(record.bot_text)
    assert record.errors == []
    if arm == "simulated-cloud":
        assert record.first_token_s is not None
        assert record.turn_end_s is not None
        delay = Delays(CLAUDE_HAIKU_4_5, 0).draw_secs(sample.text)
        assert record.first_token_s - record.turn_end_s >= delay - 0.02


def test_what_is_simulated_is_told_with_its_seed() -> None:
    plain, early, local = read_arms(["simulated-cloud", "simulated-cloud-early", "local"])
    assert plain.simulated == early.simulated == (
        "nova-3: p50 247 ms, p95 298 ms, seed 0",
        "claude-haiku-4-5: p50 637 ms, p95 1615 ms, seed 0",
    )  # fmt: skip
    assert local.simulated == ()
    assert {"whisper-tiny", "smollm2-135m"} <= set(plain.assets)


WORKER = """
import json, os, sys, wave
for line in sys.stdin:
    job = json.loads(line)
    if job["folder"]:
        os.makedirs(job["folder"])
        with wave.open(job["folder"] + "/conversation.wav", "wb") as file:
            file.setnchannels(2), file.setsampwidth(2), file.setframerate(8000)
            silence, voice = bytes(4), (0).to_bytes(2, "little") + (999).to_bytes(2, "little")
            file.writeframes(silence * 80000 + voice * 8000)
        turn = {"turn": 1, "user_text": sys.argv[1], "bot_text": "", "first_audio_out_s": 10.0}
        open(job["folder"] + "/turns.jsonl", "w").write(json.dumps(turn))
    assert os.path.isabs(job["audio"]) and os.path.exists(job["audio"])
    weights = json.loads(os.environ["HEADSTART_ASSETS"])
    assert os.listdir(weights["silero-vad"])
    print(json.dumps({"start_s": 0.5, "versions": {"other": "1.2"}}), flush=True)
"""


def test_any_program_that_speaks_the_protocol_can_be_an_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    arm = tmp_path / "other.yaml"
    arm.write_text(
        f'worker: [{sys.executable}, worker.py, "${{SAID:-Tell me a joke.}}"]\nassets: [silero-vad]'
    )
    monkeypatch.chdir(SAMPLES.parent)
    utterances = read_utterances(Path("speech"), ["short-joke"])
    out = tmp_path / "out"
    results = run_benchmark(Plan(read_arms([str(arm)]), utterances, 2, 0, out, "headstart bench"))
    assert results.versions["other: other"] == "1.2"
    for run in results.runs:
        end_s = 0.5 + utterances["short-joke"][0].speech_end_s
        assert run.failures == []
        assert run.voice_to_voice_s == pytest.approx(10.0 - end_s)
    assert json.loads((out / "runs/other/short-joke/2/turns.jsonl").read_text())["turn"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker: nobody", "other.yaml:1:9: worker should be a list"),
        ("worker: [a]\nstages: [vad]", "other.yaml:2:1: "),
        ("worker: [a]\nasets: [b]", "did you mean 'assets'"),
        ("worker: []", "other.yaml:1:9: "),
    ],
)
def test_what_is_wrong_with_a_worker_is_said_with_its_place(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_arms([str(tmp_path / "other.yaml")])
    assert message in str(raised.value)


def test_a_worker_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("worker: [.venv/bin/python]")
    utterances = read_utterances(SAMPLES, ["short-joke"])
    plan = Plan(read_arms([str(tmp_path / "other.yaml")]), utterances, 1, 0, tmp_path, "")
    with pytest.raises(HeadstartError, match=r"other.yaml: .venv/bin/python does not start"):
        run_benchmark(plan)


def test_livekit_is_an_arm_in_an_environment_of_its_own() -> None:
    folder = Path(__file__).parent.parent / "benchmarks" / "livekit"
    plain, preemptive = read_arms(
        [str(folder / "livekit.yaml"), str(folder / "livekit-preemptive-tts.yaml")]
    )
    assert plain.folder == preemptive.folder == folder
    assert preemptive.command[1:] == ("worker.py", "--preemptive-tts")
    assert not [
        file for file in (folder.parent.parent / "headstart").rglob("*.py")
        if "import livekit" in file.read_text() or "from livekit" in file.read_text()
    ]  # fmt: skip


# -- pictures


def test_the_png_shows_what_the_svg_says() -> None:
    picture = raster.png(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 50">'
        '<rect x="10" y="10" width="20" height="20" fill="#ff0000"/>'
        '<circle cx="60" cy="20" r="8" fill="#0000ff" fill-opacity=".5"/>'
        '<line x1="0" y1="45" x2="100" y2="45" stroke="#00ff00" stroke-width="4"/>'
        '<text x="90" y="30" text-anchor="end" font-size="12" font-weight="600">x</text></svg>'
    )
    image = Image.open(io.BytesIO(picture))
    assert image.size == (200, 100)
    assert image.getpixel((40, 40)) == (255, 0, 0)
    assert image.getpixel((120, 40)) == pytest.approx((127, 127, 255), abs=2)
    assert image.getpixel((100, 90)) == (0, 255, 0)
    assert np.asarray(image.crop((164, 40, 180, 62))).min() < 100
    assert image.getpixel((2, 2)) == (255, 255, 255)
