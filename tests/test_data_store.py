import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.data.store import SplitIndex, StoreIndex, TokenStore, token_dtype
from gpt.errors import DataError
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

TOKENS = np.array([5, 6, 9, 7, 9], dtype="<u2")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of one split, with a vocabulary of ten ids."""
    return write_store(tmp_path / "store", TOKENS, vocab_size=10)


def write_store(directory: Path, tokens: np.ndarray, vocab_size: int, tokenizer_sha256: str = "0" * 64) -> Path:
    directory.mkdir()
    tokens.tofile(directory / "train.bin")
    split = SplitIndex("train.bin", len(tokens), 2, hashlib.sha256(tokens.tobytes()).hexdigest())
    index = StoreIndex(tokenizer_sha256, vocab_size, vocab_size - 1, "1" * 64, {"train": split})
    (directory / "index.json").write_text(index.to_json())
    return directory


def test_the_dtype_is_the_smallest_that_holds_every_id() -> None:
    assert token_dtype(40_478) == token_dtype(65_536) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")


def test_a_split_comes_back_as_a_read_only_map_of_its_ids(store: Path) -> None:
    tokens = TokenStore.open(store).split("train")
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable
    np.testing.assert_array_equal(tokens, TOKENS)


def test_a_vocabulary_beyond_16_bits_is_stored_in_32(tmp_path: Path) -> None:
    tokens = np.array([1, 70_000], dtype="<u4")
    directory = write_store(tmp_path / "store", tokens, vocab_size=70_001)
    np.testing.assert_array_equal(TokenStore.open(directory).split("train"), tokens)


def test_an_unknown_split_lists_those_there_are(store: Path) -> None:
    with pytest.raises(DataError, match="no split 'test'; there are: train"):
        TokenStore.open(store).split("test")


def test_the_tokenizer_it_was_prepared_with_opens_it_and_another_does_not(tmp_path: Path) -> None:
    tokenizer: Tokenizer = train_bpe(["ab ab"], 7)
    write_store(tmp_path / "a", TOKENS, 10, tokenizer.sha256)
    write_store(tmp_path / "b", TOKENS, 10)
    assert TokenStore.open(tmp_path / "a", tokenizer).index.vocab_size == 10
    with pytest.raises(DataError, match="prepared with another tokenizer"):
        TokenStore.open(tmp_path / "b", tokenizer)


def test_a_missing_store_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such directory; `gpt prepare` makes one"):
        TokenStore.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"there is no index\.json in it"):
        TokenStore.open(tmp_path)


def test_a_truncated_split_says_how_many_bytes_there_should_be(store: Path) -> None:
    (store / "train.bin").write_bytes(TOKENS.tobytes()[:-1])
    with pytest.raises(DataError, match=r"train\.bin: has 9 bytes, 5 tokens take 10"):
        TokenStore.open(store)


def test_a_missing_split_file_is_named(store: Path) -> None:
    (store / "train.bin").unlink()
    with pytest.raises(DataError, match=r"train\.bin: missing from the token store"):
        TokenStore.open(store)


def test_an_id_beyond_the_vocabulary_is_found_at_opening(tmp_path: Path) -> None:
    tokens = np.array([1, 10, 2], dtype="<u2")
    with pytest.raises(DataError, match="holds token id 10, beyond the vocabulary of 10"):
        TokenStore.open(write_store(tmp_path / "store", tokens, vocab_size=10))


def test_verify_accepts_what_was_written_and_finds_a_changed_id(store: Path) -> None:
    TokenStore.open(store).verify()
    np.array([5, 6, 9, 8, 9], dtype="<u2").tofile(store / "train.bin")
    with pytest.raises(DataError, match=r"train\.bin: damaged: sha256 is"):
        TokenStore.open(store).verify()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not UTF-8 text"),
        (b"[]", "the index is .*, expected an object"),
        (b"{}", "the index has the keys .*, expected"),
    ],
)
def test_an_index_that_is_no_index_is_refused(store: Path, content: bytes, message: str) -> None:
    (store / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        TokenStore.open(store)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format_version"], 2, "format_version is 2, expected 1"),
        (["format_version"], True, "format_version is True, expected 1"),
        (["dtype"], "uint32", "dtype is 'uint32', expected uint16"),
        (["dtype"], ["uint16"], "dtype is"),
        (["vocab_size"], 0, "vocab_size is 0, expected an integer of at least 1"),
        (["vocab_size"], "10", "vocab_size is '10'"),
        (["vocab_size"], 1e400, "vocab_size is inf"),
        (["separator_id"], 10, "separator_id is 10, expected below vocab_size"),
        (["tokenizer_sha256"], "abc", "tokenizer_sha256 is 'abc', expected 64 hexadecimal digits"),
        (["recipe_sha256"], None, "recipe_sha256 is None"),
        (["extra"], 1, "the index has the keys"),
        (["splits"], {}, "splits is {}"),
        (["splits"], ["train"], "splits is"),
        (["splits", "../x"], {}, "name of a split is '../x'"),
        (["splits", "train"], None, "split 'train' is None, expected an object"),
        (["splits", "train", "file"], "../../etc/passwd", "file of split 'train' is '../../etc/passwd'"),
        (["splits", "train", "file"], "/etc/passwd", "file of split 'train' is '/etc/passwd'"),
        (["splits", "train", "tokens"], -1, "tokens is -1"),
        (["splits", "train", "tokens"], True, "tokens is True"),
        (["splits", "train", "tokens"], 10**15, "has 10 bytes, 1,000,"),
        (["splits", "train", "documents"], 0, "documents is 0"),
        (["splits", "train", "sha256"], "0", "sha256 is '0'"),
    ],
)
def test_a_hostile_index_is_refused_with_the_name_of_the_entry(
    store: Path, path: list[str], value: Any, message: str
) -> None:
    tree = json.loads((store / "index.json").read_text())
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (store / "index.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        TokenStore.open(store)
