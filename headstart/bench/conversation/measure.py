"""What one run shows: the wait on the waveform, where it went, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headstart.bench.conversation.words import compare, words
from headstart.pipeline.timeline.records import SegmentRecord, TurnRecord

AUDIBLE = 327
"""A sample beyond this is heard: -40 dBFS of 16-bit audio."""
MISSING_SHARE = 0.25
"""An answer is to half the words when more than this share of them was not understood at all."""

STAGES = {
    "vad": "vad_stop_s",
    "transcript": "final_transcript_s",
    "turn": "turn_end_s",
    "llm": "first_token_s",
    "clause": "first_clause_s",
    "tts": "first_audio_ready_s",
    "out": "first_audio_out_s",
}
"""The stages that the wait is made of, in order, and the moment in a record that ends each."""


class Failure(StrEnum):
    """Why a run's wait is not to be compared."""

    EARLY = "early"
    """The bot was heard before the user's voice had ended."""
    TWICE = "twice"
    """Two answers were heard."""
    HALF = "half"
    """The answer was to half the words."""
    NONE = "none"
    """No answer was heard."""
    CRASHED = "crashed"
    """The conversation did not end as it should."""


class Measured(BaseModel):
    """A run, measured."""

    model_config = ConfigDict(frozen=True)

    failures: list[Failure]
    true_end_s: float
    """When the user's voice ended, on the clock of conversation.wav."""
    voice_to_voice_s: float | None
    """From there to the first audible sample of the bot, on the waveform."""
    stages_s: dict[str, float] | None
    """The wait of the stages, which add up to it but for the residual."""
    residual_s: float | None
    """What the waveform has more than the timeline."""
    moments_s: dict[str, float | None]
    """When each stage of the answered turn, or else the last one, had its result."""
    user_text: str
    bot_text: str
    word_errors: int
    words: int
    missing_share: float
    segments: list[SegmentRecord] = []
    """How the words of each stretch of speech were had."""


def audible(bot: NDArray[np.int16]) -> NDArray[np.int64]:
    """The indices of the samples of the bot's channel that can be heard."""
    return np.flatnonzero(np.abs(bot.astype(np.int32)) > AUDIBLE)


def measure(
    conversation: NDArray[np.int16],
    sample_rate: int,
    records: Sequence[TurnRecord],
    *,
    said: str,
    true_end_s: float,
) -> Measured:
    """Measure a conversation of one utterance.

    Args:
        conversation: Shape (samples, 2): left the user, right the bot.
        sample_rate: In Hz.
        records: Its turns.
        said: The user's words.
        true_end_s: When the user's voice ended, in seconds from the first sample.
    """
    heard_s = audible(conversation[:, 1]) / sample_rate
    before, after = heard_s[heard_s < true_end_s], heard_s[heard_s >= true_end_s]
    failures: list[Failure] = []
    wait_s: float | None = None
    if before.size:
        failures.append(Failure.EARLY)
    if after.size:
        wait_s = float(after[0]) - true_end_s
    else:
        failures.append(Failure.NONE)
    answers = [record for record in records if record.first_audio_out_s is not None]
    if len(answers) > 1:
        failures.append(Failure.TWICE)
    answered = records[: records.index(answers[0]) + 1] if answers else records
    understood = compare(said, _joined(records))
    # The language model saw all turns up to the one whose answer was heard.
    in_answer = compare(said, _joined(answered))
    if answers and in_answer.missing_share > MISSING_SHARE:
        failures.append(Failure.HALF)
    stages_s = residual_s = None
    if wait_s is not None and answers:
        stages_s = stage_waits(answers[0], true_end_s)
        residual_s = wait_s - sum(stages_s.values())
    return Measured(
        failures=failures,
        true_end_s=true_end_s,
        voice_to_voice_s=wait_s,
        stages_s=stages_s,
        residual_s=residual_s,
        moments_s=_moments(answered),
        user_text=" | ".join(record.user_text for record in records),
        bot_text=" | ".join(record.bot_text for record in records),
        word_errors=understood.substituted + understood.missing + understood.added,
        words=understood.reference,
        missing_share=in_answer.missing_share,
        segments=[segment for record in records for segment in record.segments],
    )


def _moments(answered: Sequence[TurnRecord]) -> dict[str, float | None]:
    if not answered:
        return {}
    record = answered[-1]
    fired = [a.fired_at_s for a in record.speculation.attempts if a.verdict == "committed"]
    names = ("first_partial_s", *STAGES.values())
    return {name: getattr(record, name) for name in names} | {
        "speech_start_s": answered[0].speech_start_s,
        "fired_at_s": fired[0] if fired else None,
    }


def _joined(records: Sequence[TurnRecord]) -> str:
    """All that was understood; a turn that was taken up again repeats the words it had."""
    text = ""
    for record in records:
        repeats = words(record.user_text)[: len(words(text))] == words(text)
        text = record.user_text if repeats else f"{text} {record.user_text}"
    return text


def stage_waits(record: TurnRecord, true_end_s: float) -> dict[str, float]:
    """By how much each stage put the answer off, in seconds.

    Stages overlap. A stage's wait is what it adds to those before it: nothing where its result
    was there already. So no wait is negative, and they add up to the time from the end of the
    voice to the first audible sample.
    """
    waits: dict[str, float] = {}
    reached_s = true_end_s
    for stage, moment in STAGES.items():
        at_s = getattr(record, moment)
        waits[stage] = max(0.0, at_s - reached_s) if at_s is not None else 0.0
        reached_s += waits[stage]
    return waits
