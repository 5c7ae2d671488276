"""Documents from what `--input` names: files of text, .jsonl or .parquet, here or behind URLs, and hub data sets."""

import codecs
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from gpt.data.place import Place
from gpt.data.rows import decode, read_jsonl
from gpt.errors import DataError
from gpt.files import did_you_mean, is_url
from gpt.reading import lines_of

TRAIN, VALIDATION = "train", "validation"

_HUB_PREFIX = "hub:"
_HUB_FORM = "hub:OWNER/NAME[/CONFIG]:SPLIT"
_OTHER_FORMATS = (".csv", ".tsv", ".json")  # read as text, they would be one document full of commas and brackets


class Document(NamedTuple):
    """A text and the split that it belongs to.

    `draw` tells that it is held out after all if nothing else is, in all the input, and no other has a lower one.
    """

    split: str
    text: str
    draw: float | None = None


def read_documents(items: Sequence[str], text_field: str = "text") -> Iterator[str]:
    """Every document of the items, in order.

    A text file is one document; so is `text_field` of each row of a .jsonl file, .parquet file or hub data set. Blank
    rows are passed over. All items are looked at before the first is read. Raises DataError that names file and line.
    """
    for item in items:
        _check_source(item)
    return (document for item in items for document in _read_item(item, text_field))


def expand(items: Sequence[str]) -> list[str]:
    """The items, each URL with `*` in it replaced by the files that match, by name, as a shell does with paths."""
    expanded = []
    for item in items:
        if not (is_url(item) and "*" in item):
            expanded.append(item)
            continue
        try:
            matches = [str(place) for place in Place(item).matches()]
        except OSError as error:
            raise _unreadable(item, error) from None
        if not matches:
            raise DataError(f"{item}: no file matches")
        expanded += matches
    return expanded


def split_documents(
    inputs: Sequence[str], validation: Sequence[str], fraction: float, text_field: str
) -> Iterator[Document]:
    """Every document, in order, with its split.

    Held out are the documents of `validation`, or without it those whose digest falls into `fraction`, so that it
    depends on the document alone. Until there is one, each document whose draw is the lowest so far says so.
    """
    documents = read_documents(inputs, text_field)
    held_out = read_documents(validation, text_field)
    if not validation:
        return _draw_validation(documents, fraction)
    return (Document(split, text) for split, texts in ((TRAIN, documents), (VALIDATION, held_out)) for text in texts)


def _draw_validation(documents: Iterable[str], fraction: float) -> Iterator[Document]:
    lowest = 1.0 if fraction > 0 else 0.0
    for text in documents:
        draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)
        if draw < fraction:
            lowest = 0.0
            yield Document(VALIDATION, text)
        elif draw < lowest:
            lowest = draw
            yield Document(TRAIN, text, draw)
        else:
            yield Document(TRAIN, text)


def _check_source(item: str) -> None:
    """Raise DataError unless `item` is a file that is there or well-formed as the name of a hub data set."""
    if _is_hub(item):
        _parse_hub(item)
        return
    place = Place(item)
    try:
        size = place.size()
    except FileNotFoundError:
        here = place.local
        siblings = [sibling.name for sibling in here.parent.iterdir()] if here and here.parent.is_dir() else []
        raise DataError(f"{item}: no such file{did_you_mean(place.name, siblings)}") from None
    except IsADirectoryError:
        raise DataError(f"{item}: is a directory; pass its files, for example {place}/*.txt") from None
    except OSError as error:
        raise _unreadable(item, error) from None
    if _suffix(item) in _OTHER_FORMATS:
        raise DataError(f"{item}: {_suffix(item)} is not read; convert it to .jsonl, one object a line")
    if size == 0:
        raise DataError(f"{item}: the file is empty")


def _suffix(item: str) -> str:
    return PurePosixPath(item).suffix


def _unreadable(item: str, error: OSError) -> DataError:
    return DataError(f"{item}: cannot be read: {error.strerror or error}")


def _is_hub(item: str) -> bool:
    """Whether the item names a data set of the hub."""
    return item.startswith(_HUB_PREFIX)


def fingerprint(item: str) -> str:
    """What the item will give: the sha256 of a file, the name of a hub data set."""
    if _is_hub(item):
        return item
    try:
        return Place(item).sha256()
    except OSError as error:
        raise _unreadable(item, error) from None


def text_bytes(items: Sequence[str]) -> int | None:
    """The size of all text of the items; None when some are no text files and it is not known before reading."""
    if any(_is_hub(item) or _suffix(item) in _READERS for item in items):
        return None
    return sum(Place(item).size() for item in items)


def _read_item(item: str, text_field: str) -> Iterator[str]:
    found = False
    try:
        for document in _read_hub(item, text_field) if _is_hub(item) else _read_file(item, text_field):
            if document.strip():
                found = True
                yield document
    except OSError as error:
        raise _unreadable(item, error) from None
    if not found:
        raise DataError(f"{item}: holds no text")


def _read_file(item: str, text_field: str) -> Iterator[str]:
    with Place(item).open() as file:
        yield from _READERS.get(_suffix(item), _read_text)(file, item, text_field)


def _read_text(file: Any, item: str, _: str) -> Iterator[str]:
    content = file.read().removeprefix(codecs.BOM_UTF8)
    yield decode(content, item, first_line=1).replace("\r\n", "\n")


def _read_jsonl(file: Any, item: str, text_field: str) -> Iterator[str]:
    for line, row in read_jsonl(lines_of(file, item), item):
        yield _text_of(row, text_field, f"{item}, line {line}")


def _read_parquet(file: Any, item: str, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            if text_field not in table.schema_arrow.names:
                raise _missing_field(text_field, table.schema_arrow.names, item)
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for row in batch.to_pylist():
                    number += 1
                    yield _text_of(row, text_field, f"{item}, row {number}")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{item}: is not a parquet file that can be read: {error}") from None


def _read_hub(item: str, text_field: str) -> Iterator[str]:
    import datasets

    name, config, split = _parse_hub(item)
    try:
        rows = iter(datasets.load_dataset(name, config, split=split, streaming=True))
    except Exception as error:  # whatever the network layers below raise
        raise _hub_failure(item, error) from error
    for number in range(1, 1 << 62):
        try:
            row = next(rows, None)
        except Exception as error:
            raise _hub_failure(item, error) from error
        if row is None:
            return
        yield _text_of(row, text_field, f"{item}, row {number}")


def _hub_failure(item: str, error: Exception) -> DataError:
    return DataError(
        f"{item}: the hub did not give it ({type(error).__name__}: {error}); "
        "without the hub, download its files elsewhere and pass them: --input DIR/*.parquet, *.jsonl or *.txt"
    )


def _parse_hub(item: str) -> tuple[str, str | None, str]:
    """Name, configuration and split."""
    name, _, split = item.removeprefix(_HUB_PREFIX).partition(":")
    parts = name.split("/")
    if not split or not all(parts) or len(parts) > 3:
        raise DataError(f"{item}: expected {_HUB_FORM}, for example hub:Salesforce/wikitext/wikitext-2-v1:train")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def _text_of(row: dict[str, Any], text_field: str, source: str) -> str:
    if text_field not in row:
        raise _missing_field(text_field, list(row), source)
    text = row[text_field]
    if not isinstance(text, str):
        raise DataError(f"{source}: field {text_field!r} is {_kind(text)}, expected a string")
    return text.replace("\r\n", "\n")


def _missing_field(text_field: str, fields: list[str], source: str) -> DataError:
    return DataError(
        f"{source}: no field {text_field!r}; there are {', '.join(map(repr, fields)) or 'none'}: "
        "choose one with --text_field"
    )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
