"""Works out how the recogniser did on each stretch of speech in a turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from headstart.pipeline.timeline.records import Event, Kind, SegmentRecord


@dataclass
class _Stretch:
    """From a VAD start to the VAD stop."""

    start_s: float | None = None
    stop_s: float | None = None
    voice_end_s: float | None = None
    partials_s: list[float] = field(default_factory=list)
    final: Event | None = None


@dataclass
class Hearing:
    """Sorts partial and final transcripts by the stretch of speech that they are about.

    A partial is about the stretch that lasts. A final transcript is about the oldest one that
    has ended and has none, for recognisers keep their order; one that comes early or in several
    is about the stretch that lasts, or lasted last.
    """

    _stretches: list[_Stretch] = field(default_factory=list)

    def feed(self, event: Event) -> None:
        """Take in what happened next; what is not about hearing is passed over."""
        last = self._stretches[-1] if self._stretches else None
        lasting = last if last and last.start_s is not None and last.stop_s is None else None
        match event.kind:
            case Kind.VAD_STARTED if lasting is None:
                start_s = event.at_s - event.confirm_secs
                self._stretches.append(_Stretch(start_s))
            case Kind.VAD_STOPPED if lasting:
                lasting.stop_s = event.at_s
                lasting.voice_end_s = event.at_s - event.confirm_secs
            case Kind.PARTIAL if lasting:
                lasting.partials_s.append(event.at_s)
            case Kind.FINAL:
                self._owner().final = event

    def records(self) -> list[SegmentRecord]:
        """What became of each stretch, in the order in which they were spoken."""
        return [_record(stretch) for stretch in self._stretches]

    def _owner(self) -> _Stretch:
        for stretch in self._stretches:
            if stretch.final is None and stretch.stop_s is not None:
                return stretch
        if not self._stretches or self._stretches[-1].start_s is None:  # no VAD told of it
            self._stretches.append(_Stretch())
        return self._stretches[-1]


def _record(stretch: _Stretch) -> SegmentRecord:
    final = stretch.final
    after_s = None
    if final is not None and stretch.stop_s is not None:
        after_s = final.at_s - stretch.stop_s
    return SegmentRecord(
        start_s=_rounded(stretch.start_s),
        stop_s=_rounded(stretch.stop_s),
        partials=len(stretch.partials_s),
        first_partial_s=_rounded(stretch.partials_s[0] if stretch.partials_s else None),
        partial_gap_ms=_ms(_longest_gap_s(stretch)),
        final_s=_rounded(final.at_s if final else None),
        final_after_ms=_ms(after_s),
        path=final.path if final else None,
        setup_ms=_ms(final.setup_secs if final else None),
        connections=final.connections if final else 0,
    )


def _longest_gap_s(stretch: _Stretch) -> float | None:
    """The longest time without an update, from the first one to the end of the voice."""
    end_s = stretch.voice_end_s
    if end_s is None or not stretch.partials_s:
        return None
    during = [at_s for at_s in stretch.partials_s if at_s < end_s]
    return max((b - a for a, b in pairwise([*during, end_s])), default=None)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
