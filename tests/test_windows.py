"""Which window is in which row: exact proportions, passes of each store, the same batch on any number of hosts."""

from collections import Counter
from typing import Any, ClassVar

import grain
import numpy as np
import pytest

from gpt.data.windows import Text, _shares, _turn, held_out_text_batches, passes, pretraining_batches, short_names
from gpt.errors import ConfigError, DataError

LENGTH, BATCH = 8, 4


def text(first: int, windows: int, weight: float = 1.0) -> Text:
    """Tokens that count up from `first`, so that a window is known by its first token."""
    return Text(np.arange(first, first + windows * LENGTH + 1, dtype=np.uint16), weight)


def mixture(num_epochs: int = 12, seed: int = 0, **arguments: Any) -> Any:
    """Three stores of 5, 11 and 6 windows, which start at 1,000, 2,000 and 3,000; 5 batches an epoch."""
    texts = {"a": text(1000, 5, 0.7), "b": text(2000, 11, 0.2), "c": text(3000, 6, 0.1)}
    return pretraining_batches(texts, LENGTH, BATCH, num_epochs, seed, **arguments)


def starts(dataset: Any, first: int, last: int) -> list[int]:
    return [int(row[0]) for step in range(first, last) for row in dataset[step].tokens]


def test_a_single_store_is_read_as_grain_shuffles_batches_and_repeats_it() -> None:
    tokens = np.arange(14 * LENGTH + 3, dtype=np.uint16)
    windows = np.stack([tokens[k * LENGTH : (k + 1) * LENGTH + 1] for k in range(14)])
    source: Any = windows
    of_grain: Any = grain.MapDataset.source(source).seed(7).shuffle().batch(BATCH, drop_remainder=True).repeat(5)
    ours: Any = pretraining_batches({"text": Text(tokens)}, LENGTH, BATCH, 5, 7)
    assert len(ours) == len(of_grain) == 15
    for step in range(15):
        np.testing.assert_array_equal(ours[step].tokens, of_grain[step])


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 2.0, 4.0), (0.1, 0.2, 0.3, 0.4), (1e-3, 1.0), (0.7, 0.2, 0.1)])
def test_no_stretch_is_more_than_a_few_windows_off_the_proportions(weights: tuple[float, ...]) -> None:
    shares = _shares(weights)
    counts = np.zeros(len(weights), int)
    for number in range(700):
        whose, place = _turn(number, shares)
        assert place == counts[whose]
        counts[whose] += 1
        expected = (number + 1) * np.array(weights) / sum(weights)
        assert np.abs(counts - expected).max() < len(weights)


def test_proportions_are_exact_after_a_million_windows() -> None:
    shares = _shares((0.7, 0.3))
    assert shares == [7, 3]
    turns = [_turn(number, shares) for number in range(1_000_000, 1_000_010)]
    assert [place for whose, place in turns if whose == 0] == list(range(700_000, 700_007))


def test_each_store_is_reshuffled_in_its_own_passes() -> None:
    dataset = mixture()
    rows = starts(dataset, 0, len(dataset))
    for first, count in ((1000, 5), (2000, 11), (3000, 6)):
        own = [row for row in rows if first <= row < first + 1000]
        whole = [own[k : k + count] for k in range(0, len(own) - count + 1, count)]
        assert all(sorted(window) == [first + LENGTH * k for k in range(count)] for window in whole)
        assert len(set(map(tuple, whole))) > 1


def test_an_epoch_of_a_mixture_is_as_many_batches_as_all_windows_fill() -> None:
    assert len(mixture(num_epochs=3)) == 3 * ((5 + 11 + 6) // BATCH)
    assert passes({"a": text(0, 5, 3.0), "b": text(0, 10, 1.0)}, LENGTH, 40) == {"a": 6.0, "b": 1.0}


def test_a_batch_of_a_mixture_depends_on_seed_and_step_alone() -> None:
    forwards, backwards = mixture(), mixture()
    last = len(forwards) - 1
    expected = [forwards[step].tokens for step in range(last + 1)]
    for step in reversed(range(last + 1)):
        np.testing.assert_array_equal(backwards[step].tokens, expected[step])
    assert starts(mixture(seed=1), 0, last) != starts(forwards, 0, last)


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_that_build_their_own_rows_have_the_batch_between_them(num_hosts: int) -> None:
    per_host = BATCH // num_hosts
    hosts = [mixture(rows=range(k * per_host, (k + 1) * per_host)) for k in range(num_hosts)]
    for step in (0, 5, 50):
        parts = [host[step] for host in hosts]
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), mixture()[step].tokens)
        assert all(part.weights.shape == (per_host, LENGTH) for part in parts)


class Counting(np.ndarray):
    """An array that counts the slices taken of it."""

    slices: ClassVar[Counter[tuple[int, int]]] = Counter()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            self.slices[index.start, index.stop] += 1
        return super().__getitem__(index)


def test_rows_of_other_hosts_are_not_read() -> None:
    Counting.slices.clear()
    tokens = np.arange(20 * LENGTH + 1).view(Counting)
    dataset: Any = pretraining_batches({"text": Text(tokens)}, LENGTH, BATCH, 1, 0, rows=[1, 3])
    batch = dataset[2]
    assert sorted(Counting.slices) == sorted((int(row[0]), int(row[0]) + LENGTH + 1) for row in batch.tokens)
    assert Counting.slices.total() == 2


@pytest.mark.parametrize("rows", [range(2), range(2, 4), [3, 0]])
def test_rows_of_held_out_batches_are_those_of_the_whole(rows: list[int]) -> None:
    tokens = np.arange(1, 9 * LENGTH + 4, dtype=np.uint16)
    whole = held_out_text_batches(tokens, LENGTH, BATCH, None)
    part = held_out_text_batches(tokens, LENGTH, BATCH, None, rows=rows)
    assert len(whole) == len(part) == 3
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one.tokens[rows], other.tokens)
        np.testing.assert_array_equal(one.weights[rows], other.weights)


def test_a_store_without_a_window_is_named() -> None:
    texts = {"books": text(0, 30), "wiki": Text(np.arange(LENGTH))}
    with pytest.raises(DataError, match=r"training split of wiki has 8 tokens, less than one window .*prepare more"):
        pretraining_batches(texts, LENGTH, BATCH, 1, 0)


def test_stores_are_called_by_what_tells_them_apart() -> None:
    assert short_names(["runs/books", "gs://b/wiki/"]) == {"books": "runs/books", "wiki": "gs://b/wiki/"}
    assert list(short_names(["x/a/store", "x/b/store"])) == ["a/store", "b/store"]
    with pytest.raises(ConfigError, match=r"DataConfig\.token_store: 'a' is there twice"):
        short_names(["a", "a/"])
