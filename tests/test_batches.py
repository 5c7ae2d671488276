"""Batches as functions of (seed, step): complete, reshuffled, weighted, the same in whatever order they are asked."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import grain
import numpy as np
import pytest

from gpt.data.batches import (
    TaskBatch,
    TaskExamples,
    TextBatch,
    finetuning_batches,
    held_out_order,
    held_out_task_batches,
    length_buckets,
)
from gpt.data.windows import Text, held_out_text_batches, pretraining_batches
from gpt.errors import DataError

LENGTH, BATCH, EPOCHS = 8, 4, 3
TOKENS = np.arange(1, 8 * 14 + 5, dtype=np.uint16)  # 14 windows and 3 tokens: 3 batches an epoch, 2 windows over


def examples(count: int, num_sequences: int = 1) -> TaskExamples:
    """Example n has label n; its sequences begin with n + 1 and have lengths from 3 to 60."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 61, (count, num_sequences))
    sequences = [[[n + 1] + [999] * (int(length) - 1) for length in row] for n, row in enumerate(lengths)]
    return TaskExamples(sequences, np.arange(count, dtype=np.int32))


def pretraining(seed: int = 0) -> Any:
    return pretraining_batches({"text": Text(TOKENS)}, LENGTH, BATCH, EPOCHS, seed)


def finetuning(seed: int = 0, count: int = 11) -> Any:
    return finetuning_batches(examples(count), 64, BATCH, EPOCHS, seed)


def window_starts(batches: Iterable[TextBatch]) -> list[int]:
    return [int(row[0]) for batch in batches for row in batch.tokens]


def labels_of(batches: Iterable[TaskBatch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def assert_equal(one: TextBatch | TaskBatch, other: TextBatch | TaskBatch) -> None:
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


# Pretraining


def test_windows_are_runs_of_text_whose_targets_never_overlap() -> None:
    batches = [pretraining()[step] for step in range(3)]
    for batch in batches:
        assert batch.tokens.shape == (BATCH, LENGTH + 1)
        assert batch.tokens.dtype == np.int32
        np.testing.assert_array_equal(batch.tokens, batch.tokens[:, :1] + np.arange(LENGTH + 1))
    targets = np.concatenate([batch.tokens[:, 1:].ravel() for batch in batches])
    assert len(np.unique(targets)) == targets.size


def test_each_target_of_a_pretraining_batch_counts_once() -> None:
    np.testing.assert_array_equal(pretraining()[0].weights, np.ones((BATCH, LENGTH), np.float32))


def test_an_epoch_holds_every_window_once_but_those_that_fill_no_batch() -> None:
    dataset = pretraining()
    assert len(dataset) == EPOCHS * 3
    for epoch in range(EPOCHS):
        starts = window_starts(dataset[step] for step in range(3 * epoch, 3 * epoch + 3))
        assert len(set(starts)) == 12
        assert set(starts) <= {1 + LENGTH * window for window in range(14)}


@pytest.mark.parametrize("dataset", [pretraining(), finetuning(count=43)], ids=["pretraining", "fine-tuning"])
def test_each_epoch_has_an_order_of_its_own(dataset: Any) -> None:
    steps = len(dataset) // EPOCHS
    orders = []
    for epoch in range(EPOCHS):
        batches = [dataset[step] for step in range(epoch * steps, (epoch + 1) * steps)]
        orders.append(window_starts(batches) if isinstance(batches[0], TextBatch) else labels_of(batches))
    assert len({tuple(order) for order in orders}) == EPOCHS
    assert all(order != sorted(order) for order in orders)


def test_windows_left_out_of_one_epoch_come_in_another() -> None:
    dataset: Any = pretraining_batches({"text": Text(TOKENS)}, LENGTH, BATCH, 20, 0)
    assert len(set(window_starts(dataset[step] for step in range(len(dataset))))) == 14


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_a_batch_depends_on_seed_and_step_and_not_on_the_order_of_access(make: Callable[..., Any]) -> None:
    forwards, backwards = make(), make()
    in_order = [forwards[step] for step in range(len(forwards))]
    for step in reversed(range(len(backwards))):
        assert_equal(backwards[step], in_order[step])
    assert_equal(make()[len(forwards) - 1], in_order[-1])
    other_seed = make(seed=1)
    assert any(not np.array_equal(other_seed[k].tokens, in_order[k].tokens) for k in range(len(forwards)))


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_reading_ahead_in_threads_from_the_middle_gives_the_same_batches(make: Callable[..., Any]) -> None:
    dataset = make()
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    rest = list(dataset.slice(slice(2, len(dataset))).to_iter_dataset(options))
    assert len(rest) == len(dataset) - 2
    for step, batch in enumerate(rest, 2):
        assert_equal(batch, dataset[step])


def test_text_for_less_than_one_batch_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"25 tokens, 3 windows .*context_length = 8; RunConfig\.batch_size = 4"):
        pretraining_batches({"text": Text(np.arange(25))}, LENGTH, BATCH, EPOCHS, 0)


# Held-out text


@pytest.mark.parametrize("size", [2, 3, LENGTH, LENGTH + 1, LENGTH + 2, 4 * LENGTH + 1, 4 * LENGTH + 2, len(TOKENS)])
def test_held_out_batches_predict_every_token_but_the_first_once(size: int) -> None:
    tokens = TOKENS[:size]
    batches = held_out_text_batches(tokens, LENGTH, BATCH, None)
    targets = [batch.tokens[:, 1:][batch.weights == 1] for batch in batches]
    assert np.concatenate(targets).tolist() == tokens[1:].tolist()
    for batch in batches:
        assert batch.tokens.shape == (BATCH, LENGTH + 1)
        np.testing.assert_array_equal(
            batch.tokens[:, :-1][batch.weights == 1] + 1, batch.tokens[:, 1:][batch.weights == 1]
        )
        assert set(np.unique(batch.weights)) <= {0, 1}


def test_the_number_of_held_out_batches_can_be_limited() -> None:
    whole = held_out_text_batches(TOKENS, LENGTH, BATCH, None)
    limited = held_out_text_batches(TOKENS, LENGTH, BATCH, 2)
    assert (len(whole), len(limited)) == (4, 2)
    for one, other in zip(limited, whole, strict=False):
        assert_equal(one, other)


def test_a_held_out_split_with_nothing_to_predict_is_refused() -> None:
    with pytest.raises(DataError, match="fewer than 2 tokens: nothing to predict"):
        held_out_text_batches(TOKENS[:1], LENGTH, BATCH, None)


# Fine-tuning


@pytest.mark.parametrize(
    ("context_length", "buckets"),
    [
        (8, (8,)),
        (16, (16,)),
        (17, (16, 17)),
        (64, (16, 32, 64)),
        (100, (16, 32, 64, 100)),
        (512, (16, 32, 64, 128, 256, 512)),
    ],
)
def test_buckets_double_from_16_up_to_the_context(context_length: int, buckets: tuple[int, ...]) -> None:
    assert length_buckets(context_length) == buckets


def test_an_epoch_holds_every_example_once_but_the_last_partial_batch() -> None:
    dataset = finetuning()
    assert len(dataset) == EPOCHS * 2
    for epoch in range(EPOCHS):
        labels = labels_of([dataset[2 * epoch], dataset[2 * epoch + 1]])
        assert max(Counter(labels).values()) == 1
        assert len(labels) == 8


def test_no_example_is_left_out_of_every_epoch() -> None:
    dataset: Any = finetuning_batches(examples(11), 64, BATCH, 20, 0)
    assert set(labels_of(dataset[step] for step in range(len(dataset)))) == set(range(11))


def test_a_batch_is_padded_to_the_next_bucket_of_its_longest_sequence() -> None:
    source = examples(400)
    dataset: Any = finetuning_batches(source, 64, BATCH, 1, 0)
    lengths = source.lengths()
    for step in range(len(dataset)):
        batch = dataset[step]
        longest = lengths[batch.labels].max()
        assert batch.tokens.shape[-1] == next(size for size in (16, 32, 64) if size >= longest)


def test_examples_of_a_bucket_share_a_batch_but_for_the_few_that_fill_none() -> None:
    source = examples(403)
    buckets = np.searchsorted((16, 32, 64), source.lengths())
    dataset: Any = finetuning_batches(source, 64, BATCH, 1, 0)
    mixed = [buckets[dataset[step].labels] for step in range(len(dataset)) if np.ptp(buckets[dataset[step].labels])]
    assert [rows.max() for rows in mixed] in ([], [1], [2], [1, 2], [2, 1])
    for rows in mixed:
        assert np.sum(rows < rows.max()) < BATCH


@pytest.mark.parametrize("count", [11, 43, 400])
def test_a_batch_has_the_same_shape_for_every_seed_and_other_examples(count: int) -> None:
    one, other = (finetuning(seed, count) for seed in (0, 1))
    shapes = [one[step].tokens.shape for step in range(len(one))]
    assert shapes == [other[step].tokens.shape for step in range(len(other))]
    assert len(set(shapes)) > 1
    for epoch in np.split(np.arange(len(one)), EPOCHS):
        assert labels_of(one[int(step)] for step in epoch) != labels_of(other[int(step)] for step in epoch)


def test_every_batch_has_room_for_as_many_candidates_as_any_example_has() -> None:
    source = TaskExamples([[[1]] * (3 if n == 5 else 2) for n in range(8)], np.arange(8, dtype=np.int32))
    dataset: Any = finetuning_batches(source, 16, BATCH, 1, 0)
    assert [dataset[step].tokens.shape for step in range(2)] == [(BATCH, 3, 16)] * 2


def test_rows_of_a_finetuning_batch_are_those_of_the_whole() -> None:
    whole: Any = finetuning()
    part: Any = finetuning_batches(examples(11), 64, BATCH, EPOCHS, 0, rows=[1, 3])
    assert len(part) == len(whole)
    for step in range(len(whole)):
        for one, other in zip(whole[step], part[step], strict=True):
            np.testing.assert_array_equal(one[[1, 3]], other)


def test_each_epoch_has_an_order_of_buckets_of_its_own() -> None:
    dataset: Any = finetuning_batches(examples(400), 64, BATCH, EPOCHS, 0)
    lengths = [dataset[step].tokens.shape[-1] for step in range(300)]
    assert len({tuple(lengths[epoch * 100 : epoch * 100 + 100]) for epoch in range(EPOCHS)}) == EPOCHS


def test_the_longest_examples_are_left_out_no_more_often_than_others() -> None:
    source = TaskExamples([[[1] * 5]] * 40 + [[[1] * 60]] * 3, np.arange(43, dtype=np.int32))
    dataset: Any = finetuning_batches(source, 64, BATCH, 100, 0)
    seen = Counter(labels_of(dataset[step] for step in range(len(dataset))))
    assert min(seen[label] for label in (40, 41, 42)) > 80  # 93 of 100 on average


def test_long_and_short_batches_are_mixed_within_an_epoch() -> None:
    source = examples(400)
    dataset: Any = finetuning_batches(source, 64, BATCH, 1, 0)
    longest = np.array([source.lengths()[dataset[step].labels].max() for step in range(len(dataset))])
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.3


def test_weights_mark_the_real_tokens_and_extract_the_last_of_them() -> None:
    source = examples(10, num_sequences=2)
    batch: Any = finetuning_batches(source, 64, BATCH, 1, 0)[0]
    for place, label in enumerate(batch.labels):
        for candidate, ids in enumerate(source.sequences[label]):
            length = len(ids)
            assert batch.tokens[place, candidate, :length].tolist() == ids
            assert not batch.tokens[place, candidate, length:].any()
            assert batch.weights[place, candidate].tolist() == [1] * length + [0] * (batch.tokens.shape[-1] - length)
            assert batch.extract[place, candidate] == length - 1
    assert batch.example_weights.tolist() == [1] * BATCH


def test_an_example_with_fewer_candidates_than_any_other_has_empty_ones_in_their_place() -> None:
    source = TaskExamples([[[1, 2], [1, 3]], [[1, 2], [1, 3], [1, 4]]], np.array([0, 2], np.int32))
    batches = held_out_task_batches(source, np.arange(2), 16, 1)
    assert [batch.weights.sum(-1).tolist() for batch in batches] == [[[2, 2, 0]], [[2, 2, 2]]]


def test_fewer_examples_than_one_batch_are_refused_with_the_setting() -> None:
    with pytest.raises(DataError, match=r"has 3 examples, fewer than RunConfig\.batch_size = 4: lower it"):
        finetuning_batches(examples(3), 64, BATCH, 1, 0)


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_held_out_examples_come_once_each_with_their_number(count: int) -> None:
    source = examples(count)
    order = held_out_order(source, BATCH, None)
    batches = held_out_task_batches(source, order, 64, BATCH)
    assert sorted(order) == list(range(count))
    assert labels_of(batches)[:count] == order.tolist()
    assert sum(batch.example_weights.sum() for batch in batches) == count
    for batch in batches:
        assert batch.tokens.shape[0] == BATCH
        assert batch.example_weights.tolist() == sorted(batch.example_weights, reverse=True)
        assert not batch.weights[batch.example_weights == 0].any()


def test_limited_held_out_batches_take_the_first_examples_and_not_the_shortest() -> None:
    order = held_out_order(examples(30), BATCH, 2)
    assert sorted(order) == list(range(8))
    assert len(held_out_task_batches(examples(30), order, 64, BATCH)) == 2


@pytest.mark.parametrize("rows", [[1, 3], [2]])
def test_rows_of_held_out_examples_are_those_of_the_whole(rows: list[int]) -> None:
    order = held_out_order(examples(11), BATCH, None)
    whole = held_out_task_batches(examples(11), order, 64, BATCH)
    part = held_out_task_batches(examples(11), order, 64, BATCH, rows=rows)
    assert len(whole) == len(part) == 3
    for batches in zip(whole, part, strict=True):
        for one, other in zip(*batches, strict=True):
            np.testing.assert_array_equal(one[rows], other)
