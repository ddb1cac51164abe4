"""What a recogniser believes was said, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """One word as it is written, its punctuation included."""

    text: str
    probability: float
    """0..1: of the least likely of its tokens."""


@dataclass(frozen=True)
class Hypothesis:
    """A whole transcript of a stretch of audio. Empty when no speech was understood."""

    text: str = ""
    confidence: float | None = None
    """0..1, of the whole text; None where the recogniser has none, or heard no words."""
    words: tuple[Word, ...] = ()
    avg_logprob: float = 0.0
    """Mean natural logarithm of the tokens' probabilities."""
    no_speech_prob: float = 0.0
    """0..1: how sure the recogniser is that nobody speaks."""


def joined(parts: Sequence[Hypothesis]) -> Hypothesis:
    """One hypothesis for consecutive stretches of audio; each counts by its words."""
    spoken = [part for part in parts if part.text]
    if not spoken:
        return Hypothesis(no_speech_prob=min((part.no_speech_prob for part in parts), default=0.0))
    if len(spoken) == 1:
        return spoken[0]
    weights = [max(1, len(part.words)) for part in spoken]
    avg_logprob = sum(
        weight * part.avg_logprob for weight, part in zip(weights, spoken, strict=True)
    ) / sum(weights)
    known = all(part.confidence is not None for part in spoken)
    return Hypothesis(
        text=" ".join(part.text for part in spoken),
        confidence=math.exp(avg_logprob) if known else None,
        words=tuple(word for part in spoken for word in part.words),
        avg_logprob=avg_logprob,
        no_speech_prob=min(part.no_speech_prob for part in spoken),
    )
