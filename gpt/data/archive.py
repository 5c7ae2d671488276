"""`gpt pack`: a token store in one file, and back. `gpt.data.archive_format` says what the file is."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from gpt.data import archive_format
from gpt.data.archive_format import Coding, Damaged, blocks, exactly, frame_of, read_frame
from gpt.data.sources import TRAIN
from gpt.data.store import INDEX_NAME, SplitIndex, StoreIndex, Tokens, TokenStore, token_dtype
from gpt.errors import ConfigError, DataError
from gpt.files import appearing, is_url, replacing, sync
from gpt.reading import require_file

MAX_RATIO = 1000
"""Bytes of a store for each of its file, beyond which a file is refused: text packs to a half or a third."""

MAX_VOCAB_SIZE = 1 << 22
"""Of a store that can be packed."""

_MAGIC = b"gptpack1"
_LENGTH = struct.Struct("<I")
_MAX_INDEX_BYTES = 1 << 20
_CUTS_TRIED = 8

Report = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Packed:
    """What `pack` wrote or `unpack` read: the index of the store, and what was left out of its train split."""

    index: StoreIndex
    bytes: int  # of the file
    seconds: float
    tokens_left_out: int = 0
    documents_left_out: int = 0


def pack(source: str, target: str, report: Report, max_mib: float | None = None) -> Packed:
    """Write the token store `source`, a path or URL, into the file `target`, which must not exist.

    With `max_mib` the file has at most so many MiB: all other splits, and of train the first documents, as many as fit.
    Its index then counts those, and its recipe is another one.

    Raises DataError when the store is damaged or cannot be packed, ConfigError when not even one document fits.
    """
    started = time.perf_counter()
    path = _check_target(target)
    if max_mib is not None and not 0 < max_mib < 1 << 30:
        raise ConfigError(f"--max_mib {max_mib:g}: must be above 0 and below 2^30")
    store = TokenStore.open(source)
    store.verify()
    if store.index.vocab_size > MAX_VOCAB_SIZE:
        raise DataError(f"{source}: a vocabulary of more than {MAX_VOCAB_SIZE:,} ids cannot be packed")
    with _writing(path), replacing(path, "wb") as file:
        index = _write(file, store, max_mib, report)
        size = file.seek(0, os.SEEK_END)
        if _bytes_of(index) > MAX_RATIO * size:
            raise DataError(f"{source}: packs to less than 1/{MAX_RATIO}, which `gpt pack --unpack` would refuse")
    tokens, documents = (
        sum(getattr(split, what) for split in store.index.splits.values())
        - sum(getattr(split, what) for split in index.splits.values())
        for what in ("tokens", "documents")
    )
    return Packed(index, size, time.perf_counter() - started, tokens, documents)


def unpack(source: str, target: str, report: Report) -> Packed:
    """Make the token store `target`, which must not exist, of a file that `pack` wrote.

    It appears when it is complete and has the checksums of its index.

    Raises DataError when the file is damaged, claims to unpack to more than MAX_RATIO times its size, or to more than
    the disk has room for.
    """
    started = time.perf_counter()
    path = _check_target(target)
    with contextlib.ExitStack() as stack:
        try:
            require_file(Path(source))
            file = stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise DataError(f"{source}: cannot be read: {error.strerror or error}") from None
        stack.enter_context(_writing(path))
        try:
            index = _read(file, stack.enter_context(appearing(path)), report)
        except Damaged as error:
            raise DataError(f"{source}: is no whole packed token store: {error}; copy or pack it again") from None
        return Packed(index, file.tell(), time.perf_counter() - started)


def _write(file: IO[bytes], store: TokenStore, max_mib: float | None, report: Report) -> StoreIndex:
    index, codes = store.index, Coding.of(store)
    header = index.to_json().encode()
    file.write(_MAGIC + _LENGTH.pack(len(header)) + header)
    file.write(frame_of(codes.ids.tobytes()))
    done, total = 0, _bytes_of(index)
    for name in _order(index):
        tokens, frames = store.split(name), []
        for start in range(0, len(tokens), archive_format.FRAME_TOKENS):
            offset = file.tell()
            part = tokens[start : start + archive_format.FRAME_TOKENS]
            frames.append((start, offset, file.write(frame_of(codes.encode(part)))))
            done += part.nbytes
            report(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB packed to {file.tell() / 1e6:.1f} MB")
            if max_mib is not None and file.tell() > max_mib * (1 << 20):
                report(f"more than {max_mib:g} MiB: looking for the last document that fits")
                index = _cut(file, store, name, frames, max_mib, codes)
                # Counts can only have become shorter.
                file.seek(len(_MAGIC) + _LENGTH.size)
                file.write(index.to_json().encode().ljust(len(header)))
                return index
    return index


def _cut(
    file: IO[bytes], store: TokenStore, name: str, frames: list[tuple[int, int, int]], max_mib: float, codes: Coding
) -> StoreIndex:
    """Shortens the train split in the file to the documents for which there is room; the index of what is left.

    Of each of its `frames`: the first token, and where it lies in the file, and how long it is.
    """
    index, tokens = store.index, store.split(name)
    if name != TRAIN:
        raise ConfigError(f"--max_mib {max_mib:g}: too few for the split {name!r}, of which nothing is left out")
    separators = sum(int(np.count_nonzero(block == index.separator_id)) for block in blocks(tokens))
    if separators != index.splits[TRAIN].documents:
        raise DataError(
            f"--max_mib {max_mib:g}: token store {store.directory} does not fit, and does not tell where its documents "
            "end, because line breaks have the same id (the original route); pack all of it, or prepare fewer files"
        )
    for start, offset, size in reversed(frames):
        part = tokens[start : start + archive_format.FRAME_TOKENS]
        ends = np.flatnonzero(part == index.separator_id) + 1
        kept, frame = _fitting(part, size, ends, int(max_mib * (1 << 20)) - offset, codes)
        if kept:
            file.seek(offset)
            file.truncate()
            file.write(frame)
            return _index_of_cut(index, tokens, start + int(ends[kept - 1]))
    raise ConfigError(f"--max_mib {max_mib:g}: too few for the first document of {TRAIN!r}")


def _fitting(tokens: np.ndarray, size: int, ends: np.ndarray, room: int, codes: Coding) -> tuple[int, bytes]:
    """How many of the documents fit into a frame that takes `room`, and the frame; all tokens take one of `size`."""
    low, high = 0, len(ends) + 1  # so many fit, and so many do not
    fitting = b""
    low_end, high_end, high_size = 0, len(tokens), size
    for _ in range(_CUTS_TRIED):  # each a compression, and each nearer: what is left after them is little
        if high - low < 2:
            break
        share = (room - len(fitting)) / max(high_size - len(fitting), 1)
        guess = int(np.searchsorted(ends, low_end + (high_end - low_end) * share, side="right"))
        middle = min(max(guess, low + 1), high - 1)
        frame = frame_of(codes.encode(tokens[: ends[middle - 1]]))
        if len(frame) <= room:
            low, low_end, fitting = middle, int(ends[middle - 1]), frame
        else:
            high, high_end, high_size = middle, int(ends[middle - 1]), len(frame)
    return low, fitting


def _index_of_cut(index: StoreIndex, tokens: Tokens, end: int) -> StoreIndex:
    digest, documents = hashlib.sha256(), 0
    for block in blocks(tokens, end):
        digest.update(block.tobytes())
        documents += int(np.count_nonzero(block == index.separator_id))
    # Not the recipe of all of it, by which `gpt prepare` would take the store for its own work.
    recipe = hashlib.sha256(f"{index.recipe_sha256} {documents}".encode()).hexdigest()
    cut = SplitIndex(index.splits[TRAIN].file, end, documents, digest.hexdigest())
    return dataclasses.replace(index, recipe_sha256=recipe, splits={**index.splits, TRAIN: cut})


def _read(file: IO[bytes], directory: Path, report: Report) -> StoreIndex:
    size = os.fstat(file.fileno()).st_size
    if file.read(len(_MAGIC)) != _MAGIC:
        raise Damaged(f"it does not begin with {_MAGIC!r}")
    (length,) = _LENGTH.unpack(exactly(file, _LENGTH.size, _LENGTH.size))
    try:
        index = StoreIndex.from_json(exactly(file, length, _MAX_INDEX_BYTES).decode())
    except (DataError, UnicodeDecodeError) as error:
        raise Damaged(f"its index: {error}") from None
    total = _bytes_of(index)
    if index.vocab_size > MAX_VOCAB_SIZE or total > MAX_RATIO * size:
        raise Damaged(f"it claims {total:,} bytes of ids of {index.vocab_size:,}, and is {size:,} bytes long")
    if total > (free := shutil.disk_usage(directory).free):
        raise DataError(f"{directory.parent}: {free:,} bytes are free, and the token store takes {total:,}")
    dtype = token_dtype(index.vocab_size)
    ids = np.frombuffer(read_frame(file, index.vocab_size * dtype.itemsize, dtype.itemsize), dtype)
    if not len(ids) or ids.max() >= index.vocab_size:
        raise Damaged(f"its ids are not those of a vocabulary of {index.vocab_size:,}")
    codes, done = Coding(ids, dtype), 0
    for name in _order(index):
        split, digest = index.splits[name], hashlib.sha256()
        with (directory / split.file).open("wb") as output:
            for start in range(0, split.tokens, archive_format.FRAME_TOKENS):
                expected = min(archive_format.FRAME_TOKENS, split.tokens - start) * dtype.itemsize
                left = expected
                for block in codes.decode(read_frame(file, expected, 1)):
                    digest.update(block.tobytes())
                    left -= output.write(block.tobytes())
                if left:
                    raise Damaged(f"a frame of {name!r} holds another number of tokens than its index says")
                done += expected
                report(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB unpacked")
            sync(output)
        if digest.hexdigest() != split.sha256:
            raise Damaged(f"{split.file} has the sha256 {digest.hexdigest()}, the index says {split.sha256}")
    if file.read(1):
        raise Damaged("it goes on after its last token")
    (directory / INDEX_NAME).write_text(index.to_json())
    return index


def _order(index: StoreIndex) -> list[str]:
    """The splits as they follow in the file."""
    return sorted(index.splits, key=lambda name: name == TRAIN)


def _bytes_of(index: StoreIndex) -> int:
    return sum(split.tokens for split in index.splits.values()) * token_dtype(index.vocab_size).itemsize


def _check_target(target: str) -> Path:
    if is_url(target):
        raise ConfigError(f"{target}: is a URL; give a path on this machine, and copy the file from there")
    if os.path.lexists(target):
        raise DataError(f"{target}: exists already; choose another name, or remove it first")
    return Path(target)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Inside, the directory around `target` is there, and what cannot be written is a DataError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from None
