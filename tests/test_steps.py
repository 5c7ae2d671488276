"""Updates and evaluations as compiled: their losses, gradients, accumulation, padding and dropout."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from test_reference import Original

from gpt.config import MeshConfig, ModelConfig, OptimizerConfig, TaskConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.model.gpt import param_shapes
from gpt.sharding import make_mesh, state_shardings
from gpt.training.optimizer import make_optimizer
from gpt.training.state import TrainState
from gpt.training.steps import LanguageModelObjective, Objective, TaskObjective, make_eval_step, make_train_step

CONFIG = ModelConfig(
    vocab_size=20, num_special_tokens=3, context_length=8, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=24,
    embed_dropout_rate=0.0, attention_dropout_rate=0.0, residual_dropout_rate=0.0, scan_layers=True,
)  # fmt: skip
DROPPING = dataclasses.replace(CONFIG, embed_dropout_rate=0.1, attention_dropout_rate=0.1, residual_dropout_rate=0.1)
CHOICE = TaskConfig(name="choice", classifier_dropout_rate=0.0)
EXTRACT = 22

# Its state after an update is the gradient itself.
KEEP_GRADIENT = optax.with_extra_args_support(
    optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),  # noqa: ARG005
    )
)


def text_batch() -> TextBatch:
    """Four windows; the last but one is cut short, and the last is nothing but padding."""
    tokens = np.random.default_rng(0).integers(20, size=(4, 9), dtype=np.int32)
    weights = (np.array([8, 8, 3, 0])[:, None] > np.arange(8)).astype(np.float32)
    return TextBatch(tokens, weights)


def task_batch(lengths: list[list[int]], num_rows: int) -> TaskBatch:
    """Sequences of the given lengths, 0 for a candidate that is not there; then rows of padding."""
    shape = (num_rows, len(lengths[0]))
    ends = np.zeros(shape, np.int32)
    ends[: len(lengths)] = lengths
    tokens = np.random.default_rng(1).integers(20, size=(*shape, 8), dtype=np.int32)
    weights = (ends[..., None] > np.arange(8)).astype(np.float32)
    extract = np.maximum(ends - 1, 0)
    np.put_along_axis(tokens, extract[..., None], EXTRACT, axis=-1)
    is_real = (np.arange(shape[0]) < len(lengths)).astype(np.float32)
    return TaskBatch(tokens, weights, extract, np.arange(shape[0], dtype=np.int32) % 2, is_real)


def scored_batch(labels: np.ndarray) -> TaskBatch:
    """Three pairs of texts in both orders, and a row of padding."""
    return task_batch([[8, 8], [5, 5], [3, 3]], num_rows=4)._replace(labels=labels.astype(np.float32))


SOFT_LABELS = np.array([[0.25, 0.75, 0], [0, 0, 1], [0, 0.5, 0.5], [1, 0, 0]])
# Three examples, one of them short of a candidate, and a row of padding.
PROBLEMS: dict[str, tuple[Objective, Any]] = {
    "text": (LanguageModelObjective(), text_batch()),
    "task": (TaskObjective(CHOICE), task_batch([[8, 5, 6], [6, 6, 0], [3, 7, 4]], num_rows=4)),
    "both orders": (TaskObjective(CHOICE, both_orders=True), task_batch([[8, 8], [5, 5], [3, 3]], num_rows=4)),
    "soft labels": (TaskObjective(CHOICE, "soft_labels", both_orders=True), scored_batch(SOFT_LABELS)),
    "regression": (TaskObjective(CHOICE, "regression", both_orders=True), scored_batch(SOFT_LABELS[:, 1:2] * 5)),
}
NUM_OUTPUTS = {"text": None, "task": 1, "both orders": 2, "soft labels": 3, "regression": 1}


def random_params(config: ModelConfig, num_outputs: int | None) -> Any:
    """Weights far from their symmetric start."""
    generator = np.random.default_rng(2)
    shapes = param_shapes(config, num_outputs)
    return jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


class Trainer:
    """A compiled update and the means to start from the same state again: an update consumes its state."""

    def __init__(
        self,
        objective: Objective,
        optimizer: Any = KEEP_GRADIENT,
        *,
        parts: int = 1,
        config: ModelConfig = CONFIG,
        seed: int = 5,
        num_outputs: int | None = 1,
    ):
        self.params = random_params(config, num_outputs if isinstance(objective, TaskObjective) else None)
        self._init = jax.jit(optimizer.init)  # gives each moment memory of its own, as an update needs
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        shardings = state_shardings(mesh, jax.eval_shape(self.state))
        step = make_train_step(config, objective, optimizer, parts, shardings)
        self.step = lambda state, batch: step(state, batch, jax.random.key(seed))

    def state(self, step: int = 0) -> TrainState:
        params = jax.tree.map(jnp.asarray, self.params)
        return TrainState(jnp.int32(step), params, self._init(params))

    def gradient(self, batch: Any) -> tuple[reference.FlatParams, dict[str, float]]:
        """What `KEEP_GRADIENT` kept, by path, and the metrics."""
        state, metrics = self.step(self.state(), batch)
        return reference.flatten(jax.device_get(state.optimizer_state)), jax.tree.map(float, metrics)


def reference_task_losses(
    problem: str, params: reference.Params, hidden: np.ndarray, extract: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """The task loss of one example."""
    if problem == "task":
        return reference.task_losses(reference.task_scores(params, hidden, extract), np.array([label]))
    added = hidden[0, 0, extract[0, 0]] + hidden[0, 1, extract[0, 1]]
    scores = (added @ np.float64(params["head"]["kernel"]) + params["head"]["bias"])[None]
    if problem == "both orders":
        return reference.task_losses(scores, np.array([label]))
    if problem == "soft labels":
        return -(label * reference.log_softmax(scores)).sum(-1)
    return (scores - label)[:, 0] ** 2


def reference_loss(problem: str, params: reference.Params, batch: Any) -> float:
    """The loss of a batch in float64, each example and sequence taken by itself."""
    if isinstance(batch, TextBatch):
        hidden = reference.forward(params, batch.tokens[:, :-1], CONFIG.num_heads)
        log_probs = reference.log_softmax(reference.logits(params, hidden))
        log_probs = np.take_along_axis(log_probs, batch.tokens[:, 1:, None], -1)[..., 0]
        return float(-(log_probs * batch.weights).sum() / batch.weights.sum())
    task, lm = [], []
    for tokens, weights, extract, label, is_real in zip(*batch, strict=True):
        there = weights.max(-1) > 0
        if is_real:
            hidden = reference.forward(params, tokens[there], CONFIG.num_heads)
            task.extend(reference_task_losses(problem, params, hidden[None], extract[None, there], label))
            lm.extend(reference.lm_losses(reference.token_log_probs(params, hidden, tokens[there]), weights[there]))
    return float(np.mean(task) + CHOICE.lm_coef * np.mean(lm))


@functools.cache
def trainer_of(problem: str, parts: int = 1) -> Trainer:
    return Trainer(PROBLEMS[problem][0], parts=parts, num_outputs=NUM_OUTPUTS[problem])


@functools.cache
def gradient_of(problem: str, parts: int = 1) -> tuple[reference.FlatParams, dict[str, float]]:
    return trainer_of(problem, parts).gradient(PROBLEMS[problem][1])


def assert_gradients_equal(actual: reference.FlatParams, expected: reference.FlatParams) -> None:
    assert actual.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(actual[path], array, rtol=1e-6, atol=1e-6, err_msg=path)


# Loss and gradient


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_loss_equals_the_reference_on_what_is_not_padding(problem: str) -> None:
    expected = reference_loss(problem, trainer_of(problem).params, PROBLEMS[problem][1])
    assert gradient_of(problem)[1]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradients_equal_the_slopes_of_the_reference(problem: str) -> None:
    batch = PROBLEMS[problem][1]
    params = reference.flatten(trainer_of(problem).params)
    for path, gradient in gradient_of(problem)[0].items():
        if path == "head/bias" and problem == "task":  # the same for all candidates, so without influence
            np.testing.assert_allclose(gradient, 0, atol=1e-6)
            continue
        # The steepest entries: float32 leaves few digits to the others.
        steepest = [np.unravel_index(i, gradient.shape) for i in np.argsort(-abs(gradient), axis=None)[:3]]

        def loss(array: np.ndarray, path: str = path) -> float:
            return reference_loss(problem, reference.unflatten(params | {path: array}), batch)

        slopes = reference.numerical_gradient(loss, params[path], steepest)
        np.testing.assert_allclose([gradient[entry] for entry in steepest], slopes, rtol=1e-3, err_msg=path)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_gradient_norm_is_that_of_all_gradients_as_one_vector(problem: str) -> None:
    gradient, metrics = gradient_of(problem)
    assert metrics["gradient_norm"] == pytest.approx(reference.global_norm(gradient), rel=1e-5)


def test_the_loss_of_a_task_is_the_task_loss_plus_lambda_times_the_lm_loss() -> None:
    metrics = gradient_of("task")[1]
    assert metrics["loss"] == pytest.approx(metrics["task_loss"] + 0.5 * metrics["lm_loss"], rel=1e-6)


def test_a_lambda_of_zero_leaves_the_language_model_out() -> None:
    objective, (_, batch) = TaskObjective(dataclasses.replace(CHOICE, lm_coef=0.0)), PROBLEMS["task"]
    gradient, metrics = Trainer(objective).gradient(batch)
    assert set(metrics) == {"loss", "task_loss", "gradient_norm", "skipped"}
    assert metrics["loss"] == metrics["task_loss"] == pytest.approx(gradient_of("task")[1]["task_loss"], rel=1e-6)
    unread = np.setdiff1d(np.arange(CONFIG.num_embeddings), batch.tokens)
    assert unread.size
    np.testing.assert_array_equal(gradient["transformer/token_embedding"][unread], 0)


def test_what_padding_holds_changes_nothing() -> None:
    batch = PROBLEMS["task"][1]
    other = np.where(batch.weights * batch.example_weights[:, None, None] > 0, batch.tokens, 7)
    labels = np.where(batch.example_weights > 0, batch.labels, 2).astype(np.int32)
    gradient, metrics = trainer_of("task").gradient(batch._replace(tokens=other, labels=labels))
    assert metrics == pytest.approx(gradient_of("task")[1], rel=1e-6)
    assert_gradients_equal(gradient, gradient_of("task")[0])


# Accumulation


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_batch_in_parts_has_the_gradient_and_losses_of_the_whole(problem: str) -> None:
    gradient, metrics = gradient_of(problem, parts=4)  # the last part is nothing but padding
    assert metrics == pytest.approx(gradient_of(problem)[1], rel=1e-6)
    assert_gradients_equal(gradient, gradient_of(problem)[0])


# Dropout


def test_dropout_is_governed_by_key_and_step_alone() -> None:
    objective, batch = TaskObjective(dataclasses.replace(CHOICE, classifier_dropout_rate=0.5)), PROBLEMS["task"][1]
    trainer, other = (Trainer(objective, seed=seed) for seed in (5, 6))
    first, again, later = (trainer.step(trainer.state(step), batch) for step in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first[0].step == 4
    elsewhere = other.step(other.state(3), batch)
    losses = [float(metrics["task_loss"]) for _, metrics in (first, later, elsewhere)]
    assert np.abs(np.diff([*losses, losses[0]])).min() > 1e-3


def test_the_parts_of_a_batch_are_dropped_out_differently() -> None:
    batch = text_batch()._replace(weights=np.eye(4, 8, dtype=np.float32))
    trainer = Trainer(LanguageModelObjective(), parts=2, config=DROPPING)
    # With the same masks in both parts, exchanging them would change nothing.
    exchanged = jax.tree.map(lambda leaf: leaf[[1, 0, 3, 2]], batch)
    losses = [trainer.gradient(batch)[1]["loss"] for batch in (batch, exchanged)]
    assert abs(losses[0] - losses[1]) > 1e-3


# Evaluation


@pytest.mark.parametrize("problem", PROBLEMS)
def test_evaluation_is_without_dropout_and_gives_sums_and_their_counts(problem: str) -> None:
    objective, batch = PROBLEMS[problem]
    result = make_eval_step(DROPPING, objective)(trainer_of(problem).params, batch)
    means = {name: float(result.totals[name] / result.counts[name]) for name in result.totals}
    assert means == pytest.approx({name: gradient_of(problem)[1][name] for name in means}, rel=1e-6)
    counts = {"text": {"lm_loss": 19}, "task": {"task_loss": 3, "lm_loss": 8}}
    assert result.counts == counts.get(problem, {"task_loss": 3, "lm_loss": 6})


def test_a_candidate_that_is_not_there_never_wins() -> None:
    objective, batch = PROBLEMS["task"]
    scores = make_eval_step(CONFIG, objective)(trainer_of("task").params, batch).scores
    assert scores is not None
    assert scores.shape == (4, 3)
    assert scores[1, 2] < -1e8 < scores[1, :2].min()


# Learning


def test_a_tiny_batch_is_learned_by_heart() -> None:
    objective, batch = PROBLEMS["task"]
    config = OptimizerConfig(learning_rate=0.02, schedule="cosine", warmup_steps=5)
    trainer = Trainer(objective, make_optimizer(config, 100))
    state, losses = trainer.state(), []
    for _ in range(100):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 100
    # Sequences that begin alike keep the language model from 0.
    assert losses[-1] < 0.2 < 2.0 < losses[0]


# Against OpenAI's own functions


def test_four_updates_follow_openai(assets: Path) -> None:
    original = Original(json.loads((assets / "gpt1" / "openai_tiny_training.json").read_text()))
    hyper, start = original.hyper, original.initial_params()
    config = dataclasses.replace(
        CONFIG, vocab_size=hyper["n_vocab"], embed_dim=hyper["n_embd"], mlp_dim=32, softmax_over_positions=True
    )
    optimizer_config = OptimizerConfig(
        learning_rate=hyper["lr"],
        schedule="linear",
        warmup_steps=None,
        warmup_fraction=hyper["lr_warmup"],
        max_grad_norm=hyper["max_grad_norm"],
    )
    arrays = original.tokens, original.weights, original.extract, original.labels, np.ones(2)
    batch = TaskBatch(*(array.astype(np.float32 if n in (1, 4) else np.int32) for n, array in enumerate(arrays)))

    objective = TaskObjective(CHOICE)
    trainer = Trainer(objective, make_optimizer(optimizer_config, hyper["n_updates_total"]), config=config)
    trainer.params = jax.tree.map(np.float32, reference.unflatten(start))
    state, metrics = trainer.step(trainer.state(), batch)
    assert metrics["loss"] == pytest.approx(original.record["train_loss"], abs=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(original.record["grad_global_norm"], abs=1e-6)

    # Biases of exactly zero gradient: Adam divides their rounding noise by rounding noise.
    noise = {"model/clf/b", "model/h0/attn/c_attn/b", "model/h1/attn/c_attn/b"}
    for recorded in original.record["steps"]:
        params = reference.flatten(jax.device_get(state.params))
        named = original.by_name({path: params[path] for path in start})
        sums = {name: array.sum() for name, array in named.items() if name not in noise}
        expected = {name: total for name, total in recorded["param_sums"].items() if name not in noise}
        assert sums == pytest.approx(expected, rel=0, abs=1e-5)
        state, metrics = trainer.step(state, batch)
        task, lm = (np.mean(recorded["eval_after"][name]) for name in ("clf_losses", "lm_losses"))
        assert [metrics["task_loss"], metrics["lm_loss"]] == pytest.approx([task, lm], rel=0, abs=1e-5)
