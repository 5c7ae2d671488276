"""Losses of Radford et al. 2018 as sums over a batch; the caller divides once, by the whole batch's count.

Sums, not means, because a batch may be computed in parts (gradient accumulation, devices) that
hold different numbers of real tokens, and the mean of their means is another number.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def token_losses(logits: Float[Array, "*batch T V"], targets: Int[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    """-log P(target) of each position, in nats (the terms of eq. 1)."""
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


def target_weights(weights: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    """Weights of -log P(token t+1 | those up to t) that make their sum a sequence's mean over its own real tokens.

    The first token is never predicted; all later ones are, delimiter and extract included, as in
    OpenAI's fine-tuning code. The last position has nothing to predict.
    """
    of_targets = jnp.concatenate([weights[..., 1:], jnp.zeros_like(weights[..., :1])], axis=-1)
    return of_targets / jnp.maximum(of_targets.sum(-1, keepdims=True), 1)


def classification_losses(scores: Float[Array, "B N"], labels: Int[Array, "B"]) -> Float[Array, "B"]:
    """-log P(label) of each example (the terms of eq. 4)."""
    return jax.nn.logsumexp(scores, axis=-1) - jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]


def soft_label_losses(scores: Float[Array, "B N"], targets: Float[Array, "B N"]) -> Float[Array, "B"]:
    """Cross-entropy of each example with the probabilities of its classes."""
    return -(targets * jax.nn.log_softmax(scores, axis=-1)).sum(axis=-1)


def multi_label_losses(scores: Float[Array, "B N"], labels: Float[Array, "B N"]) -> Float[Array, "B"]:
    """Mean -log P of each example's N yes-or-no labels, each a probability of its own."""
    return optax.sigmoid_binary_cross_entropy(scores, labels).mean(axis=-1)


def regression_losses(scores: Float[Array, "B N"], targets: Float[Array, "B N"]) -> Float[Array, "B"]:
    """Mean squared error of each example's N numbers."""
    return jnp.square(scores - targets).mean(axis=-1)


def tagging_losses(
    scores: Float[Array, "B T N"], labels: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, "B"]:
    """Summed -log P(label) of each sequence's tokens of weight 1; the count is the sum of `weights`."""
    return (token_losses(scores, labels) * weights).sum(axis=-1)
