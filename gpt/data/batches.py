"""Batches as pure functions of (seed, step): `dataset[step]` is the batch of that update, on any host, at any time."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from gpt.errors import DataError

Array = Any
"""A NumPy array on the host; a JAX array inside a compiled step."""


class TextBatch(NamedTuple):
    """Windows of running text. `weights` is 0 on targets that do not count (padding of the last batch)."""

    tokens: Array  # int32 [B, T + 1]: inputs are [:, :-1], targets [:, 1:]
    weights: Array  # float32 [B, T]


class TaskBatch(NamedTuple):
    """Labelled examples of C sequences each, right-padded with token 0."""

    tokens: Array  # int32 [B, C, T]
    weights: Array  # float32 [B, C, T]: 1 on real tokens, specials included
    extract: Array  # int32 [B, C]: position of the extract token
    labels: Array  # int32 [B], or float32 [B, N] for tasks whose labels are numbers
    example_weights: Array  # float32 [B]: 0 on padding of the last batch


class TaskExamples(NamedTuple):
    """A split of a task as token ids: `sequences[n]` are the C sequences of example n."""

    sequences: Sequence[Sequence[Sequence[int] | np.ndarray]]
    labels: np.ndarray  # int32 [N], or float32 [N, outputs]

    def lengths(self) -> np.ndarray:
        """Longest sequence of each example, in tokens."""
        return np.array([max(map(len, sequences)) for sequences in self.sequences])

    def num_sequences(self) -> int:
        """Most sequences of any example: what C of its batches is."""
        return max(map(len, self.sequences))


def length_buckets(context_length: int) -> tuple[int, ...]:
    """The padded lengths in use, doubling from 16: few, because each is a compiled program of its own."""
    buckets = [16]
    while buckets[-1] < context_length:
        buckets.append(2 * buckets[-1])
    return (*buckets[:-1], context_length)


def padded_length(length: int, context_length: int) -> int:
    """The shortest of the padded lengths in use that `length` tokens fit into."""
    return next(bucket for bucket in length_buckets(context_length) if bucket >= length)


def finetuning_batches(
    examples: TaskExamples,
    context_length: int,
    batch_size: int,
    num_epochs: int,
    seed: int,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset:
    """Batches of all epochs, reshuffled in each; `rows` are those of each that are built, None all of them.

    The shape of each batch depends on the step alone: of every seed, batch k is padded to the same
    bucket, so that runs that differ in the seed are one program (`training/population.py`). Which
    examples fill it depends on the seed. Examples of a bucket share a batch; those that fill none
    join the next larger bucket. N mod B examples are left out of an epoch, as in OpenAI's code.

    Raises:
      DataError: fewer examples than one batch takes.
    """
    num_sequences = examples.num_sequences()
    rows = range(batch_size) if rows is None else rows

    def collate(group: np.ndarray) -> TaskBatch:
        return _collate(examples, group, rows, num_sequences, context_length)

    return finetuning_groups(examples, context_length, batch_size, num_epochs, seed).map(collate)


def finetuning_groups(
    examples: TaskExamples, context_length: int, batch_size: int, num_epochs: int, seed: int
) -> grain.MapDataset:
    """The numbers of the examples in each batch of `finetuning_batches`, an array of [B]; raises as they do."""
    lengths = examples.lengths()
    steps = len(lengths) // batch_size
    if steps == 0:
        raise DataError(
            f"the training split has {len(lengths)} examples, fewer than RunConfig.batch_size = {batch_size}: lower it"
        )
    bucket_of = np.searchsorted(length_buckets(context_length), lengths)
    epoch_order = functools.lru_cache(maxsize=2)(functools.partial(_epoch_order, bucket_of, batch_size, seed))

    def group_of(step: int) -> np.ndarray:
        epoch, place = divmod(step, steps)
        return epoch_order(epoch)[place]

    return grain.MapDataset.range(steps * num_epochs).map(group_of)


@dataclasses.dataclass(frozen=True)
class BuiltBatches(Sequence[Any]):
    """Batches that are built when they are asked for, so that no copy of the data is held."""

    batch_of: Callable[[int], Any]
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.batch_of(index)


def held_out_order(examples: TaskExamples, batch_size: int, max_batches: int | None) -> np.ndarray:
    """Example numbers in the order in which they are judged: by length, of the first ones when batches are limited."""
    order = np.argsort(examples.lengths(), kind="stable")
    # A slice by length would be a biased sample: take the first examples of the split instead.
    return order if max_batches is None else order[order < max_batches * batch_size]


def held_out_task_batches(
    examples: TaskExamples,
    order: np.ndarray,
    context_length: int,
    batch_size: int,
    rows: Sequence[int] | None = None,
) -> Sequence[TaskBatch]:
    """The examples of `order`, once each and in this order; rows that fill the last batch have weight 0.

    `rows` are those of each batch that are built, None all of them.
    """
    num_sequences = examples.num_sequences()
    rows = range(batch_size) if rows is None else rows

    def batch_of(number: int) -> TaskBatch:
        group = order[number * batch_size : (number + 1) * batch_size]
        return _collate(examples, group, rows, num_sequences, context_length)

    return BuiltBatches(batch_of, math.ceil(len(order) / batch_size))


def _epoch_order(bucket_of: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Example numbers of each batch, [steps, B]."""
    # `plan` decides what seeds have in common: how many examples of each bucket are left out, and the
    # order of the buckets over the epoch. `draw` decides which examples these are.
    plan, draw = np.random.default_rng(epoch), np.random.default_rng((seed, epoch))
    members = [np.flatnonzero(bucket_of == bucket) for bucket in np.unique(bucket_of)]
    num_left_out = plan.multivariate_hypergeometric([len(rows) for rows in members], len(bucket_of) % batch_size)
    batches, waiting = [], np.zeros(0, np.int64)
    for rows, left_out in zip(members, num_left_out, strict=True):
        # Those that wait come first, fewer than a batch: so each batch has an example of its own bucket.
        rows = np.concatenate([waiting, draw.permutation(rows)[left_out:]])
        end = len(rows) // batch_size * batch_size
        batches.append(rows[:end].reshape(-1, batch_size))
        waiting = rows[end:]
    return plan.permutation(np.concatenate(batches))


def _collate(
    examples: TaskExamples, group: np.ndarray, rows: Sequence[int], num_sequences: int, context_length: int
) -> TaskBatch:
    """These rows of the batch of a group of examples; rows behind its last example are padding."""
    longest = max(len(ids) for number in group for ids in examples.sequences[number])
    shape = (len(rows), num_sequences, padded_length(longest, context_length))
    batch = TaskBatch(
        tokens=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
        extract=np.zeros(shape[:2], np.int32),
        labels=np.zeros((len(rows), *examples.labels.shape[1:]), examples.labels.dtype),
        example_weights=np.zeros(len(rows), np.float32),
    )
    for place, row in enumerate(rows):
        if row >= len(group):
            continue
        batch.labels[place] = examples.labels[group[row]]
        batch.example_weights[place] = 1
        for candidate, ids in enumerate(examples.sequences[group[row]]):
            batch.tokens[place, candidate, : len(ids)] = ids
            batch.weights[place, candidate, : len(ids)] = 1
            batch.extract[place, candidate] = len(ids) - 1
    return batch
