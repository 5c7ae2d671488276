"""Updates and evaluations as compiled: their losses, gradients, accumulation, padding and dropout."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import reference

from gpt.config import MeshConfig, ModelConfig, OptimizerConfig, TaskConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.sharding import make_mesh
from gpt.training.optimizer import make_optimizer
from gpt.training.state import TrainState, create_state
from gpt.training.steps import LanguageModelObjective, Objective, TaskObjective, make_eval_step, make_train_step

CONFIG = ModelConfig(
    vocab_size=20, num_special_tokens=3, context_length=8, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=24,
    embed_dropout_rate=0.0, attention_dropout_rate=0.0, residual_dropout_rate=0.0, init_std=0.3,
)  # fmt: skip
DROPPING = dataclasses.replace(CONFIG, embed_dropout_rate=0.1, attention_dropout_rate=0.1, residual_dropout_rate=0.1)
CHOICE = TaskConfig(name="choice", classifier_dropout_rate=0.0)
EXTRACT = 22

# Its state after an update is the gradient itself.
KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(np.zeros_like, params),
    lambda gradient, _state, _params=None: (jax.tree.map(lambda leaf: 0 * leaf, gradient), gradient),
)


def text_batch() -> TextBatch:
    """Four windows; the last but one is cut short, and the last is nothing but padding."""
    tokens = np.random.default_rng(0).integers(20, size=(4, 9), dtype=np.int32)
    weights = (np.array([8, 8, 3, 0])[:, None] > np.arange(8)).astype(np.float32)
    return TextBatch(tokens, weights)


def task_batch(lengths: list[list[int]], examples: int | None = None) -> TaskBatch:
    """Sequences of the given lengths, 0 for a candidate that is not there; padded to four examples."""
    shape = (examples or len(lengths), len(lengths[0]))
    ends = np.zeros(shape, np.int32)
    ends[: len(lengths)] = lengths
    tokens = np.random.default_rng(1).integers(20, size=(*shape, 8), dtype=np.int32)
    weights = (ends[..., None] > np.arange(8)).astype(np.float32)
    extract = np.maximum(ends - 1, 0)
    np.put_along_axis(tokens, extract[..., None], EXTRACT, axis=-1)
    is_real = (np.arange(shape[0]) < len(lengths)).astype(np.float32)
    return TaskBatch(tokens, weights, extract, np.arange(shape[0], dtype=np.int32) % 2, is_real)


WHOLE = task_batch([[8, 5], [6, 6], [3, 7], [4, 8]])
RAGGED = task_batch([[8, 5, 6], [6, 6, 0], [3, 7, 4]], examples=4)
BATCHES = {
    "text": (LanguageModelObjective(), text_batch()),
    "task": (TaskObjective(CHOICE), RAGGED),
}


class Trainer:
    """A compiled update and the means to start from the same state again: an update consumes its state."""

    def __init__(
        self, objective: Objective, optimizer: Any = KEEP_GRADIENT, parts: int = 1, config: ModelConfig = CONFIG, seed: int = 5
    ):
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        num_outputs = 1 if isinstance(objective, TaskObjective) else None
        state, shardings = create_state(config, num_outputs, optimizer, jax.random.key(0), mesh)
        self._start = jax.device_get(state)
        self.step = make_train_step(config, objective, optimizer, jax.random.key(seed), parts, shardings)

    def state(self, step: int = 0) -> TrainState:
        """Weights away from their symmetric start, the same at every call."""
        generator = np.random.default_rng(2)
        params = jax.tree.map(
            lambda leaf: leaf + generator.normal(0, 0.2, leaf.shape).astype(np.float32), self._start.params
        )
        return jax.device_put(self._start._replace(params=params, step=np.int32(step)))

    def gradient(self, batch: Any) -> tuple[reference.FlatParams, dict[str, float]]:
        """What `KEEP_GRADIENT` kept, by path, and the metrics."""
        state, metrics = self.step(self.state(), batch)
        return reference.flatten(jax.device_get(state.optimizer_state)), jax.device_get(metrics)


def reference_loss(params: reference.Params, batch: Any) -> float:
    """The loss of a batch in float64, each example and sequence taken by itself."""
    if isinstance(batch, TextBatch):
        hidden = reference.forward(params, batch.tokens, CONFIG.num_heads) if batch.tokens.shape[1] <= 8 else None
        inputs = batch.tokens[:, :-1] if hidden is None else batch.tokens
        hidden = reference.forward(params, inputs, CONFIG.num_heads)
        log_probs = reference.log_softmax(reference.logits(params, hidden))
        losses = -np.take_along_axis(log_probs, batch.tokens[:, 1:, None], -1)[..., 0]
        return float((losses * batch.weights).sum() / batch.weights.sum())
    task, lm = [], []
    for tokens, weights, extract, label, is_real in zip(*batch, strict=True):
        there = weights.max(-1) > 0
        if is_real:
            hidden = reference.forward(params, tokens[there], CONFIG.num_heads)
            scores = reference.task_scores(params, hidden[None], extract[None, there])
            task.extend(reference.task_losses(scores, np.array([label])))
            lm.extend(reference.lm_losses(reference.token_log_probs(params, hidden, tokens[there]), weights[there]))
    return float(np.mean(task) + CHOICE.lm_coef * np.mean(lm))
