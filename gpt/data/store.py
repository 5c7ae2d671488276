"""The token store: one memory-mapped array of token ids a split, and an index that says what they are.

    STORE/index.json       what is there, checked at every opening
    STORE/train.bin        little-endian uint16, uint32 when the vocabulary is larger than 65,536
    STORE/validation.bin

A split is its documents one after the other, each followed by the separator.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.data.place import Place
from gpt.data.remote import RemoteTokens
from gpt.errors import DataError
from gpt.reading import MAX_BYTES, parse_json
from gpt.text.tokenizer import Tokenizer

INDEX_NAME = "index.json"
FORMAT_VERSION = 1
_SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_TOKENS = 1 << 24

Tokens = np.ndarray | RemoteTokens


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of little-endian uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """What the index says of one split."""

    file: str
    tokens: int
    documents: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class StoreIndex:
    """The content of index.json."""

    tokenizer_sha256: str
    vocab_size: int
    separator_id: int
    recipe_sha256: str  # of inputs and settings, by which a repeated `gpt prepare` knows its own work
    splits: dict[str, SplitIndex]

    def to_json(self) -> str:
        """Text of index.json."""
        dtype = token_dtype(self.vocab_size).name
        return json.dumps({"format_version": FORMAT_VERSION, "dtype": dtype, **dataclasses.asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "StoreIndex":
        """The index in a text; raises DataError at whatever `to_json` would not write."""
        tree = parse_json(text)
        _check_keys(tree, "the index", {"format_version", "dtype", *(f.name for f in dataclasses.fields(cls))})
        version = tree["format_version"]
        _check(type(version) is int and version == FORMAT_VERSION, "format_version", version, FORMAT_VERSION)
        _check_count(tree, "vocab_size", at_least=1)
        _check(tree["vocab_size"] <= 1 << 32, "vocab_size", tree["vocab_size"], "at most 2^32")
        _check_count(tree, "separator_id", at_least=0)
        _check(tree["separator_id"] < tree["vocab_size"], "separator_id", tree["separator_id"], "below vocab_size")
        dtype = token_dtype(tree["vocab_size"]).name
        _check(tree["dtype"] == dtype, "dtype", tree["dtype"], f"{dtype} for vocab_size {tree['vocab_size']}")
        _check_digest(tree, "tokenizer_sha256")
        _check_digest(tree, "recipe_sha256")
        _check(isinstance(tree["splits"], dict) and tree["splits"] != {}, "splits", tree["splits"], "an object")
        splits = {name: _split_from_json(name, split) for name, split in tree["splits"].items()}
        fields = {key: value for key, value in tree.items() if key not in ("format_version", "dtype", "splits")}
        return cls(**fields, splits=splits)


class TokenStore:
    """A directory that `gpt prepare` wrote."""

    def __init__(self, directory: Place, index: StoreIndex) -> None:
        self.directory = directory
        self.index = index

    @classmethod
    def open(cls, directory: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> "TokenStore":
        """The store, after a look at the whole of it but its checksums; behind a URL, at index and lengths.

        Raises DataError when the index is damaged, a file is not as long as the index says, an id is beyond the
        vocabulary (behind a URL: when it is read), or the store was prepared with another tokenizer than the one given.
        """
        path = Place(directory)
        store = cls(path, _read_index(path))
        if tokenizer is not None and tokenizer.sha256 != store.index.tokenizer_sha256:
            raise DataError(
                f"token store {path}: was prepared with another tokenizer (sha256 "
                f"{store.index.tokenizer_sha256[:12]}..., given {tokenizer.sha256[:12]}...); pass the tokenizer it was "
                "prepared with, or run `gpt prepare` again"
            )
        for name in store.index.splits:
            store._check_split(name)
        return store

    def split(self, name: str) -> Any:
        """All token ids of a split, read only; each document ends with the separator.

        A memory map, or behind a URL an object whose slices are fetched when they are asked for.
        """
        if name not in self.index.splits:
            known = ", ".join(self.index.splits)
            raise DataError(f"token store {self.directory}: no split {name!r}; there are: {known}")
        place = self.directory / self.index.splits[name].file
        dtype = token_dtype(self.index.vocab_size)
        if place.local is None:
            return RemoteTokens(place, self.index.splits[name].tokens, dtype, self.index.vocab_size)
        return np.memmap(place.local, dtype=dtype, mode="r")

    def verify(self) -> None:
        """Raise DataError unless every file has the checksum of the index."""
        for split in self.index.splits.values():
            path = self.directory / split.file
            try:
                found = path.sha256()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
            if found != split.sha256:
                raise DataError(f"{path}: damaged: sha256 is {found}, the index says {split.sha256}")

    def _check_split(self, name: str) -> None:
        split = self.index.splits[name]
        path = self.directory / split.file
        expected = split.tokens * token_dtype(self.index.vocab_size).itemsize
        try:
            found = path.size()
        except (FileNotFoundError, IsADirectoryError):
            raise DataError(f"{path}: missing from the token store; run `gpt prepare` again") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        if found != expected:
            raise DataError(
                f"{path}: has {found:,} bytes, {split.tokens:,} tokens take {expected:,}; the token store is "
                "damaged: copy it again, or run `gpt prepare` again"
            )
        tokens = self.split(name)
        if isinstance(tokens, RemoteTokens):
            return  # its ids are looked at when they are fetched
        largest = max(int(tokens[i : i + _READ_TOKENS].max()) for i in range(0, len(tokens), _READ_TOKENS))
        if largest >= self.index.vocab_size:
            raise DataError(
                f"{path}: holds token id {largest}, beyond the vocabulary of {self.index.vocab_size}; the token "
                "store is damaged: run `gpt prepare` again"
            )


def read_windows(tokens: Tokens, starts: Sequence[int], length: int) -> list[np.ndarray]:
    """The ids from each start on, `length` of them or as many as there are."""
    if isinstance(tokens, RemoteTokens):
        return tokens.read([(start, start + length) for start in starts])
    return [tokens[start : start + length] for start in starts]


def _read_index(directory: Place) -> StoreIndex:
    path = directory / INDEX_NAME
    try:
        if (size := path.size()) > MAX_BYTES:
            raise DataError(f"is larger than {MAX_BYTES:,} bytes, and so no index")
        return StoreIndex.from_json(path.read(size).decode("utf-8"))
    except FileNotFoundError:
        problem = f"there is no {INDEX_NAME} in it" if directory.exists() else "there is no such directory"
        raise DataError(f"token store {directory}: {problem}; `gpt prepare` makes one") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _split_from_json(name: str, tree: object) -> SplitIndex:
    _check(_SPLIT_NAME.fullmatch(name) is not None, "name of a split", name, "lower-case letters")
    _check_keys(tree, f"split {name!r}", {field.name for field in dataclasses.fields(SplitIndex)})
    assert isinstance(tree, dict)
    _check(tree["file"] == f"{name}.bin", f"file of split {name!r}", tree["file"], f"{name}.bin")
    _check_count(tree, "tokens", at_least=1)
    _check_count(tree, "documents", at_least=1)
    _check_digest(tree, "sha256")
    return SplitIndex(**tree)


def _check_keys(tree: object, what: str, expected: set[str]) -> None:
    if not isinstance(tree, dict):
        raise DataError(f"{what} is {tree!r:.80}, expected an object")
    if tree.keys() != expected:
        raise DataError(f"{what} has the keys {sorted(tree)}, expected {sorted(expected)}")


def _check_count(tree: dict[str, Any], key: str, at_least: int) -> None:
    # `type` and not `isinstance`: true is an int, too
    _check(type(tree[key]) is int and tree[key] >= at_least, key, tree[key], f"an integer of at least {at_least}")


def _check_digest(tree: dict[str, Any], key: str) -> None:
    value = tree[key]
    _check(isinstance(value, str) and _SHA256.fullmatch(value) is not None, key, value, "64 hexadecimal digits")


def _check(holds: bool, key: str, found: object, expected: object) -> None:
    if not holds:
        raise DataError(f"{key} is {found!r:.80}, expected {expected}")
