"""The language model stage and its engine: a real llama.cpp, the real SDK, real sockets."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from anthropic.types.beta import BetaRawMessageStartEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    FunctionCallResultFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    MetricsFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import LLMUsageMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.runner import WorkerRunner
from pydantic import ValidationError

from headstart import assets
from headstart.engines import hub
from headstart.engines.llama import LlamaEngine, LlamaOptions
from headstart.errors import UsageError
from headstart.frames import WarmUpFrame, attempt_of, mark_attempt
from headstart.processors.llm import AnthropicLLM, LLMSettings
from headstart.processors.llm.errors import retry_after_secs, tidy

pytestmark = pytest.mark.models

PROMPT = "You are a helpful voice assistant. Answer in one short sentence."
LLAMA = "llama://SmolLM2-135M"
LONG = "Tell me a very long story about a fox and count to one thousand."
DEADLINE_SECS = 20


@pytest.fixture(scope="module", autouse=True)
def engines() -> Iterator[hub.EngineHub]:
    """One llama.cpp for the module."""
    if assets.find("smollm2-135m") is None:
        pytest.skip("needs the weights: headstart models pull smollm2-135m")
    shared, hub.shared = hub.shared, hub.EngineHub()
    yield hub.shared
    hub.shared.close()
    hub.shared = shared


async def llama() -> LlamaEngine:
    return await hub.shared.get(LlamaEngine, LlamaOptions())


def context(*words: str, prompt: str = PROMPT) -> LLMContext:
    """A conversation: the user's words and the assistant's, in turn."""
    roles = ("user", "assistant")
    said: list[Any] = [{"role": roles[n % 2], "content": text} for n, text in enumerate(words)]
    return LLMContext(messages=[{"role": "system", "content": prompt}, *said])


class Ear(FrameProcessor):
    """Notes what comes by in one direction."""

    def __init__(self, direction: FrameDirection, heard: Callable[[Frame], None]) -> None:
        super().__init__(enable_direct_mode=True)
        self._direction, self._heard = direction, heard

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == self._direction:
            self._heard(frame)
        await self.push_frame(frame, direction)


class Talk:
    """A pipeline with nothing in it but the stage."""

    def __init__(self, **settings: Any) -> None:
        self.heard: list[Frame] = []
        self.on_frame: Callable[[Frame], None] = lambda _: None
        self._came = asyncio.Event()
        self.stage = AnthropicLLM(LLMSettings(**{"base_url": LLAMA, **settings}))
        ears = [Ear(direction, self._note) for direction in reversed(FrameDirection)]
        self.worker = PipelineWorker(
            Pipeline([ears[0], self.stage, ears[1]]),
            params=PipelineParams(enable_usage_metrics=True),
            cancel_on_idle_timeout=False,
        )

    def _note(self, frame: Frame) -> None:
        self.heard.append(frame)
        self.on_frame(frame)
        self._came.set()

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            await self.worker.queue_frame(frame)

    async def until(self, kind: type[Frame], count: int = 1) -> Frame:
        """Wait until so many frames of this kind have come."""
        async with asyncio.timeout(DEADLINE_SECS):
            while len(found := [frame for frame in self.heard if isinstance(frame, kind)]) < count:
                self._came.clear()
                await self._came.wait()
        return found[count - 1]

    async def until_text(self, words: str) -> None:
        """Wait until a response says this."""
        async with asyncio.timeout(DEADLINE_SECS):
            while not any(words in text for text in self.texts):
                self._came.clear()
                await self._came.wait()

    async def answer(self, to: LLMContext) -> str:
        before = len(self.texts)
        await self.send(LLMContextFrame(to))
        await self.until(LLMFullResponseEndFrame, before + 1)
        return self.texts[-1]

    @property
    def texts(self) -> list[str]:
        """The text of every response; fails if any is not whole."""
        texts: list[str] = []
        inside = False
        for frame in self.heard:
            if isinstance(frame, LLMFullResponseStartFrame):
                assert not inside, "a response began within another"
                inside = True
                texts.append("")
            elif isinstance(frame, LLMTextFrame):
                assert inside, "text outside a response"
                texts[-1] += frame.text
            elif isinstance(frame, LLMFullResponseEndFrame):
                assert inside, "a response ended twice"
                inside = False
        return texts

    @property
    def unread(self) -> list[int]:
        """How many tokens of each prompt were not in the cache."""
        return [
            data.value.prompt_tokens
            for frame in self.heard
            if isinstance(frame, MetricsFrame)
            for data in frame.data
            if isinstance(data, LLMUsageMetricsData)
        ]

    @property
    def errors(self) -> list[str]:
        return [frame.error for frame in self.heard if isinstance(frame, ErrorFrame)]

    def kinds(self, *kinds: type[Frame]) -> list[type[Frame]]:
        return [type(frame) for frame in self.heard if isinstance(frame, kinds)]


@asynccontextmanager
async def talk(**settings: Any) -> AsyncIterator[Talk]:
    talking = Talk(**settings)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(talking.worker)
    running = asyncio.create_task(runner.run())
    try:
        yield talking
    finally:
        await talking.worker.cancel()
        async with asyncio.timeout(DEADLINE_SECS):
            await running


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_SECS):
        while not await condition():  # noqa: ASYNC110  another process's state: no event tells
            await asyncio.sleep(0.01)


async def slots_are_free() -> bool:
    engine = await llama()
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"{engine.base_url}/slots"
        slots = (await client.get(url, headers={"x-api-key": engine.api_key})).json()
    return not any(slot["is_processing"] for slot in slots)


async def llama_is_dead() -> bool:
    return (await llama()).pid is None


async def slots_are_busy() -> bool:
    return not await slots_are_free()


# What it says


async def test_answers_sensibly_and_remembers_the_conversation() -> None:
    async with talk() as talking:
        await talking.send(WarmUpFrame(context()))
        await talking.until(WarmUpFrame)
        assert "Paris" in await talking.answer(context("What is the capital of France?"))
        again = context("What is the capital of France?", "Paris.", "What is the capital of Italy?")
        assert "Rome" in await talking.answer(again)
        assert not talking.errors
        assert all(text == text.lstrip() for text in talking.texts)


async def test_warming_up_leaves_the_prompt_in_every_slot() -> None:
    async with talk() as talking:
        prompt = "You know every railway station of this country by heart. Be brief. " * 8
        await talking.send(WarmUpFrame(context(prompt=prompt)))
        await talking.until(WarmUpFrame)
        engine = await llama()
        ask = {
            "model": "any",
            "max_tokens": 1,
            "system": prompt,
            "messages": [{"role": "user", "content": "Where am I?"}],
        }
        async with httpx.AsyncClient(trust_env=False, base_url=engine.base_url) as client:
            headers = {"x-api-key": engine.api_key}
            replies = await asyncio.gather(
                *(client.post("/v1/messages", json=ask, headers=headers) for _ in range(2))
            )
        for reply in replies:
            usage = reply.json()["usage"]
            assert usage["cache_read_input_tokens"] > 100 > usage["input_tokens"]


async def last_tasks() -> dict[int, int | None]:
    """The request that used each slot last."""
    engine = await llama()
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"{engine.base_url}/slots"
        slots = (await client.get(url, headers={"x-api-key": engine.api_key})).json()
    return {slot["id"]: slot.get("id_task") for slot in slots}


async def warm_up(talking: Talk, prompt: str) -> None:
    await talking.send(WarmUpFrame(context(prompt=prompt)))
    await talking.until(WarmUpFrame)


async def test_a_prompt_is_read_once_however_many_sessions_open() -> None:
    prompt = "You sell tickets for the ferry to the island. " * 8
    async with talk() as one, talk() as other, talk() as third:
        await asyncio.gather(warm_up(one, prompt), warm_up(other, prompt))
        before = await last_tasks()
        await warm_up(third, prompt)
        assert await last_tasks() == before


async def test_warming_up_leaves_the_slot_of_a_conversation_alone() -> None:
    async with talk(max_tokens=4) as one, talk() as other, talk() as third:
        before = await last_tasks()
        await one.answer(context("It rains in Bergen. " * 50))
        during = await last_tasks()
        (slot,) = [number for number in before if before[number] != during[number]]
        await warm_up(other, "You sell tickets for the train. " * 8)
        await warm_up(third, "You sell flowers at the market. " * 8)
        assert (await last_tasks())[slot] == during[slot]
        await one.answer(context("It rains in Bergen. " * 50, "Yes.", "Why?"))
    assert one.unread[0] > 200 > 50 > one.unread[1]


async def test_a_prompt_is_read_again_when_llama_has_been_restarted() -> None:
    prompt = "You sell tickets for the night bus. " * 8
    async with talk() as one, talk() as other:
        await warm_up(one, prompt)
        engine = await llama()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await eventually(llama_is_dead)
        await warm_up(other, prompt)
        assert None not in (await last_tasks()).values()


async def test_warming_up_leaves_nothing_to_prepare_on_the_event_loop_at_the_first_event() -> None:
    # Else pydantic holds the loop for 0.05 to 0.15 s just when the first answer begins.
    async with talk() as talking:
        await talking.send(WarmUpFrame(context()))
        await talking.until(WarmUpFrame)
    assert BetaRawMessageStartEvent.__pydantic_complete__


async def test_only_who_has_the_key_may_use_the_server() -> None:
    engine = await llama()
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.get(f"{engine.base_url}/slots", headers={"x-api-key": "guess"})
    assert reply.status_code == 401


# Who waits for whom


async def test_an_interruption_ends_the_answer_at_once_and_frees_the_slot() -> None:
    async with talk(max_tokens=1500, stop_sequences=()) as talking:
        await talking.send(LLMContextFrame(context(LONG)))
        await talking.until(LLMTextFrame, 3)
        await talking.send(InterruptionFrame())
        await talking.until(InterruptionFrame)
        order = talking.kinds(LLMFullResponseEndFrame, InterruptionFrame)
        assert order == [LLMFullResponseEndFrame, InterruptionFrame]
        await eventually(slots_are_free)
        assert "Paris" in await talking.answer(context("What is the capital of France?"))
        assert len(talking.texts) == 2
        assert not talking.errors


async def test_an_answer_given_up_does_not_scatter_the_prompts_that_are_cached() -> None:
    story = "Once there was a fox. " * 100
    async with talk(max_tokens=4) as one, talk(max_tokens=4) as other:
        await one.answer(context("Hello."))
        await other.answer(context("It rains in Bergen. " * 100))
        await one.answer(context(story))
        # Superseded while llama.cpp reads what is new in it.
        await one.send(LLMContextFrame(context(story, "Yes.", "Go on. " * 12)))
        await eventually(slots_are_busy)
        await one.answer(context(story, "Yes.", "Why?"))
    assert one.unread[1] > 400 > 100 > one.unread[-1]


async def test_a_new_context_supersedes_the_answer_and_never_queues_behind_it() -> None:
    endless, brief = says(*["and"] * 1_000_000, whole=False), says("Paris.", whole=True)
    async with api(endless, brief) as (url, _), talk(base_url=url, api_key=KEY) as talking:
        await talking.send(LLMContextFrame(context(LONG)))
        await talking.until(LLMTextFrame, 3)
        # A frame in between would wait for the endless answer; the new context may not.
        await talking.send(
            TranscriptionFrame("late", "user", ""),
            LLMContextFrame(context("What is the capital of France?")),
        )
        await talking.until(LLMFullResponseEndFrame, 2)
        assert talking.texts[1] == "Paris."
        order = talking.kinds(
            LLMFullResponseStartFrame, LLMFullResponseEndFrame, TranscriptionFrame
        )
        whole = [LLMFullResponseStartFrame, LLMFullResponseEndFrame]
        assert order == [*whole, TranscriptionFrame, *whole]


async def test_of_contexts_that_come_at_once_the_last_is_answered() -> None:
    async with talk() as talking:
        cities = ["Spain", "Italy", "France"]
        await talking.send(
            *(LLMContextFrame(context(f"What is the capital of {city}?")) for city in cities),
            EndFrame(),
        )
        await talking.until(EndFrame)
        assert "Paris" in talking.texts[-1]
        assert not talking.errors


async def test_nothing_overtakes_an_answer_and_the_end_waits_for_it() -> None:
    async with talk() as talking:
        await talking.send(
            LLMContextFrame(context("What is the capital of France?")),
            TranscriptionFrame("later", "user", ""),
            EndFrame(),
        )
        await talking.until(EndFrame)
        assert "Paris" in talking.texts[0]
        order = talking.kinds(LLMFullResponseEndFrame, TranscriptionFrame, EndFrame)
        assert order == [LLMFullResponseEndFrame, TranscriptionFrame, EndFrame]


async def test_cancelling_the_pipeline_closes_the_connection() -> None:
    async with talk(max_tokens=1500, stop_sequences=()) as talking:
        await talking.send(LLMContextFrame(context(LONG)))
        await talking.until(LLMTextFrame)
    await eventually(slots_are_free)


# Speculation, as Pipecat does it


async def test_a_speculative_answer_is_held_until_the_turn_ends() -> None:
    async with talk() as talking:
        asked = context("What is the capital of France?")
        await talking.send(UserStartedSpeakingFrame(), LLMContextFrame(asked, speculation=True))
        await talking.until(MetricsFrame)  # the tokens that were used: the answer is complete
        assert not talking.texts
        await talking.send(UserStoppedSpeakingFrame())
        await talking.until(LLMFullResponseEndFrame)
        assert "Paris" in talking.texts[0]


async def test_a_withdrawn_answer_is_never_heard_and_frees_the_slot() -> None:
    async with talk(max_tokens=1500, stop_sequences=()) as talking:
        await talking.send(
            UserStartedSpeakingFrame(), LLMContextFrame(context(LONG), speculation=True)
        )
        await eventually(slots_are_busy)
        await talking.send(EagerEndOfTurnCancelFrame())
        await eventually(slots_are_free)
        await talking.send(UserStoppedSpeakingFrame())
        assert "Paris" in await talking.answer(context("What is the capital of France?"))
        assert len(talking.texts) == 1


# The child process


async def test_an_answer_comes_though_the_server_was_killed() -> None:
    async with talk() as talking:
        engine = await llama()
        for _ in range(2):
            dead, url = engine.pid, engine.base_url
            assert dead is not None
            os.kill(dead, signal.SIGKILL)
            assert "Paris" in await talking.answer(context("What is the capital of France?"))
            assert engine.pid not in (None, dead)
            assert engine.base_url != url
        assert not talking.errors


async def test_a_server_killed_in_mid_answer_ends_it_and_says_so_once() -> None:
    async with talk(max_tokens=1500, stop_sequences=()) as talking:
        engine = await llama()
        await talking.send(LLMContextFrame(context(LONG)))
        await talking.until(LLMTextFrame, 3)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await talking.until(LLMFullResponseEndFrame)
        assert len(talking.texts) == len(talking.errors) == 1
        assert "\n" not in talking.errors[0]


# Servers that fail


Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def api(*replies: Reply) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives these replies to its requests, the last one for ever."""
    requests: list[bytes] = []
    serving: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            serving.append(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            requests.append(head + await reader.readexactly(int(length or 0)))
            await replies[min(len(requests), len(replies)) - 1](requests[-1], writer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


def refuses(
    status: int, kind: str, message: str, *, page: str = "", retry: str = "retry-after-ms: 1"
) -> Reply:
    """Answers with an error, or with a page that no API would send."""

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        error = {"type": "error", "error": {"type": kind, "message": message}}
        body = page or json.dumps(error)
        writer.write(
            f"HTTP/1.1 {status} No\r\ncontent-type: application/json\r\n{retry}\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )

    return reply


def streams(*events: dict[str, Any] | str) -> Reply:
    """Streams what is given: events, or any text."""

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"connection: close\r\n\r\n")
        for event in events:
            text = event
            if isinstance(event, dict):
                text = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
            writer.write(str(text).encode())
            await writer.drain()

    return reply


def delta(**fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": fields}


def stops(reason: str) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": None}


STOP = {"type": "message_stop"}


def says(*words: str, whole: bool, error: str | None = None, calls: str | None = None) -> Reply:
    """Streams words, then perhaps a tool's name; stops short unless `whole`."""

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        def event(kind: str, **data: Any) -> None:
            writer.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode())

        usage = {"input_tokens": 3, "output_tokens": 1}
        message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"connection: close\r\n\r\n")
        event("message_start", message={**message, "usage": usage})
        event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for word in words:
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
            await writer.drain()
            await asyncio.sleep(0)
        if error:
            event("error", error={"type": error, "message": "Overloaded"})
        if whole:
            event("content_block_stop", index=0)
            if calls:
                tool = {"type": "tool_use", "id": "call", "name": calls, "input": {}}
                event("content_block_start", index=1, content_block=tool)
                arguments = {"type": "input_json_delta", "partial_json": '{"at": "once"}'}
                event("content_block_delta", index=1, delta=arguments)
                event("content_block_stop", index=1)
            reason = "tool_use" if calls else "end_turn"
            event("message_delta", delta={"stop_reason": reason}, usage=usage)
            event("message_stop")

    return reply


async def repeats(request: bytes, writer: asyncio.StreamWriter) -> None:
    """Says what it was asked five times over."""
    asked = json.loads(request.partition(b"\r\n\r\n")[2])["messages"][-1]["content"]
    words = asked if isinstance(asked, str) else asked[-1]["text"]
    await says(*[f" {words}"] * 5, whole=True)(request, writer)


async def stays_silent(_: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def keeps_alive(_: bytes, writer: asyncio.StreamWriter) -> None:
    """Sends what only tells that it lives, as proxies do, and no answer."""
    await streams()(b"", writer)
    while True:
        writer.write(b": still here\n\n")
        await writer.drain()
        await asyncio.sleep(0.05)


KEY = "sk-ant-api03-very-secret-indeed"


@pytest.mark.parametrize(
    ("reply", "requests", "message"),
    [
        (refuses(401, "authentication_error", f"invalid key {KEY}"), 1, "authentication_error"),
        (refuses(429, "rate_limit_error", "slow down"), 2, "rate_limit_error: slow down"),
        (refuses(529, "overloaded_error", "too\nmuch"), 2, "overloaded_error: too much"),
        (refuses(400, "invalid_request_error", "prompt is too long"), 1, "prompt is too long"),
        (says("Once upon", whole=False), 1, "broke off"),
        (says("Once", whole=False, error="overloaded_error"), 1, "overloaded_error: Overloaded"),
        (stays_silent, None, "silent for 0.5 s"),
        (keeps_alive, None, "silent for 0.5 s"),
        # Nobody waits until then.
        (
            refuses(429, "rate_limit_error", "slow down", retry="retry-after: 30"),
            1,
            "rate_limit_error: slow down; it takes requests again in 30 s",
        ),
        (
            refuses(529, "overloaded_error", "too much", retry="retry-after: 3600"),
            1,
            "overloaded_error: too much; it takes requests again in 3600 s",
        ),
        (refuses(401, "authentication_error", f"not {KEY[:12]}...{KEY[-4:]}"), 1, "not [key]"),
        (refuses(401, "authentication_error", f"{KEY[:-8]} is unknown"), 1, "[key] is unknown"),
        (refuses(502, "", "", page=f"<html>{'bad gateway ' * 5000}"), 2, "status 502: No"),
        (refuses(404, "", "", page='{"detail": "Not Found"}'), 1, "status 404: Not Found"),
        (streams("event: error\ndata: it burns\n\n"), 1, "status 200: it burns"),
        (streams("event: message_start\ndata: {nonsense\n\n"), 1, "sent what is no JSON"),
        (streams(stops("refusal"), STOP), 1, "the model refused to answer"),
        (streams("no stream at all"), 1, "broke off"),
    ],
)
async def test_a_failing_server_is_one_line_and_an_ended_response(
    reply: Reply, requests: int | None, message: str
) -> None:
    async with (
        api(reply) as (url, seen),
        talk(base_url=url, api_key=KEY, max_retries=1, timeout_secs=0.5) as talking,
    ):
        await talking.send(LLMContextFrame(context("Tell me a story.")), EndFrame())
        await talking.until(EndFrame)
        assert len(talking.texts) == len(talking.errors) == 1
        assert message in talking.errors[0]
        assert "\n" not in talking.errors[0]
        assert KEY not in talking.errors[0]
        assert requests is None or len(seen) == requests


async def test_a_refusal_is_told_though_the_time_runs_out_before_the_next_attempt() -> None:
    busy = refuses(529, "overloaded_error", "too much", retry="x: y")
    # Of its own, the SDK waits 0.375 s or longer.
    settings = {"max_retries": 9, "timeout_secs": 0.35}
    async with api(busy) as (url, _), talk(base_url=url, api_key=KEY, **settings) as talking:
        assert await talking.answer(context("Hello?")) == ""
        (error,) = talking.errors
        assert "overloaded_error: too much" in error


async def test_what_the_stage_cannot_read_in_an_answer_it_passes_over() -> None:
    usage = {"input_tokens": "many", "output_tokens": None}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
    reply = streams(
        {"type": "message_start"},
        {"type": "message_start", "message": message},
        {"type": "message_start", "message": {**message, "usage": usage}},
        {"type": "content_block_start", "index": 0},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "song"}},
        delta(type="song_delta", notes="do re mi"),
        delta(type="song_delta", text="la la la"),
        delta(type="text_delta", text="Well,"),
        delta(type="text_delta", text=None),
        delta(type="text_delta", text=["no"]),
        delta(type="thinking_delta", thinking=7),
        {"type": "content_block_delta", "index": 0},
        {"type": "applause", "delta": {"text": "bravo"}},
        delta(type="text_delta", text=" hello."),
        {"type": "message_delta"},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        STOP,
    )
    async with api(reply) as (url, _), talk(base_url=url, api_key=KEY) as talking:
        assert await talking.answer(context("Hello?")) == "Well, hello."
        assert not talking.errors


async def test_a_huge_piece_of_an_answer_lets_others_run_while_it_is_passed_on() -> None:
    text = "word " * 10_000
    reply = streams(delta(type="text_delta", text=text), STOP)
    async with api(reply) as (url, _), talk(base_url=url, api_key=KEY) as talking:
        turns = 0
        turn_of: list[int] = []

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        def note(frame: Frame) -> None:
            if isinstance(frame, LLMTextFrame):
                turn_of.append(turns)
                assert len(frame.text) <= 200

        talking.on_frame = note
        counting = asyncio.create_task(count())
        assert await talking.answer(context("Hello?")) == text
        counting.cancel()
    assert len(set(turn_of)) == len(turn_of) == len(text) // 200


@pytest.mark.parametrize("pieces", [["x" * 10_000_000], ["x" * 40_000] * 4])
async def test_an_answer_without_end_is_cut_off_with_an_error(pieces: list[str]) -> None:
    reply = streams(*(delta(type="text_delta", text=piece) for piece in pieces), STOP)
    async with api(reply) as (url, _), talk(base_url=url, api_key=KEY) as talking:
        assert len(await talking.answer(context("Hello?"))) <= 100_000
        (error,) = talking.errors
        assert "127.0.0.1 sent more than 100000 letters" in error


@pytest.mark.parametrize(("raised", "named"), [(ValueError("boom"), "boom"), (KeyError(), "KeyEr")])
async def test_a_tool_that_fails_is_named_and_the_server_is_not(
    raised: Exception, named: str
) -> None:
    replies = says("Well.", whole=True, calls="look"), says("No.", whole=True)
    async with api(*replies) as (url, _), talk(base_url=url, api_key=KEY) as talking:

        async def look(_: FunctionCallParams) -> None:
            raise raised

        talking.stage.register_function("look", look)
        await talking.answer(context("Look."))
        await talking.until(FunctionCallResultFrame)
        (error,) = talking.errors
        assert "look" in error
        assert named in error
        assert "127.0.0.1" not in error


@given(
    key=st.text("abcdefgh-_0123456789", min_size=8, max_size=60),
    start=st.integers(0, 60),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_no_part_of_a_key_is_told(key: str, start: int, before: str, after: str) -> None:
    part = key[min(start, len(key) - 8) :]
    line = tidy(f"{before}{part}{after} \x1b[31m", [key, None])
    assert not any(key[at : at + 8] in line for at in range(len(key) - 7))
    assert line.isprintable()


@pytest.mark.parametrize(
    ("headers", "secs"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": "30", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_when_a_server_takes_requests_again_is_read_as_the_sdk_reads_it(
    headers: dict[str, str], secs: float | None
) -> None:
    assert retry_after_secs(headers) == secs


def test_a_date_after_which_a_server_takes_requests_again_is_some_seconds_away() -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert retry_after_secs({"retry-after": date}) == pytest.approx(3600, abs=60)


async def test_a_server_that_is_not_there_is_one_line() -> None:
    async with talk(base_url="http://127.0.0.1:9", max_retries=1) as talking:
        assert await talking.answer(context("Hello?")) == ""
        assert len(talking.errors) == 1
        assert "no connection to 127.0.0.1" in talking.errors[0]


async def test_a_request_that_failed_before_a_word_is_sent_again() -> None:
    replies = refuses(529, "overloaded_error", "too much"), says(" Well", ", hello.", whole=True)
    async with api(*replies) as (url, seen), talk(base_url=url, api_key=KEY) as talking:
        assert await talking.answer(context("Hello?")) == "Well, hello."
        assert not talking.errors
        asked = json.loads(seen[1].partition(b"\r\n\r\n")[2])
        assert asked["system"][0]["cache_control"] == {"type": "ephemeral"}
        assert asked["max_tokens"] == 256
        assert "temperature" not in asked


# What an answer to a turn that has not ended may do


async def begin_early(talking: Talk) -> None:
    talking.stage.work_ahead()
    early = LLMContextFrame(context("Look it up."), speculation=True)
    mark_attempt(early, 1)
    await talking.send(UserStartedSpeakingFrame(), early)


async def end_turn(talking: Talk) -> None:
    for _ in range(200):  # what might be done too early has time to be
        await asyncio.sleep(0)
    end = UserStoppedSpeakingFrame()
    mark_attempt(end, 1)
    await talking.send(end)


@pytest.mark.parametrize("safe_tools", [(), ("look",)])
async def test_a_tool_waits_for_the_end_of_the_turn_unless_it_is_safe(
    safe_tools: tuple[str, ...],
) -> None:
    called: list[tuple[bool, Any]] = []
    looked = asyncio.Event()

    async with (
        api(says("Well.", whole=True, calls="look")) as (url, _),
        talk(base_url=url, api_key=KEY, safe_tools=safe_tools) as talking,
    ):

        async def look(params: FunctionCallParams) -> None:
            called.append((bool(talking.kinds(UserStoppedSpeakingFrame)), params.arguments))
            looked.set()
            await params.result_callback({"found": "it"})

        talking.stage.register_function("look", look)
        await begin_early(talking)
        await talking.until(LLMTextFrame)
        if safe_tools:
            async with asyncio.timeout(DEADLINE_SECS):
                await looked.wait()
        await end_turn(talking)
        result = await talking.until(FunctionCallResultFrame)
        assert isinstance(result, FunctionCallResultFrame)
        assert result.result == {"found": "it"}
    assert called == [(not safe_tools, {"at": "once"})], "once"


async def test_a_safe_tool_that_failed_early_is_called_again_when_the_turn_has_ended() -> None:
    called: list[bool] = []
    async with (
        api(says("Well.", whole=True, calls="look")) as (url, _),
        talk(base_url=url, api_key=KEY, safe_tools=("look",)) as talking,
    ):
        looked = asyncio.Event()

        async def look(params: FunctionCallParams) -> None:
            called.append(bool(talking.kinds(UserStoppedSpeakingFrame)))
            looked.set()
            if len(called) == 1:
                raise ValueError("too early")
            await params.result_callback({"found": "it"})

        talking.stage.register_function("look", look)
        await begin_early(talking)
        async with asyncio.timeout(DEADLINE_SECS):
            await looked.wait()
        await end_turn(talking)
        result = await talking.until(FunctionCallResultFrame)
        assert isinstance(result, FunctionCallResultFrame)
        assert result.result == {"found": "it"}
        assert not talking.errors
    assert called == [False, True]


async def test_an_error_of_an_early_answer_says_which_attempt_has_failed() -> None:
    async with (
        api(refuses(400, "invalid_request_error", "no")) as (url, _),
        talk(base_url=url, api_key=KEY) as talking,
    ):
        await begin_early(talking)
        assert attempt_of(await talking.until(ErrorFrame)) == 1
        await talking.send(UserStoppedSpeakingFrame(), LLMContextFrame(context("Hello?")))
        assert attempt_of(await talking.until(ErrorFrame, 2)) is None


async def test_an_early_answer_pauses_at_its_limit_and_is_whole_in_the_end() -> None:
    words = ["abcd "] * 20
    async with (
        api(says(*words, whole=True)) as (url, _),
        talk(base_url=url, api_key=KEY, max_speculative_tokens=8) as talking,
    ):
        await begin_early(talking)
        await talking.until(LLMTextFrame, 7)  # 35 letters; 8 tokens are 32
        await end_turn(talking)
        await talking.until(UserStoppedSpeakingFrame)
        kinds = talking.kinds(LLMTextFrame, UserStoppedSpeakingFrame)
        assert kinds.index(UserStoppedSpeakingFrame) == 7
        await talking.until(LLMFullResponseEndFrame)
        assert talking.texts == ["".join(words)]


# Any order of events

STEPS = st.lists(st.sampled_from(["ask", "text", "interrupt", "hear", "pause"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
async def test_whatever_comes_when_each_response_is_whole_and_the_last_one_is_given(
    steps: list[str],
) -> None:
    async with api(repeats) as (url, _), talk(base_url=url, api_key=KEY) as talking:
        open_question = None
        for number, step in enumerate(steps):
            if step == "ask":
                open_question = f"q{number}"
                await talking.send(LLMContextFrame(context(open_question)))
            elif step == "text":
                await talking.send(TranscriptionFrame(str(number), "user", ""))
            elif step == "interrupt":
                open_question = None
                await talking.send(InterruptionFrame())
                await talking.until(InterruptionFrame, steps[: number + 1].count("interrupt"))
            elif step == "hear" and open_question:
                await talking.until_text(open_question)
            elif step == "pause":
                await asyncio.sleep(0)
        await talking.send(EndFrame())
        await talking.until(EndFrame)

        assert not talking.errors
        answers = [text.split() for text in talking.texts]
        assert all(len(set(words)) <= 1 for words in answers)
        if open_question:
            assert answers[-1] == [open_question] * 5
        questions = [int(words[0][1:]) for words in answers if words]
        assert questions == sorted(set(questions))
        asides = [frame for frame in talking.heard if isinstance(frame, TranscriptionFrame)]
        assert asides == sorted(asides, key=lambda frame: int(frame.text))
        assert isinstance(talking.heard[-1], (EndFrame, MetricsFrame))


# Settings


async def test_without_a_key_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ANTHROPIC"):
            monkeypatch.delenv(name)
    async with talk(base_url=None) as talking:
        error = await talking.until(ErrorFrame)
        assert isinstance(error, ErrorFrame)
        assert isinstance(error.exception, UsageError)
        assert "ANTHROPIC_API_KEY is not set" in error.error


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("llama://SmolLM2-135M", LlamaOptions()),
        ("llama://smollm2_135m-Instruct", LlamaOptions()),
        ("llama://smollm2?slots=4&threads=1", LlamaOptions(slots=4, threads=1)),
        ("llama:///weights/My.gguf", LlamaOptions(model="/weights/My.gguf")),
        ("llama://weights/My.gguf", LlamaOptions(model="weights/My.gguf")),
    ],
)
def test_a_model_on_this_machine_is_named_by_url(url: str, options: LlamaOptions) -> None:
    settings = LLMSettings(base_url=url)
    assert settings.llama == options
    assert AnthropicLLM.required_assets(settings) == ((options.asset,) if options.asset else ())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("llama://gpt-9", "smollm2-135m"),
        ("llama://smollm2?slot=4", "slots"),
        ("llama://smollm2?slots=many", "whole number"),
        ("api.example.com", "should begin with https://"),
    ],
)
def test_a_url_that_names_nothing_is_refused_with_what_there_is(url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LLMSettings(base_url=url)
