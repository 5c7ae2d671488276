"""Documents to a token store, in parallel, continuing where an interrupted run stopped.

Text is encoded in parts, which are kept in OUTPUT.partial, and these are joined in order into OUTPUT. Several commands,
each with a shard of the files, do the first together, and another one joins what they did.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from gpt.data.assemble import Recipe, assemble, find_store, partial_of
from gpt.data.parts import EncodedPart, cut, encode_parts
from gpt.data.place import Place
from gpt.data.shards import Record, Shard, read_records
from gpt.data.sources import expand, split_documents, text_bytes
from gpt.data.store import StoreIndex, token_dtype
from gpt.errors import ConfigError, DataError
from gpt.text.tokenizer import Tokenizer

_LINE_SECONDS = 10.0  # between progress lines when standard error is not a terminal


@dataclasses.dataclass(frozen=True)
class Count:
    """How much text a split holds."""

    tokens: int
    documents: int


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What `prepare` or `join` did. Splits of a shard are those of its own block."""

    splits: dict[str, Count]
    already_prepared: bool
    megabytes: float  # of text encoded by this call; parts found in OUTPUT.partial do not count
    seconds: float


def prepare(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    output: str | os.PathLike[str],
    *,
    validation: Sequence[str] = (),
    validation_fraction: float = 0.01,
    text_field: str = "text",
    workers: int = 1,
    shard: Shard | None = None,
) -> Preparation:
    """Write the token store `output`: all documents, in order, each followed by the tokenizer's newline id.

    Held out are the files `validation`, or without them the documents whose digest falls into `validation_fraction`
    (at least one, none if it is 0). With `shard`, only its block of the files is encoded, for `join`. Raises DataError
    for input and output that cannot be used. Whatever ends the call before its time, the same call continues.
    """
    started = time.perf_counter()
    _ = tokenizer.newline_id  # a vocabulary without it is refused here, and not after the work
    inputs, validation = expand(inputs), expand(validation)
    _check_settings(inputs, validation, validation_fraction, workers, shard)
    own_inputs, own_validation = (inputs, validation) if shard is None else map(shard.block, (inputs, validation))
    fraction = 0.0 if validation else validation_fraction
    documents = split_documents(own_inputs, own_validation, fraction, text_field)
    recipe = Recipe.of(own_inputs, own_validation, fraction, text_field, tokenizer)
    place = Place(output)
    directory = partial_of(place) if shard is None else shard.directory(partial_of(place))
    found = _find(place, recipe) if shard is None else _find_shard(place, directory, inputs, validation, recipe)
    if found:
        return Preparation(found, True, 0.0, time.perf_counter() - started)
    with _writing(place, directory):
        with _progress(text_bytes([*own_inputs, *own_validation])) as advance:
            parts, encoded = encode_parts(cut(documents, tokenizer), directory, tokenizer, workers, advance)
        if shard is None:
            splits = _counts_of(assemble(parts, recipe, place))
        else:
            record = Record(inputs, validation, recipe, parts)
            record.write(directory)
            splits = _counts_of_shard(record)
    return Preparation(splits, False, encoded / 1e6, time.perf_counter() - started)


def join(output: str | os.PathLike[str], count: int) -> Preparation:
    """Join what `prepare` made of `count` shards into the token store `output`, equal to that of one call.

    Raises DataError unless all shards are finished and of the same files, settings and tokenizer.
    """
    started = time.perf_counter()
    if count < 1:
        raise ConfigError(f"--join {count}: must be at least 1, the n of --shard i/n")
    place = Place(output)
    partial = partial_of(place)
    if place.exists() and not partial.exists() and (index := find_store(place)):
        return Preparation(_counts_of(index), True, 0.0, time.perf_counter() - started)
    with _writing(place, partial):
        records = read_records(partial, count)
        recipe = dataclasses.replace(
            records[0].recipe,
            inputs=[item for record in records for item in record.recipe.inputs],
            validation=[item for record in records for item in record.recipe.validation],
        )
        index = find_store(place, recipe)
        if found := index is not None:  # and the parts of the shards were not removed
            partial.remove()
        else:
            directories = [Shard(number, count).directory(partial).name for number in range(1, count + 1)]
            parts = [
                dataclasses.replace(part, file=f"{directory}/{part.file}")
                for directory, record in zip(directories, records, strict=True)
                for part in record.parts
            ]
            index = assemble(parts, recipe, place)
    return Preparation(_counts_of(index), found, 0.0, time.perf_counter() - started)


def _check_settings(
    inputs: Sequence[str], validation: Sequence[str], fraction: float, workers: int, shard: Shard | None
) -> None:
    if not inputs:
        raise ConfigError("--input: give at least one file")
    if not 0 <= fraction < 1:
        raise ConfigError(f"--validation_fraction {fraction}: must be at least 0 and below 1")
    if workers < 1:
        raise ConfigError(f"--workers {workers}: must be at least 1")
    if both := {Place(item).real for item in inputs} & {Place(item).real for item in validation}:
        raise ConfigError(f"{min(both)}: is in both --input and --validation; held-out text must not be trained on")
    if shard is not None and shard.count > len(inputs):
        raise ConfigError(
            f"--shard {shard}: --input has only {len(inputs)} files, which are not divided: take at most "
            f"{len(inputs)} shards, or cut the files"
        )


def _find(output: Place, recipe: Recipe) -> dict[str, Count]:
    index = find_store(output, recipe)
    return {} if index is None else _counts_of(index)


def _find_shard(
    output: Place, directory: Place, inputs: list[str], validation: list[str], recipe: Recipe
) -> dict[str, Count]:
    if find_store(output):
        raise DataError(
            f"--output {output}: exists already, and a shard adds nothing to it; choose another --output, or remove it"
        )
    record = Record.read(directory)
    if record is None:
        return {}
    if (record.inputs, record.validation, record.recipe) != (inputs, validation, recipe):
        raise DataError(
            f"{directory}: is finished already, of other text, settings or tokenizer; remove it, or choose another "
            "--output"
        )
    return _counts_of_shard(record)


def _counts_of(index: StoreIndex) -> dict[str, Count]:
    return {name: Count(split.tokens, split.documents) for name, split in index.splits.items()}


def _counts_of_shard(record: Record) -> dict[str, Count]:
    width = token_dtype(record.recipe.vocab_size).itemsize
    splits: dict[str, list[EncodedPart]] = {}
    for part in record.parts:
        splits.setdefault(part.split, []).append(part)
    return {
        name: Count(sum(part.size for part in parts) // width, sum(part.documents for part in parts))
        for name, parts in splits.items()
    }


@contextlib.contextmanager
def _writing(output: Place, directory: Place) -> Iterator[None]:
    """Inside, the directory is there and what cannot be written is a DataError; an empty one is gone behind it."""
    try:
        directory.make_directory()
        yield
    except OSError as error:
        raise DataError(f"--output {output}: cannot be written: {error.strerror or error}") from None
    finally:
        for place in (directory, partial_of(output)):
            if place.local is not None:
                with contextlib.suppress(OSError):
                    place.local.rmdir()  # when there is nothing in it to continue from


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
