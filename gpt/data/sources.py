"""Documents from what `--input` names: text files, .jsonl, .parquet, and data sets of the hub."""

import codecs
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt.data.rows import decode, read_rows
from gpt.errors import DataError
from gpt.files import did_you_mean

TRAIN, VALIDATION = "train", "validation"

_HUB_PREFIX = "hub:"
_HUB_FORM = "hub:OWNER/NAME[/CONFIG]:SPLIT"
_OTHER_FORMATS = (".csv", ".tsv", ".json")  # read as text, they would be one document full of commas and brackets


def read_documents(items: Sequence[str], text_field: str = "text") -> Iterator[str]:
    """Every document of the items, in order.

    A text file is one document; so is `text_field` of each row of a .jsonl file, .parquet file or hub data set. Blank
    rows are passed over. All items are looked at before the first is read. Raises DataError that names file and line.
    """
    for item in items:
        _check_source(item)
    return (document for item in items for document in _read_item(item, text_field))


def split_documents(
    inputs: Sequence[str], validation: Sequence[str], fraction: float, text_field: str
) -> Iterator[tuple[str, str]]:
    """Pairs of split and document.

    Held out are the documents of `validation`, or without it those whose digest falls into `fraction`, whatever their
    order: at least one, none if `fraction` is 0. Raises DataError when nothing is left to train on.
    """
    documents = read_documents(inputs, text_field)
    if not validation:
        return _draw_validation(documents, fraction)
    held_out = read_documents(validation, text_field)
    return ((split, text) for split, texts in ((TRAIN, documents), (VALIDATION, held_out)) for text in texts)


def _draw_validation(documents: Iterable[str], fraction: float) -> Iterator[tuple[str, str]]:
    held: tuple[float, str] | None = None  # the lowest draw, held back until another document is in validation
    counts = {TRAIN: 0, VALIDATION: 0}
    for document in documents:
        draw = int.from_bytes(hashlib.sha256(document.encode()).digest()[:6], "big") / (1 << 48)
        split = VALIDATION if draw < fraction else TRAIN
        if split == TRAIN and fraction > 0 and counts[VALIDATION] == 0 and (held is None or draw < held[0]):
            previous, held = held, (draw, document)
            if previous is None:
                continue
            document = previous[1]
        counts[split] += 1
        yield split, document
    if held:
        split = TRAIN if counts[VALIDATION] else VALIDATION
        counts[split] += 1
        yield split, held[1]
    if counts[TRAIN] == 0:
        raise DataError(
            f"--validation_fraction {fraction}: nothing is left to train on of {counts[VALIDATION]} document(s); "
            "give more documents, name held-out files with --validation, or set --validation_fraction 0"
        )


def _check_source(item: str) -> None:
    """Raise DataError unless `item` is a file that is there or well-formed as the name of a hub data set."""
    if _is_hub(item):
        _parse_hub(item)
        return
    path = Path(item)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{item}: no such file{did_you_mean(path.name, siblings)}") from None
    except OSError as error:
        raise DataError(f"{item}: cannot be read: {error.strerror}") from None
    if path.is_dir():
        raise DataError(f"{item}: is a directory; pass its files, for example {path}/*.txt")
    if path.suffix in _OTHER_FORMATS:
        raise DataError(f"{item}: {path.suffix} is not read; convert it to .jsonl, one object a line")
    if size == 0:
        raise DataError(f"{item}: the file is empty")


def _is_hub(item: str) -> bool:
    """Whether the item names a data set of the hub."""
    return item.startswith(_HUB_PREFIX)


def fingerprint(item: str) -> str:
    """What the item will give: the sha256 of a file, the name of a hub data set."""
    if _is_hub(item):
        return item
    try:
        with Path(item).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{item}: cannot be read: {error.strerror}") from None


def text_bytes(items: Sequence[str]) -> int | None:
    """The size of all text of the items; None when some are no text files and it is not known before reading."""
    if any(_is_hub(item) or Path(item).suffix in _READERS for item in items):
        return None
    return sum(Path(item).stat().st_size for item in items)


def _read_item(item: str, text_field: str) -> Iterator[str]:
    if _is_hub(item):
        documents = _read_hub(item, text_field)
    else:
        reader = _READERS.get(Path(item).suffix, _read_text)
        documents = reader(Path(item), text_field)
    found = False
    try:
        for document in documents:
            if document.strip():
                found = True
                yield document
    except OSError as error:
        raise DataError(f"{item}: cannot be read: {error.strerror or error}") from None
    if not found:
        raise DataError(f"{item}: holds no text")


def _read_text(path: Path, _: str) -> Iterator[str]:
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    yield decode(content, path, first_line=1).replace("\r\n", "\n")


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    for line, row in read_rows(path):
        yield _text_of(row, text_field, f"{path}, line {line}")


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise _missing_field(text_field, file.schema_arrow.names, f"{path}")
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for row in batch.to_pylist():
                    number += 1
                    yield _text_of(row, text_field, f"{path}, row {number}")
    except pa.ArrowException as error:
        raise DataError(f"{path}: is not a parquet file that can be read: {error}") from None


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
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{source}: field {text_field!r} holds half of a surrogate pair, which is not text")
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
