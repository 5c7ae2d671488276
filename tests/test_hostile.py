"""Whatever is in a file: a value or an error that says what is wrong; no crash, no code run, nothing read elsewhere."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import READERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt.errors import GPTError

Edit = tuple[int, int, bytes]

# What has broken readers before.
FRAGMENTS = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b"\n", b"\t", b'"', b"'", b",", b":",
    b"[", b"]", b"{", b"}", b"(", b"\\", b"\\ud800", b"-", b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"null", b"true",
    b"9" * 30, b"9" * 5000, b"0x" + b"f" * 5000, b"[" * 2000, b"../../x", b"/etc/passwd", b"%a", b"@os.system()",
    b"import os\n", b"include 'x'\n", b"<!ENTITY a 'b'>", b"&a;", b"\xd9\xa3", b"\xff" * 8, b"\x7f" + b"\xff" * 7,
]  # fmt: skip
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 40), st.sampled_from(FRAGMENTS) | st.binary(max_size=9)),
    min_size=1,
    max_size=4,
)
LEAVES = st.text(max_size=5) | st.sampled_from(
    [None, True, -1, 0, 2**31, 2**63, 10**19, 0.5, float("nan"), float("inf"), "", "\0", "\ud800", "../x", "/x", [], {}]
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def edited(seed: bytes, edits: list[Edit]) -> bytes:
    """The seed with some of its bytes replaced."""
    for place, length, new in edits:
        place %= len(seed) + 1
        seed = seed[:place] + new + seed[place + length :]
    return seed


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def replaced(tree: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The tree with another value at the end of a way."""
    if not path:
        return new
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], new)
    return copy


def first_value(seed: bytes) -> Any:
    """The JSON value that a seed is, or that its first line is; None when it is neither."""
    for text in (seed, seed.partition(b"\n")[0]):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return None


TREES_OF = {name: first_value(reader.seed) for name, reader in READERS.items()}
JSON_READERS = [name for name, tree in TREES_OF.items() if isinstance(tree, dict | list)]
NEVER_WHOLE = {"gin flag", "npy of version 2", "submission", "predictions"}  # lack what is not in their file


settings.register_profile(
    "hostile", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("hostile")


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], Any]:
    """Reads bytes as the file of a reader; None when they are refused."""
    folders: dict[str, Path] = {}

    def feed(name: str, content: bytes) -> Any:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("hostile")
            READERS[name].make(folders[name])
        try:
            return READERS[name].feed(folders[name], content)
        except GPTError:
            return None

    return feed


def fuzz_bytes(name: str, feed: Callable[[str, bytes], Any], examples: int) -> None:
    @settings(max_examples=examples)
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        feed(name, edited(READERS[name].seed, edits))

    check()


def fuzz_values(name: str, feed: Callable[[str, bytes], Any], examples: int) -> None:
    ways = places(TREES_OF[name])

    @settings(max_examples=examples)
    @given(st.sampled_from(ways), TREES)
    def check(way: tuple[Any, ...], new: Any) -> None:
        feed(name, json.dumps(replaced(TREES_OF[name], way, new)).encode())

    check()


@pytest.mark.parametrize("name", READERS)
def test_the_file_that_all_others_are_made_from_is_read(name: str, tmp_path: Path) -> None:
    READERS[name].make(tmp_path)
    with pytest.raises(GPTError) if name in NEVER_WHOLE else contextlib.nullcontext():
        READERS[name].read(tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused(name: str, feed: Callable[[str, bytes], Any]) -> None:
    fuzz_bytes(name, feed, 20)


@pytest.mark.parametrize("name", JSON_READERS)
def test_any_value_in_json_is_read_or_refused(name: str, feed: Callable[[str, bytes], Any]) -> None:
    fuzz_values(name, feed, 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_very_many_bytes_are_read_or_refused(name: str, feed: Callable[[str, bytes], Any]) -> None:
    fuzz_bytes(name, feed, 500)


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_READERS)
def test_very_many_values_in_json_are_read_or_refused(name: str, feed: Callable[[str, bytes], Any]) -> None:
    fuzz_values(name, feed, 500)
