"""What speculation may cost: tokens a minute, and a breaker when too much of it is in vain."""

from __future__ import annotations

from collections import deque

_WINDOW_SECS = 60.0


class SpendingLimit:
    """A limit on speculative tokens over the last minute of audio."""

    def __init__(self, tokens_per_minute: int) -> None:
        """Nothing has been spent.

        Args:
            tokens_per_minute: Input and output tokens of speculative requests.
        """
        self._limit = tokens_per_minute
        self._spent: deque[tuple[float, int]] = deque()

    def spend(self, tokens: int, at_secs: float) -> None:
        """Note what a speculation has cost."""
        self._spent.append((at_secs, tokens))

    def allows(self, at_secs: float) -> bool:
        """Whether another speculation may begin."""
        while self._spent and self._spent[0][0] <= at_secs - _WINDOW_SECS:
            self._spent.popleft()
        return sum(tokens for _, tokens in self._spent) < self._limit


class Breaker:
    """Asks for more confidence while too many speculations are discarded.

    A circuit breaker that does not open all the way: half the distance to certainty for as
    long as the discard rate of the last speculations is above the limit.
    """

    def __init__(self, max_discard_rate: float, *, window: int = 20, least: int = 5) -> None:
        """Trust until shown otherwise.

        Args:
            max_discard_rate: 0..1, of the last `window` speculations.
            window: How many speculations are remembered.
            least: No verdict before this many.
        """
        self._max_discard_rate = max_discard_rate
        self._least = least
        self._discarded: deque[bool] = deque(maxlen=window)

    def note(self, *, discarded: bool) -> None:
        """Note how a speculation ended."""
        self._discarded.append(discarded)

    @property
    def is_tripped(self) -> bool:
        """Whether too many were in vain lately."""
        count = len(self._discarded)
        return count >= self._least and sum(self._discarded) / count > self._max_discard_rate

    def threshold(self, configured: float) -> float:
        """The confidence to ask for now, at least the configured one."""
        return (1 + configured) / 2 if self.is_tripped else configured
