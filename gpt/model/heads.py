"""The task head of Radford et al. 2018, section 3.2: one linear layer on the extract token."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from gpt.config import ModelConfig
from gpt.model.transformer import dropout


class Classifier(nnx.Module):
    """Linear map from the hidden state at the extract token to N scores a candidate (eq. 3)."""

    def __init__(self, config: ModelConfig, num_outputs: int, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.init_std)
        self.kernel = nnx.Param(normal(rngs.params(), (config.embed_dim, num_outputs)))
        self.bias = nnx.Param(jnp.zeros(num_outputs))

    def __call__(
        self,
        hidden: Float[Array, "B C T D"],
        extract: Int[Array, "B C"],
        dropout_rate: float = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B C N"]:
        """Scores in float32; `extract` holds the position of the extract token of each candidate."""
        pooled = jnp.take_along_axis(hidden, extract[..., None, None], axis=2)[:, :, 0]
        pooled = pooled.astype(jnp.float32)
        # The candidates of one example share a mask, so that dropout never decides between them.
        mask = dropout(jnp.ones((pooled.shape[0], 1, pooled.shape[-1])), dropout_rate, key)
        return (pooled * mask) @ self.kernel[...] + self.bias[...]
