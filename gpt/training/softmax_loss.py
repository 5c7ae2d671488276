"""The language-model loss with its gradient, without the scores of all positions at once.

A batch of 64 x 512 positions and 40,478 tokens would make 5 GiB of scores, kept from the forward to the backward
pass. But an objective asks for a weighted sum of losses, so the gradient of a block of positions is known as soon as
its scores are. Both are computed block by block in the forward pass, and no score outlives its block; the
backward pass scales. No matrix product is computed twice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt.model.layers import tied_logits
from gpt.objectives import token_losses
from gpt.sharding import num_parts

MOST_SCORES = 2**27
"""Of a block on one device, 512 MiB in float32: enough for matrix products at full speed."""

Block = tuple[Float[Array, "B T D"], Int[Array, "B T"], Float[Array, "B T"]]
"""Hidden states, targets and weights."""


@jax.custom_vjp
def softmax_loss(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> Float[Array, ""]:
    """Sum of weight x -log P(target) over all positions, P by the tied softmax (eq. 2), in nats.

    Differentiable by `hidden` and `table` only, and once.
    """

    def add_block(total: Array, block: Block) -> tuple[Array, None]:
        of_block, targets, weights = block
        return total + (token_losses(tied_logits(of_block, table), targets) * weights).sum(), None

    total, _ = _over_blocks(add_block, jnp.zeros([]), (hidden, targets, weights), table.shape[0])
    return total


def _forward(hidden: Array, table: Array, targets: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    def add_block(sums: tuple[Array, Array], block: Block) -> tuple[tuple[Array, Array], Array]:
        of_block, targets, weights = block
        scores, pull_back = jax.vjp(tied_logits, of_block, table)
        norms = jax.nn.logsumexp(scores, axis=-1)
        of_targets = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        # By comparison: the transpose of `take_along_axis` would fill another array of scores.
        is_target = jax.lax.broadcasted_iota(targets.dtype, scores.shape, 2) == targets[..., None]
        of_hidden, of_table = pull_back((jnp.exp(scores - norms[..., None]) - is_target) * weights[..., None])
        return (sums[0] + ((norms - of_targets) * weights).sum(), sums[1] + of_table), of_hidden

    zeros = (jnp.zeros([]), jnp.zeros_like(table))
    (total, of_table), of_hidden = _over_blocks(add_block, zeros, (hidden, targets, weights), table.shape[0])
    return total, (of_hidden, of_table)


def _backward(gradients: tuple[Array, Array], scale: Array) -> tuple[Array, Array, None, None]:
    of_hidden, of_table = gradients
    return (scale * of_hidden).astype(of_hidden.dtype), scale * of_table, None, None


softmax_loss.defvjp(_forward, _backward)


def _over_blocks(add_block: Any, sums: Any, whole: Block, vocab_size: int) -> tuple[Any, Any]:
    """`add_block` over the blocks of positions in turn: the sums, and what it gave of each position."""
    batch_size, length = whole[1].shape
    num_blocks = _num_blocks(batch_size * length * vocab_size // num_parts("batch", "length", "logits"), length)
    if num_blocks == 1:
        return add_block(sums, whole)
    padding = -length % num_blocks

    def split(leaf: Array) -> Array:
        leaf = jnp.pad(leaf, ((0, 0), (0, padding)) + ((0, 0),) * (leaf.ndim - 2))
        # Block i takes every num_blocks-th position, so that each stays spread over all devices.
        return jnp.moveaxis(leaf.reshape(batch_size, -1, num_blocks, *leaf.shape[2:]), 2, 0)

    sums, parts = jax.lax.scan(add_block, sums, jax.tree.map(split, whole))
    if parts is None:
        return sums, None
    return sums, jnp.moveaxis(parts, 0, 2).reshape(batch_size, length + padding, *parts.shape[3:])[:, :length]


def _num_blocks(num_scores: int, length: int) -> int:
    """A power of two, because lengths are often divisible by it."""
    num_blocks = 1
    while num_scores > num_blocks * MOST_SCORES and num_blocks < length:
        num_blocks *= 2
    return num_blocks
