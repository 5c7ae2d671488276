"""The examples of a batch in fewer rows, several sequences back to back in each: the same losses with less padding."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from gpt.data.batches import Array, TaskExamples, finetuning_groups, padded_length

ROW_COUNTS = 8
"""Numbers of rows in use for each padded length, at most: few, because each is a compiled program of its own."""


class PackedBatch(NamedTuple):
    """P packs of E labelled examples of C sequences each, which lie in the R rows of their pack.

    No sequence is cut, and a pack knows nothing of the others, so that devices and parts of a batch can take them.
    """

    tokens: Array  # int32 [P, R, T]
    sequences: Array  # int32 [P, R, T]: number of the sequence in its pack, from 1; 0 on padding
    positions: Array  # int32 [P, R, T]: counted from 0 in each sequence
    target_weights: Array  # float32 [P, R, T]: as `objectives.target_weights` has them
    extract: Array  # int32 [P, E, C]: place of the extract token, in the rows of its pack laid end to end
    is_sequence: Array  # float32 [P, E, C]: 0 on candidates that the example does not have
    labels: Array  # int32 [P, E], or float32 [P, E, N] for tasks whose labels are numbers

    @property
    def weights(self) -> Array:
        """True on real tokens, [P, R, T]."""
        return self.sequences > 0


def packed_batches(
    examples: TaskExamples,
    context_length: int,
    batch_size: int,
    num_epochs: int,
    seed: int,
    rows: Sequence[int] | None = None,
    *,
    pack_size: int,
) -> grain.MapDataset:
    """The batches of `finetuning_batches`, in packs of `pack_size` examples; `rows` are the packs that are built.

    Raises:
      DataError: fewer examples than one batch takes.
    """
    packs = range(batch_size // pack_size) if rows is None else rows
    num_sequences = examples.num_sequences()

    def pack(group: np.ndarray) -> PackedBatch:
        return _pack(examples, group.reshape(-1, pack_size), packs, num_sequences, context_length)

    return finetuning_groups(examples, context_length, batch_size, num_epochs, seed).map(pack)


def _pack(
    examples: TaskExamples, groups: np.ndarray, packs: Sequence[int], num_sequences: int, context_length: int
) -> PackedBatch:
    """These packs of a batch, of which `groups` are the numbers of the examples, [P, E]."""
    lengths = np.zeros((*groups.shape, num_sequences), np.int64)
    for place, example in np.ndenumerate(groups):
        own = [len(ids) for ids in examples.sequences[example]]
        lengths[place][: len(own)] = own
    starts, shape = _lay_out(lengths, context_length)
    in_rows, in_examples = (len(packs), *shape), (len(packs), *lengths.shape[1:])
    batch = PackedBatch(
        tokens=np.zeros(in_rows, np.int32),
        sequences=np.zeros(in_rows, np.int32),
        positions=np.zeros(in_rows, np.int32),
        target_weights=np.zeros(in_rows, np.float32),
        extract=np.zeros(in_examples, np.int32),
        is_sequence=(lengths[list(packs)] > 0).astype(np.float32),
        labels=examples.labels[groups[list(packs)]],
    )
    for place, pack in enumerate(packs):
        for example, candidate in np.argwhere(lengths[pack] > 0):
            ids, start = examples.sequences[groups[pack, example]][candidate], starts[pack, example, candidate]
            batch.extract[place, example, candidate] = start + len(ids) - 1
            row, first = divmod(start, shape[1])
            last = first + len(ids) - 1
            batch.tokens[place, row, first : last + 1] = ids
            batch.sequences[place, row, first : last + 1] = 1 + example * num_sequences + candidate
            batch.positions[place, row, first : last + 1] = np.arange(len(ids))
            # What follows the last token is another sequence.
            batch.target_weights[place, row, first:last] = 1 / max(len(ids) - 1, 1)
    return batch


def _lay_out(lengths: np.ndarray, context_length: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Where each sequence of each pack begins, [P, E, C], in R rows of T tokens laid end to end; and R and T.

    Rows are twice as long as one example a row would be padded, so that two of the longest fit. They are as many as
    the fullest pack needs, up to the next multiple of an eighth of what the longest sequences would need.
    """
    padded = padded_length(int(lengths.max()), context_length)
    row_length = min(2 * padded, context_length)
    starts, num_rows = zip(
        *(first_fit(of_pack, row_length) for of_pack in lengths.reshape(len(lengths), -1)), strict=True
    )
    most = math.ceil(lengths[0].size / (row_length // padded))
    unit = math.ceil(most / ROW_COUNTS)
    return np.reshape(starts, lengths.shape), (min(math.ceil(max(num_rows) / unit) * unit, most), row_length)


def first_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:
    """Where each sequence begins in rows laid end to end, and the number of rows: longest first, first with room."""
    starts = np.zeros(len(lengths), np.int64)
    filled: list[int] = []
    for number in np.argsort(-lengths, kind="stable"):
        length = int(lengths[number])
        row = next((row for row, end in enumerate(filled) if end + length <= row_length), len(filled))
        if row == len(filled):
            filled.append(0)
        starts[number] = row * row_length + filled[row]
        filled[row] += length
    return starts, len(filled)
