"""The events of an answer: which of them can be read, and how much text they bring."""

from __future__ import annotations

from typing import Any

_TEXT_OF = {
    "text_delta": "text",
    "input_json_delta": "partial_json",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}
"""The kinds of deltas that Pipecat knows, and the field that has their text."""
_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)
_MISSING = object()


def is_readable(event: Any) -> bool:
    """Whether Pipecat can read the event; others are to be passed over.

    The protocol grows, servers other than Anthropic's speak dialects of it, and the SDK checks
    nothing: of a delta whose type it does not know, it makes a text delta without text.
    """
    match getattr(event, "type", None):
        case "content_block_delta":
            return _is_readable_delta(getattr(event, "delta", None))
        case "content_block_start":
            block = getattr(event, "content_block", None)
            kind = getattr(block, "type", None)
            if kind == "tool_use":
                return all(isinstance(getattr(block, key, None), str) for key in ("id", "name"))
            return isinstance(kind, str)
        case "message_start":
            return _is_readable_usage(getattr(getattr(event, "message", None), "usage", _MISSING))
        case "message_delta":
            if not _is_readable_usage(getattr(event, "usage", _MISSING)):
                event.usage = None  # why the answer ends is worth more than what it has cost
            return getattr(event, "delta", None) is not None
    return True


def text_of(event: Any) -> str:
    """What a readable event brings: words, arguments of a tool, thoughts. Mostly nothing."""
    if event.type != "content_block_delta":
        return ""
    return "".join(getattr(event.delta, name, "") for name in _TEXT_OF.values())


def why_incomplete(event: Any) -> str | None:
    """Why the model said less than it was asked for, if the event says so."""
    if event.type != "message_delta":
        return None
    reason = getattr(event.delta, "stop_reason", None)
    if reason == "refusal":
        details = getattr(event.delta, "stop_details", None)
        category = getattr(details, "category", None)
        return "the model refused to answer" + (f" ({category})" if category else "")
    if reason == "model_context_window_exceeded":
        return "the conversation is longer than the model can read"
    return None


def _is_readable_delta(delta: Any) -> bool:
    kind = getattr(delta, "type", None)
    if delta is None or (kind is not None and kind not in _TEXT_OF):
        return False
    fields = [getattr(delta, name) for name in _TEXT_OF.values() if hasattr(delta, name)]
    return bool(fields) and all(isinstance(field, str) for field in fields)


def _is_readable_usage(usage: Any) -> bool:
    if usage is None:
        return True
    counts = [getattr(usage, name, _MISSING) for name in _COUNTS]
    details = getattr(usage, "output_tokens_details", _MISSING)
    if details is not None:
        counts.append(getattr(details, "thinking_tokens", _MISSING))
    return all(count is None or isinstance(count, int) for count in counts)
