"""Rows of .jsonl, .csv and .tsv files, and the line numbers by which errors name them."""

from pathlib import Path
from typing import Any

import pytest

from gpt.data.rows import read_rows
from gpt.errors import DataError


def rows_of(path: Path, content: str | bytes) -> list[tuple[int, dict[str, Any]]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(path))


def test_a_csv_field_in_quotes_may_hold_commas_newlines_and_doubled_quotes(tmp_path: Path) -> None:
    content = 'text,label\r\n"one, two\nthree ""four""",1\r\nfive,0\r\n'
    assert rows_of(tmp_path / "a.csv", content) == [
        (3, {"text": 'one, two\nthree "four"', "label": "1"}),
        (4, {"text": "five", "label": "0"}),
    ]


def test_a_csv_keeps_spaces_and_empty_fields(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.csv", 'a,b,c\n x ,,""\n') == [(2, {"a": " x ", "b": "", "c": ""})]


def test_a_lone_quote_in_a_tsv_is_a_letter_and_swallows_no_row(tmp_path: Path) -> None:
    content = 'text\tlabel\n"Oh, he said\t1\nthe 5" disc, "all" of it\t0\nplain\t1\n'
    assert rows_of(tmp_path / "a.tsv", content) == [
        (2, {"text": '"Oh, he said', "label": "1"}),
        (3, {"text": 'the 5" disc, "all" of it', "label": "0"}),
        (4, {"text": "plain", "label": "1"}),
    ]


def test_jsonl_rows_keep_their_types(tmp_path: Path) -> None:
    content = '{"a": ["x", "y"], "b": 1}\n{"a": null, "b": "\\u00e9"}'
    assert rows_of(tmp_path / "a.jsonl", content) == [(1, {"a": ["x", "y"], "b": 1}), (2, {"a": None, "b": "é"})]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_blank_lines_are_passed_over_and_counted(tmp_path: Path, name: str) -> None:
    content = '{"a": 1}\n\n{"a": 2}\n\n' if name == "a.jsonl" else "a\n1\n\n2\n\n"
    numbers = [number for number, _ in rows_of(tmp_path / name, content)]
    assert numbers == ([1, 3] if name == "a.jsonl" else [2, 4])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf" + (b'{"a": "1"}\r\n' if name == "a.jsonl" else b"a\r\n1\r\n")
    assert [row for _, row in rows_of(tmp_path / name, content)] == [{"a": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a\.csv: the file is empty"),
        ("a.csv", b"a,b\n1,2\n1\n", r"a\.csv, line 3: 1 columns, expected 2: a, b"),
        ("a.csv", b'a,b\n"1\n2",3,4\n', r"a\.csv, line 3: 3 columns, expected 2"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', r"a\.csv, line 3: is not csv: unexpected end of data"),
        ("a.csv", b'a,b\n"1"x,2\n', r"a\.csv, line 2: is not csv: ',' expected after '\"'"),
        ("a.tsv", b"a\tb\n1\t2\t3\n", r"a\.tsv, line 2: 3 columns, expected 2"),
        ("a.tsv", b"a\tb\n1\t\xff\n", r"a\.tsv, line 2: is not UTF-8: byte 0xff; convert it"),
        ("a.tsv", b"a\tb\n1\t\x00\n", r"a\.tsv, line 2: is not text: it holds a NUL byte"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl, line 2: expected a JSON object, found '\[1\]'"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl, line 2: is not UTF-8: byte 0xff"),
    ],
)
def test_what_is_no_table_is_refused_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, content)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            list(read_rows(path))
