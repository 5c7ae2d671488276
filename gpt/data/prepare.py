"""Documents to a token store, in parallel, continuing where an interrupted run stopped.

Documents are cut into parts of a few megabytes. Each part is encoded by a worker process into a file of its own in
OUTPUT.partial, whose name holds the digest of its text; a part whose file is there is not encoded again. The files
are joined in order, and OUTPUT appears by a rename when it is complete.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from gpt.data.sources import TRAIN, VALIDATION, fingerprint, split_documents, text_bytes
from gpt.data.store import INDEX_NAME, SplitIndex, StoreIndex, TokenStore, token_dtype
from gpt.errors import ConfigError, DataError
from gpt.files import replacing, sync
from gpt.text.pieces import Piece
from gpt.text.tokenizer import Tokenizer

_PART_LENGTH = 1 << 22  # characters
_LINE_SECONDS = 10.0  # between progress lines when standard error is not a terminal


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What `prepare` did."""

    splits: dict[str, SplitIndex]
    already_prepared: bool
    megabytes: float  # of text encoded by this call; parts found in OUTPUT.partial do not count
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Part:
    split: str
    pieces: tuple[Piece, ...]
    continued: bool  # the last piece's text goes on in the next part of the split

    @property
    def documents(self) -> int:
        """Documents that end in the part."""
        return len(self.pieces) - self.continued


def prepare(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    output: str | os.PathLike[str],
    *,
    validation: Sequence[str] = (),
    validation_fraction: float = 0.01,
    text_field: str = "text",
    workers: int = 1,
) -> Preparation:
    """Write the token store `output`: all documents, each followed by the tokenizer's newline id.

    Held out are the files `validation`, or without them the documents whose digest falls into `validation_fraction`
    (at least one, none if it is 0). Raises DataError for input and output that cannot be used. Whatever ends the call
    before its time, the same call continues.
    """
    started = time.perf_counter()
    _check_settings(inputs, validation, validation_fraction, workers)
    _ = tokenizer.newline_id  # a vocabulary without it is refused here, and not after the work
    documents = split_documents(inputs, validation, validation_fraction, text_field)
    recipe = _recipe(inputs, validation, validation_fraction, text_field, tokenizer)
    output = Path(output)
    if os.path.lexists(output):
        return Preparation(_prepared_before(output, recipe).splits, True, 0.0, time.perf_counter() - started)
    partial = output.with_name(output.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _progress(text_bytes([*inputs, *validation])) as advance:
            parts, encoded = _encode_parts(_cut(documents, tokenizer), partial, tokenizer, workers, advance)
        index = _assemble(parts, partial, output, tokenizer, recipe)
    except OSError as error:
        raise DataError(f"--output {output}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.rmdir()  # when there is nothing in it to continue from
    return Preparation(index.splits, False, encoded / 1e6, time.perf_counter() - started)


def _check_settings(inputs: Sequence[str], validation: Sequence[str], fraction: float, workers: int) -> None:
    if not inputs:
        raise ConfigError("--input: give at least one file")
    if not 0 <= fraction < 1:
        raise ConfigError(f"--validation_fraction {fraction}: must be at least 0 and below 1")
    if workers < 1:
        raise ConfigError(f"--workers {workers}: must be at least 1")
    if both := {os.path.realpath(item) for item in inputs} & {os.path.realpath(item) for item in validation}:
        raise ConfigError(f"{min(both)}: is in both --input and --validation; held-out text must not be trained on")


def _recipe(
    inputs: Sequence[str], validation: Sequence[str], fraction: float, text_field: str, tokenizer: Tokenizer
) -> str:
    """The digest of everything that the store depends on."""
    content = {
        "inputs": [fingerprint(item) for item in inputs],
        "validation": [fingerprint(item) for item in validation] or fraction,
        "text_field": text_field,
        "tokenizer": tokenizer.sha256,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prepared_before(output: Path, recipe: str) -> StoreIndex:
    way_out = "choose another --output, or remove it first"
    try:
        index = TokenStore.open(output).index
    except DataError as error:
        raise DataError(f"--output {output}: exists already, and cannot be used ({error}); {way_out}") from None
    if index.recipe_sha256 != recipe:
        raise DataError(
            f"--output {output}: exists already, prepared from other text, settings or tokenizer; {way_out}"
        )
    return index


def _cut(documents: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[_Part]:
    pieces: dict[str, list[Piece]] = {TRAIN: [], VALIDATION: []}
    lengths = {TRAIN: 0, VALIDATION: 0}
    for split, document in documents:
        remaining = len(document)
        for piece in tokenizer.cut(document, _PART_LENGTH):
            pieces[split].append(piece)
            lengths[split] += len(piece.text)
            remaining -= len(piece.text)
            if lengths[split] >= _PART_LENGTH:
                yield _Part(split, tuple(pieces[split]), continued=remaining > 0)
                pieces[split], lengths[split] = [], 0
    for split, rest in pieces.items():
        if rest:
            yield _Part(split, tuple(rest), continued=False)


def _encode_parts(
    parts: Iterable[_Part], partial: Path, tokenizer: Tokenizer, workers: int, advance: Callable[[int], None]
) -> tuple[list[tuple[str, int, Path]], int]:
    """Split, documents and file of each part, in order, and how many bytes of text had to be encoded."""
    finished: list[tuple[str, int, Path]] = []
    encoded = 0
    pending: deque[tuple[Future[None] | None, int]] = deque()
    tokenizer_json = tokenizer.to_json()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        for number, part in enumerate(parts):
            path, size = partial / _part_name(number, part, tokenizer), _part_bytes(part)
            with _interrupts_kept_back():
                future = None if path.exists() else pool.submit(_encode_part, tokenizer_json, part, path)
            finished.append((part.split, part.documents, path))
            encoded += size if future else 0
            pending.append((future, size))
            if len(pending) > 2 * workers:  # memory holds no more text than this
                _finish(pending.popleft(), advance)
        while pending:
            _finish(pending.popleft(), advance)
    except BrokenProcessPool:
        raise DataError(
            f"--workers {workers}: a worker process died, perhaps for want of memory; try fewer, "
            "the same command continues"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return finished, encoded


def _finish(job: tuple[Future[None] | None, int], advance: Callable[[int], None]) -> None:
    future, size = job
    if future:
        future.result()
    advance(size)


def _part_name(number: int, part: _Part, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(f"{tokenizer.sha256} {part.continued}".encode())
    for piece in part.pieces:
        digest.update(hashlib.sha256(f"{piece.first} {piece.after_markup} {piece.text}".encode()).digest())
    return f"{part.split}-{number:06d}-{digest.hexdigest()}.bin"


def _part_bytes(part: _Part) -> int:
    return sum(len(piece.text.encode()) for piece in part.pieces)


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


def _encode_part(tokenizer_json: str, part: _Part, path: Path) -> None:
    tokenizer = _load_tokenizer(tokenizer_json)
    arrays = []
    for position, ids in enumerate(tokenizer.encode_pieces(part.pieces)):
        if not (part.continued and position == len(part.pieces) - 1):
            ids.append(tokenizer.newline_id)
        arrays.append(np.array(ids, dtype=token_dtype(tokenizer.vocab_size)))
    with replacing(path, "wb") as file:
        file.write(np.concatenate(arrays).tobytes())


def _assemble(
    parts: Sequence[tuple[str, int, Path]], partial: Path, output: Path, tokenizer: Tokenizer, recipe: str
) -> StoreIndex:
    """Join the parts into a token store that appears at `output` complete."""
    staging = partial / "store"
    staging.mkdir(exist_ok=True)
    splits = {}
    for split in sorted({split for split, _, _ in parts}):
        digest, size = hashlib.sha256(), 0
        with (staging / f"{split}.bin").open("wb") as file:
            for path in (path for part_split, _, path in parts if part_split == split):
                content = path.read_bytes()
                digest.update(content)
                size += file.write(content)
            sync(file)
        documents = sum(count for part_split, count, _ in parts if part_split == split)
        tokens = size // token_dtype(tokenizer.vocab_size).itemsize
        splits[split] = SplitIndex(f"{split}.bin", tokens, documents, digest.hexdigest())
    index = StoreIndex(tokenizer.sha256, tokenizer.vocab_size, tokenizer.newline_id, recipe, splits)
    with (staging / INDEX_NAME).open("w", encoding="utf-8") as file:
        file.write(index.to_json())
        sync(file)
    staging.rename(output)
    shutil.rmtree(partial)
    return index


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with each number of bytes done: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("prepare"), progress.BarColumn(), progress.DownloadColumn(),
            progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        )  # fmt: skip
        with progress.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("prepare", total=total)
            yield lambda size: bar.advance(task, size)
        return
    started = printed = time.perf_counter()
    done = 0

    def print_line(size: int) -> None:
        nonlocal done, printed
        done += size
        now = time.perf_counter()
        if now - printed >= _LINE_SECONDS:
            printed = now
            of_total = f" of {total / 1e6:.1f}" if total else ""
            speed = done / 1e6 / (now - started)
            print(f"prepare: {done / 1e6:.1f}{of_total} MB, {speed:.1f} MB/s", file=sys.stderr, flush=True)

    yield print_line
