"""What happens in a conversation, and the record that is made of each of its turns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Verdict = Literal["committed", "aborted", "superseded"]


class AttemptRecord(BaseModel):
    """One answer begun before the turn had ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fired_at_s: float
    text: str
    """The words it answers."""
    confidence: float | None
    verdict: Verdict
    reason: str
    lead_ms: float | None
    """How long before the end of the turn it fired; null if the turn never ended."""


class SpeculationRecord(BaseModel):
    """All that was tried before the turn had ended. Empty where no trigger is used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: list[AttemptRecord] = []
    committed: bool = False
    saved_ms: float | None = None
    """How much later the first audio would have come, had the answer begun at the turn's end."""
    waited_ms: float | None = None
    """How much earlier the turn would have ended without the committed attempt."""
    left_ms: float | None = None
    """From the turn's end to the first sample, audible or not, that the output transport took of
    an answer that was ready by then."""
    release_ms: float | None = None
    """From the turn's end to the first audible sample of such an answer."""
    wasted_input_tokens: int = 0
    wasted_output_tokens: int = 0
    wasted_audio_s: float = 0.0


class SegmentRecord(BaseModel):
    """One stretch of speech, from a VAD start to the VAD stop, and how its words were had."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_s: float | None = None
    stop_s: float | None = None
    """The VAD's report of silence."""
    partials: int = 0
    """How many updates came before that."""
    first_partial_s: float | None = None
    partial_gap_ms: float | None = None
    """The longest time without an update, from the first one to the end of the voice; null where
    the voice had ended before the first."""
    final_s: float | None = None
    final_after_ms: float | None = None
    """From `stop_s` to the final text."""
    path: str | None = None
    """How the text was had: stream, replayed, rest, local, none; null where the recogniser does
    not say."""
    setup_ms: float | None = None
    """How long the connection had taken to open; null where there was none."""
    connections: int = 0
    """How many connections the audio was sent on."""


class TurnRecord(BaseModel):
    """One turn: what was said, and when. One line of `turns.jsonl`, in this order.

    Times are seconds on the clock of `conversation.wav` (zero is the first input sample),
    rounded to milliseconds, and null for what did not happen. docs/timeline.md explains each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    turn: int
    user_text: str
    bot_text: str
    speech_start_s: float | None = None
    vad_stop_s: float | None = None
    turn_end_s: float | None = None
    first_partial_s: float | None = None
    final_transcript_s: float | None = None
    first_token_s: float | None = None
    first_clause_s: float | None = None
    first_audio_ready_s: float | None = None
    first_audio_out_s: float | None = None
    voice_to_voice_s: float | None = None
    interrupted: bool = False
    errors: list[str] = []
    speculation: SpeculationRecord = SpeculationRecord()
    segments: list[SegmentRecord] = []
    speech_end_s: float | None = Field(default=None, exclude=True)
    """When the user's voice ended, which `voice_to_voice_s` counts from. Not in the JSON."""

    def to_json(self) -> str:
        """The record as one line of `turns.jsonl`, without the line's end."""
        return self.model_dump_json()

    @model_validator(mode="before")
    @classmethod
    def _recover_speech_end(cls, data: object) -> object:
        # A record read back from JSON still says where its speech ended.
        if isinstance(data, dict) and data.get("speech_end_s") is None:
            heard, waited = data.get("first_audio_out_s"), data.get("voice_to_voice_s")
            if isinstance(heard, float) and isinstance(waited, float):
                return {**data, "speech_end_s": round(heard - waited, 3)}
        return data


class Kind(StrEnum):
    """What can happen in a conversation, as far as its timeline is concerned."""

    VAD_STARTED = "vad_started"
    VAD_STOPPED = "vad_stopped"
    PARTIAL = "partial"
    FINAL = "final"
    USER_STARTED = "user_started"
    USER_STOPPED = "user_stopped"
    USER_TEXT = "user_text"
    """The user's words as they were written to the context."""
    ATTEMPT_FIRED = "attempt_fired"
    ATTEMPT_ENDED = "attempt_ended"
    ATTEMPT_COST = "attempt_cost"
    """What the language model's answer in an attempt has cost in tokens."""
    ATTEMPT_DROPPED = "attempt_dropped"
    """Speech of an attempt was thrown away."""
    RESPONSE_STARTED = "response_started"
    TOKEN = "token"
    TOOLS_STARTED = "tools_started"
    """The response calls functions; another response will follow it."""
    RESPONSE_ENDED = "response_ended"
    CLAUSE = "clause"
    """Text went to the TTS."""
    AUDIO_READY = "audio_ready"
    """Audio left the TTS."""
    SPOKEN = "spoken"
    """Text that the output transport has let out with its audio."""
    TTS_STOPPED = "tts_stopped"
    BOT_STARTED = "bot_started"
    AUDIO_LEFT = "audio_left"
    """The output transport has taken the first piece of an answer."""
    AUDIO_OUT = "audio_out"
    """An audible sample was played."""
    BOT_STOPPED = "bot_stopped"
    INTERRUPTED = "interrupted"
    BOT_TEXT = "bot_text"
    """The bot's words as they were written to the context: what was heard of them."""
    ERROR = "error"
    TICK = "tick"
    """Nothing but time."""


@dataclass(frozen=True)
class Event:
    """Something that happened at a moment of the conversation."""

    kind: Kind
    at_s: float
    """Seconds from the first input sample."""
    text: str = ""
    confirm_secs: float = 0.0
    """VAD events: how long the VAD waited before it reported."""
    attempt: int = 0
    """ATTEMPT_FIRED, ATTEMPT_COST: its number. ERROR: that of the attempt that failed, or 0."""
    confidence: float | None = None
    """ATTEMPT_FIRED: of the words that it answers, 0..1."""
    verdict: Verdict = "aborted"
    """ATTEMPT_ENDED; the reason goes into `text`."""
    waited_secs: float = 0.0
    """ATTEMPT_ENDED: how long the turn's end has waited for it."""
    input_tokens: int = 0
    """ATTEMPT_COST."""
    output_tokens: int = 0
    """ATTEMPT_COST."""
    audio_s: float = 0.0
    """ATTEMPT_DROPPED."""
    path: str | None = None
    """FINAL: how the text was had."""
    setup_secs: float | None = None
    """FINAL: how long the connection had taken to open."""
    connections: int = 0
    """FINAL: how many the audio was sent on."""
