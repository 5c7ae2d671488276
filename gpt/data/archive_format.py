"""A token store in one file, to be carried where there is no network.

    8 bytes        b"gptpack1"
    uint32         length of the index, then the text of index.json
    a frame        the ids that occur, most frequent first
    frames         the tokens, 2^25 a frame: of all splits but train, then of train

A frame is two little-endian uint32, the length of its content and that of the zstd frame, which follows. Tokens are
written as their rank by frequency: the first ranks take a byte, all others two. That is where most of the gain lies:
zstd looks for repeated bytes, and finds none in ids whose halves mean nothing by themselves.
"""

import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa

from gpt.data.store import Tokens, TokenStore, token_dtype

FRAME_TOKENS = 1 << 25

_LENGTHS = struct.Struct("<II")
_BLOCK = 1 << 20  # tokens or bytes that are coded at once
_LEVEL = 22


class Damaged(Exception):
    """What is wrong with a packed file."""


class Coding:
    """Ids to bytes and back, by their ranks."""

    def __init__(self, ids: np.ndarray, dtype: np.dtype[Any]) -> None:
        """The ids that occur, most frequent first."""
        self.ids = ids.astype(dtype)
        # With s ranks of one byte, 256 - s first bytes are left for pairs: s + 256 (256 - s) ranks in all.
        self._singles = min(256, (65_536 - len(ids)) // 255) if dtype.itemsize == 2 else None

    @classmethod
    def of(cls, store: TokenStore) -> "Coding":
        """The coding for a store; reads all of it."""
        counts = np.zeros(store.index.vocab_size, np.int64)
        for name in store.index.splits:
            for block in blocks(store.split(name)):
                counts += np.bincount(block, minlength=len(counts))
        by_count = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        return cls(by_count, token_dtype(store.index.vocab_size))

    def encode(self, tokens: np.ndarray) -> bytes:
        """The content of a frame."""
        ranks_of = np.zeros(int(self.ids.max()) + 1, np.int32)
        ranks_of[self.ids] = np.arange(len(self.ids))
        return b"".join(self._encode_block(ranks_of[block]) for block in blocks(tokens))

    def _encode_block(self, ranks: np.ndarray) -> bytes:
        if self._singles is None:
            return ranks.astype("<u4").tobytes()
        paired = ranks >= self._singles
        rest = ranks - self._singles
        pairs = np.stack([np.where(paired, self._singles + (rest >> 8), ranks), rest & 255], axis=1)
        return pairs.astype(np.uint8)[np.stack([np.ones_like(paired), paired], axis=1)].tobytes()

    def decode(self, content: bytes) -> Iterator[np.ndarray]:
        """The ids of a frame, in blocks; raises Damaged for what `encode` would not write."""
        for ranks in self._ranks(np.frombuffer(content, np.uint8)):
            if ranks.max() >= len(self.ids):
                raise Damaged("a token has a rank that no id has")
            yield self.ids[ranks]

    def _ranks(self, content: np.ndarray) -> Iterator[np.ndarray]:
        if self._singles is None:
            if len(content) % 4:
                raise Damaged("a frame ends within a token")
            yield from blocks(content.view("<u4"))
            return
        start = 0
        while start < len(content):
            codes = content[start : start + _BLOCK]
            # A byte below `singles` ends a token wherever it stands, so of the bytes behind the last such one every
            # second is the first of a pair.
            positions = np.arange(len(codes), dtype=np.int32)
            ends = np.maximum.accumulate(np.where(codes < self._singles, positions, -1))
            first = (positions - np.concatenate([[-1], ends[:-1]])) % 2 == 1
            if first[-1] and codes[-1] >= self._singles:  # the second byte is in the next block
                codes, first = codes[:-1], first[:-1]
            if not len(codes):
                raise Damaged("a frame ends within a token")
            ranks = codes[first].astype(np.int32)
            paired = ranks >= self._singles
            ranks[paired] = self._singles + (ranks[paired] - self._singles) * 256 + codes[~first]
            yield ranks
            start += len(codes)


def frame_of(content: bytes) -> bytes:
    """A frame with this content."""
    packed = pa.Codec("zstd", compression_level=_LEVEL).compress(content, asbytes=True)
    return _LENGTHS.pack(len(content), len(packed)) + packed


def read_frame(file: IO[bytes], max_bytes: int, unit: int) -> bytes:
    """The content of a frame: whole units, and `max_bytes` at most."""
    length, packed = _LENGTHS.unpack(exactly(file, _LENGTHS.size, _LENGTHS.size))
    if not 0 < length <= max_bytes or length % unit:
        raise Damaged(f"a frame claims {length:,} bytes, expected 1 to {max_bytes:,}")
    # What zstd cannot make smaller it leaves as it is, with a few bytes more.
    content = exactly(file, packed, max_bytes + (max_bytes >> 7) + 1024)
    try:
        return pa.Codec("zstd").decompress(content, decompressed_size=length, asbytes=True)
    except OSError as error:
        raise Damaged(f"zstd: {error}") from None


def exactly(file: IO[bytes], length: int, max_bytes: int) -> bytes:
    """The next `length` bytes of the file; raises Damaged when there are fewer, or they are more than `max_bytes`."""
    if length > max_bytes:
        raise Damaged(f"{length:,} bytes are claimed, expected at most {max_bytes:,}")
    content = file.read(length)
    if len(content) != length:
        raise Damaged("it ends too early")
    return content


def blocks(tokens: Tokens, stop: int | None = None) -> Iterator[np.ndarray]:
    """The tokens, or those before `stop`, a few at a time."""
    stop = len(tokens) if stop is None else stop
    for start in range(0, stop, _BLOCK):
        yield tokens[start : min(start + _BLOCK, stop)]
