"""Language models and voices of Pipecat's, named by class path, take part in early answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openai_server import WORD_SECS, OpenAIServer, openai_server
from pipecat.frames.frames import (
    Frame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed

from headstart import Session, load_config
from headstart.errors import ConfigError
from headstart.frames import ProgressiveTranscriptionFrame, SpeculationEndedFrame
from headstart.pipeline.build import build
from headstart.pipeline.session import Event, Failed, Played, Said
from headstart.transports.memory import MemoryTransport

ASK, OTHER = "What time is it?", "Set it to ten."
TEN_WORDS = "one two three four five six seven eight nine ten."


def pipeline(url: str) -> str:
    return f"""
prompt: Answer.
stages:
  - trigger: {{policy: eager, stable_updates: 1, min_silence_secs: 0}}
  - turn: {{smart_turn: false}}
  - llm: {{provider: "pipecat.services.openai.llm:OpenAILLMService", api_key: k, base_url: {url}}}
  - tts: {{provider: "pipecat.services.openai.tts:OpenAITTSService", api_key: k, base_url: {url}}}
"""


@dataclass
class Call(BaseObserver):
    """A session on the server, and what is seen of it."""

    session: Session
    server: OpenAIServer
    frames: list[Frame] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        super().__init__(observe_every_push=False)

    async def on_push_frame(self, data: FramePushed) -> None:
        self.frames.append(data.frame)
        self.changed.set()

    async def collect(self) -> None:
        async for event in self.session.events():
            self.events.append(event)
            self.changed.set()

    async def until(self, kind: type[Any], count: int = 1) -> None:
        """Wait until so many frames or events of a kind have come."""
        async with asyncio.timeout(20):
            while len([x for x in (*self.frames, *self.events) if isinstance(x, kind)]) < count:
                self.changed.clear()
                await self.changed.wait()

    async def send(self, *frames: Frame) -> None:
        assert self.session._worker is not None
        await self.session._worker.queue_frames(frames)

    async def hear(self, text: str) -> None:
        await self.send(ProgressiveTranscriptionFrame(text, "user", "", confidence=0.95))

    async def end_turn(self, text: str) -> None:
        final = TranscriptionFrame(text, "user", "", finalized=True)
        await self.send(VADUserStoppedSpeakingFrame(stop_secs=0.2), final)

    def messages(self, role: str) -> list[str]:
        messages: list[Any] = list(self.session.context.get_messages())
        return [message["content"] for message in messages if message["role"] == role]

    def heard_secs(self) -> float:
        played = [event.audio for event in self.events if isinstance(event, Played)]
        return sum(len(audio.audio) / 2 / audio.sample_rate for audio in played)

    def outcomes(self) -> list[bool]:
        return [f.committed for f in self.frames if isinstance(f, SpeculationEndedFrame)]


@asynccontextmanager
async def call(folder: Path, *answers: str) -> AsyncIterator[Call]:
    async with openai_server(*answers) as server:
        path = folder / "foreign.yaml"
        path.write_text(pipeline(server.url))
        session = Session(load_config(str(path)))
        seen = Call(session, server)
        session._watchers.append(seen)
        async with session:
            collecting = asyncio.create_task(seen.collect())
            await seen.send(VADUserStartedSpeakingFrame(start_secs=0.2))
            try:
                yield seen
            finally:
                await session.close()
                await asyncio.wait_for(collecting, 5)


async def test_an_early_answer_is_spoken_while_the_turn_is_open_and_heard_when_it_ends(
    tmp_path: Path,
) -> None:
    async with call(tmp_path, "It is noon.") as seen:
        await seen.hear(ASK)
        await seen.until(TTSAudioRawFrame)
        assert not [event for event in seen.events if isinstance(event, Played)]
        await seen.end_turn(ASK)
        await seen.until(Said, 3)
        assert seen.outcomes() == [True]
        assert [chat.text for chat in seen.server.chats] == [ASK]
        await seen.session.end()
        assert seen.messages("assistant") == ["It is noon."]
        assert seen.heard_secs() == pytest.approx(3 * WORD_SECS, abs=0.05)


async def test_withdrawn_work_is_cancelled_at_the_provider_and_does_not_hold_up_the_next(
    tmp_path: Path,
) -> None:
    async with call(tmp_path, f"Sorry. {TEN_WORDS * 20}", "Ten it is.") as seen:
        await seen.hear(ASK)
        await seen.until(TTSAudioRawFrame)
        await seen.hear(OTHER)
        for request in (*seen.server.chats[:1], *seen.server.speeches[:]):
            await asyncio.wait_for(request.done.wait(), 10)
        assert not seen.server.chats[0].whole
        spoken = len(seen.server.speeches)
        await seen.end_turn(OTHER)
        await seen.until(Said, 3)
        assert [chat.text for chat in seen.server.chats] == [ASK, OTHER]
        texts = [speech.text for speech in seen.server.speeches[spoken - 1 :]]
        assert texts[-1] == "Ten it is."
        await seen.session.end()
        assert [
            event.text for event in seen.events if isinstance(event, Said)
        ] == "Ten it is.".split()
        assert seen.messages("assistant") == ["Ten it is."]
        assert seen.heard_secs() == pytest.approx(3 * WORD_SECS, abs=0.05)
        assert seen.outcomes() == [False, True]


async def test_the_context_keeps_the_words_that_were_heard_of_a_sentence_that_is_cut(
    tmp_path: Path,
) -> None:
    async with call(tmp_path, TEN_WORDS, "Yes.") as seen:
        await seen.hear(ASK)
        await seen.until(TTSAudioRawFrame, 3)
        await seen.end_turn(ASK)
        await seen.until(Said, 5)
        await seen.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await seen.hear(OTHER)
        await seen.end_turn(OTHER)
        await seen.until(UserStoppedSpeakingFrame, 2)
        await seen.until(Said, 6)
        first = seen.messages("assistant")[0].split()
        heard = seen.heard_secs() / WORD_SECS
        assert first == TEN_WORDS.split()[: len(first)]
        assert 5 <= len(first) <= 7
        assert abs(heard - len(first)) <= 2


async def test_an_error_of_an_attempt_is_told_only_if_the_ordinary_answer_fails_too(
    tmp_path: Path,
) -> None:
    # The SDK asks again twice.
    async with call(tmp_path, "", "", "", "It is noon.") as seen:
        await seen.hear(ASK)
        await seen.until(SpeculationEndedFrame)
        await seen.end_turn(ASK)
        await seen.until(Said, 3)
        assert seen.outcomes() == [False]
        assert not [event for event in seen.events if isinstance(event, Failed)]


async def test_a_speech_to_speech_service_cannot_answer_early_and_the_error_says_so(
    tmp_path: Path,
) -> None:
    path = tmp_path / "realtime.yaml"
    path.write_text(
        "prompt: Answer.\nstages:\n  - trigger: {}\n  - turn: smart\n"
        '  - llm: {provider: "pipecat.services.openai.realtime.llm:OpenAIRealtimeLLMService", '
        "api_key: k}\n"
    )
    with pytest.raises(ConfigError, match=r"realtime.yaml:5:.*speech-to-speech"):
        build(load_config(str(path)), MemoryTransport())
