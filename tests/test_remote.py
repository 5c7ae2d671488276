"""Token stores behind URLs: what is fetched, what is kept, and what cannot be reached."""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gpt.data import remote
from gpt.data.place import Place
from gpt.data.remote import RemoteTokens
from gpt.data.store import SplitIndex, StoreIndex, TokenStore
from gpt.data.windows import Text, held_out_text_batches, pretraining_batches
from gpt.errors import DataError

LENGTH, BATCH = 8, 4
TOKENS = {"train": np.arange(40 * LENGTH + 1, dtype="<u2"), "validation": np.arange(9 * LENGTH + 3, dtype="<u2")}


class Fetched:
    """The byte ranges that were fetched."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    @property
    def bytes(self) -> int:
        return sum(end - start for start, end in self.ranges)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """Counts what an in-memory file system is asked for, of .bin files."""
    fetched, cat_file = Fetched(), MemoryFileSystem.cat_file

    def counting(self: Any, path: str, start: int | None = None, end: int | None = None, **arguments: Any) -> bytes:
        content = cat_file(self, path, start, end, **arguments)
        if path.endswith(".bin"):
            fetched.ranges.append((start or 0, (start or 0) + len(content)))
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    return fetched


@pytest.fixture
def url() -> Iterator[str]:
    """A store in memory, of a vocabulary of 1,000 ids."""
    write_store(Place("memory://stores/numbers"))
    yield "memory://stores/numbers"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def write_store(place: Place) -> None:
    splits = {}
    for name, tokens in TOKENS.items():
        (place / f"{name}.bin").write(tokens.tobytes())
        digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        splits[name] = SplitIndex(f"{name}.bin", len(tokens), 1, digest)
    (place / "index.json").write(StoreIndex("0" * 64, 1000, 999, "1" * 64, splits).to_json().encode())


def batches(url: str, **arguments: Any) -> Any:
    return pretraining_batches({"text": Text(TokenStore.open(url).split("train"))}, LENGTH, BATCH, 2, 0, **arguments)


def test_opening_a_store_behind_a_url_fetches_no_token(url: str, fetched: Fetched) -> None:
    assert len(TokenStore.open(url).split("train")) == len(TOKENS["train"])
    assert fetched.bytes == 0


def test_a_batch_fetches_its_own_windows_and_nothing_else(url: str, fetched: Fetched) -> None:
    batch = batches(url)[3]
    expected: Any = pretraining_batches({"text": Text(TOKENS["train"])}, LENGTH, BATCH, 2, 0)
    np.testing.assert_array_equal(batch.tokens, expected[3].tokens)
    wanted = {2 * int(token) + byte for row in batch.tokens for token in row for byte in (0, 1)}
    assert {byte for start, end in fetched.ranges for byte in range(start, end)} == wanted
    assert fetched.bytes == len(wanted)


def test_a_host_fetches_the_windows_of_its_rows_alone(url: str, fetched: Fetched) -> None:
    batch = batches(url, rows=[1])[3]
    assert fetched.ranges == [(2 * int(batch.tokens[0, 0]), 2 * int(batch.tokens[0, -1]) + 2)]


def test_windows_that_touch_are_fetched_as_one_range(url: str, fetched: Fetched) -> None:
    tokens = TokenStore.open(url).split("validation")
    first, *_, last = held_out_text_batches(tokens, LENGTH, BATCH, None)
    assert sorted(fetched.ranges) == [(0, 66), (64, 130), (128, 150)]
    np.testing.assert_array_equal(first.tokens[1], np.arange(8, 17))
    assert last.weights.sum() == 10


def test_what_was_fetched_is_kept_up_to_a_limit(url: str, fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenStore.open(url).split("train")
    assert isinstance(tokens, RemoteTokens)
    monkeypatch.setattr(remote, "_KEPT_BYTES", 32)
    for start in (0, 8, 0, 8, 16, 8, 0):  # 16 goes in place of 0, which was asked for before 8
        np.testing.assert_array_equal(tokens[start : start + 8], np.arange(start, start + 8))
    assert [start // 2 for start, _ in fetched.ranges] == [0, 8, 16, 0]


def test_a_store_behind_a_file_url_is_mapped_like_any_here(tmp_path: Path) -> None:
    write_store(Place(tmp_path))
    tokens = TokenStore.open(f"file://{tmp_path}").split("train")
    assert isinstance(tokens, np.memmap)
    np.testing.assert_array_equal(tokens, TOKENS["train"])


def test_an_id_beyond_the_vocabulary_is_found_when_it_is_fetched(url: str) -> None:
    damaged = TOKENS["train"].copy()
    damaged[20] = 1000
    (Place(url) / "train.bin").write(damaged.tobytes())
    tokens = TokenStore.open(url).split("train")
    assert tokens[:20].tolist() == list(range(20))
    with pytest.raises(DataError, match=r"memory://stores/numbers/train\.bin: holds token id 1000, beyond"):
        tokens[16:24]


def test_the_checksums_of_a_store_behind_a_url_are_compared_when_asked_for(url: str) -> None:
    TokenStore.open(url).verify()
    (Place(url) / "train.bin").write(TOKENS["train"][::-1].tobytes())
    with pytest.raises(DataError, match=r"memory://stores/numbers/train\.bin: damaged: sha256 is"):
        TokenStore.open(url).verify()


def test_a_store_whose_length_is_wrong_is_refused_at_opening(url: str) -> None:
    (Place(url) / "train.bin").write(b"12")
    with pytest.raises(DataError, match=r"memory://stores/numbers/train\.bin: has 2 bytes, 321 tokens take 642"):
        TokenStore.open(url)


def test_a_store_that_shrinks_while_it_is_in_use_is_noticed(url: str) -> None:
    tokens = TokenStore.open(url).split("train")
    (Place(url) / "train.bin").write(b"12")
    with pytest.raises(DataError, match="ends before token 17: it was changed while it was in use"):
        tokens[8:17]


@pytest.mark.parametrize("where", ["memory://nowhere", "file:///nowhere/at/all"])
def test_a_store_that_is_not_there_is_named(where: str) -> None:
    with pytest.raises(DataError, match=f"token store {where}: there is no such directory; `gpt prepare` makes one"):
        TokenStore.open(where)


@pytest.mark.parametrize(("where", "package", "extra"), [("gs://b/s", "gcsfs", "gcs"), ("s3://b/s", "s3fs", "s3")])
def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    where: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=re.escape(f"needs the package {package}: `pip install {package}`")) as caught:
        TokenStore.open(where)
    assert f"`pip install '.[{extra}]'`" in str(caught.value)


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(DataError, match="gopher://x: gopher:// is not known"):
        TokenStore.open("gopher://x")


def test_what_a_driver_raises_says_that_the_store_cannot_be_reached(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenStore.open(url).split("train")

    def unreachable(*_: Any, **__: Any) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", unreachable)
    monkeypatch.setattr(MemoryFileSystem, "_open", unreachable)
    message = r"cannot be read: RuntimeError: no route to host"
    with pytest.raises(DataError, match=message + "; when it can, the same command continues"):
        tokens[:8]
    with pytest.raises(DataError, match=rf"memory://stores/numbers/index\.json: {message}"):
        TokenStore.open(url)
