"""Whether an answer to what was heard early still answers what was said in the end."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

from pipecat.turns.user_stop.eager_match_policy import EagerMatchPolicy


@dataclass(frozen=True)
class _Lexicon:
    """The words of a language that an answer does not depend on, as `_normalised` writes them."""

    fillers: frozenset[str] = frozenset()
    """Mean nothing wherever they stand, unless beside a number ("seven oh four", "5 mm")."""
    closers: tuple[tuple[str, ...], ...] = ()
    """Mean nothing at the end of a turn."""


def _lexicon(fillers: str, *closers: str) -> _Lexicon:
    return _Lexicon(frozenset(fillers.split()), tuple(tuple(c.split()) for c in closers))


# A filler of one language is a word of another: "er" is German for "he", "um" Portuguese for
# "one". So each language has a list of its own, and one without a list has none.
_LEXICONS = {
    "de": _lexicon("äh ähm öh öhm hm hmm mhm", "bitte", "danke", "danke schön", "vielen dank"),
    "en": _lexicon("um uh erm er hmm hm mm mhm ah oh", "thank you", "thanks", "please"),
    "es": _lexicon("eh em ehm hm hmm mhm", "por favor", "gracias", "muchas gracias"),
    "fr": _lexicon("euh heu hm hmm mhm", "sil vous plaît", "sil te plaît", "merci"),
    "it": _lexicon("ehm uhm hm hmm mhm", "per favore", "per piacere", "grazie"),
    "nl": _lexicon("uh uhm ehm hm hmm mhm", "alsjeblieft", "alstublieft", "dank je", "dank u"),
    "pt": _lexicon("hm hmm mhm", "por favor", "obrigado", "obrigada"),
}
_NO_LEXICON = _Lexicon()
_APOSTROPHES = frozenset("'\u2019\u02bc")
# English only: these two lists tell reasons apart, and any other change aborts as well.
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
    """Only fillers ("um") or closers ("please", "thanks") of the language more or less."""
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

    def __init__(self, *, keep_extended: bool = True, language: str | None = None) -> None:
        """Set the policy.

        Args:
            keep_extended: Whether added or dropped fillers and closers leave the answer valid.
            language: Tag of the language of the texts (BCP 47). None: it is not known, and no
                word is taken for a filler.
        """
        self._keep_extended = keep_extended
        self.language = language

    def matches(self, eager: str, final: str) -> bool:
        """Whether the answer to `eager` stands as the answer to `final`."""
        tier = self.compare(eager, final).tier
        return tier is Tier.SAME or (tier is Tier.EXTENDED and self._keep_extended)

    def compare(self, eager: str, final: str) -> Comparison:
        """How `final` differs from `eager`."""
        before, after = _words(eager), _words(final)
        if _normal(before) == _normal(after):
            return Comparison(Tier.SAME, Change.NONE)
        lexicon = _LEXICONS.get(primary_subtag(self.language) or "", _NO_LEXICON)
        if before and after and _essence(before, lexicon) == _essence(after, lexicon):
            return Comparison(Tier.EXTENDED, Change.NONE)
        return Comparison(Tier.CHANGED, _gravest(before, after))


def primary_subtag(tag: str | None) -> str | None:
    """The language alone: "de" of "de-CH"; None of None."""
    return tag.replace("_", "-").split("-")[0].lower() if tag else None


def _words(text: str) -> list[_Word]:
    words: list[_Word] = []
    sentence_begins = True
    for written in text.split():
        for normal in _normalised(written).split():
            is_name = written[:1].isupper() and not sentence_begins and normal != "i"
            words.append(_Word(normal, is_name))
        sentence_begins = written.endswith((".", "?", "!"))
    return words


def _normalised(text: str) -> str:
    """Without case and punctuation, as Pipecat's `NormalizedMatch` does it.

    But with the combining marks, which are the vowels of Hindi and the tones of Thai.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (letter for letter in folded if letter not in _APOSTROPHES)
    return "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in kept)


def _normal(words: list[_Word]) -> list[str]:
    return [word.normal for word in words]


def _essence(words: list[_Word], lexicon: _Lexicon) -> list[str]:
    """The words without fillers, nor closers at the end."""
    essence = [
        word.normal
        for at, word in enumerate(words)
        if word.normal not in lexicon.fillers
        or any(neighbour.is_number for neighbour in words[max(0, at - 1) : at + 2])
    ]
    while closer := next((c for c in lexicon.closers if tuple(essence[-len(c) :]) == c), None):
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
