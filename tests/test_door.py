"""What an embedder pushes: any length, any rate, and nothing that is no audio."""

from __future__ import annotations

import array
import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soxr
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from numpy.typing import NDArray
from pipecat.frames.frames import InputAudioRawFrame
from scripted import World, play

from headstart.pipeline.events import EventQueue, Worth
from headstart.transports.door import Door, Pace, checked, checked_rate
from headstart.transports.memory import MemoryTransport

RATE = 16_000


def tone(secs: float, rate: int, hertz: float = 440.0) -> NDArray[np.int16]:
    times = np.arange(round(secs * rate)) / rate
    return np.asarray(10_000 * np.sin(2 * np.pi * hertz * times), np.int16)


def pitch(samples: NDArray[np.int16]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * RATE / len(samples))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="WARNING")
    yield said
    logger.remove(sink)


# What is taken for audio

SAMPLES = np.arange(-4, 4, dtype=np.int16)


@pytest.mark.parametrize(
    "audio",
    [
        SAMPLES.tobytes(),
        bytearray(SAMPLES.tobytes()),
        memoryview(SAMPLES.tobytes()),
        SAMPLES.data,
        SAMPLES,
        np.repeat(SAMPLES, 2)[::2],
        SAMPLES[:, None],
        array.array("h", SAMPLES.tolist()),
    ],
    ids=str,
)
def test_pcm_is_taken_in_whatever_holds_it(audio: object) -> None:
    assert checked(audio) == SAMPLES.tobytes()


@pytest.mark.parametrize(
    ("audio", "kind"),
    [
        ("text", "not str"),
        (None, "not NoneType"),
        (7, "not int"),
        ([1, 2, 3], "not list"),
        (SAMPLES.astype(np.float32), "ndarray of float32"),
        (SAMPLES.astype(np.uint8), "ndarray of uint8"),
        (SAMPLES.astype(">i2"), "ndarray of >i2"),
        (np.stack([SAMPLES, SAMPLES], axis=1), r"an array of shape \(8, 2\)"),
        (np.int16(5), r"an array of shape \(\)|not int16|int16 of int16"),
    ],
)
def test_what_is_no_pcm_is_refused_by_its_kind(audio: object, kind: str) -> None:
    with pytest.raises(TypeError, match=kind):
        checked(audio)


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of bytes, not 641"):
        checked(bytes(641))


@pytest.mark.parametrize(
    ("rate", "error"), [(0, ValueError), (-1, ValueError), (16, ValueError), (16e3, TypeError)]
)
def test_a_rate_that_is_none_is_refused(rate: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        checked_rate(rate)
    assert checked_rate(8000) == 8000 and checked_rate(None) is None


# What comes of it

PIECES = st.lists(st.integers(0, 5000), min_size=1, max_size=30)


@given(PIECES)
def test_pieces_are_cut_to_20_ms_and_no_sample_is_lost(sizes: list[int]) -> None:
    audio = np.arange(sum(sizes)).astype(np.int16)
    door = Door(RATE)
    frames: list[bytes] = []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        frames += door.take(audio[end - size : end].tobytes())
    assert b"".join(frames) == audio.tobytes()
    assert all(len(frame) <= 2 * RATE // 50 for frame in frames)
    assert not door.holds_audio


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 24_000, 44_100, 48_000])
@settings(max_examples=examples(20), deadline=None)
@given(sizes=PIECES)
def test_another_rate_is_resampled_without_seams_or_loss(rate: int, sizes: list[int]) -> None:
    audio = tone(0.5, rate)
    door = Door(RATE)
    frames: list[bytes] = []
    at = number = 0
    while at < len(audio):
        size = sizes[number % len(sizes)] + 1
        frames += door.take(audio[at : at + size].tobytes(), rate)
        at, number = at + size, number + 1
    frames += door.flush()
    assert all(len(frame) <= 2 * RATE // 50 for frame in frames)
    samples = np.frombuffer(b"".join(frames), np.int16)
    assert abs(len(samples) - RATE // 2) <= 1, "the length is kept"
    assert pitch(samples) == pytest.approx(440, abs=2.1), "and the pitch"
    whole = soxr.resample(audio, rate, RATE)[: len(samples)]
    assert np.abs(samples[: len(whole)].astype(int) - whole).max() < 400


def test_a_stream_ends_where_the_rate_changes() -> None:
    door = Door(RATE)
    rates = [8000, RATE, 48_000, 8000, RATE]
    frames = [frame for rate in rates for frame in door.take(tone(0.3, rate).tobytes(), rate)]
    samples = np.frombuffer(b"".join(frames), np.int16)
    assert abs(len(samples) - len(rates) * 0.3 * RATE) <= len(rates)
    assert pitch(samples) == pytest.approx(440, abs=2)


# At which pace

STEADY = [0.02] * 500


@pytest.mark.parametrize(
    ("lengths", "gaps", "factor"),
    [
        (STEADY, STEADY, None),
        ([1.0] * 10, [1.0] * 10, None),
        ([0.01] * 500, STEADY, 0.5),  # 8 kHz, taken for 16
        ([0.04] * 500, STEADY, 2.0),  # 16 kHz, taken for 8
        ([0.5] * 10, [1.0] * 10, 0.5),
        ([0.06] * 500, STEADY, 3.0),
        ([0.1] * 100, [0.0] * 100, float("inf")),
        ([2.0, *STEADY], [0.0, *STEADY], None),  # what had waited until the session was open
        ([*STEADY[:150], *[0.02] * 40, *STEADY], [*STEADY[:150], 0.8, *[0] * 39, *STEADY], None),
        ([0.02] * 60, ([0.02] * 9 + [5.0]) * 6, None),  # push-to-talk
        ([0.02] * 60, [0.4] * 60, None),  # comfort noise
    ],
)
def test_audio_that_is_off_its_pace_for_seconds_is_noticed(
    lengths: list[float], gaps: list[float], factor: float | None
) -> None:
    pace, now, noticed = Pace(), 0.0, []
    for length, gap in zip(lengths, gaps, strict=True):
        now += gap
        noticed.append(pace.note(length, now))
    found = [factor for factor in noticed if factor is not None]
    if factor is None:
        assert not found
    else:
        assert found[0] == pytest.approx(factor, rel=0.1)


# In a conversation


def taken(world: World) -> NDArray[np.int16]:
    """All that came in, at 16 kHz."""
    frames = [frame for _, frame in world.of(InputAudioRawFrame)]
    assert {frame.sample_rate for frame in frames if isinstance(frame, InputAudioRawFrame)} <= {
        RATE
    }
    audio = b"".join(frame.audio for frame in frames if isinstance(frame, InputAudioRawFrame))
    return np.frombuffer(audio, np.int16)


async def push(world: World, audio: NDArray[np.int16], rate: int | None, real_rate: int) -> None:
    """Push audio at the pace of real time, 20 ms at a time."""
    await asyncio.sleep(0.02)  # the pipeline starts
    size = real_rate // 50
    for at in range(0, len(audio), size):
        await world.transport.push_audio(audio[at : at + size], rate)
        await asyncio.sleep(0.02)


def test_the_last_milliseconds_of_a_resampled_voice_come_though_nothing_follows() -> None:
    world = World()

    async def script() -> None:
        for _ in range(2):
            await push(world, tone(0.5, 8000), 8000, 8000)
            await asyncio.sleep(1)

    play(world, script)
    samples = taken(world)
    assert abs(len(samples) - RATE) <= 2
    assert pitch(samples[: RATE // 2]) == pytest.approx(440, abs=2.1)


def test_pieces_pushed_at_the_same_time_follow_one_another() -> None:
    world = World()
    pieces = [np.full(RATE, number, np.int16) for number in range(5)]

    async def script() -> None:
        await asyncio.sleep(0.02)
        await asyncio.gather(*(world.transport.push_audio(piece) for piece in pieces))

    play(world, script)
    assert np.array_equal(taken(world), np.concatenate(pieces))


@pytest.mark.parametrize(("rate", "said"), [(None, 1), (8000, 0)])
def test_a_rate_that_cannot_be_right_is_said_once(
    rate: int | None, said: int, warnings: list[str]
) -> None:
    world = World()
    play(world, lambda: push(world, tone(20, 8000), rate, 8000))
    told = [line for line in warnings if "sample_rate" in line]
    assert len(told) == said
    assert all("0.5 times as fast" in line and "16000 Hz" in line for line in told)


def test_audio_is_refused_before_the_session_and_ignored_after_it() -> None:
    with pytest.raises(RuntimeError, match="not open yet"):
        asyncio.run(MemoryTransport().push_audio(bytes(640)))
    world = World()
    play(world, lambda: push(world, tone(0.1, RATE), None, RATE))
    before = len(taken(world))
    asyncio.run(world.transport.push_audio(bytes(640)))
    assert len(taken(world)) == before


# What a session tells


def number(event: int) -> Worth:
    return Worth(event % 3)


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 10))
def test_of_events_that_nobody_reads_the_oldest_of_the_least_worth_are_dropped(
    events: list[int], most: int
) -> None:
    async def read() -> list[int]:
        queue = EventQueue(number, most)
        for event in events:
            queue.put_nowait(event)
        queue.close()
        queue.put_nowait(2)
        return [event async for event in queue]

    left = asyncio.run(read())
    remaining = iter(events)
    assert all(event in remaining for event in left), "in order"
    assert [e for e in left if number(e) is Worth.KEPT] == [
        e for e in events if number(e) is Worth.KEPT
    ]
    droppable = [event for event in events if number(event) is not Worth.KEPT]
    assert len(left) == len(events) - max(0, len(droppable) - most)
    for worth in (Worth.PASSING, Worth.TEXT):
        kept = [event for event in left if number(event) is worth]
        assert not kept or [e for e in events if number(e) is worth][-len(kept) :] == kept


async def test_iterations_share_the_events_and_all_end_with_the_queue() -> None:
    queue = EventQueue(number)

    async def read() -> list[int]:
        return [event async for event in queue]

    async with asyncio.timeout(10):
        readers = [asyncio.create_task(read()) for _ in range(3)]
        for event in range(6):
            queue.put_nowait(event)
            await asyncio.sleep(0)
        queue.close()
        read_by = await asyncio.gather(*readers)
        assert sorted(event for events in read_by for event in events) == list(range(6))
        assert await read() == [], "and one that begins later ends at once"


async def test_an_iteration_goes_on_where_another_has_stopped() -> None:
    queue = EventQueue(number)
    for event in range(4):
        queue.put_nowait(event)
    async for event in queue:
        if event == 1:
            break
    queue.close()
    assert [event async for event in queue] == [2, 3]


async def test_dropping_is_said_once(warnings: list[str]) -> None:
    queue = EventQueue(number, 2)
    for _ in range(9):
        queue.put_nowait(0)
    assert len([line for line in warnings if "not read" in line]) == 1
