"""The update rule of the paper (section 4.1), as OpenAI's released code executes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt.config import OptimizerConfig

DECAYED = ("kernel", "token_embedding", "position_embedding")
"""Last path elements of the parameters that decay: "all non bias or gain weights"."""


def make_optimizer(
    config: OptimizerConfig, num_steps: int, learning_rate: Any = None, weight_decay: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clipping, then `openai_adam` or `optax.adamw`, over `num_steps` updates.

    `learning_rate` and `weight_decay` take the place of the config's; they may be traced. Its `update` also takes
    the loss as `value` where `OptimizerConfig.max_loss_ratio` is set, and `skip`: where that is true the state stays
    what it was, and what the update would be means nothing.
    """
    schedule = make_schedule(config, num_steps, learning_rate)
    decay = config.weight_decay if weight_decay is None else weight_decay
    if config.name == "openai_adam":
        update_rule = openai_adam(schedule, config.b1, config.b2, config.epsilon, decay)
    else:
        adamw = optax.adamw(schedule, config.b1, config.b2, config.epsilon, weight_decay=decay, mask=decay_mask)
        update_rule = skippable(adamw)
    clipping = [] if config.max_grad_norm is None else [clip_by_global_norm(config.max_grad_norm)]
    spikes = [] if config.max_loss_ratio is None else [skippable(watch_loss(config.max_loss_ratio))]
    rules = [*clipping, update_rule, *spikes]
    return optax.chain(*rules) if len(rules) > 1 else update_rule


def make_schedule(config: OptimizerConfig, num_steps: int, learning_rate: Any = None) -> Callable[[Any], Any]:
    """Learning rate of the update that follows `count` earlier ones; its peak is the config's unless given.

    With x = n / num_steps, n counted from 1, and warm-up up to x = w: the original's linear decay
    multiplies the warm-up too, and its cosine is not restarted after warm-up. The last update,
    x = 1, is null unless the schedule is constant.
    """
    peak = config.learning_rate if learning_rate is None else learning_rate
    warmup = (config.warmup_steps or 0) / num_steps if config.warmup_fraction is None else config.warmup_fraction

    def schedule(count):
        x = (count + 1) / num_steps
        ramp = jnp.where(x <= warmup, x / warmup, 1.0) if warmup else 1.0
        if config.schedule == "linear":
            factor = ramp * (1 - x)
        elif config.schedule == "cosine":
            factor = jnp.where(x <= warmup, ramp, 0.5 * (1 + jnp.cos(jnp.pi * x)))
        else:
            factor = ramp
        return peak * factor

    return schedule


def decay_mask(params: Any) -> Any:
    """True for each parameter that takes weight decay, in the structure of `params`.

    By name, because the stacked layer axis gives biases and gains rank 2.
    """
    return jax.tree.map_with_path(lambda path, _leaf: path[-1].key in DECAYED, params)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients whose norm, over all parameters, is above `max_norm` down to it.

    By one factor, as TensorFlow does it for OpenAI's code, and unlike optax, which divides every entry: XLA makes
    products a part of what reads them, but writes quotients, a second set of gradients, to memory.
    """

    def clip(gradients, params=None):  # noqa: ARG001 - as optax calls it
        factor = max_norm / jnp.maximum(optax.tree.norm(gradients), max_norm)
        return jax.tree.map(lambda gradient: gradient * factor, gradients)

    return optax.stateless(clip)


def skippable(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`rule`, whose state stays what it was where the argument `skip` is true."""
    inner = optax.with_extra_args_support(rule)

    def update(updates, state, params=None, *, skip=False, **others):
        updates, after = inner.update(updates, state, params, **others)
        return updates, unless(skip, state, after)

    return optax.GradientTransformationExtraArgs(rule.init, update)  # pyright: ignore[reportArgumentType]


def unless(skip: Any, before: Any, after: Any) -> Any:
    """`after`, or `before` where `skip` is true."""
    return jax.tree.map(lambda old, new: jnp.where(skip, old, new), before, after)


class LossWatch(NamedTuple):
    """Updates made so far, their mean loss (of about the last 100), and what a loss may be at most."""

    count: Any
    mean_loss: Any
    loss_limit: Any


_MEAN_OVER, _SETTLED_AFTER = 100, 20


def watch_loss(max_ratio: float) -> optax.GradientTransformationExtraArgs:
    """Changes no update; keeps in the state what `is_spike` compares a loss with, `max_ratio` times the mean."""

    def init(params):  # noqa: ARG001 - as optax calls it
        return LossWatch(jnp.zeros([], jnp.int32), jnp.zeros([]), jnp.full([], jnp.inf))

    def update(updates, state, params=None, *, value, **_others):  # noqa: ARG001 - as optax calls it
        count = state.count + 1
        mean = state.mean_loss + (value - state.mean_loss) / jnp.minimum(count, _MEAN_OVER)
        # A loss below 0 has no ratio; there is none in this project.
        return updates, LossWatch(count, mean, jnp.where(count < _SETTLED_AFTER, jnp.inf, max_ratio * mean))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def is_spike(optimizer_state: Any, loss: Any) -> Any:
    """Whether the loss is beyond the limit of `watch_loss`; never without one."""
    limit = optax.tree.get(optimizer_state, "loss_limit")
    return False if limit is None else loss > limit


class OpenAIAdamState(NamedTuple):
    """Updates made so far, and both moments in the structure of the parameters."""

    count: Any
    mu: Any
    nu: Any


def openai_adam(
    schedule: optax.Schedule, b1: float, b2: float, epsilon: float, weight_decay: Any
) -> optax.GradientTransformationExtraArgs:
    """Adam as in OpenAI's released `opt.py`.

    It differs from `optax.adamw` twice: epsilon is added to the root of the *uncorrected* second
    moment, and the bias-correction ratio multiplies the weight decay as well. `skip` as in `make_optimizer`.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return OpenAIAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(gradients, state, params=None, *, skip=False, **_others):
        n = state.count + 1
        rate = schedule(state.count) * jnp.sqrt(1 - b2**n) / (1 - b1**n)
        # Skipped before they are read: XLA would keep copies of the old moments where both those and the new are.
        mu = unless(skip, state.mu, jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients))
        nu = unless(skip, state.nu, jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, gradients))
        updates = jax.tree.map(
            lambda m, v, p, decays: -rate * (m / (jnp.sqrt(v) + epsilon) + (weight_decay * p if decays else 0.0)),
            mu, nu, params, decay_mask(params),
        )  # fmt: skip
        return updates, OpenAIAdamState(unless(skip, state.count, n), mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
