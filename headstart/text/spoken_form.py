"""How written things are said: numbers, money, times, addresses, symbols; in English.

Every replacement keeps the words of the text countable: a written word becomes one spoken
word or several that are joined by no-break spaces. So each can be found in the speech again.
"""

from __future__ import annotations

import html
import re
import unicodedata

NBSP = "\u00a0"

_TAGS = r"</?[A-Za-z][^<>]*>|<\?[^<>]*>"
_MARKUP = re.compile(rf"{_TAGS}|<!--.*?-->", re.DOTALL)
_OTHER_MARKUP = re.compile(_TAGS)
_NO_CHARACTER = re.compile(r"&#\d{8,};?")
"""An entity beyond all characters; its number may be larger than Python reads."""
_MAGNITUDE = r"(hundred|thousand|million|billion|trillion)"
_MONEY = {
    "$": ("dollar", "cent"),
    "€": ("euro", "cent"),
    "£": ("pound", "penny"),
    "¥": ("yen", ""),
    "₹": ("rupee", "paisa"),
}
_PLURALS = {"penny": "pence", "yen": "yen", "paisa": "paise"}
_SYMBOLS = {
    "&": "and",
    "@": "at",
    "%": "percent",
    "+": "plus",
    "=": "equals",
    "#": "number",
    "°": "degrees",
    "×": "times",
    "÷": "divided by",
    "≈": "about",
    "<": "less than",
    ">": "greater than",
    "€": "euros",
    "£": "pounds",
    "$": "dollars",
}
_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_SPELT_OUT = {
    "dr.": "doctor",
    "mr.": "mister",
    "mrs.": "missus",
    "ms.": "miz",
    "st.": "saint",
    "prof.": "professor",
    "vs.": "versus",
    "e.g.": "for example",
    "i.e.": "that is",
    "etc.": "et cetera",
    "approx.": "approximately",
    "jr.": "junior",
    "sr.": "senior",
}


def without_markup(text: str) -> str:
    """`text` without tags, comments and entities, as SSML or HTML would have them."""
    # A comment that has no end is none; looking for it from each beginning would take too long.
    commented, end, rest = text.rpartition("-->")
    text = _MARKUP.sub(" ", commented + end) + _OTHER_MARKUP.sub(" ", rest)
    return html.unescape(_NO_CHARACTER.sub("", text))


def spoken_english(text: str) -> str:
    """`text` with everything that is no plain word written as it is said.

    The result has as many words, separated by ordinary white space, as `text`.
    """
    text = re.sub(
        rf"([$€£])(\d[\d,.]*\d|\d)(\s+){_MAGNITUDE}\b",
        lambda m: f"{_number(m[2])}{m[3]}{m[4]}{NBSP}{_MONEY[m[1]][0]}s",
        text,
        flags=re.IGNORECASE,
    )
    said = re.sub(r"\S+", lambda m: _word(m[0]).replace(" ", NBSP), text)
    # An abbreviation at the end has lost the full stop that it shared with the sentence.
    return said + "." if text.endswith(".") and said[-1:].isalnum() else said


def _word(word: str) -> str:
    """One written word as it is said."""
    if word.lower() in _SPELT_OUT:
        return _SPELT_OUT[word.lower()]
    if re.search(
        r"\w@\w|://|www\.\w|^[\w-]+(\.[\w-]+)*\.(com|org|net|io|dev|edu|gov|co|ai)\b", word
    ):
        return _address(word)
    word = re.sub(r"\b(?:[A-Za-z]\.){2,}", lambda m: " ".join(m[0].replace(".", "").upper()), word)
    word = re.sub(r"([$€£¥₹])(\d[\d,]*)(?:\.(\d\d?))?(?!\d)", _money, word)
    word = re.sub(r"(?<![\d:])(\d{1,2}):(\d\d)(?::\d\d)?(?![\d:])", _time, word)
    word = re.sub(r"(?<![\d.])(\d{1,3})((?:\.\d+){2,})", _dotted, word)
    word = re.sub(r"(?<![\w.])[-\u2212](?=\d)", "minus ", word)
    word = re.sub(r"(?<![\d-])(\d{4})-(0\d|1[0-2])-([0-3]\d)(?![\d-])", _date, word)
    word = re.sub(r"(?<![\d-])\+?\d{1,3}(?:-\d{3,4}){1,3}(?![\d-])", _phone, word)
    word = re.sub(r"(?<=\d)-(?=\d)", " to ", word)
    word = re.sub(r"\d[\d,]*+(?:\.\d+)?", _digits, word)
    word = re.sub(r"(?<=\d)/(?=\d)", " out of ", word) if "/" in word else word
    return re.sub(r"[&@%+=#°×÷≈<>€£$]", lambda m: f" {_SYMBOLS[m[0]]} ", word).strip() or word


def _digits(match: re.Match[str]) -> str:
    """Digits and commas, and what follows the point."""
    if "." in match[0]:
        return _number(match[0])
    return re.sub(r"\d{1,3}(?:,\d{3})+", lambda m: _number(m[0]), match[0])


def _number(digits: str) -> str:
    """`1,234.50` as `1234 point 5 0`."""
    whole, _, fraction = digits.replace(",", "").partition(".")
    return f"{whole} point {' '.join(fraction)}" if fraction else whole


def _money(match: re.Match[str]) -> str:
    unit, part = _MONEY[match[1]]
    # Not as a number: it may have more digits than Python reads.
    whole = match[2].replace(",", "").lstrip("0") or "0"
    cents = int((match[3] or "0").ljust(2, "0"))
    said = [_counted(whole, unit)] if whole != "0" or not cents else []
    if cents and part:
        said.append(_counted(str(cents), part))
    return " and ".join(said)


def _counted(number: str, unit: str) -> str:
    return f"{number} {unit if number == '1' else _PLURALS.get(unit, unit + 's')}"


def _time(match: re.Match[str]) -> str:
    hours, minutes = match[1], match[2]
    if minutes == "00":
        return f"{int(hours)} o'clock" if 0 < int(hours) < 13 else f"{int(hours)} hundred"
    return f"{int(hours)} {'oh ' + minutes[1] if minutes[0] == '0' else minutes}"


def _date(match: re.Match[str]) -> str:
    return f"{_MONTHS[int(match[2]) - 1]} {int(match[3])} {match[1]}"


def _phone(match: re.Match[str]) -> str:
    """Digit by digit, with a rest between the groups."""
    plus = "plus " if match[0].startswith("+") else ""
    return plus + ", ".join(" ".join(group) for group in match[0].lstrip("+").split("-"))


def _dotted(match: re.Match[str]) -> str:
    """Versions and network addresses: `1.2.3`."""
    return match[1] + match[2].replace(".", " point ")


def _address(word: str) -> str:
    """A URL or an e-mail address, up to its closing punctuation."""
    core = word.rstrip(".,;:!?)\"'”’")
    said = re.sub(r"^\w+://|^mailto:|/$", "", core)
    for symbol, name in (
        (".", "dot"),
        ("/", "slash"),
        ("@", "at"),
        ("-", "dash"),
        ("_", "underscore"),
        (":", "colon"),
        ("?", ""),
        ("=", "equals"),
        ("&", "and"),
        ("#", "hash"),
        ("%", "percent"),
        ("+", "plus"),
    ):
        said = said.replace(symbol, f" {name} ")
    return " ".join(said.split()) + word[len(core) :]


def without_pictures(text: str) -> str:
    """`text` without emoji and other characters that nobody reads aloud."""
    return "".join(
        character
        for character in text
        if character in "°©\n\t"
        or (
            unicodedata.category(character) not in ("So", "Sk", "Cf", "Cc", "Cs", "Co", "Cn")
            and not 0xFE00 <= ord(character) <= 0xFE0F
            and ord(character) != 0x20E3
        )
    )
