"""Compares what was understood with what was said, word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation; numbers as they would be said.

    Up to 99 as a number ("twenty one"), longer ones digit by digit ("seven four two nine").
    """
    found: list[str] = []
    for token in re.findall(r"[a-z']+|\d+", text.lower().replace("\u2019", "'")):
        if token.isdigit():
            found += _spoken(token)
        elif plain := token.replace("'", ""):
            found.append(plain)
    return found


def _spoken(digits: str) -> list[str]:
    number = int(digits)
    if len(digits) > 2 or digits.startswith("0"):
        return [_ONES[int(digit)] for digit in digits]
    if number < len(_ONES):
        return [_ONES[number]]
    tens, ones = divmod(number, 10)
    return [_TENS[tens - 2], *([_ONES[ones]] if ones else [])]


@dataclass(frozen=True)
class Difference:
    """How a text differs from the one that was expected, at the least cost."""

    reference: int
    """Words that were said."""
    substituted: int
    missing: int
    added: int

    @property
    def rate(self) -> float:
        """Word error rate; may exceed 1 where much was added."""
        errors = self.substituted + self.missing + self.added
        return errors / self.reference if self.reference else float(errors > 0)

    @property
    def missing_share(self) -> float:
        """The share of the words for which nothing was understood at all."""
        return self.missing / self.reference if self.reference else 0.0


def compare(said: str, understood: str) -> Difference:
    """Align two texts word by word (Levenshtein) and count what differs.

    Of alignments that are as good, the one with the fewest missing words counts.
    """
    reference, hypothesis = words(said), words(understood)
    # Of each pair of beginnings the least (errors, missing, added, substituted).
    row = [(at, 0, at, 0) for at in range(len(hypothesis) + 1)]
    for number, word in enumerate(reference, start=1):
        last, row = row, [(number, number, 0, 0)]
        for at, heard in enumerate(hypothesis, start=1):
            wrong = int(word != heard)
            errors, missing, added, substituted = last[at - 1]
            kept = (errors + wrong, missing, added, substituted + wrong)
            errors, missing, added, substituted = last[at]
            dropped = (errors + 1, missing + 1, added, substituted)
            errors, missing, added, substituted = row[at - 1]
            inserted = (errors + 1, missing, added + 1, substituted)
            row.append(min(kept, dropped, inserted))
    _, missing, added, substituted = row[-1]
    return Difference(len(reference), substituted, missing, added)
