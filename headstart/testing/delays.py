"""How late a service answers that is not here, drawn from what others have measured of it."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Latency:
    """A log-normal distribution through two published percentiles.

    The long tail to one side is what response times have; two percentiles determine it.
    """

    p50_ms: float
    p95_ms: float
    included_ms: float = 0.0
    """What the published figures include that is not spent by the service, and is not drawn."""

    def __post_init__(self) -> None:
        if not 0 <= self.included_ms < self.p50_ms <= self.p95_ms:
            raise ValueError(f"{self.p50_ms:g} and {self.p95_ms:g} ms are no p50 and p95")

    def draw_secs(self, source: random.Random) -> float:
        """One delay of the service."""
        middle_ms = self.p50_ms - self.included_ms
        spread = math.log((self.p95_ms - self.included_ms) / middle_ms)
        return source.lognormvariate(math.log(middle_ms), spread / NormalDist().inv_cdf(0.95)) / 1e3


NOVA_3 = Latency(247, 298, included_ms=200)
"""Deepgram nova-3, from the end of the voice to the final transcript: the "TTFS" of
github.com/pipecat-ai/stt-benchmark, 1000 recordings. 200 ms of it are the VAD's, which waits so
long before the client says `Finalize`. The published p99 is 326 ms, the fit's 333."""

CLAUDE_HAIKU_4_5 = Latency(637, 1615)
"""Claude Haiku 4.5, from the request to the first token: the "TTFAT" of
github.com/kwindla/aiewf-eval (aiwf_medium_context), conversations of 30 turns."""


class Delays:
    """The delays of one service, drawn for the words of each answer.

    A delay depends on the seed, on the words and on how often these came before, and on nothing
    else: pipelines that ask the same wait the same, whatever else one of them has asked.
    """

    def __init__(self, latency: Latency, seed: int = 0) -> None:
        """Draw from a distribution."""
        self.latency = latency
        self.seed = seed
        self._asked: Counter[str] = Counter()

    def draw_secs(self, words: str) -> float:
        """The next delay for these words; case and punctuation do not count."""
        key = " ".join(re.findall(r"[\w']+", words.casefold()))
        self._asked[key] += 1
        # Random hashes a text for its seed the same way in every process.
        return self.latency.draw_secs(random.Random(f"{self.seed}/{self._asked[key]}/{key}"))
