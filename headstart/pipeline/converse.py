"""A conversation held with recorded utterances, each spoken when the last has been answered."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import soundfile

from headstart.config.spec import PipelineSpec
from headstart.errors import HeadstartError, SessionEndedError
from headstart.pipeline.session import Failed, Session, TurnEnded
from headstart.pipeline.timeline.observer import TurnRecord
from headstart.transports.wav import Recording, Samples, Spoken, WavTransport

CONVERSATION, ANSWER, TURNS = "conversation.wav", "answer.wav", "turns.jsonl"

_SETTLE_SECS = 1.0
"""This long after the user's last sound, and after the bot's, nothing more is to come."""
_ANSWER_TIMEOUT_SECS = 60.0
_CLOSING_SECS = 10.0
"""So long may it take until the last event of a closed session has been read."""


@dataclass
class Dialogue:
    """What was said by whom and when: all of it, or as much as there was before it broke off."""

    recording: Recording = field(default_factory=Recording)
    spoken: list[Spoken] = field(default_factory=list)
    """Where each utterance that was heard to its end lies on the clock of the recording."""
    records: list[TurnRecord] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self.recording.user)

    def save(self, folder: Path) -> None:
        """Write `turns.jsonl`, `answer.wav` and `conversation.wav`, each whole or not at all.

        Args:
            folder: Made if it is not there.

        Raises:
            HeadstartError: The folder cannot be written.
        """
        rate = self.recording.out_sample_rate
        lines = "".join(record.to_json() + "\n" for record in self.records)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The smallest first: should the disk fill up, as much as possible is kept.
            _replace(folder / TURNS, lines.encode())
            _replace(folder / ANSWER, _wav(self.recording.bot_speech(), rate))
            _replace(folder / CONVERSATION, _wav(self.recording.stereo(), rate))
        except OSError as error:
            raise HeadstartError(f"{folder}: cannot be written ({error.strerror})") from None


async def converse(
    spec: PipelineSpec,
    utterances: Sequence[Samples],
    *,
    dialogue: Dialogue | None = None,
    on_turn: Callable[[TurnRecord], None] = lambda _: None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Dialogue:
    """Speak the utterances into a new session, each when the one before has been answered.

    Args:
        spec: The pipeline.
        utterances: Each of shape (samples,), at the pipeline's input rate.
        dialogue: Filled as the conversation goes on, for a caller that wants what there was of
            it even if it breaks off.
        on_turn: Called with each turn's record when the turn is over.
        on_stage: Called with a few words about what is going on.

    Returns:
        `dialogue`, or a new one where none was given.

    Raises:
        SessionEndedError: The pipeline ended before all was answered.
        HeadstartError: The session did not open, or a turn found no end.
    """
    dialogue = dialogue or Dialogue()
    transport = WavTransport()
    dialogue.recording = transport.recording
    last_failure = "no stage said why"
    on_stage("loading the models")
    async with Session(spec, transport) as session:

        async def collect() -> None:
            nonlocal last_failure
            async for event in session.events():
                if isinstance(event, TurnEnded):
                    dialogue.records.append(event.record)
                    on_turn(event.record)
                elif isinstance(event, Failed):
                    last_failure = event.message

        async def talk() -> None:
            for number, utterance in enumerate(utterances, start=1):
                on_stage(f"utterance {number} of {len(utterances)}: listening")
                dialogue.spoken.append(await transport.speak(utterance))
                on_stage(f"utterance {number} of {len(utterances)}: answering")
                await answered(session, transport, number)

        collecting = asyncio.create_task(collect(), name="collect-turns")
        talking = asyncio.create_task(talk(), name="talk")
        try:
            await asyncio.wait({collecting, talking}, return_when=asyncio.FIRST_COMPLETED)
            if collecting.done():
                collecting.result()  # what `on_turn` raised, if anything
            if not talking.done():  # events end with the pipeline
                raise SessionEndedError(f"the pipeline ended: {last_failure}")
            try:
                talking.result()
            except SessionEndedError:
                # The bot may still say goodbye, and that is kept, too.
                await asyncio.wait({collecting}, timeout=_ANSWER_TIMEOUT_SECS)
                raise SessionEndedError(f"the pipeline ended: {last_failure}") from None
        finally:
            talking.cancel()
            await session.close()
            await asyncio.wait({collecting, talking}, timeout=_CLOSING_SECS)
            collecting.cancel()
        if collecting.done():
            collecting.result()
    return dialogue


async def answered(session: Session, transport: WavTransport, number: int) -> None:
    """Wait until the utterance of this number has been answered, or will not be.

    Raises:
        SessionEndedError: The pipeline ended.
        HeadstartError: The answer found no end.
    """
    await asyncio.sleep(_SETTLE_SECS)
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_SECS):
            if not transport.over:
                await session.timeline.wait_idle(_SETTLE_SECS)
    except TimeoutError:
        raise HeadstartError(
            f"utterance {number}: no end of the answer within {_ANSWER_TIMEOUT_SECS:.0f} s"
        ) from None
    if transport.over:
        raise SessionEndedError("the pipeline ended while an answer was due")


def _wav(samples: Samples, sample_rate: int) -> bytes:
    # In memory: libsndfile does not say why it cannot write a file.
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, subtype="PCM_16", format="WAV")
    return file.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    part = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
