"""Text of any length and shape is prepared for the voice in time that grows with its length."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.processors.tts.aggregator import ClauseAggregator
from headstart.processors.tts.spoken import as_spoken
from headstart.text.clauses import MOST_CHARACTERS, ClauseSplitter
from headstart.text.spoken_form import spoken_english, without_markup

SENTENCE = "It is a very old town, and it is large. "


def in_time(program: str) -> None:
    """Run a program that takes a few seconds, or many minutes if time grows with the square."""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_text_is_cut_into_clauses_in_time_that_grows_with_its_length() -> None:
    in_time(f"""
from headstart.text.clauses import ClauseSplitter
for unit in ({SENTENCE!r}, "A. ", ", ", "!", "<", "。a"):
    ClauseSplitter().cut(unit * (100_000 // len(unit)))
for unit in ("a", " ", "<!--"):
    dripped = ClauseSplitter()
    for character in unit * (10_000 // len(unit)):
        dripped.push(character)
""")


def test_what_is_not_said_as_it_is_written_is_found_in_time_that_grows_with_the_length() -> None:
    in_time("""
from headstart.text.spoken_form import spoken_english, without_markup
for unit in ("<!--", "1", "1,", "1,,"):
    spoken_english(without_markup(unit * (100_000 // len(unit))))
""")


def test_the_rule_of_a_table_is_found_in_time_that_grows_with_the_length() -> None:
    in_time("""
import asyncio
from headstart.processors.tts.spoken import as_spoken
for unit in ("-", "\\n"):
    asyncio.run(as_spoken(unit * 6_000 + "a", "sentence"))
""")


@pytest.mark.parametrize("unit", [SENTENCE, "a", "<!--", "```"])
async def test_others_get_the_event_loop_while_a_long_text_is_cut(unit: str) -> None:
    text = (unit * 5_000)[:20_000]
    turns, done = 0, asyncio.Event()

    async def others() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    waiting = asyncio.create_task(others())
    async for _ in ClauseAggregator().whole(text):
        pass
    done.set()
    await waiting
    assert turns > len(text) / 1024


async def test_an_interruption_ends_a_text_that_is_being_cut() -> None:
    aggregator, clauses = ClauseAggregator(), 0
    async for _ in aggregator.aggregate(SENTENCE * 100):
        await aggregator.handle_interruption()
        clauses += 1
    assert clauses < 10
    assert await aggregator.flush() is None
    assert [clause.text async for clause in aggregator.whole("Yes.")] == ["Yes."]


long_parts = st.sampled_from(
    [
        *("a" * 700, " " * 700, "\n" * 700, "!" * 700, "你" * 700, "``", "<b>" * 250, "<i "),
        *("<a " + "x" * 190 + ">", "<a " + "x" * 250 + ">", "... ", "A. " * 300, "a, ", SENTENCE),
    ]
)


@settings(max_examples=examples(20))
@given(st.lists(long_parts, max_size=6), st.integers(50, 300))
def test_a_clause_has_a_bound_loses_nothing_and_does_not_depend_on_how_the_text_came(
    parts: list[str], size: int
) -> None:
    text = "".join(parts)
    whole, dripped = ClauseSplitter(), ClauseSplitter()
    at_once = whole.cut(text)
    whole.reset()
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert [c for piece in pieces for c in dripped.push(piece)] + dripped.flush() == at_once
    if "```" not in text:
        assert "".join("".join(at_once).split()) == "".join(text.split())
    assert all(len(clause) <= MOST_CHARACTERS for clause in at_once)
    assert [c for clause in at_once for c in whole.cut(clause)] == at_once


def test_a_clause_of_long_words_is_cut_between_two_and_not_in_a_tag() -> None:
    words = [letter * 90 for letter in "abcdefgh"]
    first, second = ClauseSplitter().cut(" ".join(words))
    assert [*first.split(), *second.split()] == words
    tag = f"<a {'x' * 190}>"
    assert ClauseSplitter().cut(tag * 4) == [tag * 3, tag]


@pytest.mark.parametrize(
    ("written", "clauses"),
    [
        # The end of a line and a tag before it belong to the clause, however the text came.
        ("a b c d e f g h i j k <<\nm", ["a b c d e f g h i j k <<\n", "m"]),
        ("a b c d <i>e</i> and f", ["a b c d <i>e</i>", "and f"]),
        ("Is 1 < 2? Is 2 <\n3?", ["Is 1 < 2?", "Is 2 <\n", "3?"]),
    ],
)
def test_clauses_are_the_same_character_by_character(written: str, clauses: list[str]) -> None:
    splitter = ClauseSplitter()
    assert [c for piece in written for c in splitter.push(piece)] + splitter.flush() == clauses
    assert ClauseSplitter().cut(written) == clauses


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a <!-- b --> c <!-- d", "a   c <!-- d"),
        ("<!-- <b> --> a <i>b</i> <!-- c", "  a  b  <!-- c"),
        (f"a &#{'9' * 5_000}; b", "a  b"),
        ("&#65;&#x42; &amp;", "AB &"),
    ],
)
def test_markup_is_left_out(written: str, said: str) -> None:
    assert without_markup(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("1234,567", "1234567"),
        ("1,234.50", "1234 point 5 0"),
        ("12,345,678", "12345678"),
        ("1,2", "1,2"),
        ("1,2.5", "12 point 5"),
        ("$1,000.05", "1000 dollars and 5 cents"),
        ("$0.50", "50 cents"),
        ("$1", "1 dollar"),
        (f"${'9' * 5_000}", f"{'9' * 5_000} dollars"),
    ],
)
def test_numbers_of_any_length_are_said(written: str, said: str) -> None:
    assert spoken_english(written).replace("\u00a0", " ") == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a\n---\nb", "a\n\nb"),
        ("a --- b", "a --- b"),
        ("|:---|---:|", ""),
    ],
)
async def test_the_rule_of_a_table_is_not_read_out(written: str, said: str) -> None:
    assert await as_spoken(written, "sentence") == said
