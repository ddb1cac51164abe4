"""How a clause is divided into chunks so that it starts early and then never falters."""

from __future__ import annotations

FRAME_SECS = 0.0125

_FIRST = 20
"""Frames of the first chunk: 250 ms, part of it silence that is cut off."""
_LEAST, _MOST = 16, 96
_OVERLAP = 7.0
"""What the context around a chunk costs, in frames."""
_MARGIN = 1.25
"""How much slower than expected a chunk may be."""


class Pace:
    """Decides how long the next chunk is and when the first may be heard.

    Knows how long a frame takes from the chunks before, and how far playback has come, if
    it began with the first piece that was given out.
    """

    def __init__(self, frame_secs: float = FRAME_SECS / 2) -> None:
        """Begin with an estimate of the seconds that a frame takes to compute."""
        self.frame_secs = frame_secs

    def measured(self, frames: int, secs: float) -> None:
        """A chunk of so many frames took so long."""
        self.frame_secs += 0.3 * (secs / (frames + _OVERLAP) - self.frame_secs)

    def next_chunk(self, begin: int, end: int, ahead_secs: float | None) -> int:
        """Where the chunk ends that begins at frame `begin` of a clause that ends at `end`.

        Args:
            begin: First frame of the chunk.
            end: One past the last frame of the clause.
            ahead_secs: Audio that is still to be played; None before the first chunk.
        """
        if ahead_secs is None:
            frames = _FIRST
        else:
            frames = int(ahead_secs / (self.frame_secs * _MARGIN) - _OVERLAP)
            frames = min(max(frames, _LEAST), _MOST)
        # No chunk is left that would cost more for its context than for itself.
        return end if end - begin - frames < _LEAST else begin + frames

    def may_start(self, held_secs: float, left: int) -> bool:
        """Whether playback may begin with so much audio while `left` frames are to be made.

        Where frames are made faster than they are played, always; on a slower machine when
        what is held covers what the rest will be late.
        """
        late_secs = left * (self.frame_secs * _MARGIN - FRAME_SECS)
        return held_secs >= late_secs
