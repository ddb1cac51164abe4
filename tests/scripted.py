"""A conversation in virtual time: the real stages and transport, and scripted models."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from anthropic import APIConnectionError
from httpx2 import URL, Request
from numpy.typing import NDArray
from pipecat.clocks.base_clock import BaseClock
from pipecat.frames.frames import (
    BotSpeakingFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMUserAggregator,
    LLMUserAggregatorParams,
)
from pipecat.services.llm_service import FunctionCallParams
from pipecat.transcriptions.language import Language
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from headstart.config.spec import PipelineSpec, Position, StageSpec
from headstart.engines import hub
from headstart.engines.kokoro import SAMPLE_RATE, KokoroEngine
from headstart.engines.kokoro.engine import Speech, WordTime
from headstart.engines.queue import Ticket
from headstart.engines.smart_turn import SmartTurnEngine
from headstart.engines.workload import Workload
from headstart.errors import EngineError
from headstart.frames import ProgressiveTranscriptionFrame, VoiceFrame
from headstart.pipeline.build import Built, build
from headstart.pipeline.session import Session
from headstart.processors.llm import AnthropicLLM, LLMSettings, anthropic
from headstart.transports.memory import MemoryTransport, PlayedAudio

_IN_RATE = 16_000
_PIECE_SECS = 0.1
_CLOSE_SECS = 0.3
"""How long it takes to close a connection, also that of an answer that was given up."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeps take no time: when nothing is left to do, the next timer is due."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1.0
        self.turns = 0
        """How often it has run what was ready."""

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            timers = [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            assert timers, "everybody waits for something that will never happen"
            self._now = max(self._now, min(timer.when() for timer in timers))
        self.turns += 1
        super()._run_once()  # type: ignore[misc]


def _now() -> float:
    return asyncio.get_running_loop().time()


class _Clock(BaseClock):
    def get_time(self) -> int:
        return round(_now() * 1e9)

    def start(self) -> None:
        """It runs already."""


class Model(StrEnum):
    """How the language model answers a request."""

    FAST = "fast"
    LONG = "long"
    """In four sentences of a second each."""
    SLOW = "slow"
    """Longer than anybody speaks."""
    EMPTY = "empty"
    FAILS = "fails"
    BREAKS_OFF = "breaks off"
    """It fails after the first words."""
    CALLS = "calls"
    """It calls a tool."""
    SPEAKS_AND_CALLS = "speaks and calls"


@dataclass
class Asked:
    """What the language model was asked."""

    number: int
    """From 1; the answer begins with the word `replyN`."""
    question: str
    unanswered: list[str]
    """What the user had said before it, in turns whose answers failed."""
    answers: list[str]
    """The bot's part of the conversation so far, as far as it was given along."""
    attempt: int | None
    model: Model
    after_tool: bool
    """Whether it goes on with an answer that called a tool."""
    at_s: float
    gave_up_at_s: float | None = None
    """When it was clear that there would be no answer, or not a whole one."""


class ScriptedLLM(AnthropicLLM):
    """The real stage; its client answers as the script says."""

    def __init__(self, settings: LLMSettings | None = None, **kwargs: Any) -> None:
        super().__init__(settings, **kwargs)
        self.script: deque[Model] = deque()
        self.lag = 0
        """How often the loop runs, no time passing, before it hears of the model's reply."""
        self.requests: list[Asked] = []
        self.called: list[tuple[float, int]] = []
        """When a tool ran, and for which request."""
        client: Any = SimpleNamespace(
            api_key="key",
            auth_token=None,
            credentials=None,
            base_url=URL("http://model"),
            beta=SimpleNamespace(messages=SimpleNamespace(create=self._create)),
            close=_nothing,
        )
        self._client = client
        self.register_function("look", self._look)

    async def _warm_up(self, context: LLMContext) -> None:
        """The script needs no connection."""

    async def _look(self, params: FunctionCallParams) -> None:
        now = _now()
        self.called.append((now, int(params.arguments["request"])))
        await params.result_callback({"found": "it"})

    async def _create(self, **params: Any) -> _Stream:
        model = self.script.popleft() if self.script else Model.FAST
        said = params["messages"][-1]["content"]
        blocks = [{"type": "text", "text": said}] if isinstance(said, str) else said
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        asked = Asked(
            number=len(self.requests) + 1,
            question=texts[-1] if texts else "",
            unanswered=texts[:-1],
            answers=_answers(params["messages"]),
            attempt=self._follower.attempt,
            model=model,
            after_tool=any(block["type"] == "tool_result" for block in blocks),
            at_s=_now(),
        )
        self.requests.append(asked)
        try:
            await asyncio.sleep(20.0 if model is Model.SLOW else 0.05)
        except asyncio.CancelledError:
            await asyncio.sleep(_CLOSE_SECS)
            raise
        for _ in range(self.lag):
            await asyncio.sleep(0)
        if model is Model.FAILS:
            asked.gave_up_at_s = _now()
            raise APIConnectionError(request=Request("POST", "http://model"))
        return _Stream(asked)


def _answers(messages: list[Any]) -> list[str]:
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    blocks = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in said]
    return [block["text"] for content in blocks for block in content if block["type"] == "text"]


async def _nothing() -> None:
    pass


@dataclass
class _Stream:
    asked: Asked

    def __aiter__(self) -> AsyncIterator[Any]:
        return _events(self.asked)

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(_CLOSE_SECS)


async def _events(asked: Asked) -> AsyncIterator[Any]:
    if asked.model not in (Model.EMPTY, Model.CALLS):
        text = f"reply{asked.number} says one. And two more."
        if asked.model is Model.LONG:
            text = f"reply{asked.number} is one of the first ten words in it. "
            text += "And here are ten more words in this long sentence. " * 3
        for word in re.findall(r" ?\S+", text):
            await asyncio.sleep(0.02)
            yield _event("content_block_delta", delta=SimpleNamespace(text=word))
            if asked.model is Model.BREAKS_OFF and word == " And":
                asked.gave_up_at_s = _now()
                raise APIConnectionError(request=Request("POST", "http://model"))
    if asked.model in (Model.EMPTY, Model.CALLS, Model.SPEAKS_AND_CALLS):
        asked.gave_up_at_s = _now()
    if asked.model in (Model.CALLS, Model.SPEAKS_AND_CALLS):
        tool = SimpleNamespace(type="tool_use", id=f"call{asked.number}", name="look")
        yield _event("content_block_start", content_block=tool)
        arguments = SimpleNamespace(partial_json=f'{{"request": {asked.number}}}')
        yield _event("content_block_delta", delta=arguments)
        stop = SimpleNamespace(stop_reason="tool_use", stop_details=None)
        yield _event("message_delta", delta=stop, usage=None)
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> Any:
    return SimpleNamespace(type=kind, **fields)


class PlainTurn(LLMUserAggregator):
    """Pipecat's own turns, as its documentation puts them together without Smart Turn."""

    def __init__(self, context: LLMContext) -> None:
        strategies = UserTurnStrategies(
            start=[VADUserTurnStartStrategy()],
            stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.0)],
        )
        params = LLMUserAggregatorParams(user_turn_strategies=strategies)
        super().__init__(context, params=params)


class _Voice:
    """Speaks `replyN` and what follows as samples that say N and count the pieces."""

    def __init__(self) -> None:
        self.pieces: dict[int, int] = {}
        self.started: list[str] = []
        self.workload = Workload()
        self.fails = 0
        """How many of the clauses that come fail."""
        self._reply = 0

    async def prepare(self, voice: str, speed: float = 1.0) -> None:
        """Anybody can be spoken with."""

    async def speak_words(self, text: str, ticket: Ticket, **_: Any) -> AsyncGenerator[Speech]:
        self.started.append(text)
        if self.fails:
            self.fails -= 1
            raise EngineError("out of memory")
        with self.workload.holding(ticket):
            async for piece in self._pieces(text):
                yield piece

    async def _pieces(self, text: str) -> AsyncGenerator[Speech]:
        if match := re.search(r"reply(\d+)", text):
            self._reply = int(match[1])
        reply = self._reply
        spoken = tuple(
            WordTime(word, _PIECE_SECS * place) for place, word in enumerate(text.split())
        )
        for place in range(len(spoken)):
            await asyncio.sleep(_PIECE_SECS / 2)
            count = self.pieces[reply] = self.pieces.get(reply, 0) + 1
            samples = np.empty(round(_PIECE_SECS * SAMPLE_RATE), np.float32)
            samples[0::2], samples[1::2] = (reply + 0.5) / 32767, (count + 0.5) / 32767
            yield Speech(samples, () if place else spoken)


class _Judge:
    """Smart Turn, with verdicts from the script."""

    def __init__(self) -> None:
        self.verdicts: deque[float] = deque()

    async def probability(self, *_: Any) -> float:
        await asyncio.sleep(0.07)
        return self.verdicts.popleft() if self.verdicts else 1.0


class _Hub(hub.EngineHub):
    def __init__(self, engines: dict[type, Any]) -> None:
        super().__init__()
        self._engines = engines

    async def get(self, engine: type[Any], options: Any) -> Any:
        return self._engines.get(engine) or await super().get(engine, options)


@dataclass
class Heard:
    """A stretch of an answer that was played."""

    reply: int
    pieces: list[int]
    at_s: float


class OnTime:
    """Lets an engine's queue answer in a fixed time, however long the model really takes."""

    def __init__(self, secs: dict[str, float]) -> None:
        """Take so many seconds for each piece of work, by the queue's name."""
        self._secs = secs
        self._free_at = dict.fromkeys(secs, 0.0)

    async def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work at once, and return when it would have been done."""
        self._free_at[name] = max(self._free_at[name], _now()) + self._secs[name]
        result = work()
        await asyncio.sleep(self._free_at[name] - _now())
        return result


class World(BaseObserver):
    """One conversation, and everything that could be noticed of it."""

    def __init__(
        self,
        *,
        plain: bool = False,
        heard_with: dict[type, Any] | None = None,
        **stages: dict[str, Any] | None,
    ) -> None:
        """Build the pipeline.

        Args:
            plain: Whether Pipecat's own stage makes the turns.
            heard_with: Real models to hear with, by their engine: Whisper is the recogniser.
            stages: Settings of the stages. No `trigger`, `vad` or `stt`: none in the pipeline.
        """
        super().__init__(observe_every_push=False)
        self.voice, self.judge = _Voice(), _Judge()
        engines: dict[type, Any] = {KokoroEngine: self.voice, SmartTurnEngine: self.judge}
        self.hub = _Hub(engines | (heard_with or {}))
        self.transport = MemoryTransport(on_played=self._played)
        # The script is its client; one of the SDK's would read certificates for 40 ms.
        with patch.object(anthropic, "client_for", lambda _: object()):
            self.spec = _spec(stages, plain, bool(heard_with))
            self.built = build(self.spec, self.transport)
        self.llm = _stage(self.built, ScriptedLLM)
        self.frames: list[tuple[float, Frame]] = []
        """Every frame that was pushed downstream, where it was pushed first."""
        self.out: list[tuple[float, str]] = []
        """What came to the output, in order."""
        self.heard: list[Heard] = []
        self.said: list[str] = []
        """The user's words, as the recogniser gave them for good."""
        self.language: Language | None = Language.EN
        """In which the user speaks, as far as the recogniser says."""
        self._speaking = False
        self._worker: PipelineWorker

    def session(self) -> WorldSession:
        """A session that holds this conversation, in place of `run`."""
        return WorldSession(self)

    async def run(self, script: Callable[[], Any]) -> None:
        """Play the script through the pipeline."""
        self._worker = PipelineWorker(
            self.built.pipeline,
            params=PipelineParams(audio_in_sample_rate=_IN_RATE, enable_usage_metrics=True),
            clock=_Clock(),
            observers=[self],
            enable_rtvi=False,
            enable_turn_tracking=False,
            idle_timeout_secs=None,
        )
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self._worker)
        running = asyncio.ensure_future(runner.run())
        try:
            await script()
        finally:
            await runner.cancel()
            await running

    # What happens to the pipeline

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            await self._worker.queue_frame(frame)

    async def start_speaking(self) -> None:
        if not self._speaking:
            self._speaking = True
            await self.send(VoiceFrame(True), VADUserStartedSpeakingFrame(start_secs=0.2))
            await asyncio.sleep(0.01)  # nobody understands a voice in no time

    async def stop_speaking(self) -> None:
        if self._speaking:
            self._speaking = False
            await self.send(VoiceFrame(False), VADUserStoppedSpeakingFrame(stop_secs=0.2))

    async def seems(self, heard: bool) -> None:
        """The VAD's guess, before it is sure."""
        await self.send(VoiceFrame(heard))

    async def partial(self, text: str, confidence: float | None = 0.95) -> None:
        await self.send(
            ProgressiveTranscriptionFrame(text, "user", "", self.language, confidence=confidence)
        )

    async def final(self, text: str) -> None:
        self.said.append(text)
        await self.send(TranscriptionFrame(text, "user", "", self.language, finalized=True))

    async def silence(self, secs: float) -> None:
        """Audio passes, and its time."""
        tenths = max(1, round(secs * 10))
        while tenths > 0:
            # Within the first second a turn may end at any moment; later, longer frames will do.
            now = 1 if tenths > round(secs * 10) - 10 else min(tenths, 5)
            tenths -= now
            await asyncio.sleep(now / 10)
            await self.send(InputAudioRawFrame(bytes(2 * now * _IN_RATE // 10), _IN_RATE, 1))

    async def pushed(self, secs: float) -> None:
        """Audio comes, and no time passes: it was late."""
        await self.send(InputAudioRawFrame(bytes(2 * round(secs * _IN_RATE)), _IN_RATE, 1))

    async def speak(self, samples: NDArray[np.int16]) -> None:
        """The user's voice, in frames of 20 ms."""
        size, begun = _IN_RATE // 50, _now()
        for start in range(0, len(samples), size):
            await asyncio.sleep(max(0.0, begun + (start + size) / _IN_RATE - _now()))
            await self.transport.push_audio(samples[start : start + size].tobytes())

    async def interrupt(self) -> None:
        await self.send(InterruptionFrame())

    # What can be noticed of it

    async def on_push_frame(self, data: FramePushed) -> None:
        frame = data.frame
        if isinstance(frame, BotSpeakingFrame):
            return  # comes by the wall clock
        if data.direction.name == "DOWNSTREAM" or frame.broadcast_sibling_id is None:
            self.frames.append((_now(), frame))

    def of(self, *kinds: type[Frame]) -> list[tuple[float, Any]]:
        """The frames of some kinds, with their times."""
        return [(at, frame) for at, frame in self.frames if isinstance(frame, kinds)]

    @property
    def messages(self) -> list[Any]:
        return list(self.built.context.messages)

    def _played(self, audio: PlayedAudio) -> None:
        reply, count = np.frombuffer(audio.audio, np.int16)[:2].tolist()
        now = _now()
        if not self.heard or self.heard[-1].reply != reply:
            self.heard.append(Heard(reply, [], now))
        pieces = self.heard[-1].pieces
        if not pieces or pieces[-1] != count:
            pieces.append(count)


class WorldSession(Session):
    """The real session, on the world's pipeline and in its time."""

    def __init__(self, world: World) -> None:
        super().__init__(world.spec, world.transport)
        self._watchers.append(world)
        self.world = world
        self._clock = _Clock()

    def _build(self) -> Built:
        return self.world.built

    def _make_worker(self, built: Built) -> PipelineWorker:
        self.world._worker = super()._make_worker(built)
        return self.world._worker


def _stage(built: Built, kind: type[Any]) -> Any:
    return next(stage for stage in built.pipeline.processors if isinstance(stage, kind))


def _spec(settings: dict[str, dict[str, Any] | None], plain: bool, hears: bool) -> PipelineSpec:
    position = Position(Path("scripted"), 1, 1)
    targets = {
        "vad": "headstart.processors.vad:SileroVAD",
        "stt": "headstart.processors.stt.local:WhisperSTT"
        if hears
        else "headstart.processors.stt.deepgram_flux:DeepgramFluxSTT",
        "trigger": "headstart.processors.turn.trigger.settings:EarlyTrigger",
        "turn": f"{__name__}:PlainTurn"
        if plain
        else "headstart.processors.turn.aggregator:UserTurn",
        "llm": f"{__name__}:ScriptedLLM",
        "tts": "headstart.processors.tts:KokoroTTS",
    }
    stages = [
        StageSpec(
            name=kind,
            kind=kind,
            target=target,
            settings=settings.get(kind) or {},
            position=position,
        )
        for kind, target in targets.items()
        if kind not in ("vad", "stt", "trigger") or settings.get(kind) is not None
    ]
    return PipelineSpec(name="scripted", prompt="Answer.", stages=tuple(stages))


def play(world: World, script: Callable[[], Any]) -> World:
    """Run a conversation in virtual time."""
    shared, hub.shared = hub.shared, world.hub
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(world.run(script))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        hub.shared = shared
    return world
