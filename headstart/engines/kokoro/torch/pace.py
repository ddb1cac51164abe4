"""How a clause is divided into chunks so that it starts early and then never falters."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

FRAME_SECS = 0.0125

_SILENT = 8
"""Frames of the first chunk that last for nothing: mostly four of silence, and four to spare.

How many of 80 texts had a gap, on several machines: with none to spare 3 and 4 (of 1 to 4 ms), with
one 2, with two none in idle hours, else 3 (below 1 ms, or the host took time). With two, the second
chunk of one clause in a hundred came 8 ms or less before it was due, with three 20 ms (150 clauses
each)."""
_LEAST, _MOST = 10, 64
"""Frames of a later chunk. With up to 96 a cancelled request had to wait for the end of a layer for
up to 53 ms (420 requests), with up to 64 for at most 47 ms (600)."""
_FIXED = 3.0
"""What a chunk costs whatever its length, in frames."""
_MARGIN = 1.4
"""How much slower than expected a chunk may be."""
_LONG_MARGIN = 1.7
"""The same of a chunk that is longer than it has to be: one of a hundred second chunks takes 1.6
times as long as expected. Shorter ones cost more in all, but the first need not wait for that."""
_STEADY_MARGIN = 1.25
"""The same of all chunks of a clause together."""
_REMEMBERED = 15
"""Chunks, those of about a clause."""


class Pace:
    """Decides how long the next chunk is and when the first may be heard.

    Knows from the chunks before, of all clauses, how long a frame takes. It is the median that
    counts: a few chunks that another model slowed down say nothing about the next clause.
    """

    def __init__(self, frame_secs: float = FRAME_SECS / 2) -> None:
        """Begin with an estimate of the seconds that a frame takes to compute."""
        self._lately = deque([frame_secs], maxlen=_REMEMBERED)

    @property
    def frame_secs(self) -> float:
        """Seconds that a frame takes to compute."""
        return median(self._lately)

    def measured(self, frames: int, secs: float) -> None:
        """A chunk of so many frames took so long."""
        self._lately.append(secs / (frames + _FIXED))

    def next_chunk(self, begin: int, end: int, ahead_secs: float | None) -> int:
        """Where the chunk ends that begins at frame `begin` of a clause that ends at `end`.

        Args:
            begin: First frame of the chunk.
            end: One past the last frame of the clause.
            ahead_secs: Audio that is still to be played; None while nothing plays.
        """
        left = end - begin
        # Of the first, enough is heard to last until the second is there.
        frames = _SILENT + math.ceil(self._secs(self._lasting) / FRAME_SECS)
        affordable = float(left)
        if ahead_secs is not None:
            affordable = ahead_secs / (self.frame_secs * _LONG_MARGIN) - _FIXED
            frames = min(max(int(affordable), self._lasting), _MOST)
        # Rather no last chunk that costs more than it is worth, if time allows.
        if left - frames < _LEAST and left <= affordable:
            return end
        return begin + min(frames, left)

    def may_start(self, held_secs: float, left: int) -> bool:
        """Whether playback may begin with so much audio while `left` frames are to be made.

        What is held has to last until the next chunk is there; and, where frames are made more
        slowly than they are played, to cover what the rest will be late.
        """
        if left <= 0:
            return True
        late_secs = left * (self.frame_secs * _MARGIN - FRAME_SECS)
        # The chunk was to last with more to spare, but more of it than usual may be silence.
        next_secs = self._secs(min(left, self._lasting)) * _STEADY_MARGIN / _MARGIN
        return held_secs >= max(next_secs, late_secs)

    @property
    def _lasting(self) -> int:
        """Frames of the shortest chunk that is played for longer than another of it takes."""
        share = min(self.frame_secs * _STEADY_MARGIN / FRAME_SECS, 0.9)
        return max(_LEAST, math.ceil(_FIXED * share / (1 - share)))

    def _secs(self, frames: int) -> float:
        """How long a chunk takes at worst."""
        return (frames + _FIXED) * self.frame_secs * _MARGIN


class Playback:
    """How far a clause has been played, if what is given out is played at once."""

    def __init__(self) -> None:
        self._until: float | None = None

    def ahead_secs(self, now: float) -> float | None:
        """Audio that is still to be played; None before the first and after it ran dry.

        After it ran dry, playing on at once would make one gap after the other: better to
        hold back again, and to work in chunks that cost less.
        """
        if self._until is not None and now >= self._until:
            self._until = None
        return None if self._until is None else self._until - now

    def given(self, secs: float, now: float) -> None:
        """So much more audio has been given out."""
        self._until = secs + (now if self._until is None else max(now, self._until))
