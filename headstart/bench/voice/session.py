"""What a benchmark of voices finds: how soon, how steadily and how truly each engine speaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel

from headstart.bench.statistics import percentile
from headstart.errors import HeadstartError, UsageError


class Row(BaseModel):
    """A text, spoken once. Times are from the moment at which the text was handed over."""

    engine: str
    """`torch`, `onnx`, `kmodel` (of Kokoro's authors), or `pipecat`: its own KokoroTTSService."""
    voice: str
    text: str
    words: int
    first_audible_ms: float | None = None
    """Until the first sample beyond -40 dBFS is heard, if audio is played as it comes."""
    first_chunk_ms: float | None = None
    """Until the first audio comes, silence or not."""
    rtf: float | None = None
    """Seconds of work for a second of audio."""
    underruns: int | None = None
    """Gaps in the playback, if audio is played as it comes."""
    gap_ms: float | None = None
    """Their sum."""
    stolen_ms: float | None = None
    """Processor time that the machine's host gave to others meanwhile."""
    audio_s: float | None = None
    lmd_db: float | None = None
    """Log-mel distance of the streamed clause from the same one made as a whole."""
    floor_db: float | None = None
    """The same distance between two whole clauses that differ in the seed of their noise."""
    level_db: float | None = None
    """How much louder the streamed clause is."""
    floor_level_db: float | None = None
    """How much louder the whole clause of other noise is."""
    seam_db: float | None = None
    """How much more the waveform jumps where chunks meet, beyond what it does everywhere."""
    same_transcript: bool | None = None
    """Whether the local recogniser understands both alike."""
    floor_same_transcript: bool | None = None
    """Whether it understands the whole clause of other noise alike."""


class Cancellation(BaseModel):
    """How long a cancelled request kept the worker."""

    engine: str
    after_ms: float
    """From the request to the cancellation."""
    freed_ms: float
    """From the cancellation until the worker was free."""


class Memory(BaseModel):
    """Resident memory of a process in which many sessions speak."""

    engine: str
    text: str
    """What each said."""
    sessions: int
    spoke: int
    """Sessions whose voice was heard."""
    one_mb: float
    """One session, after it spoke."""
    silent_mb: float
    """All sessions, one of which has spoken."""
    spoken_mb: float
    """After all spoke at once."""
    most_mb: float
    """At any time, loading included."""


class VoiceResults(BaseModel):
    """Everything that is known after the benchmark."""

    command: str
    started_at: str
    duration_s: float = 0.0
    seed: int
    versions: dict[str, str]
    machine: dict[str, str | int | float]
    rows: list[Row] = []
    cancellations: list[Cancellation] = []
    memory: list[Memory] = []

    def engines(self) -> list[str]:
        """The engines that were heard, in the order in which they were asked for."""
        return list(dict.fromkeys(row.engine for row in self.rows if row.rtf is not None))

    def lengths(self) -> list[int]:
        """Words of the texts."""
        return sorted({row.words for row in self.rows})

    def save(self, out: Path) -> None:
        """Write tts.json."""
        (out / "tts.json").write_text(self.model_dump_json(indent=1), "utf-8")


def p50(values: Iterable[float | None]) -> float | None:
    """The median of those that are known."""
    return percentile([value for value in values if value is not None], 50)


def p95(values: Iterable[float | None]) -> float | None:
    """The 95th percentile of those that are known."""
    return percentile([value for value in values if value is not None], 95)


def shipped_texts() -> list[str]:
    """A hundred texts of 3, 6, 12 and 25 words, none of which the norms were fitted on."""
    text = (files("headstart.bench.voice") / "texts.txt").read_text("utf-8")
    return text.strip().splitlines()


def chosen_texts(choice: str) -> list[str]:
    """The texts that `--texts` names: a file with one a line, or how many of the shipped ones.

    Raises:
        UsageError: There are none, or not so many.
        HeadstartError: The file cannot be read.
    """
    if choice.isdigit():
        texts, number = shipped_texts(), int(choice)
        if not 1 <= number <= len(texts):
            raise UsageError(f"--texts {choice}: there are 1 to {len(texts)}")
        return spread(texts, number)
    try:
        lines = Path(choice).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HeadstartError(f"{choice}: cannot be read ({error})") from None
    texts = [line.strip() for line in lines if any(c.isalnum() for c in line)]
    if not texts:
        raise UsageError(f"{choice}: holds no text, one a line")
    return texts


def chosen_voices(choice: str, names: Sequence[str]) -> list[str]:
    """The voices that `--voices` names, or so many English ones.

    Raises:
        UsageError: There are not so many, or one speaks another language.
    """
    english = [name for name in names if name[0] in "ab"]
    if choice.isdigit():
        if not 1 <= int(choice) <= len(english):
            raise UsageError(f"--voices {choice}: there are 1 to {len(english)} English ones")
        return spread(english, int(choice))
    voices = [name.strip() for name in choice.split(",")]
    for name in voices:
        if name in names and name not in english:
            raise UsageError(f"--voices {name}: the benchmark's recogniser knows English only")
    return voices


def spread(items: Sequence[str], number: int) -> list[str]:
    """So many of the items, evenly spread."""
    return [items[(2 * at + 1) * len(items) // (2 * number)] for at in range(number)]
