"""Files and lines that anyone may have written: as text or JSON within stated bounds, or a DataError that says why not.

What is larger, longer or deeper is no file of this project or of those it reads, and would only fill the memory.
Values are checked where they are used: NaN and Infinity come through, as Python writes them.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.errors import DataError

MAX_BYTES = 64 << 20
"""Of a file that is read whole, other than weights and text to learn from; and of a line of any file."""

MAX_DEPTH = 100
"""Of lists and objects in one another in JSON."""

_MAX_DIGITS = 20
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def require_file(path: Path) -> None:
    """Raises DataError for a pipe or a device, which need not end; what else can hinder is an OSError of `open`."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: is a pipe or a device, and need not end: expected a file")


def read_bytes(path: Path, max_bytes: int | None = None) -> bytes:
    """The content of a file; OSError when it cannot be read.

    Raises:
      DataError: it is a pipe or a device, which need not end, or larger than `max_bytes` (None: MAX_BYTES).
    """
    limit = MAX_BYTES if max_bytes is None else max_bytes
    require_file(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: is larger than {limit:,} bytes, and so not what is expected here")
    return content


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends as they are; DataError names the file."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def lines_of(file: Any, where: object) -> Iterator[bytes]:
    """The lines of a file of bytes with their ends; DataError, which says `where`, at one longer than MAX_BYTES."""
    for number in itertools.count(1):
        line = file.readline(MAX_BYTES + 1)
        if len(line) > MAX_BYTES:
            raise DataError(f"{where}, line {number}: is longer than {MAX_BYTES:,} bytes")
        if not line:
            return
        yield line


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text.

    Raises:
      DataError: it is not JSON, gives a key twice, is nested deeper than MAX_DEPTH, or holds half of a surrogate pair
        or a whole number of more than 20 digits.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        tree = json.loads(text, object_pairs_hook=_unique, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(tree, MAX_DEPTH):
        raise DataError(f"nested deeper than {MAX_DEPTH} lists and objects")
    if _HALF_PAIR.search(text):
        try:
            json.dumps(tree, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError("a text holds half of a surrogate pair, which is no character") from None
    return tree


def read_json(path: Path) -> Any:
    """The value in a JSON file; DataError names the file."""
    text = read_text(path)
    try:
        return parse_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise DataError(f"the entry {twice!r:.80} is there twice; remove one of them")
    return tree


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise DataError(f"a whole number of {len(digits)} digits: expected at most {_MAX_DIGITS}")
    return int(digits)


def _is_deeper(tree: Any, limit: int) -> bool:
    level = [tree]
    for _ in range(limit):
        nodes = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list))
        level = [child for node in nodes for child in node]
    return any(isinstance(node, dict | list) for node in level)
