"""Where a reply that is still being written may be cut, so that speech can begin early.

A cut is made at the first place where prosody allows: at the end of a sentence, else after a
comma, semicolon, colon or dash, else before a conjunction, else, when a clause has grown long,
between two words. The first clause is short, so that something is heard soon; later ones are
longer, because there is time and longer clauses sound better.

Nothing is cut inside tags, abbreviations, initials, numbers, times, URLs and e-mail addresses:
punctuation counts only where white space follows it, which tokens of a language model show
one token later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s)|[。！？]+[”’」』）]*")
_PHRASE = re.compile(r"[,;:][\"'”’»)\]*_]*(?=\s)|\s[-–—]+(?=\s)|[—](?=\S)|[，；：、]")
_WORD = re.compile(r"\S+")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_HALF_TAG = re.compile(r"</?(?:[A-Za-z][^<>]{0,200})?$")
"""The beginning of a tag, which may have no end: after so many characters it is plain text."""


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
        self._text += text
        return list(self._clauses(final=False))

    def cut(self, text: str) -> list[str]:
        """Add text that ends where a clause ends; its clauses."""
        self._text += text
        return list(self._clauses(final=True))

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
        text = self._text
        if self._in_code or not text or text.isspace():
            return None
        lengths = self._lengths[min(self._given, len(self._lengths) - 1)]
        # Half a fence may be the last thing that came.
        whole = text if final else text.rstrip("`")
        fence = whole.find(_FENCE)
        whole = whole if fence < 0 else whole[:fence]
        # Where a tag stands, there is nothing to say and nothing to cut.
        whole = _TAG.sub(lambda tag: " " * len(tag[0]), whole)
        whole = whole if final else _HALF_TAG.sub("", whole)
        cuts = (
            _sentence_cut(whole, final),
            _phrase_cut(whole, lengths.phrase),
            _conjunction_cut(whole, lengths.conjunction),
            _length_cut(whole, lengths.most),
        )
        found = [cut for cut in cuts if cut is not None]
        if found:
            return min(found)
        if fence >= 0:
            return fence
        return len(text) if final else None

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
            elif self._text.lstrip().startswith(_FENCE):
                self._text = self._text.lstrip()[len(_FENCE) :]
                self._in_code = True
            else:
                return


def _sentence_cut(text: str, final: bool) -> int | None:
    """After the first sentence or line, if it has ended."""
    for match in _END.finditer(text):
        trails_off = match[0].startswith(("..", "…"))
        if match[0][0] == "." and not trails_off and _abbreviated(text, match.start()):
            continue
        rest = text[match.end() :]
        follows = rest.lstrip()[:1]
        ends_line = "\n" in rest[: len(rest) - len(rest.lstrip())]
        if trails_off and not ends_line and (follows.islower() or not (follows or final)):
            continue
        cut = match.end()
        break
    else:
        cut = len(text) + 1
    # A line ends what stands on it; its indentation and bullet belong to the next.
    line = re.search(r"\S[^\S\n]*(\n)", text)
    if line:
        cut = min(cut, line.end())
    return cut if cut <= len(text) else None


def _abbreviated(text: str, dot: int) -> bool:
    """Whether the dot at this place ends no sentence."""
    begun = re.search(r"\S*$", text[:dot])
    word = begun[0].lstrip("(\"'“‘*_[") if begun else ""
    if word.lower() in _ABBREVIATIONS or re.fullmatch(r"(?:\w\.)+\w", word):
        return True
    if re.fullmatch(r"[A-HJ-Z]", word):
        return True  # an initial; a lone "I" ends a sentence more often
    # "1." at the beginning of a line numbers what follows.
    return bool(re.search(r"(?:^|\n)\s*\d{1,3}$", text[:dot]))


def _phrase_cut(text: str, least: int) -> int | None:
    return next(
        (match.end() for match in _PHRASE.finditer(text) if _words(text[: match.end()]) >= least),
        None,
    )


def _conjunction_cut(text: str, least: int) -> int | None:
    words = list(_WORD.finditer(text))
    # The last word may still be growing.
    for number, word in enumerate(words[:-1] if not text[-1:].isspace() else words):
        if number >= least and word[0].lower() in _CONJUNCTIONS:
            return word.start()
    return None


def _length_cut(text: str, most: int) -> int | None:
    words = list(_WORD.finditer(text))
    if len(words) <= most:
        return None
    for number in range(most, most // 2, -1):
        if words[number - 1][0].lower().strip("\"'“‘(*_") not in _LEANING:
            return words[number - 1].end()
    return words[most - 1].end()


def _words(text: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in text.split())
