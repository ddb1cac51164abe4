"""Cuts the connection to Deepgram at every half second of every utterance; compares the text."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from headstart.bench.conversation.utterances import read_utterances
from headstart.bench.conversation.words import words
from headstart.config.load import load_config
from headstart.config.spec import PipelineSpec
from headstart.pipeline.session import Heard, Session, TurnEnded
from headstart.processors.stt.streaming.link import pool
from headstart.testing.deepgram import DeepgramServer, Faults
from headstart.transports.wav import read_audio

_RATE = 16000
_FRAME = _RATE // 50
_SILENCE_SECS = 1.0

_PIPELINE = """\
prompt: Nobody answers.
audio: {{in_sample_rate: 16000}}
stages:
  - vad
  - stt:
      provider: deepgram
      base_url: {url}
      api_key: any
      # The audio may come faster than it was spoken, and the recogniser is one of this machine.
      final_timeout_secs: 60
      stall_secs: 60
      fallback: []
  - turn
"""


@dataclass(frozen=True)
class Outcome:
    """One utterance, heard with one fault."""

    utterance: str
    fault: str
    text: str
    undisturbed: str
    paths: tuple[str | None, ...]
    """The way that each stretch of speech took."""

    @property
    def differs(self) -> bool:
        """Whether another text came of it, but for case and punctuation, or none ever did."""
        return words(self.text) != words(self.undisturbed) or not self.undisturbed


async def try_drops(
    folder: Path,
    *,
    only: list[str] | None = None,
    every_secs: float = 0.5,
    handshake_secs: float = 0.6,
    real_time: bool = False,
) -> AsyncIterator[Outcome]:
    """Hear each utterance undisturbed, then with each fault in turn.

    Args:
        folder: Holds `manifest.jsonl` and the recordings it names.
        only: Ids of the utterances; all if None.
        every_secs: The connection is cut after so much audio, then after twice as much, ...
        handshake_secs: The connection opens so late.
        real_time: Speak as fast as people do, not as fast as the machine can hear.

    Raises:
        UsageError: Something is wrong with the utterances.
    """
    utterances = read_utterances(folder, only)
    with tempfile.TemporaryDirectory() as place:
        async with DeepgramServer() as server:
            config = Path(place) / "drops.yaml"
            config.write_text(_PIPELINE.format(url=server.url), "utf-8")
            spec = load_config(config)
            for name, (_, file) in utterances.items():
                pcm = read_audio(file, _RATE).tobytes() + bytes(int(2 * _RATE * _SILENCE_SECS))
                undisturbed, _ = await _hear(spec, pcm, real_time)
                sent_secs = server.served[-1].audio_secs
                for fault, faults in _faults(sent_secs, every_secs, handshake_secs):
                    server.fail(faults)
                    text, paths = await _hear(spec, pcm, real_time)
                    server.heal()
                    yield Outcome(name, fault, text, undisturbed, paths)


def _faults(
    sent_secs: float, every_secs: float, handshake_secs: float
) -> Iterator[tuple[str, Faults]]:
    yield f"handshake {handshake_secs:g} s", Faults(handshake_delay_secs=handshake_secs)
    for number in range(1, int(sent_secs / every_secs) + 1):
        at_secs = number * every_secs
        yield f"drop at {at_secs:g} s", Faults(drop_at_secs=at_secs)


async def _hear(
    spec: PipelineSpec, pcm: bytes, real_time: bool
) -> tuple[str, tuple[str | None, ...]]:
    """All that is understood, over a connection of its own, and the way it came."""
    clock = asyncio.get_running_loop()
    async with Session(spec) as session:
        begun = clock.time()
        for number, at in enumerate(range(0, len(pcm), 2 * _FRAME), 1):
            await session.push_audio(pcm[at : at + 2 * _FRAME])
            await asyncio.sleep(begun + number * 0.02 - clock.time() if real_time else 0)
        await session.end()
    said: list[str] = []
    paths: list[str | None] = []
    async for event in session.events():
        if isinstance(event, Heard) and event.final:
            said.append(event.text)
        elif isinstance(event, TurnEnded):
            paths += [segment.path for segment in event.record.segments]
    await pool.close()
    return " ".join(said), tuple(paths)
