"""Text as OpenAI cleaned it before spaCy saw it: `ftfy.fix_text`, then white space and punctuation standardised.

Running both over a whole corpus is slow. Here ftfy sees only the lines that it could change, and the standardised text
comes as the list of its chunks, which are what lies between its spaces. `tests/reference_tokenizer.py` has the plain
form that this must equal.
"""

import re
from collections.abc import Iterator
from typing import Any

from gpt.errors import DataError
from gpt.text.pieces import Piece

NEWLINE_CHUNK = "\n"

# Characters that ftfy leaves alone whatever stands beside them, or of which it only straightens the quotes: ASCII that
# is no control character and no `&`, which may begin an entity, and the punctuation of typeset books. Every rule of
# ftfy.badness, which decides whether text is mojibake, asks for at least one character that is not among these.
_PLAIN_CHARACTERS = r"\t\x0c\x20-\x25\x27-\x7e“”‘’—–…"
PLAIN = re.compile(f"[{_PLAIN_CHARACTERS}]")
_UNUSUAL = re.compile(rf"[^\n{_PLAIN_CHARACTERS}]")
_PLAIN_LINE = re.compile(rf"[ \t\x0c]*(?![ \t\x0c\n])[{_PLAIN_CHARACTERS}]+(?:\n|\Z)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACED = '-~!";?+,)(/*[]}{|_'
_REPLACED = (("—", "-"), ("–", "-"), ("―", "-"), ("…", "..."), ("´", "'"))
_QUOTES = (("‘", "'"), ("’", "'"), ("“", '"'), ("”", '"'))


def chunks_of(piece: Piece) -> list[str]:
    """The chunks of the standardised piece; those of two lines have a newline chunk between them."""
    text = _fix(piece.text, piece.after_markup)
    for old, new in _REPLACED:
        text = text.replace(old, new)
    chunks: list[str] = []
    for line in _space_punctuation(text).split("\n"):
        if found := line.split():
            if chunks:
                chunks.append(NEWLINE_CHUNK)
            chunks += found
    return chunks if piece.first else [NEWLINE_CHUNK, *chunks]


def _space_punctuation(text: str) -> str:
    """A space on either side of each run of one of the characters."""
    for character in _SPACED:
        if character in text:  # replacing it and joining runs again is several times faster than a pattern
            text = text.replace(character, f" {character} ")
            while (parted := f"{character}  {character}") in text:
                text = text.replace(parted, character * 2)
    return text


def cut(piece: Piece, length: int) -> Iterator[Piece]:
    """Pieces of at least `length` characters but the last, cut between lines that ftfy leaves alone.

    ftfy works line by line, and only an earlier `<` reaches later ones (entities are then no longer unescaped). No
    other step looks across a line break, which becomes one newline chunk if there are words on both sides of it.
    """
    text = piece.text
    markup = text.find("<")
    start = 0
    while start < len(text):
        end = _cut_point(text, start + length)
        after_markup = piece.after_markup or 0 <= markup < start
        yield Piece(text[start:end], piece.first and start == 0, after_markup)
        start = end


def _cut_point(text: str, position: int) -> int:
    """The first start of a line at or after `position` with plain lines, not blank, on both sides; or the end."""
    while 0 < (start := text.find("\n", position) + 1) < len(text):
        line_before = text.rfind("\n", 0, start - 1) + 1
        if _PLAIN_LINE.match(text, line_before) and _PLAIN_LINE.match(text, start):
            return start
        position = start
    return len(text)


def _fix(text: str, after_markup: bool) -> str:
    """What `ftfy.fix_text` makes of the text."""
    markup = text.find("<")
    parts: list[str] = []
    start = 0
    while unusual := _UNUSUAL.search(text, start):
        line = text.rfind("\n", start, unusual.start()) + 1 or start
        parts.append(_straighten(text[start:line]))
        start = text.find("\n", line) + 1 or len(text)
        if _SURROGATE.search(text, line, start):
            raise DataError("a text holds half of a surrogate pair, which is no character")
        in_markup = after_markup or 0 <= markup < line
        parts.append(import_ftfy().fix_text(text[line:start], unescape_html=False if in_markup else "auto"))
    parts.append(_straighten(text[start:]))
    return "".join(parts)


def _straighten(text: str) -> str:
    if not text.isascii():
        for old, new in _QUOTES:
            text = text.replace(old, new)
    return text


def import_ftfy() -> Any:
    """The module; DataError without it."""
    try:
        import ftfy
    except ImportError:
        raise missing("ftfy") from None
    return ftfy


def missing(package: str) -> DataError:
    """The error for a package of the extra `original` that is not installed."""
    return DataError(
        f"the original route needs {package}, which is not installed: `pip install '.[original]'`, or choose the other "
        "route, which needs nothing more (--route basic, TokenizerConfig.route=basic) and gives other ids"
    )
