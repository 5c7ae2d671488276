"""The rows of a split from the files of a directory, in whichever published form they are there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpt.data.rows import decode, read_rows
from gpt.errors import DataError
from gpt.reading import parse_json, read_bytes
from gpt.tasks.sources import Files, Source, plain_files

Located = tuple[str, dict[str, Any]]
"""Where a row is, for error messages, and its columns as published."""


def find_files(source: Source, directory: Path, split: str) -> Files:
    """The one form in which the files of `split` are in the directory.

    Raises:
      DataError: there is none, or more than one; with all names that are looked for.
    """
    forms = [files for files in (*plain_files(split), *source.files) if files.names.get(split)]
    found = [files for files in forms if all((directory / name).exists() for name in files.names[split])]
    if len(found) != 1:
        what = "none of" if not found else "more than one of"
        raise DataError(
            f"TaskConfig.data_dir = {str(directory)!r} holds {what} {describe_files(source, split)}; "
            "expected exactly one"
        )
    return found[0]


def describe_files(source: Source, split: str) -> str:
    """The names of the files that `split` may be read from."""
    forms = [files.names[split] for files in (*plain_files(split), *source.files) if split in files.names]
    return ", ".join(dict.fromkeys(" with ".join(names) for names in forms))


def read_files(source: Source, directory: Path, split: str) -> Iterator[Located]:
    """All rows of `split`, in the order of its files."""
    files = find_files(source, directory, split)
    rows = (row for name in files.names[split] for row in _read(source, files.kind, directory / name))
    return iter(files.divide(split, list(rows))) if files.divide else rows


def _read(source: Source, kind: str, path: Path) -> Iterator[Located]:
    if kind == "xml":
        yield from _copa_items(path)
    elif kind == "passages":
        yield from _passages(path)
    else:
        is_published = kind == "tsv"  # tables without header and with ragged rows are all of this kind
        header = source.header if is_published else ()
        for number, row in read_rows(path, kind, header, ragged=is_published and source.ragged):
            yield f"{path}, line {number}", row


def _copa_items(path: Path) -> Iterator[Located]:
    """COPA's release: items with a premise, two alternatives and the number of the more plausible one."""
    text = _text(path)
    if "<!ENTITY" in text:
        raise DataError(
            f"{path}: defines entities, which COPA's files do not: refused, because they may grow without end"
        )
    try:
        items = ElementTree.fromstring(text).findall("item")
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: is not XML: {error}") from None
    for number, item in enumerate(items, 1):
        right = item.get("most-plausible-alternative")
        yield (
            f"{path}, item {item.get('id', number)}",
            {
                "premise": item.findtext("p"),
                "choice1": item.findtext("a1"),
                "choice2": item.findtext("a2"),
                "question": item.get("asks-for"),
                "label": {"1": 0, "2": 1}.get(right or "", right),
            },
        )


def _passages(folder: Path) -> Iterator[Located]:
    """RACE's release: a folder of .txt files, each a passage with its questions as one JSON object."""
    paths = sorted(folder.glob("*.txt"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise DataError(f"{folder}: no .txt files; expected one a passage")
    for path in paths:
        text = _text(path)
        try:
            passage = parse_json(text)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if not isinstance(passage, dict):
            raise DataError(f"{path}: expected a JSON object with article, questions, options and answers")
        yield str(path), passage


def _text(path: Path) -> str:
    try:
        return decode(read_bytes(path), path, 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
