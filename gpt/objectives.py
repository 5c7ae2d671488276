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


def sequence_losses(
    logits: Float[Array, "B C T V"], tokens: Int[Array, "B C T"], weights: Float[Array, "B C T"]
) -> Float[Array, "B C"]:
    """Mean -log P(token | those before it) of each sequence over its own real tokens.

    The first token is never predicted; all later ones are, delimiter and extract included, as in
    OpenAI's fine-tuning code.
    """
    losses = token_losses(logits[..., :-1, :], tokens[..., 1:])
    target_weights = weights[..., 1:]
    return (losses * target_weights).sum(-1) / jnp.maximum(target_weights.sum(-1), 1)


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
