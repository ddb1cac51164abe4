"""Text to the phonemes that Kokoro was trained on, through espeak.

Punctuation stays where it is, because it shapes the melody. The mapping from espeak's
phonemes to Kokoro's is misaki's (`misaki.espeak`), which imports neither spaCy nor torch.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from kokoro_onnx.config import DEFAULT_VOCAB

from headstart.engines.kokoro.wording import (
    NBSP,
    spoken_english,
    without_markup,
    without_pictures,
)
from headstart.errors import EngineError, UsageError

MAX_PHONEMES = 500
"""In one clause; the model takes 510, and a word or two may follow the last cut."""

_ESPEAK = threading.Lock()
"""espeak keeps global state: one caller at a time in the whole process."""

_MARKS = ';:,.!?—…"()“”'
_SENTENCE_END = ".!?…"
_EQUIVALENTS = str.maketrans(
    {
        "’": "'", "‘": "'", "`": "'", "´": "'", "«": "“", "»": "”", "„": "“", "‟": "“",
        "–": "—", "―": "—", "‒": "—", "[": "(", "]": ")", "{": "(", "}": ")",
        "。": ".", "、": ",", "，": ",", "！": "!", "？": "?", "：": ":", "；": ";",
        "¡": "", "¿": "",
    }
)  # fmt: skip
_PIECES = re.compile(rf"[{re.escape(_MARKS)}]+|[^{re.escape(_MARKS)}]+")


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


@dataclass(frozen=True)
class _Language:
    name: str
    espeak: str
    scripts: tuple[str, ...] = ("LATIN", "GREEK")
    extra: str = ""
    """The extra of misaki that brings the phonemes, where espeak has none."""


_LANGUAGES = {
    "a": _Language("American English", "en-us"),
    "b": _Language("British English", "en-gb"),
    "e": _Language("Spanish", "es"),
    "f": _Language("French", "fr-fr"),
    "h": _Language("Hindi", "hi", ("DEVANAGARI", "LATIN")),
    "i": _Language("Italian", "it"),
    "p": _Language("Brazilian Portuguese", "pt-br"),
    "j": _Language("Japanese", "", ("HIRAGANA", "KATAKANA", "CJK", "LATIN"), "ja"),
    "z": _Language("Mandarin Chinese", "", ("CJK", "BOPOMOFO", "LATIN"), "zh"),
}


class Phonemizer:
    """Turns text into clauses of phonemes; one object serves all voices and threads."""

    def __init__(self) -> None:
        self._converters: dict[str, Callable[[str], str]] = {}

    def prepare(self, voice: str) -> None:
        """Load what the voice's language needs: for some that is a large dictionary.

        Raises:
            UsageError: The voice is of no language that Kokoro speaks.
            EngineError: The language needs a package that is not installed.
        """
        # The dictionaries are loaded with the first word; this one stands in both of them.
        self._converter(voice[:1], _language(voice))("一")

    def clauses(self, text: str, voice: str) -> Iterator[Clause]:
        """The clauses of a text, each short enough for the model; none if nothing is said.

        Args:
            text: Plain text. Tags and emoji are left out; in English, numbers, money, times
                and addresses are said as a person would.
            voice: Its first letter names the language.

        Raises:
            UsageError: The text is in a script that the voice's language is not written in.
            EngineError: The language needs a package that is not installed.
        """
        words = without_pictures(without_markup(text).translate(_EQUIVALENTS)).split()
        letter, language = voice[:1], _language(voice)
        words = _readable(words, language, voice)
        if not any(character.isalnum() for word in words for character in word):
            return
        convert = self._converter(letter, language)
        yield from _cut(*_phonemize(words, letter in "ab", convert))

    def _converter(self, letter: str, language: _Language) -> Callable[[str], str]:
        """What turns words without punctuation into phonemes, separated by spaces."""
        if letter not in self._converters:
            try:
                with _ESPEAK:
                    if letter not in self._converters:  # else somebody else has just loaded it
                        self._converters[letter] = _in_turn(_load_converter(letter, language))
            except ImportError as error:
                raise EngineError(
                    f"{language.name} voices need more packages ({error.name} is missing): "
                    f'pip install "misaki[{language.extra or "en"}]"'
                ) from error
            except RuntimeError as error:  # MeCab, which Japanese needs, found no dictionary
                raise EngineError(
                    f"{language.name} voices need a dictionary: python -m unidic download"
                ) from error
        return self._converters[letter]


def _language(voice: str) -> _Language:
    try:
        return _LANGUAGES[voice[:1]]
    except KeyError:
        raise UsageError(f"the voice {voice!r} is of no language that Kokoro speaks") from None


def _in_turn(convert: Callable[[str], str]) -> Callable[[str], str]:
    """`convert`, one caller at a time, giving only what the model knows."""

    def converted(text: str) -> str:
        with _ESPEAK:
            phonemes = convert(text)
        # espeak writes the r that links two words twice.
        known = "".join(phoneme for phoneme in phonemes if phoneme in DEFAULT_VOCAB)
        return known.replace("ɹɹ", "ɹ")

    return converted


def _load_converter(letter: str, language: _Language) -> Callable[[str], str]:
    convert: Any
    if letter == "j":
        from misaki.ja import JAG2P

        convert = JAG2P()
        return lambda text: str(convert(text)[0])
    if letter == "z":
        from misaki.zh import ZHG2P

        convert = ZHG2P()
        return lambda text: str(convert(text)[0])

    from misaki.espeak import EspeakFallback, EspeakG2P

    if letter in "ab":
        english = EspeakFallback(british=letter == "b")
        return lambda text: english(SimpleNamespace(text=text))[0] or ""
    convert = EspeakG2P(language=language.espeak)
    return lambda text: str(convert(text)[0])


def _readable(words: list[str], language: _Language, voice: str) -> list[str]:
    """The words that are in the language's script.

    espeak spells foreign letters out by their names, which nobody wants to hear.
    """

    def foreign(word: str) -> bool:
        return any(
            not unicodedata.name(character, "").startswith(language.scripts)
            for character in word
            if character.isalpha() and character not in "ªº"
        )

    kept = [word for word in words if not foreign(word)]
    spoken = [word for word in words if any(character.isalpha() for character in word)]
    lost = sum(map(foreign, spoken))
    if lost and lost * 2 >= len(spoken):
        raise UsageError(
            f"the voice {voice} speaks {language.name} and cannot read {' '.join(words)[:40]!r}"
        )
    return kept


def _phonemize(
    words: list[str], english: bool, convert: Callable[[str], str]
) -> tuple[str, list[Word]]:
    """The phonemes of all words, and where each word is in them."""
    spoken = spoken_english(" ".join(words)).split(" ") if english else words
    phonemes = ""
    spans: list[list[int]] = [[0, 0] for _ in words]
    run: list[tuple[int, str]] = []  # words without punctuation between them

    def say_run() -> None:
        nonlocal phonemes
        if not run:
            return
        texts = [text for _, text in run]
        said = convert(" ".join(texts).replace(NBSP, " ")).split()
        dealt = _shares(said, texts, lambda text: len(convert(text).replace(" ", "")))
        for (number, _), part in zip(run, dealt, strict=True):
            if part and phonemes and phonemes[-1] not in " (“":
                phonemes += " "
            start = len(phonemes)
            phonemes += " ".join(part)
            _extend(spans[number], start, len(phonemes))
        run.clear()

    for number, word in enumerate(spoken):
        for piece in _PIECES.findall(word):
            if piece[0] not in _MARKS:
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


def _shares(said: list[str], written: list[str], alone: Callable[[str], int]) -> list[list[str]]:
    """Deal the spoken words out to the written ones.

    One to one where the numbers agree. But espeak joins words ("of the") and takes numbers
    apart; then each written word gets as many as it takes when spoken alone.

    Args:
        said: The phonemes of a run of words.
        written: The words; no-break spaces join what is one written word.
        alone: The number of phonemes of a word on its own.
    """
    if not said:  # nothing in it can be spoken
        return [[] for _ in written]
    counts = [text.count(NBSP) + 1 for text in written]
    if sum(counts) != len(said):
        shares = np.cumsum([alone(text.replace(NBSP, " ")) for text in written])
        reached = np.cumsum([len(part) for part in said])
        # A word ends with the spoken one whose end is nearest to its share of the whole.
        wanted = shares * (reached[-1] / max(shares[-1], 1))
        ends = [int(np.argmin(np.abs(reached - end))) + 1 for end in wanted[:-1]] + [len(said)]
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    dealt, at = [], 0
    for count in counts:
        dealt.append(said[at : at + count])
        at += count
    return dealt


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
