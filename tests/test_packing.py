"""Packed batches: the same examples, losses, gradients and scores in fewer rows, whatever lies beside a sequence."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import reference
from test_devices import Case, mesh_of, one_device, start
from test_steps import CONFIG as STEP_CONFIG
from test_steps import DROPPING, Trainer, assert_gradients_equal, random_params
from test_train import assert_bit_equal, final_params, metrics_without_speed
from toy import Toy, toy_sentences, write_rows

from gpt import gin_io
from gpt.config import ModelConfig, RunConfig, TaskConfig
from gpt.data.batches import TaskExamples, finetuning_batches
from gpt.data.packing import ROW_COUNTS, PackedBatch, first_fit, packed_batches
from gpt.errors import ConfigError
from gpt.model.gpt import bind
from gpt.sharding import check_divisible, shard_batch
from gpt.training import loop, meter
from gpt.training.loop import train
from gpt.training.population import train_population
from gpt.training.run_dir import read_metrics
from gpt.training.steps import TaskObjective

CONFIG = dataclasses.replace(STEP_CONFIG, context_length=32)
BATCH, PACK, EPOCHS = 8, 4, 2
TASK = TaskConfig(name="choice", classifier_dropout_rate=0.0)


def examples(num_sequences: int, targets: str = "class", count: int = 40) -> TaskExamples:
    """Examples of short and long texts; with three sequences, every third example lacks the last."""
    generator = np.random.default_rng(num_sequences)
    longest = generator.choice([7, 30], count)
    sequences = [
        [
            generator.integers(20, size=generator.integers(3, most)).tolist()
            for _ in range(num_sequences - (num_sequences == 3 and number % 3 == 0))
        ]
        for number, most in enumerate(longest)
    ]
    if targets == "soft_labels":
        return TaskExamples(sequences, generator.dirichlet(np.ones(3), count).astype(np.float32))
    return TaskExamples(sequences, np.arange(count, dtype=np.int32) % 2)


PROBLEMS: dict[str, tuple[TaskObjective, TaskExamples, int]] = {
    "classification": (TaskObjective(TASK), examples(1), 2),
    "both orders": (TaskObjective(TASK, both_orders=True), examples(2), 2),
    "soft labels": (TaskObjective(TASK, "soft_labels", both_orders=True), examples(2, "soft_labels"), 3),
    "choice": (TaskObjective(TASK), examples(3), 1),
}


def packed(source: TaskExamples, seed: int = 0, rows: Any = None, pack_size: int = PACK) -> Any:
    return packed_batches(source, 32, BATCH, EPOCHS, seed, rows, pack_size=pack_size)


def unpacked(source: TaskExamples, seed: int = 0) -> Any:
    return finetuning_batches(source, 32, BATCH, EPOCHS, seed)


@functools.cache
def params_of(problem: str) -> Any:
    return random_params(CONFIG, PROBLEMS[problem][2])


@functools.partial(jax.jit, static_argnums=0)
def learn(objective: TaskObjective, params: Any, batch: Any) -> Any:
    """The loss, its parts and the scores, and the gradient."""

    def loss(params: Any) -> Any:
        totals, scores = objective.totals(bind(CONFIG, params), batch, key=None)
        counts = objective.counts(batch)
        means = {name: totals[name] / counts[name] for name in totals}
        return sum(objective.coefficients[name] * mean for name, mean in means.items()), (means, scores)

    return jax.value_and_grad(loss, has_aux=True)(params)


# The same mathematics


@pytest.mark.parametrize("problem", PROBLEMS)
def test_losses_scores_and_gradients_are_those_of_one_sequence_a_row(problem: str) -> None:
    objective, source, _ = PROBLEMS[problem]
    one, other = (batches(source)[0] for batches in (packed, unpacked))
    assert one.tokens.shape[1] < PACK * source.num_sequences(), "no row holds two sequences"
    found, expected = (learn(objective, params_of(problem), batch) for batch in (one, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), found, expected)


def test_a_packed_batch_in_two_parts_has_the_gradient_of_the_whole() -> None:
    objective, source, num_outputs = PROBLEMS["choice"]
    batch = packed(source)[0]
    gradient, metrics = Trainer(objective, config=CONFIG, num_outputs=num_outputs, parts=2).gradient(batch)
    (loss, _), expected = learn(objective, params_of("choice"), batch)
    assert_gradients_equal(gradient, reference.flatten(expected))
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("problem", ["classification", "choice"])
def test_another_sequence_in_the_row_changes_no_score(problem: str) -> None:
    objective, source, _ = PROBLEMS[problem]
    params, batch = params_of(problem), packed(source)[0]

    def scores_of(batch: PackedBatch) -> np.ndarray:
        (_, (_, scores)), _ = learn(objective, params, batch)
        return np.asarray(scores)

    before = scores_of(batch)
    num_sequences = source.num_sequences()
    for example in range(PACK):
        own = np.isin(batch.sequences[0], 1 + example * num_sequences + np.arange(num_sequences))
        tokens = batch.tokens.copy()
        tokens[0] = np.where(own, (tokens[0] + 1) % 20, tokens[0])
        tokens[batch.sequences == 0] = 7  # nor does padding
        after = scores_of(batch._replace(tokens=tokens))
        others = np.arange(BATCH) != example
        np.testing.assert_array_equal(after[others], before[others])
        assert np.abs(after[example] - before[example]).max() > 1e-3


def test_dropout_of_a_packed_batch_is_on_and_drawn_by_place() -> None:
    objective, source, num_outputs = PROBLEMS["classification"]
    trainer = Trainer(objective, config=dataclasses.replace(DROPPING, context_length=32), num_outputs=num_outputs)
    losses = [trainer.gradient(batches(source)[0])[1]["loss"] for batches in (packed, packed, unpacked)]
    assert losses[0] == losses[1] != losses[2]


def test_packs_over_four_devices_give_the_updates_of_one_device_with_dropout_on() -> None:
    case = Case(dataclasses.replace(STEP_CONFIG, context_length=32, num_heads=4), is_task=True)
    found = []
    for mesh in (mesh_of("data=2 fsdp=2"), one_device()):
        state, step = start(case, mesh)
        for number in range(2):
            batch = shard_batch(mesh, packed(PROBLEMS["choice"][1], pack_size=2)[number], BATCH // 2)
            state, metrics = step(state, batch)
            jax.block_until_ready(state)
        found.append((jax.device_get(state), metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *found)


# The layout


def sequences_of(batch: PackedBatch, num_sequences: int) -> list[list[list[int]]]:
    """The sequences of each example, read back from the rows; after a look that each lies in one row, in order."""
    found = []
    for pack, numbers in enumerate(batch.sequences):
        for example in range(batch.extract.shape[1]):
            found.append([])
            for candidate in range(num_sequences):
                (rows, places) = np.nonzero(numbers == 1 + example * num_sequences + candidate)
                assert len(places) > 0
                assert np.ptp(rows) == 0
                np.testing.assert_array_equal(places, places[0] + np.arange(len(places)))
                np.testing.assert_array_equal(batch.positions[pack, rows, places], np.arange(len(places)))
                extract = rows[-1] * numbers.shape[1] + places[-1]
                assert batch.extract[pack, example, candidate] == extract
                found[-1].append(batch.tokens[pack, rows, places].tolist())
    return found


@pytest.mark.parametrize("num_sequences", [1, 2])
def test_a_packed_batch_has_the_examples_of_the_batch_in_their_order(num_sequences: int) -> None:
    source = examples(num_sequences)
    for step in range(10):
        one, other = packed(source)[step], unpacked(source)[step]
        expected = [
            [ids[: int(weights.sum())].tolist() for ids, weights in zip(*sequences, strict=True)]
            for sequences in zip(other.tokens, other.weights, strict=True)
        ]
        assert sequences_of(one, num_sequences) == expected
        np.testing.assert_array_equal(one.labels.reshape(-1), other.labels)
        assert one.weights.sum() == other.weights.sum()


def test_a_candidate_that_is_not_there_takes_no_place() -> None:
    batch = packed(PROBLEMS["choice"][1])[0]
    is_there = unpacked(PROBLEMS["choice"][1])[0].weights.max(-1)
    assert set(is_there.ravel()) == {0, 1}
    np.testing.assert_array_equal(batch.is_sequence.reshape(BATCH, 3), is_there)
    assert len(np.unique(batch.sequences[0])) == 1 + batch.is_sequence[0].sum()


def test_a_packed_batch_depends_on_seed_and_step_alone() -> None:
    source = examples(1)
    one, again, other = packed(source), packed(source), packed(source, seed=1)
    in_order, backwards = [one[step] for step in range(10)], [again[step] for step in reversed(range(10))]
    jax.tree.map(np.testing.assert_array_equal, in_order, backwards[::-1])
    assert any((batch.labels != other[step].labels).any() for step, batch in enumerate(in_order))


def test_packs_of_a_batch_are_those_of_the_whole() -> None:
    whole, part = packed(examples(3), pack_size=2), packed(examples(3), rows=[1, 3], pack_size=2)
    for step in range(10):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[[1, 3]], b), whole[step], part[step])


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_rows_are_fewer_and_shapes_few(num_sequences: int) -> None:
    generator = np.random.default_rng(0)
    sequences = [
        [[1] * int(generator.integers(2, most)) for _ in range(num_sequences)]
        for most in generator.choice([17, 65, 100], 3200)
    ]
    source = TaskExamples(sequences, np.zeros(3200, np.int32))
    shapes = []
    slots = []
    for batch, plain in zip(
        packed_batches(source, 100, 32, 1, 0, pack_size=32), finetuning_batches(source, 100, 32, 1, 0), strict=True
    ):
        shapes.append(batch.tokens.shape)
        slots.append((batch.tokens.size, plain.tokens.size))
        assert batch.tokens.shape[2] == min(2 * plain.tokens.shape[2], 100)
        assert batch.tokens.size <= plain.tokens.size
    one, other = np.sum(slots, axis=0)
    assert one < 0.9 * other
    row_counts = {length: {shape[1] for shape in shapes if shape[2] == length} for length in {s[2] for s in shapes}}
    assert len(row_counts) > 1
    assert all(len(counts) <= ROW_COUNTS for counts in row_counts.values())


def test_first_fit_takes_the_longest_first_and_the_first_row_with_room() -> None:
    starts, num_rows = first_fit(np.array([2, 5, 0, 3, 6, 4]), row_length=8)
    # Rows: 6 and 2, 5 and 3, 4.
    assert starts.tolist()[:2] + starts.tolist()[3:] == [6, 8, 13, 0, 16]
    assert num_rows == 3
