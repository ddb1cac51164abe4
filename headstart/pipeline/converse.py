"""A conversation held with recorded utterances, each spoken when the last has been answered."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from headstart.config.spec import PipelineSpec
from headstart.errors import HeadstartError
from headstart.pipeline.session import Session, TurnEnded
from headstart.pipeline.timeline.observer import TurnRecord
from headstart.transports.wav import Recording, Samples, Spoken, WavTransport

_SETTLE_SECS = 1.0
"""This long after the user's last sound, and after the bot's, nothing more is to come."""
_ANSWER_TIMEOUT_SECS = 60.0


@dataclass(frozen=True)
class Dialogue:
    """What was said by whom and when."""

    recording: Recording
    spoken: tuple[Spoken, ...]
    """Where each utterance lies on the clock of the recording."""
    records: tuple[TurnRecord, ...]

    def save(self, folder: Path) -> None:
        """Write `conversation.wav`, `answer.wav` and `turns.jsonl`, each whole or not at all.

        Args:
            folder: Made if it is not there.

        Raises:
            HeadstartError: The folder cannot be written.
        """
        rate = self.recording.out_sample_rate
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_wav(folder / "conversation.wav", self.recording.stereo(), rate)
            _write_wav(folder / "answer.wav", self.recording.bot_speech(), rate)
            lines = "".join(record.to_json() + "\n" for record in self.records)
            _replace(folder / "turns.jsonl", lambda path: path.write_text(lines, "utf-8"))
        except OSError as error:
            raise HeadstartError(f"{folder}: cannot be written ({error.strerror})") from None


async def converse(
    spec: PipelineSpec,
    utterances: Sequence[Samples],
    *,
    on_turn: Callable[[TurnRecord], None] = lambda _: None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Dialogue:
    """Speak the utterances into a new session, each when the one before has been answered.

    Args:
        spec: The pipeline.
        utterances: Each of shape (samples,), at the pipeline's input rate.
        on_turn: Called with each turn's record when the turn is over.
        on_stage: Called with a few words about what is going on.

    Raises:
        HeadstartError: The session did not open, or a turn found no end.
    """
    records: list[TurnRecord] = []
    spoken: list[Spoken] = []
    transport = WavTransport()
    on_stage("loading the models")
    async with Session(spec, transport) as session:

        async def collect() -> None:
            async for event in session.events():
                if isinstance(event, TurnEnded):
                    records.append(event.record)
                    on_turn(event.record)

        collecting = asyncio.create_task(collect(), name="collect-turns")
        try:
            for number, utterance in enumerate(utterances, start=1):
                on_stage(f"utterance {number} of {len(utterances)}: listening")
                spoken.append(await transport.speak(utterance))
                on_stage(f"utterance {number} of {len(utterances)}: answering")
                await answered(session, number)
        finally:
            await session.close()
            await collecting
    return Dialogue(transport.recording, tuple(spoken), tuple(records))


async def answered(session: Session, number: int) -> None:
    """Wait until the utterance of this number has been answered, or will not be.

    Raises:
        HeadstartError: The answer found no end.
    """
    await asyncio.sleep(_SETTLE_SECS)
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_SECS):
            await session.timeline.wait_idle(_SETTLE_SECS)
    except TimeoutError:
        raise HeadstartError(
            f"utterance {number}: no end of the answer within {_ANSWER_TIMEOUT_SECS:.0f} s"
        ) from None


def _write_wav(path: Path, samples: Samples, sample_rate: int) -> None:
    _replace(
        path,
        lambda part: soundfile.write(part, samples, sample_rate, subtype="PCM_16", format="WAV"),
    )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there, so that nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
