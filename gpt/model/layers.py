"""What the transformer and the LSTM share: dropout, the tied softmax, and what the backward pass keeps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt16

from gpt.config import ModelConfig
from gpt.sharding import constrain


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """`x` with each entry zeroed at `rate` and the others scaled by 1 / (1 - rate); `x` itself without a key.

    The rate is rounded to a multiple of 2**-16.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    keep = _random_uint16(key, x.shape) >= threshold
    return jnp.where(keep, x / (1 - threshold / 2**16), 0)


def _random_uint16(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt16[Array, "*shape"]:
    # Two numbers from each 32-bit word. Asking JAX for 16 bits would make and discard the other
    # half, and on CPU the random bits of a step cost as much as its matrix products.
    *rest, last = shape
    words = jax.random.bits(key, (*rest, (last + 1) // 2), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*rest, -1)[..., :last]


def rematerialise(config: ModelConfig, function: Callable[..., Any], *, in_scan: bool) -> Callable[..., Any]:
    """`function`, of which the backward pass keeps what `ModelConfig.remat` says and computes the rest again."""
    if config.remat == "none":
        return function
    # Scores and mixtures of attention, products with a batch axis, are the largest and cheap to compute again.
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    # Outside of a loop, XLA would find the two computations equal and keep the first.
    return jax.checkpoint(function, policy=keep, prevent_cse=not in_scan)


def tied_logits(hidden: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
    """Scores of every row of the token table, in float32 (eq. 2)."""
    hidden, table = constrain(hidden, "batch", "length", None), constrain(table, "logits", None)
    logits = jnp.einsum("btd,vd->btv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return constrain(logits, "batch", "length", "logits")
