"""What of an LLM's text a person would say: no Markdown, no emoji, no bullets."""

from __future__ import annotations

import re

from pipecat.utils.text.transforms import strip_markdown

from headstart.text.spoken_form import without_pictures


async def as_spoken(text: str, text_type: str) -> str:
    """A Pipecat text transform: `text` as it would be read aloud.

    The letters and digits stay the same and in the same order, so that the spoken words can
    be matched with the written ones.
    """
    line = text.endswith("\n")
    text = "\n".join("" if _is_table_rule(part) else part for part in text.split("\n"))
    text = await strip_markdown(text, text_type)
    # A clause may hold only the opening or the closing mark of a pair.
    text = re.sub(r"(?<![\w*])[*_~`]+(?=\w)|(?<=[^\s\d*])[*~`]+|\*{2,}|`+|~~", "", text)
    text = re.sub(r"^\s*(?:[-*+•‣▪–]\s+|#{1,6}\s+|>\s?)", "", text)
    text = re.sub(r"^(\s*\d{1,3})[.)]\s", r"\1, ", text)
    text = text.replace("|", ", ").strip(" ,") if text.count("|") > 1 else text
    text = without_pictures(text).strip()
    if not any(character.isalnum() for character in text):
        return ""
    return text + "." if line and text[-1:].isalnum() else text


def _is_table_rule(line: str) -> bool:
    """Whether the line stands between the head of a table and its body."""
    return "---" in line and not line.strip(" \t:|-")
