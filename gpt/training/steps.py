"""The compiled steps: one update, and one look at held-out data.

A loss is given as *counts*, which depend on the batch alone, and *totals*, which are summed over
whatever part of the batch is at hand. Dividing the totals of each part by the counts of the whole
batch makes accumulated gradients equal those of the undivided batch, padding or not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from gpt.config import ModelConfig, TaskConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.data.packing import PackedBatch
from gpt.model.gpt import GPT, Params, bind
from gpt.model.heads import Head
from gpt.model.transformer import MASKED_SCORE
from gpt.objectives import (
    classification_losses,
    regression_losses,
    soft_label_losses,
    target_weights,
)
from gpt.sharding import constrain_state, splitting_activations
from gpt.tasks.targets import Targets
from gpt.training.optimizer import is_spike, unless
from gpt.training.softmax_loss import softmax_loss
from gpt.training.state import TrainState

Scalars = dict[str, Float[Array, ""]]
_TASK_LOSSES: dict[Targets, Callable[[Array, Array], Array]] = {
    "class": classification_losses,
    "soft_labels": soft_label_losses,
    "regression": regression_losses,
}


@runtime_checkable
class Objective(Protocol):
    """What is minimised: the sum over `coefficients` of coefficient x total / count."""

    coefficients: dict[str, float]

    def counts(self, batch) -> Scalars:
        """Number of terms in each total of the whole batch."""
        ...

    def totals(self, model: GPT, batch, key: Key[Array, ""] | None) -> tuple[Scalars, Array | None]:
        """Summed losses of (a part of) a batch, and the task's scores [B, N] if there is one."""
        ...


class LanguageModelObjective:
    """L1 of the paper (eq. 1): every token from those before it."""

    coefficients = {"lm_loss": 1.0}  # noqa: RUF012 - constant

    def counts(self, batch: TextBatch) -> Scalars:
        """Target tokens."""
        return {"lm_loss": batch.weights.sum()}

    def totals(self, model: GPT, batch: TextBatch, key: Key[Array, ""] | None) -> tuple[Scalars, None]:
        """Sum of -log P over the target tokens."""
        hidden = model.body(batch.tokens[:, :-1], key)
        table = model.body.softmax_table(key)
        return {"lm_loss": softmax_loss(hidden, table, batch.tokens[:, 1:], batch.weights)}, None


class TaskObjective:
    """L3 = L2 + lambda L1 of the paper (eq. 5), averaged as OpenAI's code does.

    The task loss is a mean over examples; the language-model loss is a mean over sequences (all
    candidates, right and wrong) of each sequence's own mean. A packed batch has the same losses, scores and
    gradients as its examples row by row, but for rounding and for the masks of dropout, which are drawn by place.
    """

    def __init__(self, config: TaskConfig, targets: Targets = "class", *, both_orders: bool = False):
        self._dropout_rate = config.classifier_dropout_rate
        self._losses = _TASK_LOSSES[targets]
        self._both_orders = both_orders
        self.coefficients = {"task_loss": 1.0}
        if config.lm_coef > 0:
            self.coefficients["lm_loss"] = config.lm_coef

    def counts(self, batch: TaskBatch | PackedBatch) -> Scalars:
        """Examples, and sequences."""
        if isinstance(batch, PackedBatch):
            batch = _extract_tokens(batch)
        sequences = (batch.weights.max(-1) * batch.example_weights[:, None]).sum()
        return {"task_loss": batch.example_weights.sum(), "lm_loss": sequences}

    def totals(self, model: GPT, batch: TaskBatch | PackedBatch, key: Key[Array, ""] | None) -> tuple[Scalars, Array]:
        """Summed losses, and the scores of the classes or candidates."""
        assert model.head is not None
        body_key, head_key = (None, None) if key is None else jax.random.split(key)
        tokens = batch.tokens.reshape(-1, batch.tokens.shape[-1])
        if isinstance(batch, PackedBatch):
            positions, sequences = (leaf.reshape(tokens.shape) for leaf in (batch.positions, batch.sequences))
            hidden = model.transformer(tokens, body_key, positions=positions, sequences=sequences)
            weights, judged = batch.target_weights, _extract_tokens(batch)
            states = _gather_states(hidden, batch)
        else:
            hidden = model.body(tokens, body_key)
            weights, judged = target_weights(batch.weights) * batch.example_weights[:, None, None], batch
            states = hidden.reshape(*batch.tokens.shape, -1)
        scores = self._scores(model.head, states, judged, head_key)
        totals = {"task_loss": (self._losses(scores, judged.labels) * judged.example_weights).sum()}

        if "lm_loss" not in self.coefficients:  # the largest matrix product of a small model, for nothing
            return totals, scores
        table = model.body.softmax_table(body_key)
        targets = jnp.roll(tokens, -1, axis=-1)
        totals["lm_loss"] = softmax_loss(hidden, table, targets, weights.reshape(tokens.shape))
        return totals, scores

    def _scores(
        self, head: Head, hidden: Float[Array, "B C T D"], batch: TaskBatch, key: Key[Array, ""] | None
    ) -> Float[Array, "B N"]:
        if self._both_orders:
            return head.similarity(hidden, batch.extract, self._dropout_rate, key)
        by_candidate = head(hidden, batch.extract, self._dropout_rate, key)
        if by_candidate.shape[-1] > 1:
            return by_candidate[:, 0]
        # Examples with fewer candidates than the batch holds have empty sequences in their place.
        return jnp.where(batch.weights.max(-1) > 0, by_candidate[..., 0], MASKED_SCORE)


def _extract_tokens(batch: PackedBatch) -> TaskBatch:
    """The extract tokens alone, as the only tokens of their sequences, example by example."""
    num_packs, pack_size, num_sequences = batch.extract.shape
    is_sequence = batch.is_sequence.reshape(-1, num_sequences, 1)
    return TaskBatch(
        tokens=jnp.zeros_like(is_sequence, jnp.int32),  # nobody reads them: their states are at hand
        weights=is_sequence,
        extract=jnp.zeros(is_sequence.shape[:2], jnp.int32),
        labels=batch.labels.reshape(num_packs * pack_size, *batch.labels.shape[2:]),
        example_weights=jnp.ones(len(is_sequence)),
    )


def _gather_states(hidden: Float[Array, "rows T D"], batch: PackedBatch) -> Float[Array, "B C 1 D"]:
    """The hidden states of the extract tokens, each gathered within its pack."""
    num_packs, _, num_sequences = batch.extract.shape
    of_pack = hidden.reshape(num_packs, -1, hidden.shape[-1])
    states = jnp.take_along_axis(of_pack, batch.extract.reshape(num_packs, -1, 1), axis=1)
    return states.reshape(-1, num_sequences, 1, hidden.shape[-1])


class Evaluation(NamedTuple):
    """One batch of held-out data: summed losses, their counts, and the task's scores [B, N] if there is one."""

    totals: Scalars
    counts: Scalars
    scores: Array | None


EvalStep = Callable[[Params, TextBatch | TaskBatch], Evaluation]
TrainStep = Callable[[TrainState, TextBatch | TaskBatch | PackedBatch, Key[Array, ""]], tuple[TrainState, Scalars]]


def make_eval_step(model_config: ModelConfig, objective: Objective) -> EvalStep:
    """The compiled evaluation of one batch, dropout off."""
    return jax.jit(make_evaluation(model_config, objective))


def make_evaluation(model_config: ModelConfig, objective: Objective) -> EvalStep:
    """What `make_eval_step` compiles."""

    def evaluate(params: Params, batch) -> Evaluation:
        totals, scores = objective.totals(bind(model_config, params), batch, key=None)
        return Evaluation(totals, objective.counts(batch), scores)

    return evaluate


def make_train_step(
    model_config: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    accumulation_steps: int,
    shardings: TrainState,
) -> TrainStep:
    """The compiled update, from (state, batch, dropout_key); the old state's memory is given to the new one.

    The key is an argument, so that runs that differ in their seed alone are one program in the compilation cache.
    """
    update = make_update(model_config, objective, optimizer, accumulation_steps)
    mesh = jax.tree.leaves(shardings)[0].mesh

    def train_step(state: TrainState, batch, dropout_key: Key[Array, ""]) -> tuple[TrainState, Scalars]:
        with splitting_activations(mesh):
            return update(state, batch, dropout_key)

    options = compiler_options(model_config, mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)


def compiler_options(model_config: ModelConfig, mesh: Mesh) -> dict[str, str]:
    """What XLA is told for an update, beside the update.

    On CPU it forgets what must wait for what, and to be concurrent computes all layers again at once, early:
    `ModelConfig.remat` would cost its time and save nothing. Told to use little memory, it computes again late.
    """
    if model_config.remat == "none" or mesh.devices.flat[0].platform != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def make_update(
    model_config: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    accumulation_steps: int,
) -> TrainStep:
    """What `make_train_step` compiles.

    Dropout depends on (dropout_key, step, part) only. Metrics are each loss, their weighted sum
    `loss`, `gradient_norm` before clipping, and whether the update was `skipped`: of one whose loss or
    gradient is not finite, or a spike, nothing remains but that `step` counts its batch.
    """

    def loss_of_part(params, counts, part, key):
        totals, _ = objective.totals(bind(model_config, params), part, key)
        means = {name: totals[name] / counts[name] for name in totals}
        return sum(objective.coefficients[name] * mean for name, mean in means.items()), means

    def accumulate(params, batch, key):
        def gradient_of_part(*arguments):
            gradients, means = jax.grad(loss_of_part, has_aux=True)(*arguments)
            # A sum over devices that each keep their share of, not all of it.
            return constrain_state(gradients), means

        counts = objective.counts(batch)
        if accumulation_steps == 1:
            return gradient_of_part(params, counts, batch, key)
        # Part i takes every accumulation_steps-th row, so that each stays spread over all devices.
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, accumulation_steps, *leaf.shape[1:]).swapaxes(0, 1), batch)

        def add_part(sums, indexed_part):
            index, part = indexed_part
            contribution = gradient_of_part(params, counts, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, contribution), None

        shapes = jax.eval_shape(gradient_of_part, params, counts, jax.tree.map(lambda leaf: leaf[0], parts), key)
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.scan(add_part, zeros, (jnp.arange(accumulation_steps), parts))[0]

    def update(state: TrainState, batch, dropout_key: Key[Array, ""]) -> tuple[TrainState, Scalars]:
        key = jax.random.fold_in(dropout_key, state.step)
        gradients, means = accumulate(state.params, batch, key)
        loss: Any = sum(objective.coefficients[name] * mean for name, mean in means.items())
        gradient_norm = optax.tree.norm(gradients)
        is_bad = ~jnp.isfinite(loss) | ~jnp.isfinite(gradient_norm) | is_spike(state.optimizer_state, loss)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer_state, state.params, value=loss, skip=is_bad
        )
        params = unless(is_bad, state.params, optax.apply_updates(state.params, updates))
        metrics = {"loss": loss, **means, "gradient_norm": gradient_norm, "skipped": is_bad}
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return update
