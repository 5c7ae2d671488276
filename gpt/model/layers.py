"""What the transformer and the LSTM share: the tied softmax, and what the backward pass keeps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpt.config import ModelConfig
from gpt.sharding import constrain


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
