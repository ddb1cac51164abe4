"""Deepgram's messages, as its API reference publishes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from headstart.engines.hypothesis import Hypothesis

_MODEL = {"name": "headstart", "version": "local", "arch": "whisper"}

IDLE_REASON = "NET-0001: no audio or text message was received within the timeout window"
UNDECODABLE_REASON = "DATA-0000: the payload cannot be decoded as audio"


def words(
    hypothesis: Hypothesis, start_secs: float, end_secs: float, *, punctuate: bool
) -> list[dict[str, Any]]:
    """The words with their times.

    The recogniser gives none, so they share the sounding stretch by their letters.
    """
    letters = sum(len(word.text) for word in hypothesis.words) or 1
    per_letter = (end_secs - start_secs) / letters
    listed, at = [], start_secs
    for word in hypothesis.words:
        until = at + per_letter * len(word.text)
        plain = "".join(c for c in word.text.lower() if c.isalnum() or c in "'-")
        listed.append(
            {
                "word": plain,
                "start": round(at, 3),
                "end": round(until, 3),
                "confidence": round(word.probability, 4),
                **({"punctuated_word": word.text} if punctuate else {}),
            }
        )
        at = until
    return listed


def alternative(hypothesis: Hypothesis, listed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One alternative of a channel."""
    return {
        "transcript": " ".join(word.get("punctuated_word", word["word"]) for word in listed),
        "confidence": round(hypothesis.confidence or 0.0, 4),
        "words": list(listed),
    }


def results(
    request_id: str,
    best: dict[str, Any],
    *,
    start_secs: float,
    end_secs: float,
    is_final: bool,
    speech_final: bool,
    from_finalize: bool,
) -> dict[str, Any]:
    """`Results` of a stream."""
    return {
        "type": "Results",
        "channel_index": [0, 1],
        "duration": round(end_secs - start_secs, 5),
        "start": round(start_secs, 5),
        "is_final": is_final,
        "speech_final": speech_final,
        "from_finalize": from_finalize,
        "channel": {"alternatives": [best]},
        "metadata": {
            "request_id": request_id,
            "model_info": _MODEL,
            "model_uuid": "00000000-0000-0000-0000-000000000000",
        },
    }


def speech_started(at_secs: float) -> dict[str, Any]:
    """`SpeechStarted`."""
    return {"type": "SpeechStarted", "channel": [0, 1], "timestamp": round(at_secs, 3)}


def utterance_end(last_word_end_secs: float) -> dict[str, Any]:
    """`UtteranceEnd`."""
    return {
        "type": "UtteranceEnd",
        "channel": [0, 1],
        "last_word_end": round(last_word_end_secs, 3),
    }


def metadata(request_id: str, duration_secs: float) -> dict[str, Any]:
    """`Metadata`, the last message of a stream."""
    return {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": hashlib.sha256(request_id.encode()).hexdigest(),
        "created": _now(),
        "duration": round(duration_secs, 5),
        "channels": 1,
    }


def schema_error(message: str) -> dict[str, Any]:
    """`Error`: a text message that was not understood."""
    return {
        "type": "Error",
        "variant": "SchemaError",
        "description": "Could not deserialize last text message",
        "message": message,
    }


def prerecorded(request_id: str, best: dict[str, Any], duration_secs: float) -> dict[str, Any]:
    """The answer of the prerecorded API."""
    return {
        "metadata": {
            "transaction_key": "deprecated",
            "request_id": request_id,
            "sha256": hashlib.sha256(request_id.encode()).hexdigest(),
            "created": _now(),
            "duration": round(duration_secs, 5),
            "channels": 1,
            "models": ["00000000-0000-0000-0000-000000000000"],
            "model_info": {"00000000-0000-0000-0000-000000000000": _MODEL},
        },
        "results": {"channels": [{"alternatives": [best]}]},
    }


def refusal(code: str, reason: str, request_id: str) -> dict[str, str]:
    """Body of an error status."""
    return {"err_code": code, "err_msg": reason, "request_id": request_id}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
