"""Documents to files of token ids, by several worker processes.

Documents are cut into parts of a few megabytes. Each is encoded into a file of its own, whose name holds the digest of
its text; a part whose file is there is not encoded again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from gpt.data.place import Place
from gpt.data.sources import TRAIN, VALIDATION, Document
from gpt.data.store import token_dtype
from gpt.errors import DataError
from gpt.text.pieces import Piece
from gpt.text.tokenizer import Tokenizer

_PART_LENGTH = 1 << 22  # characters


@dataclasses.dataclass(frozen=True)
class Part:
    """Text to be encoded into one file."""

    split: str
    pieces: tuple[Piece, ...]
    continued: bool  # the last piece's text goes on in the next part of the split
    draw: float | None = None  # of the one document that the part holds, or holds a piece of; see Document

    @property
    def documents(self) -> int:
        """Documents that end in the part."""
        return len(self.pieces) - self.continued

    @property
    def bytes(self) -> int:
        """Size of the text."""
        return sum(len(piece.text.encode()) for piece in self.pieces)

    def name(self, number: int, tokenizer: Tokenizer) -> str:
        """The name of its file, which no part of other text, or encoded otherwise, has."""
        digest = hashlib.sha256(f"{tokenizer.sha256} {self.continued}".encode())
        for piece in self.pieces:
            digest.update(hashlib.sha256(f"{piece.first} {piece.after_markup} {piece.text}".encode()).digest())
        return f"{self.split}-{number:06d}-{digest.hexdigest()}.bin"


@dataclasses.dataclass(frozen=True)
class EncodedPart:
    """The file of a part, by its name, and its bytes."""

    split: str
    documents: int
    draw: float | None
    file: str
    size: int


def cut(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Part]:
    """The text in parts: those of a split, one after the other, are its documents in order.

    A document with a draw has parts of its own, so that it can become part of the other split.
    """
    pieces: dict[str, list[Piece]] = {TRAIN: [], VALIDATION: []}
    lengths = {TRAIN: 0, VALIDATION: 0}
    for split, document, draw in documents:
        if draw is not None and pieces[split]:
            yield Part(split, tuple(pieces[split]), continued=False)
            pieces[split], lengths[split] = [], 0
        remaining = len(document)
        for piece in tokenizer.cut(document, _PART_LENGTH):
            pieces[split].append(piece)
            lengths[split] += len(piece.text)
            remaining -= len(piece.text)
            if lengths[split] >= _PART_LENGTH or (draw is not None and remaining == 0):
                yield Part(split, tuple(pieces[split]), remaining > 0, draw)
                pieces[split], lengths[split] = [], 0
    for split, rest in pieces.items():
        if rest:
            yield Part(split, tuple(rest), continued=False)


def encode_parts(
    parts: Iterable[Part], directory: Place, tokenizer: Tokenizer, workers: int, advance: Callable[[int], None]
) -> tuple[list[EncodedPart], int]:
    """All parts, in order, with their files in `directory`, and how many bytes of text had to be encoded."""
    encoded: list[EncodedPart] = []
    text_bytes = 0
    pending: deque[_Job] = deque()
    tokenizer_json = tokenizer.to_json()
    there = directory.sizes()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        for number, part in enumerate(parts):
            name = part.name(number, tokenizer)
            with _interrupts_kept_back():
                size = there.get(name) or pool.submit(_encode_part, tokenizer_json, part, directory / name)
            text_bytes += 0 if name in there else part.bytes
            pending.append(_Job(part, name, size))
            if len(pending) > 2 * workers:  # memory holds no more text than this
                encoded.append(_finish(pending.popleft(), advance))
        while pending:
            encoded.append(_finish(pending.popleft(), advance))
    except BrokenProcessPool:
        raise DataError(
            f"--workers {workers}: a worker process died, perhaps for want of memory; try fewer, "
            "the same command continues"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return encoded, text_bytes


class _Job(NamedTuple):
    part: Part
    file: str
    size: int | Future[int]


def _finish(job: _Job, advance: Callable[[int], None]) -> EncodedPart:
    part, file, size = job
    if isinstance(size, Future):
        size = size.result()
    advance(part.bytes)
    return EncodedPart(part.split, part.documents, part.draw, file, size)


@contextlib.contextmanager
def _interrupts_kept_back() -> Iterator[None]:
    """Processes started here never see Ctrl-C, which reaches the whole group, not even as they start up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a killed parent closes no queue: without this the worker would wait for ever


_load_tokenizer = functools.lru_cache(maxsize=1)(Tokenizer.from_json)


def _encode_part(tokenizer_json: str, part: Part, file: Place) -> int:
    """Writes the ids of the part; how many bytes they take."""
    tokenizer = _load_tokenizer(tokenizer_json)
    arrays = []
    for position, ids in enumerate(tokenizer.encode_pieces(part.pieces)):
        if not (part.continued and position == len(part.pieces) - 1):
            ids.append(tokenizer.newline_id)
        arrays.append(np.array(ids, dtype=token_dtype(tokenizer.vocab_size)))
    content = np.concatenate(arrays).tobytes()
    file.write(content)
    return len(content)
