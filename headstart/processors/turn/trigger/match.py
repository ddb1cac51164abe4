"""Whether an answer to what was heard early still answers what was said in the end."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

from pipecat.turns.user_stop.eager_match_policy import EagerMatchPolicy, NormalizedMatch

_FILLERS = frozenset("um uh erm er hmm hm mm mhm ah oh".split())
"""Mean nothing wherever they stand."""
_CLOSERS = (("thank", "you"), ("thanks",), ("please",), ("ok",), ("okay",))
"""Mean nothing at the end of a turn."""
_NEGATIONS = frozenset(
    "no not never none nothing nobody neither nor without cannot cant dont doesnt didnt wont "
    "wouldnt shouldnt couldnt isnt arent wasnt werent havent hasnt hadnt".split()
)
_NUMBERS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
    "ninety hundred thousand million billion half quarter dozen first second third fourth fifth "
    "sixth seventh eighth ninth tenth once twice".split()
)


class Tier(StrEnum):
    """How far apart two texts are."""

    SAME = "same"
    """The same words once case and punctuation are gone."""
    EXTENDED = "extended"
    """Only fillers ("um") or closers ("please", "thanks") more or less."""
    CHANGED = "changed"


class Change(StrEnum):
    """The gravest thing that changed."""

    NONE = "none"
    NUMBER = "number"
    NEGATION = "negation"
    NAME = "name"
    WORDS = "words"


@dataclass(frozen=True)
class Comparison:
    """How an early text and a later one differ."""

    tier: Tier
    change: Change


@dataclass(frozen=True)
class _Word:
    normal: str
    is_name: bool
    """Written with a capital where no sentence begins."""

    @property
    def is_number(self) -> bool:
        return self.normal in _NUMBERS or any(letter.isdigit() for letter in self.normal)


class TieredMatch(EagerMatchPolicy):
    """Keeps an answer when at most fillers and closers have come to the words it answers.

    A drop-in for Pipecat's match policies; `compare` also says what changed.
    """

    def __init__(self, *, keep_extended: bool = True) -> None:
        """Set the policy.

        Args:
            keep_extended: Whether added or dropped fillers and closers leave the answer valid.
        """
        self._keep_extended = keep_extended

    def matches(self, eager: str, final: str) -> bool:
        """Whether the answer to `eager` stands as the answer to `final`."""
        tier = self.compare(eager, final).tier
        return tier is Tier.SAME or (tier is Tier.EXTENDED and self._keep_extended)

    def compare(self, eager: str, final: str) -> Comparison:
        """How `final` differs from `eager`."""
        before, after = _words(eager), _words(final)
        if _normal(before) == _normal(after):
            return Comparison(Tier.SAME, Change.NONE)
        if before and after and _essence(before) == _essence(after):
            return Comparison(Tier.EXTENDED, Change.NONE)
        return Comparison(Tier.CHANGED, _gravest(before, after))


def _words(text: str) -> list[_Word]:
    words: list[_Word] = []
    sentence_begins = True
    for written in text.split():
        for normal in NormalizedMatch._normalize(written).split():
            is_name = written[:1].isupper() and not sentence_begins and normal != "i"
            words.append(_Word(normal, is_name))
        sentence_begins = written.endswith((".", "?", "!"))
    return words


def _normal(words: list[_Word]) -> list[str]:
    return [word.normal for word in words]


def _essence(words: list[_Word]) -> list[str]:
    """The words without fillers, nor closers at the end."""
    essence = [word.normal for word in words if word.normal not in _FILLERS]
    while closer := next((c for c in _CLOSERS if tuple(essence[-len(c) :]) == c), None):
        del essence[-len(closer) :]
    return essence


def _gravest(before: list[_Word], after: list[_Word]) -> Change:
    changed: list[_Word] = []
    matcher = SequenceMatcher(None, _normal(before), _normal(after), autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag != "equal":
            changed += before[i1:i2] + after[j1:j2]
    if any(word.is_number for word in changed):
        return Change.NUMBER
    if any(word.normal in _NEGATIONS for word in changed):
        return Change.NEGATION
    if any(word.is_name for word in changed):
        return Change.NAME
    return Change.WORDS
