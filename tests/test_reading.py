"""Text and JSON of files that anyone may have written."""

import io
import os
from pathlib import Path

import pytest

from gpt import reading
from gpt.errors import DataError
from gpt.reading import MAX_DEPTH, lines_of, parse_json, read_bytes, read_json, read_text


def test_json_is_read_as_python_writes_it() -> None:
    assert parse_json('{"a": [1, -2.5, null, true, "\\ud83d\\ude00"]}') == {"a": [1, -2.5, None, True, "😀"]}
    assert parse_json(b'"\xc3\xa9"') == "é"
    assert parse_json("[NaN, 1e999]")[1] == float("inf")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON: "),
        ("", "not JSON: "),
        ("\ufeff{}", "not JSON: Unexpected UTF-8 BOM"),
        (b"\xff", "not JSON: 'utf-8' codec can't decode byte 0xff"),
        ("[" * 100_000, "not JSON: maximum recursion depth"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper than 100 lists and objects"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested deeper than 100 lists and objects"),
        ('{"a": 1, "b": 2, "a": 3}', "the entry 'a' is there twice"),
        (f'{{"{"k" * 999}": 1, "{"k" * 999}": 1}}', r"the entry 'k{79} is there twice"),
        ('"\\ud800"', "a text holds half of a surrogate pair"),
        ('{"\\uDFFF": 1}', "a text holds half of a surrogate pair"),
        ("1" * 21, "a whole number of 21 digits: expected at most 20"),
        ("1" * 5000, "a whole number of 5000 digits"),
    ],
)
def test_json_that_readers_would_stumble_over_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_json(text)


def test_what_is_as_deep_and_as_long_as_allowed_is_read() -> None:
    tree = parse_json("[" * MAX_DEPTH + "9" * 20 + "]" * MAX_DEPTH)
    for _ in range(MAX_DEPTH):
        (tree,) = tree
    assert tree == 10**20 - 1
    assert len(parse_json(f"[{'[],' * 200}[]]")) == 201


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match=r"x\.json: there is no such file"):
        read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"x\.json: not UTF-8 text: invalid start byte at byte 0"):
        read_text(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"x\.json: not JSON"):
        read_json(path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_a_pipe_and_a_device_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(DataError, match=f"{name}: is a pipe or a device, and need not end"):
            read_bytes(tmp_path / name)


def test_a_file_beyond_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(DataError, match="x: is larger than 4 bytes"):
        read_bytes(path, 4)
    monkeypatch.setattr(reading, "MAX_BYTES", 4)
    with pytest.raises(DataError, match="x: is larger than 4 bytes"):
        read_text(path)


def test_a_line_beyond_the_bound_is_refused_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(lines_of(io.BytesIO(b"1234\n\n5"), "x")) == [b"1234\n", b"\n", b"5"]
    monkeypatch.setattr(reading, "MAX_BYTES", 4)
    with pytest.raises(DataError, match="x, line 2: is longer than 4 bytes"):
        list(lines_of(io.BytesIO(b"12\n1234\n"), "x"))
