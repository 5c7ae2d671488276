"""Rows of local tables: .jsonl, .csv and .tsv files, with the line number of each for error messages."""

import codecs
import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt.errors import DataError
from gpt.reading import lines_of, parse_json

Row = tuple[int, dict[str, Any]]


def read_rows(
    path: Path, kind: str | None = None, header: Sequence[str] = (), *, ragged: bool = False
) -> Iterator[Row]:
    """Line number and columns of each row, blank lines passed over.

    A csv file follows RFC 4180, quotes and all; a tsv file is GLUE's kind, in which a quote is a
    letter like any other (read with quotes, it would swallow rows).

    Args:
      kind: jsonl, csv or tsv; None goes by the suffix.
      header: the columns of a table whose first line is a row.
      ragged: cells after the last column are passed over, and a row of too few is an empty row,
        for data sets that were published so.

    Raises:
      DataError: missing, empty, binary or not UTF-8; a line that is no row; with the line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        with path.open("rb") as file:
            if (kind or path.suffix[1:]) == "jsonl":
                yield from read_jsonl(lines_of(file, path), path)
            else:
                yield from _read_table(lines_of(file, path), path, kind or path.suffix[1:], header, ragged)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def decode(content: bytes, path: object, first_line: int) -> str:
    """The text of `content`, which starts on line `first_line` of `path`; DataError when it is not UTF-8 text."""
    zero = content.find(0)
    if zero >= 0:
        line = first_line + content.count(b"\n", 0, zero)
        raise DataError(f"{path}, line {line}: is not text: it holds a NUL byte; expected UTF-8")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: is not UTF-8: byte 0x{content[error.start]:02x}; "
            "convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from None


def _decoded_lines(lines: Iterable[bytes], path: object) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        yield decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, path, number)


def read_jsonl(lines: Iterable[bytes], path: object) -> Iterator[Row]:
    """Line number and columns of each row of a .jsonl file that errors call `path`; raises as `read_rows` does."""
    for number, line in enumerate(_decoded_lines(lines, path), 1):
        if line.isspace():
            continue
        try:
            row = parse_json(line)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found {line.strip()[:40]!r}")
        yield number, row


def _read_table(lines: Iterator[bytes], path: Path, kind: str, header: Sequence[str], ragged: bool) -> Iterator[Row]:
    dialect = {"delimiter": ",", "strict": True} if kind == "csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    table = csv.reader(_decoded_lines(lines, path), **dialect)  # pyright: ignore[reportArgumentType] - literal options
    try:
        first = next(table)
        rows = table
        if header and not set(header) & set(first):
            rows = itertools.chain([first], table)
        else:
            header = first
        if len(set(header)) < len(header):
            raise DataError(f"{path}: two columns have one name: {', '.join(header):.300}; rename one of them")
        for cells in rows:
            if not cells:
                continue
            if ragged:
                yield table.line_num, dict(zip(header, cells, strict=False)) if len(cells) >= len(header) else {}
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {table.line_num}: {len(cells)} columns, expected {len(header)}: {', '.join(header)}"
                )
            yield table.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: is not {kind}: {error}") from None
