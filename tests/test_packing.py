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
from toy import ROOT, Toy, toy_sentences, write_rows

from gpt import gin_io
from gpt.config import DataConfig, ModelConfig, RunConfig, TaskConfig
from gpt.data.batches import TaskExamples, finetuning_batches
from gpt.data.packing import ROW_COUNTS, PackedBatch, first_fit, packed_batches
from gpt.errors import ConfigError
from gpt.model.gpt import bind
from gpt.sharding import check_divisible, shard_batch, splitting_activations, state_shardings
from gpt.training import loop
from gpt.training.loop import load_inputs, train
from gpt.training.population import train_population
from gpt.training.steps import TaskObjective

CONFIG = dataclasses.replace(STEP_CONFIG, context_length=32)
BATCH, PACK, EPOCHS = 8, 4, 2
TASK = TaskConfig(name="choice", classifier_dropout_rate=0.0)


def examples(num_sequences: int, count: int = 40) -> TaskExamples:
    """Examples of short and long texts; two are a pair with soft labels, of three every third example lacks one."""
    generator = np.random.default_rng(num_sequences)
    longest = generator.choice([7, 30], count)
    sequences = [
        [
            generator.integers(20, size=generator.integers(3, most)).tolist()
            for _ in range(num_sequences - (num_sequences == 3 and number % 3 == 0))
        ]
        for number, most in enumerate(longest)
    ]
    if num_sequences == 2:
        return TaskExamples(sequences, generator.dirichlet(np.ones(3), count).astype(np.float32))
    return TaskExamples(sequences, np.arange(count, dtype=np.int32) % 2)


PROBLEMS: dict[str, tuple[TaskObjective, TaskExamples, int]] = {
    "classification": (TaskObjective(TASK), examples(1), 2),
    "both orders": (TaskObjective(TASK, "soft_labels", both_orders=True), examples(2), 3),
    "choice": (TaskObjective(TASK), examples(3), 1),
}


def packed(source: TaskExamples, seed: int = 0, rows: Any = None, pack_size: int = PACK) -> Any:
    return packed_batches(source, 32, BATCH, EPOCHS, seed, rows, pack_size=pack_size)


def unpacked(source: TaskExamples, seed: int = 0) -> Any:
    return finetuning_batches(source, 32, BATCH, EPOCHS, seed)


@functools.cache
def params_of(problem: str) -> Any:
    return random_params(CONFIG, PROBLEMS[problem][2])


def judge(objective: TaskObjective, params: Any, batch: Any, key: Any = None, config: ModelConfig = CONFIG) -> Any:
    """The loss, and its parts and the scores."""
    totals, scores = objective.totals(bind(config, params), batch, key)
    counts = objective.counts(batch)
    means = {name: totals[name] / counts[name] for name in totals}
    return sum(objective.coefficients[name] * mean for name, mean in means.items()), (means, scores)


@functools.partial(jax.jit, static_argnums=0)
def learn(objective: TaskObjective, params: Any, batch: Any) -> Any:
    """What `judge` says, and the gradient."""
    return jax.value_and_grad(lambda params: judge(objective, params, batch), has_aux=True)(params)


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


def test_packs_over_four_devices_have_the_losses_and_the_dropout_of_one() -> None:
    objective, source, _ = PROBLEMS["classification"]
    config = dataclasses.replace(DROPPING, context_length=32)
    batch, params = packed(source, pack_size=2)[0], params_of("classification")

    @jax.jit
    def on_mesh(params: Any, batch: Any, seed: Any) -> Any:
        return judge(objective, params, batch, jax.random.key(seed), config)

    mesh = mesh_of("data=2 fsdp=2")
    with splitting_activations(mesh):
        placed = jax.device_put(params, state_shardings(mesh, params))
        split = on_mesh(placed, shard_batch(mesh, batch, BATCH // 2), 1)
    one, other = (on_mesh(params, batch, seed) for seed in (1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), split, one)
    assert abs(one[0] - other[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["data=2 fsdp=2", "fsdp=2 sequence=2", "data=2 tensor=2"])
def test_packs_over_four_devices_give_the_updates_of_one(sizes: str) -> None:
    case = Case(dataclasses.replace(STEP_CONFIG, context_length=32, num_heads=4), is_task=True, accumulation_steps=2)
    batches = [packed(PROBLEMS["choice"][1], pack_size=1)[number] for number in range(2)]

    def states_on(mesh: Any) -> list[Any]:
        state, step = start(case, mesh)
        states = []
        for batch in batches:
            state, metrics = step(state, shard_batch(mesh, batch, BATCH))
            states.append(jax.device_get((state, metrics)))
        return states

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        states_on(mesh_of(sizes)),
        states_on(one_device()),
    )


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
        np.testing.assert_array_equal(one.labels.reshape(other.labels.shape), other.labels)
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


# Runs


@pytest.fixture
def config(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Fine-tuning on texts of three to six words, 6 updates with two evaluations, dropout off."""
    monkeypatch.setattr(loop, "make_mesh", lambda _: one_device())
    for split, seed, count in (("train", 3, 19), ("validation", 4, 11)):
        rows = [
            {"text": " ".join(text.split()[: 3 + k % 4]), "label": int("cat" in text or "dog" in text)}
            for k, text in enumerate(toy_sentences(seed, count))
        ]
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    flags = [flag.removeprefix("--gin.") for flag in toy.finetune_flags(None) if flag.startswith("--gin.")]
    dropout = [f"ModelConfig.{name}_dropout_rate=0.0" for name in ("embed", "attention", "residual")]
    changed = [
        "ModelConfig.context_length=32", "ModelConfig.num_layers=1", "TaskConfig.classifier_dropout_rate=0.0",
        "RunConfig.evaluate_every_steps=3", "CheckpointConfig.save_every_steps=2", "RunConfig.output_dir=unused",
        f"TaskConfig.data_dir={tmp_path / 'data'}",
    ]  # fmt: skip
    kept = [flag for flag in flags if flag.split("=")[0] not in [line.split("=")[0] for line in changed]]
    return gin_io.load([ROOT / "configs" / "task" / "cola.gin"], [*kept, *dropout, *changed])


def changed(config: RunConfig, directory: Path, **changes: Any) -> RunConfig:
    return dataclasses.replace(config, output_dir=str(directory), **changes)


def test_a_packed_run_logs_the_losses_and_scores_of_the_unpacked(config: RunConfig, tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    train(changed(config, plain))
    train(changed(config, packed, pack_size=4))
    assert isinstance(load_inputs(changed(config, packed, pack_size=4))[1].batches_of_seed(0)[0], PackedBatch)
    for one, other in zip(metrics_without_speed(packed), metrics_without_speed(plain), strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_a_packed_run_resumes_where_it_stopped(config: RunConfig, tmp_path: Path) -> None:
    whole, resumed = (changed(config, tmp_path / name, pack_size=4) for name in ("whole", "resumed"))
    train(whole)
    train(resumed, until=3)
    train(resumed)
    assert_bit_equal(final_params(tmp_path / "resumed"), final_params(tmp_path / "whole"))
    assert metrics_without_speed(tmp_path / "resumed") == metrics_without_speed(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pack_size": 0}, r"RunConfig\.pack_size = 0: must be greater than 0"),
        ({"pack_size": 8}, r"= 8: RunConfig\.batch_size = 8 does not divide into packs of 8 examples for each of "
         r"RunConfig\.accumulation_steps = 2 parts: the largest that does is 4"),
        ({"pack_size": 4, "task": TaskConfig()}, "= 4 is for fine-tuning, and TaskConfig.name is not set: set it to"),
        ({"pack_size": 4, "model": ModelConfig(num_special_tokens=3, architecture="lstm")},
         "= 4 needs attention to keep sequences apart, and ModelConfig.architecture is 'lstm': set it to None"),
    ],
)  # fmt: skip
def test_packs_that_cannot_be_are_refused(config: RunConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, data=DataConfig(token_store="store"), **changes)


def test_packs_that_do_not_divide_over_the_mesh_are_refused_with_the_nearest_that_works() -> None:
    check_divisible(mesh_of("data=2 fsdp=2"), CONFIG, 32, 2, pack_size=4)
    message = (
        "RunConfig.batch_size = 32 in RunConfig.accumulation_steps = 2 parts of packs of RunConfig.pack_size = 8 does "
        "not divide over the 4 devices of mesh axes data x fsdp: the nearest that works is RunConfig.batch_size = 64 "
        "or MeshConfig.data x MeshConfig.fsdp = 2"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_divisible(mesh_of("data=2 fsdp=2"), CONFIG, 32, 2, pack_size=8)


def test_a_population_refuses_packs_before_anything_is_written(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"RunConfig\.pack_size = 4: members of a population need .* set it to None"):
        train_population([changed(config, tmp_path / "one", pack_size=4)])
    assert not (tmp_path / "one").exists()
