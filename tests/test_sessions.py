"""Sessions as others embed them: several in one process, and closed at any moment."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import Sample, words

from headstart import Session, load_config
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
