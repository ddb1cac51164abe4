"""What turns words into Kokoro's phonemes, language by language.

Most languages speak through espeak, which comes with kokoro-onnx. English speaks through misaki's
lexicon, with which Kokoro was trained, where that and its spaCy model are installed. Japanese and
Chinese need misaki. Neither misaki nor spaCy is imported before a language speaks through it.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import espeakng_loader
import numpy as np
from kokoro_onnx.config import DEFAULT_VOCAB
from loguru import logger
from phonemizer.backend import EspeakBackend
from phonemizer.backend.espeak.wrapper import EspeakWrapper

from headstart.errors import EngineError, UsageError
from headstart.text.spoken_form import NBSP

MARKS = ';:,.!?—…"()“”'
"""The punctuation that Kokoro knows."""

Converter = Callable[[Sequence[str]], list[list[str]]]
"""Takes written words without punctuation; gives the spoken words of each, in phonemes.

No-break spaces join what is one written word and several spoken ones.
"""

_ESPEAK = threading.Lock()
"""espeak keeps global state, and misaki promises nothing: one caller at a time in the process."""

_LOADING = threading.Lock()
"""Not the same: who speaks shall not wait for a language that another one needs."""

_SPACY_MODEL = "en_core_web_sm"
"""What tells misaki whether a word such as `record` is a noun or a verb."""


@dataclass(frozen=True)
class Language:
    """A language that Kokoro speaks."""

    name: str
    espeak: str = ""
    """What espeak calls it; empty where espeak's phonemes are not those that Kokoro learnt."""
    scripts: tuple[str, ...] = ("LATIN", "GREEK")
    """How the Unicode names of its letters begin."""
    extra: str = ""
    """The extra of misaki that brings the phonemes, where espeak has none."""


_LANGUAGES = {
    "a": Language("American English", "en-us"),
    "b": Language("British English", "en-gb"),
    "e": Language("Spanish", "es"),
    "f": Language("French", "fr-fr"),
    "h": Language("Hindi", "hi", ("DEVANAGARI", "LATIN")),
    "i": Language("Italian", "it"),
    "p": Language("Brazilian Portuguese", "pt-br"),
    "j": Language("Japanese", "", ("HIRAGANA", "KATAKANA", "CJK", "LATIN"), "ja"),
    "z": Language("Mandarin Chinese", "", ("CJK", "BOPOMOFO", "LATIN"), "zh"),
}
"""By the first letter of the voice's name."""

_loaded: dict[str, Converter] = {}


def language_of(voice: str) -> Language:
    """The language that a voice speaks.

    Raises:
        UsageError: It is none that Kokoro speaks.
    """
    try:
        return _LANGUAGES[voice[:1]]
    except KeyError:
        raise UsageError(f"the voice {voice!r} is of no language that Kokoro speaks") from None


def converter_of(voice: str) -> Converter:
    """What speaks the voice's language; loaded once in a process, serves all threads.

    Raises:
        UsageError: The voice is of no language that Kokoro speaks.
        EngineError: The language needs a package that is not installed.
    """
    letter, language = voice[:1], language_of(voice)
    if letter not in _loaded:
        with _LOADING:
            if letter not in _loaded:  # else somebody else has just loaded it
                _loaded[letter] = _load(language)
    return _loaded[letter]


def _load(language: Language) -> Converter:
    if not language.espeak:
        return _dealing(_misaki(language))
    try:
        espeak = _espeak(language.espeak)
    except RuntimeError as error:
        raise EngineError(f"espeak cannot speak {language.name}: {error}") from error
    if language.espeak in _ACCENTS and _lexicon_is_installed():
        try:
            converter = _lexicon(espeak, british=language.espeak == "en-gb")
        except Exception as error:  # whatever may be broken in two large packages and a model
            logger.warning(
                f"{language.name} phonemes: misaki's lexicon does not load, so they are espeak's "
                f"({type(error).__name__}: {error})"
            )
        else:
            logger.info(f"{language.name} phonemes: misaki's lexicon")
            return converter
    logger.info(f"{language.name} phonemes: espeak")
    return _dealing(espeak)


def _misaki(language: Language) -> Callable[[str], str]:
    convert: Any
    try:
        if language.extra == "ja":
            from misaki.ja import JAG2P

            convert = JAG2P()
        else:
            from misaki.zh import ZHG2P

            convert = ZHG2P()
    except ImportError as error:
        raise EngineError(
            f"{language.name} voices need more packages ({error.name} is missing): "
            f'pip install "misaki[{language.extra}]"'
        ) from error
    except RuntimeError as error:  # MeCab, which Japanese needs, found no dictionary
        raise EngineError(
            f"{language.name} voices need a dictionary: python -m unidic download"
        ) from error
    logger.info(f"{language.name} phonemes: misaki")
    return lambda text: str(convert(text)[0])


# From espeak's phonemes to Kokoro's. Kokoro learnt them from espeak through misaki 0.9, so each
# replacement is what that does, in the order that matters; but for the vowel of "care", which
# misaki 0.9 means to write as here and does not.

_TIE = "^"
"""Joins the letters of one sound in what espeak writes: a sound is told from two neighbours."""

_SOUNDS = (
    ("a^ɪ", "I"), ("a^ʊ", "W"), ("e^ɪ", "A"), ("ɔ^ɪ", "Y"), ("d^ʒ", "ʤ"), ("t^ʃ", "ʧ"),
)  # fmt: skip
"""Diphthongs and affricates are one phoneme each."""

_OTHER_SOUNDS = (
    *_SOUNDS, ("o^ʊ", "O"), ("ə^ʊ", "Q"), ("d^z", "ʣ"), ("s^s", "S"), ("t^s", "ʦ"),
)  # fmt: skip

_SYLLABIC = "\u0329"
_ENGLISH_SOUNDS = (
    ("e^ə", "ɛː"),  # British "care"
    *((f"ʔ{stress}n{_SYLLABIC}", "ʔn") for stress in ("ˌ", "")),  # "button"
    *_SOUNDS,
    ("ə^l", "ᵊl"),
    ("ʲo", "jo"),
    ("ʲə", "jə"),
)
_ENGLISH_LETTERS = str.maketrans(
    {
        "e": "A", "ɚ": "əɹ", "ɐ": "ə", "r": "ɹ",
        "x": "k", "ç": "k", "ɬ": "l",  # English speakers say "loch" so
        "ʲ": "", "\u0303": "",  # nor do they palatalise or nasalise
    }
)  # fmt: skip
_ACCENTS = {
    # Vowels have no length in American, and what remains of `ɜː` has its r.
    "en-us": (("o^ʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", "")),
    "en-gb": (("iə", "ɪə"), ("ə^ʊ", "Q")),
}
_ENGLISH_REST = str.maketrans({"o": "ɔ", "ɾ": "T", "ʔ": "t"})


def _espeak(language: str) -> Callable[[str], str]:
    """What gives espeak's phonemes as Kokoro learnt them."""
    english = language in _ACCENTS
    with _ESPEAK:
        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        backend = EspeakBackend(
            language,
            preserve_punctuation=True,
            with_stress=True,
            tie=_TIE,
            language_switch="keep-flags" if english else "remove-flags",
        )

    def convert(text: str) -> str:
        lines = backend.phonemize([text])
        ipa = lines[0].strip() if lines else ""
        return _from_english(ipa, language) if english else _replaced(ipa, _OTHER_SOUNDS)

    return convert


def _from_english(ipa: str, accent: str) -> str:
    said = _replaced(ipa, _ENGLISH_SOUNDS).translate(_ENGLISH_LETTERS)
    # A consonant that is a syllable by itself has its vowel written out.
    said = re.sub(rf"(\S){_SYLLABIC}", r"ᵊ\1", said).replace(_SYLLABIC, "")
    return _replaced(said, _ACCENTS[accent]).translate(_ENGLISH_REST)


def _replaced(ipa: str, replacements: Iterable[tuple[str, str]]) -> str:
    for old, new in replacements:
        ipa = ipa.replace(old, new)
    return ipa


def _known(phonemes: str) -> str:
    """Only what the model knows: neither ties nor hyphens nor flags of any other kind."""
    known = "".join(phoneme for phoneme in phonemes if phoneme in DEFAULT_VOCAB)
    return known.replace("ɹɹ", "ɹ")  # espeak writes the r that links two words twice


# English from misaki's lexicon


def _lexicon_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("misaki", "spacy", _SPACY_MODEL))


def _lexicon(espeak: Callable[[str], str], british: bool) -> Converter:
    """What gives the phonemes of misaki's English lexicon, and espeak's of other words."""
    from misaki import en

    if not en.spacy.util.is_package(_SPACY_MODEL):  # then misaki would download it
        raise ImportError(f"spaCy does not know {_SPACY_MODEL} as an installed package")
    convert: Any = en.G2P(
        trf=False, british=british, unk="", fallback=lambda token: (espeak(token.text), 2)
    )
    by_espeak = _dealing(espeak)

    def converted(written: Sequence[str]) -> list[list[str]]:
        parts = [_as_misaki_reads(word).split() for word in written]
        text = " ".join(chain.from_iterable(parts))
        try:
            with _ESPEAK:
                said = _by_word(convert(text, preprocess=False)[1])
                spoken = iter(
                    [
                        by_misaki or _known(espeak(word)).split()
                        for word, by_misaki in zip(text.split(" "), said, strict=True)
                    ]
                )
                return [[*chain.from_iterable(islice(spoken, len(part)))] for part in parts]
        except Exception as error:  # it breaks on oddities such as a number of a thousand digits
            logger.debug(f"misaki cannot read {text[:40]!r} ({type(error).__name__})")
        return by_espeak(written)

    return converted


def _as_misaki_reads(word: str) -> str:
    """A written word, so that misaki says its numbers right.

    It takes four digits for a year, "ninety fifty", and passes over zeros in front.
    """
    word = re.sub(r"(?<![0-9])0[0-9]+", lambda zeros: " ".join(zeros[0]), word)
    return re.sub(r"(?<![0-9])(?!1[1-9]|20)([1-9])([0-9]{3})(?![0-9])", r"\1,\2", word)


def _by_word(tokens: Iterable[Any]) -> list[list[str]]:
    """The spoken words of each word; a word is as many of misaki's tokens as no space parts.

    None of a word that it says nothing of, or half: what the tagger takes for punctuation is not
    spoken. Nor is a rest wanted at a hyphen that was taken for a dash.
    """
    said, phonemes, whole = [], "", True
    for token in tokens:
        phonemes += token.phonemes or ""
        whole &= bool(token.phonemes) or not any(letter.isalnum() for letter in token.text)
        if token.whitespace:
            said.append(phonemes if whole else "")
            phonemes, whole = "", True
    said.append(phonemes if whole else "")
    return [re.sub(rf"[{re.escape(MARKS)}]", " ", _known(phonemes)).split() for phonemes in said]


# Which spoken word is of which written one


def _dealing(convert: Callable[[str], str]) -> Converter:
    """Makes a converter of what converts a text, and knows nothing of written words."""

    def known(text: str) -> str:
        with _ESPEAK:
            return _known(convert(text))

    def converted(written: Sequence[str]) -> list[list[str]]:
        said = known(" ".join(written).replace(NBSP, " ")).split()
        return _shares(said, written, lambda text: len(known(text).replace(" ", "")))

    return converted


def _shares(
    said: Sequence[str], written: Sequence[str], alone: Callable[[str], int]
) -> list[list[str]]:
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
        dealt.append(list(said[at : at + count]))
        at += count
    return dealt
