"""Text to clauses of the phonemes that Kokoro was trained on.

Punctuation stays where it is, because it shapes the melody. What turns the words between it into
phonemes is in `g2p`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from headstart.engines.kokoro.text.g2p import MARKS, Converter, Language, converter_of, language_of
from headstart.errors import UsageError
from headstart.text.spoken_form import spoken_english, without_markup, without_pictures

MAX_PHONEMES = 500
"""In one clause; the model takes 510, and a word or two may follow the last cut."""

_SENTENCE_END = ".!?…"
_EQUIVALENTS = str.maketrans(
    {
        "’": "'", "‘": "'", "`": "'", "´": "'", "«": "“", "»": "”", "„": "“", "‟": "“",
        "–": "—", "―": "—", "‒": "—", "[": "(", "]": ")", "{": "(", "}": ")",
        "。": ".", "、": ",", "，": ",", "！": "!", "？": "?", "：": ":", "；": ";",
        "¡": "", "¿": "",
    }
)  # fmt: skip
_PIECES = re.compile(rf"[{re.escape(MARKS)}]+|[^{re.escape(MARKS)}]+")


@dataclass(frozen=True)
class Word:
    """A word as it was written and where it is in a clause's phonemes."""

    text: str
    start: int
    """First phoneme."""
    end: int
    """One past the last phoneme; equal to `start` for what is not spoken."""


@dataclass(frozen=True)
class Clause:
    """What the model speaks in one go."""

    phonemes: str
    words: tuple[Word, ...]


class Phonemizer:
    """Turns text into clauses of phonemes; one object serves all voices and threads."""

    def prepare(self, voice: str) -> None:
        """Load what the voice's language needs: for some that is a large dictionary.

        Raises:
            UsageError: The voice is of no language that Kokoro speaks.
            EngineError: The language needs a package that is not installed.
        """
        # The dictionaries are loaded with the first word; this one stands in both of them.
        converter_of(voice)(["一"])

    def clauses(
        self, text: str, voice: str, cut: Callable[[str], Iterable[str]] = lambda text: [text]
    ) -> Iterator[Clause]:
        """The clauses of a text, each short enough for the model; none if nothing is said.

        Args:
            text: Plain text. Tags and emoji are left out; in English, numbers, money, times
                and addresses are said as a person would.
            voice: Its first letter names the language.
            cut: Divides the text, without its tags, beyond what the model needs.

        Raises:
            UsageError: The text is in a script that the voice's language is not written in.
            EngineError: The language needs a package that is not installed.
        """
        for part in cut(_readable(without_markup(text), language_of(voice), voice)):
            words = without_pictures(part.translate(_EQUIVALENTS)).split()
            if any(character.isalnum() for word in words for character in word):
                yield from _cut(*_phonemize(words, voice[0] in "ab", converter_of(voice)))


def _readable(text: str, language: Language, voice: str) -> str:
    """`text` without the words that are not in the language's script.

    espeak spells foreign letters out by their names, which nobody wants to hear.
    """
    spoken = [word for word in text.split() if any(map(str.isalpha, word))]
    lost = sum(_is_foreign(word, language) for word in spoken)
    if lost and lost * 2 >= len(spoken):
        raise UsageError(
            f"the voice {voice} speaks {language.name} and cannot read "
            f"{' '.join(text.split())[:40]!r}"
        )
    return re.sub(r"\S+", lambda m: "" if _is_foreign(m[0], language) else m[0], text)


def _is_foreign(word: str, language: Language) -> bool:
    return any(
        not unicodedata.name(character, "").startswith(language.scripts)
        for character in word
        if character.isalpha() and character not in "ªº"
    )


def _phonemize(words: list[str], english: bool, convert: Converter) -> tuple[str, list[Word]]:
    """The phonemes of all words, and where each word is in them."""
    spoken = spoken_english(" ".join(words)).split(" ") if english else words
    phonemes = ""
    spans: list[list[int]] = [[0, 0] for _ in words]
    run: list[tuple[int, str]] = []  # words without punctuation between them

    def say_run() -> None:
        nonlocal phonemes
        if not run:
            return
        said = convert([text for _, text in run])
        for (number, _), part in zip(run, said, strict=True):
            if part and phonemes and phonemes[-1] not in " (“":
                phonemes += " "
            start = len(phonemes)
            phonemes += " ".join(part)
            _extend(spans[number], start, len(phonemes))
        run.clear()

    for number, word in enumerate(spoken):
        for piece in _PIECES.findall(word):
            if piece[0] not in MARKS:
                if any(character.isalnum() for character in piece):
                    run.append((number, piece))
                continue
            say_run()
            mark = _one_mark(piece)
            if mark in "(“—" and phonemes and phonemes[-1] != " ":
                phonemes += " "
            if phonemes or mark in "(“":
                phonemes += mark
    say_run()
    placed = [Word(text, *span) for text, span in zip(words, spans, strict=True)]
    return phonemes, placed


def _extend(span: list[int], start: int, end: int) -> None:
    if span[1] == 0:
        span[0] = start
    span[1] = end


def _one_mark(marks: str) -> str:
    """The one mark that says what a run of them says: `?!` asks, `...` trails off."""
    if marks.startswith(("...", "…")):
        return "…"
    for strongest in "?!":
        if strongest in marks:
            return strongest
    if '"' in marks:
        # A straight quote says nothing about the melody; what stands beside it does.
        marks = marks.replace('"', "")
    return marks[:1]


def _cut(phonemes: str, words: list[Word]) -> Iterator[Clause]:
    """Clauses that end with a sentence, else with a phrase, else with a word."""
    start = 0
    first = 0
    while start < len(phonemes):
        end = _end_of_clause(phonemes, start)
        after = first
        while after < len(words) and words[after].start < end:
            after += 1
        yield Clause(
            phonemes[start:end].strip(),
            tuple(
                Word(word.text, max(0, word.start - start), max(0, min(word.end, end) - start))
                for word in words[first:after]
            ),
        )
        first = after
        start = end
        while start < len(phonemes) and phonemes[start] == " ":
            start += 1


def _end_of_clause(phonemes: str, start: int) -> int:
    """Where the clause that begins at `start` ends: with its sentence, if that is not too long."""
    rest = phonemes[start : start + MAX_PHONEMES]
    if (end := _first_end(rest, _SENTENCE_END, 25)) or len(phonemes) - start <= MAX_PHONEMES:
        return start + (end or len(rest))
    return start + (_first_end(rest, ";:,—)”", 200) or _first_end(rest, " ", 350) or len(rest))


def _first_end(phonemes: str, marks: str, least: int) -> int:
    """One past the first of `marks` after at least so many phonemes; 0 if there is none."""
    ends = (match.end() for match in re.finditer(rf"[{re.escape(marks)}]+[)”]?", phonemes))
    return next((end for end in ends if end >= least), 0)
