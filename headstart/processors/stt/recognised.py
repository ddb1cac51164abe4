"""What a recogniser says with a final transcript: the words, and the way they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headstart.engines.hypothesis import Hypothesis

Path = Literal["stream", "replayed", "rest", "local", "none"]
"""How a segment's text was had: on the connection it began on; on one opened after a drop, to
which its audio was sent again; from the prerecorded API; from the local recogniser; not at all."""


@dataclass(frozen=True)
class Recognised(Hypothesis):
    """What was understood of a segment, and how: the `result` of its final frame."""

    path: Path = "none"
    setup_secs: float | None = None
    """How long the latest connection had taken to open; None if there was none."""
    connections: int = 0
    """How many connections the segment's audio was sent on."""

    @classmethod
    def of(
        cls,
        said: Hypothesis,
        path: Path,
        *,
        setup_secs: float | None = None,
        connections: int = 0,
    ) -> Recognised:
        """A hypothesis, with the way it came."""
        return cls(
            said.text,
            said.confidence,
            said.words,
            said.avg_logprob,
            said.no_speech_prob,
            path,
            setup_secs,
            connections,
        )
