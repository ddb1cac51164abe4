"""Sessions as others embed them: several in one process, and closed at any moment."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import Sample, words
from pipecat.frames.frames import UserStoppedSpeakingFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.frame_processor import FrameDirection

from headstart import Session, load_config
from headstart.config.spec import PipelineSpec
from headstart.engines.hub import shared
from headstart.errors import HeadstartError
from headstart.pipeline.converse import converse
from headstart.pipeline.session import Heard, Played, Said, TurnEnded
from headstart.transports.wav import read_audio

pytestmark = pytest.mark.models

_FRAME = 320
"""Samples of 20 ms at 16 kHz."""


async def test_two_sessions_share_the_models_and_do_not_hear_each_other(
    samples: dict[str, Sample],
) -> None:
    spec = load_config("local")
    utterances = {name: read_audio(samples[name].path, 16000) for name in samples}
    async with Session(spec):
        models = shared.loaded()
    dialogues = await asyncio.gather(
        converse(spec, [utterances["medium-france"]]), converse(spec, [utterances["short-joke"]])
    )
    assert shared.loaded() == models
    texts = [" ".join(record.user_text for record in d.records) for d in dialogues]
    assert [words(text) for text in texts] == [
        words(samples["medium-france"].text),
        words(samples["short-joke"].text),
    ]
    assert all(dialogue.records[-1].bot_text for dialogue in dialogues)


async def test_what_is_loaded_is_out_of_the_collectors_sight_while_anybody_talks() -> None:
    spec = load_config("local")
    assert not gc.get_freeze_count()
    async with Session(spec) as first:
        assert gc.get_freeze_count() > 100_000
        async with Session(spec):
            await first.close()
            assert gc.get_freeze_count() > 100_000
        gone = weakref.ref(first.timeline)
    del first
    assert not gc.get_freeze_count()
    gc.collect()
    assert gone() is None, "nothing of the session is kept"


async def test_an_embedder_pushes_audio_and_iterates_over_what_happens(
    samples: dict[str, Sample],
) -> None:
    sample = samples["medium-france"]
    audio = read_audio(sample.path, 16000)
    async with Session(load_config("local")) as session:

        async def speak() -> None:
            silence = bytes(2 * _FRAME)
            frames = [audio[at : at + _FRAME].tobytes() for at in range(0, len(audio), _FRAME)]
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for number in range(10**6):
                await session.push_audio(frames[number] if number < len(frames) else silence)
                await asyncio.sleep(begun + 0.02 * (number + 1) - loop.time())

        speaking = asyncio.create_task(speak())
        seen: list[object] = []
        async for event in session.events():
            seen.append(event)
            if isinstance(event, TurnEnded):
                break
        speaking.cancel()
        await asyncio.wait([speaking])
    partials = [event for event in seen if isinstance(event, Heard) and not event.final]
    finals = [event for event in seen if isinstance(event, Heard) and event.final]
    assert partials and all(0 <= (event.confidence or 0) <= 1 for event in partials)
    assert words(finals[-1].text) == words(sample.text)
    record = seen[-1]
    assert isinstance(record, TurnEnded)
    said = " ".join(event.text for event in seen if isinstance(event, Said))
    assert words(said) == words(record.record.bot_text)
    assert sum(len(event.audio.audio) for event in seen if isinstance(event, Played)) > 24000


@pytest.fixture
def ears(tmp_path: Path) -> PipelineSpec:
    """A pipeline that listens and says nothing."""
    config = tmp_path / "listen.yaml"
    config.write_text("extends: local\noverride: {llm: null, tts: null}\n")
    return load_config(config)


class TurnEnds(BaseObserver):
    """Counts the turns that have ended."""

    def __init__(self) -> None:
        super().__init__(observe_every_push=False)
        self.count = asyncio.Semaphore(0)

    async def on_push_frame(self, data: FramePushed) -> None:
        downstream = data.direction is FrameDirection.DOWNSTREAM
        if downstream and isinstance(data.frame, UserStoppedSpeakingFrame):
            self.count.release()


async def heard(session: Session) -> str:
    """The next final words."""
    async with asyncio.timeout(30):
        async for event in session.events():
            if isinstance(event, Heard) and event.final:
                return event.text
    raise AssertionError("the session is over")


@pytest.mark.parametrize("piece_secs", [0.03, 1.0, 2.0, 60.0])
async def test_pushed_pieces_may_have_any_length(
    piece_secs: float, ears: PipelineSpec, samples: dict[str, Sample]
) -> None:
    sample = samples["medium-france"]
    audio = np.concatenate([read_audio(sample.path, 16000), np.zeros(8000, np.int16)])
    size = int(piece_secs * 16000)
    async with Session(ears) as session:
        for at in range(0, len(audio), size):
            await session.push_audio(audio[at : at + size].tobytes())
        assert words(await heard(session)) == words(sample.text)


async def test_pushed_audio_of_another_rate_is_understood_and_what_is_none_does_no_harm(
    ears: PipelineSpec, samples: dict[str, Sample]
) -> None:
    sample = samples["medium-france"]
    async with Session(ears) as session:
        for rate in (8000, 44100):
            with pytest.raises(TypeError, match="not str"):
                await session.push_audio("What is the capital?")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="even number"):
                await session.push_audio(bytes(641))
            audio = np.concatenate([read_audio(sample.path, rate), np.zeros(rate, np.int16)])
            for at in range(0, len(audio), rate // 10):
                await session.push_audio(audio[at : at + rate // 10], rate)
            assert words(await heard(session)) == words(sample.text)


async def test_each_turn_that_nobody_answers_has_its_own_words(
    ears: PipelineSpec, samples: dict[str, Sample]
) -> None:
    spoken = [samples[name] for name in ("short-joke", "medium-france", "short-joke")]
    ends = TurnEnds()
    async with Session(ears, observers=[ends]) as session:
        for sample in spoken:
            audio = np.concatenate([read_audio(sample.path, 16000), np.zeros(8000, np.int16)])
            await session.push_audio(audio)
            async with asyncio.timeout(30):
                await ends.count.acquire()
        await session.close()
        async with asyncio.timeout(10):
            told = [event async for event in session.events()]
    records = [event.record for event in told if isinstance(event, TurnEnded)]
    assert [words(record.user_text) for record in records] == [
        words(sample.text) for sample in spoken
    ]


async def test_iterations_over_a_closed_session_end_at_once(ears: PipelineSpec) -> None:
    async with Session(ears) as session:
        reading = asyncio.create_task(anext(session.events(), None))
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await reading is None, "one that was waiting"
        for _ in range(2):
            assert [event async for event in session.events()] == []


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """No task and no thread more than before, but for the event loop's own bounded pool."""
    tasks, before = asyncio.all_tasks(), set(threading.enumerate())
    yield
    assert asyncio.all_tasks() - tasks == set()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert {name for name in left if not name.startswith("asyncio_")} == set()


async def test_sessions_closed_in_the_middle_of_an_utterance_leave_nothing(
    samples: dict[str, Sample],
) -> None:
    spec = load_config("local")
    audio = read_audio(samples["medium-france"].path, 16000)
    async with Session(spec):
        pass  # the models are there now
    async with nothing_left_behind():
        for _ in range(5):
            async with Session(spec) as session:
                for at in range(0, len(audio) // 2, _FRAME):
                    await session.push_audio(audio[at : at + _FRAME].tobytes())


async def test_a_stage_that_cannot_be_set_up_is_an_error_of_the_session(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("extends: local\noverride:\n  tts: {voice: af_hart}\n")
    with pytest.raises(HeadstartError, match="af_heart"):
        async with Session(load_config(config)):
            pass


async def test_a_pipeline_without_a_language_model_is_one_too(tmp_path: Path) -> None:
    config = tmp_path / "ears.yaml"
    config.write_text("prompt: none\nstages: [vad, stt]\n")
    async with Session(load_config(config)) as session:
        assert session.timeline is not None
