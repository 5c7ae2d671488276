"""Batches as pure functions of (seed, step): `dataset[step]` is the batch of that update, on any host, at any time."""

import functools
from collections.abc import Sequence
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
    """Batches of all epochs, reshuffled in each; of each batch the `rows`, None all of them.

    The shape of each batch depends on the step alone: of every seed, batch k is padded to the same
    bucket, so that runs that differ in the seed are one program (`training/population.py`). Which
    examples fill it depends on the seed. Examples of a bucket share a batch; those that fill none
    join the next larger bucket. N mod B examples are left out of an epoch, as in OpenAI's code.

    Raises:
      DataError: fewer examples than one batch takes.
    """
    lengths = examples.lengths()
    steps = len(lengths) // batch_size
    if steps == 0:
        raise DataError(
            f"the training split has {len(lengths)} examples, fewer than RunConfig.batch_size = {batch_size}: lower it"
        )
    bucket_of = np.searchsorted(length_buckets(context_length), lengths)
    epoch_order = functools.lru_cache(maxsize=2)(functools.partial(_epoch_order, bucket_of, batch_size, seed))
    num_sequences = examples.num_sequences()

    def batch_of(step: int) -> TaskBatch:
        epoch, place = divmod(step, steps)
        batch = _collate(examples, epoch_order(epoch)[place], batch_size, num_sequences, context_length)
        return batch if rows is None else TaskBatch(*(leaf[rows] for leaf in batch))

    return grain.MapDataset.range(steps * num_epochs).map(batch_of)


def held_out_task_batches(
    examples: TaskExamples, context_length: int, batch_size: int, max_batches: int | None
) -> tuple[list[TaskBatch], np.ndarray]:
    """Every example once, by length, and the example number of each row, to restore the order.

    Rows that fill the last batch have weight 0 and come after the end of the numbers.
    """
    order = np.argsort(examples.lengths(), kind="stable")
    if max_batches is not None:
        # A slice by length would be a biased sample: take the first examples of the split instead.
        order = order[order < max_batches * batch_size]
    groups = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    num_sequences = examples.num_sequences()
    return [_collate(examples, rows, batch_size, num_sequences, context_length) for rows in groups], order


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
    examples: TaskExamples, rows: Sequence[int] | np.ndarray, batch_size: int, num_sequences: int, context_length: int
) -> TaskBatch:
    longest = max(len(ids) for row in rows for ids in examples.sequences[row])
    shape = (batch_size, num_sequences, padded_length(longest, context_length))
    batch = TaskBatch(
        tokens=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
        extract=np.zeros(shape[:2], np.int32),
        labels=np.zeros((batch_size, *examples.labels.shape[1:]), examples.labels.dtype),
        example_weights=np.zeros(batch_size, np.float32),
    )
    for place, row in enumerate(rows):
        batch.labels[place] = examples.labels[row]
        batch.example_weights[place] = 1
        for candidate, ids in enumerate(examples.sequences[row]):
            batch.tokens[place, candidate, : len(ids)] = ids
            batch.weights[place, candidate, : len(ids)] = 1
            batch.extract[place, candidate] = len(ids) - 1
    return batch
