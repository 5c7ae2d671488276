"""Long texts in pieces whose ids, one after another, are the ids of the text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_BREAK = re.compile("[ \n]")


class Piece(NamedTuple):
    """A piece of a text, and what the original route has to know of the text in front of it."""

    text: str
    first: bool = True  # nothing of the text is in front of it; otherwise a line break is
    after_markup: bool = False  # a `<` is in front of it


class Encoding(NamedTuple):
    """Ids, and for each the span of characters of `text` that it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    text: str


def split_at_breaks(text: str, length: int) -> Iterator[str]:
    """Pieces of at least `length` characters but the last, cut in front of spaces and newlines only."""
    start = 0
    while start < len(text):
        found = _BREAK.search(text, start + length)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end
