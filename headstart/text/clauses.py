"""Where a reply that is still being written may be cut, so that speech can begin early.

A cut is made at the first place where prosody allows: at the end of a sentence, else after a
comma, semicolon, colon or dash, else before a conjunction, else, when a clause has grown long,
between two words. The first clause is short, so that something is heard soon; later ones are
longer, because there is time and longer clauses sound better.

Nothing is cut inside tags, abbreviations, initials, numbers, times, URLs and e-mail addresses:
punctuation counts only where white space follows it, which tokens of a language model show
one token later.

The time that a text takes grows with its length only: it is taken in by blocks, and no more of it
is looked at for a cut than the longest clause needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st sr sra jr vs etc approx dept est gov hon ltd nr rev sgt capt lt mt ft "
    "ave blvd rd jan feb aug sept oct nov dec e.g i.e cf bzw z.b p.ej vol pp".split()
)
_CONJUNCTIONS = frozenset(
    "and but or so because although though while when whereas if unless until since which where "
    "before after".split()
)
_LEANING = frozenset(
    "a an the of to in on at by for from with and or but nor as than that this these those my your "
    "his her its our their is are was were be been being am do does did has have had will would "
    "can could may might must shall should not no very so such more most some any every each "
    "if when which who i you he she it we they about into over under between through".split()
)
"""Words that lean on the next one: no cut by length after them."""

_FENCE = "```"
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_]*+(?=\s)|[。！？]+[”’」』）]*")
_PHRASE = re.compile(r"[,;:][\"'”’»)\]*_]*+(?=\s)|\s[-–—]++(?=\s)|[—](?=\S)|[，；：、]")
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"\S+")
_SPOKEN = re.compile(r"[^\W_]\S*")
"""A word, from its first letter or digit on."""
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_HALF_TAG = re.compile(r"</?(?:[A-Za-z][^<>]{0,200})?\Z")
"""The beginning of a tag, which may have no end: after so many characters it is plain text."""

MOST_CHARACTERS = 600
"""A clause of more is cut between two words, or in a word that is longer."""
_IN_VIEW = MOST_CHARACTERS + 256
"""How much is looked at: what follows decides, and half a tag and half a fence are left out."""
_BLOCK = 128
"""How much is taken in at a time, which is looked at again for every cut in it."""


@dataclass(frozen=True)
class ClauseLengths:
    """How long a clause is to be, in words."""

    phrase: int
    """At least this many before a cut at a comma, semicolon, colon or dash."""
    conjunction: int
    """At least this many before a cut ahead of a conjunction."""
    most: int
    """A clause of more words is cut between two words."""


LENGTHS = (
    ClauseLengths(phrase=2, conjunction=5, most=12),
    ClauseLengths(phrase=4, conjunction=8, most=20),
    ClauseLengths(phrase=8, conjunction=14, most=30),
)
"""Of the first, the second, and every further clause of a reply."""


class ClauseSplitter:
    """Takes a reply as it is written and gives out its clauses, in order, losing no word.

    What it gives does not depend on how the text was divided when it came. Only fenced code
    is left out: nobody wants to hear it.
    """

    def __init__(self, lengths: tuple[ClauseLengths, ...] = LENGTHS) -> None:
        """Set the lengths of the first, second, ... clause; the last holds for the rest."""
        self._lengths = lengths
        self.reset()

    @property
    def pending(self) -> str:
        """What has come and belongs to no clause yet."""
        return self._text.strip()

    def push(self, text: str) -> list[str]:
        """Add text; the clauses that it completes."""
        clauses: list[str] = []
        for start in range(0, len(text), _BLOCK):
            self._text += text[start : start + _BLOCK]
            clauses += self._clauses(final=False)
        return clauses

    def cut(self, text: str) -> list[str]:
        """Add text that ends where a clause ends; its clauses."""
        return [*self.push(text), *self._clauses(final=True)]

    def flush(self) -> list[str]:
        """End the reply; what is left of it. The next text begins a new reply."""
        clauses = self.cut("")
        self.reset()
        return clauses

    def reset(self) -> None:
        """Forget the reply."""
        self._text = ""
        self._given = 0
        self._in_code = False

    def _clauses(self, *, final: bool) -> Iterator[str]:
        while (end := self._next_cut(final)) is not None:
            clause, self._text = self._text[:end], self._text[end:]
            # The end of a line stays, because it ends what is said as a full stop does.
            clause = clause.strip() + ("\n" if clause.rstrip(" \t").endswith("\n") else "")
            if clause.strip():
                # A clause without a word (a lone dash, a bullet) is not the first one heard.
                self._given += any(character.isalnum() for character in clause)
                yield clause

    def _next_cut(self, final: bool) -> int | None:
        """Where the pending text is to be cut now, or None to wait for more."""
        self._leave_out_code(final)
        text = self._text[:_IN_VIEW]
        if self._in_code or not text:
            return None
        final = final and len(self._text) < _IN_VIEW
        lengths = self._lengths[min(self._given, len(self._lengths) - 1)]
        fence = text.find(_FENCE)
        if fence >= 0:
            whole = text[:fence]
        elif final:
            whole = text
        else:  # half a fence may be the last thing that came
            whole = text.rstrip("`")
        # Where a tag stands, there is nothing to say and nothing to cut.
        whole = _TAG.sub(lambda tag: " " * len(tag[0]), whole)
        if not final and fence < 0:
            whole = _HALF_TAG.sub("", whole)
        words = list(_WORD.finditer(whole))
        cuts = (
            _sentence_cut(whole, final),
            _phrase_cut(whole, lengths.phrase),
            _conjunction_cut(whole, words, lengths.conjunction),
            _length_cut(words, lengths.most),
        )
        found = [cut for cut in cuts if cut is not None]
        if fence >= 0:
            found.append(fence)
        if final:
            found.append(len(text))
        if not found and len(text) < _IN_VIEW:
            return None
        if found and min(found) <= MOST_CHARACTERS:
            return min(found)
        return _forced_cut(text, words)

    def _leave_out_code(self, final: bool) -> None:
        while True:
            if self._in_code:
                end = self._text.find(_FENCE)
                if end < 0:
                    # What may be the beginning of the closing fence stays.
                    backticks = len(self._text) - len(self._text.rstrip("`"))
                    self._text = "`" * min(backticks, 2) if not final else ""
                    return
                self._text = self._text[end + len(_FENCE) :]
                self._in_code = False
                continue
            self._text = self._text.lstrip()
            if not self._text.startswith(_FENCE):
                return
            self._text = self._text[len(_FENCE) :]
            self._in_code = True


def _sentence_cut(text: str, final: bool) -> int | None:
    """After the first sentence or line, if it has ended."""
    # A line ends what stands on it; its indentation and bullet belong to the next.
    line = text.find("\n", _space_end(text, 0))
    for match in _END.finditer(text, 0, line + 1 if line >= 0 else len(text)):
        trails_off = match[0].startswith(("..", "…"))
        if match[0][0] == "." and not trails_off and _abbreviated(text, match.start()):
            continue
        follows = _space_end(text, match.end())
        goes_on = text[follows : follows + 1].islower() or (follows == len(text) and not final)
        if trails_off and goes_on and "\n" not in text[match.end() : follows]:
            continue
        return match.end()
    return line + 1 if line >= 0 else None


def _space_end(text: str, start: int) -> int:
    """Where the white space ends that begins here."""
    space = _SPACE.match(text, start)
    return space.end() if space else start


def _abbreviated(text: str, dot: int) -> bool:
    """Whether the dot at this place ends no sentence."""
    line = text[text.rfind("\n", 0, dot) + 1 : dot]
    words = line.rsplit(None, 1)
    word = words[-1].lstrip("(\"'“‘*_[") if words and not line[-1].isspace() else ""
    if word.lower() in _ABBREVIATIONS or re.fullmatch(r"(?:\w\.)+\w", word):
        return True
    if re.fullmatch(r"[A-HJ-Z]", word):
        return True  # an initial; a lone "I" ends a sentence more often
    # "1." at the beginning of a line numbers what follows.
    return bool(re.fullmatch(r"\s*\d{1,3}", line))


def _phrase_cut(text: str, least: int) -> int | None:
    """After the first comma or the like that has so many words before it."""
    last = next(islice(_SPOKEN.finditer(text), least - 1, None), None)
    phrase = _PHRASE.search(text, last.start() + 1) if last else None
    return phrase.end() if phrase else None


def _conjunction_cut(text: str, words: list[re.Match[str]], least: int) -> int | None:
    # The last word may still be growing.
    whole = words if text[-1:].isspace() else words[:-1]
    conjunctions = (word for word in whole[least:] if word[0].lower() in _CONJUNCTIONS)
    return next((word.start() for word in conjunctions), None)


def _length_cut(words: list[re.Match[str]], most: int) -> int | None:
    if len(words) <= most:
        return None
    # Where the next word begins: the end of a line and a tag before it belong to this clause.
    for number in range(most, most // 2, -1):
        if words[number - 1][0].lower().strip("\"'“‘(*_") not in _LEANING:
            return words[number].start()
    return words[most].start()


def _forced_cut(text: str, words: list[re.Match[str]]) -> int:
    """Where a text is cut that is too long for a clause, but has no better place."""
    ends = [word.end() for word in words if word.end() <= MOST_CHARACTERS]
    if ends:
        return ends[-1]
    if words and words[0].start() < MOST_CHARACTERS:
        return MOST_CHARACTERS
    # It begins with tags, in none of which a cut is made.
    return max(tag.end() for tag in _TAG.finditer(text) if tag.end() <= MOST_CHARACTERS)
