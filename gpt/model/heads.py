"""Task heads of Radford et al. 2018, sections 3.2 and 3.3: one linear layer on hidden states of the transformer.

Which states, is the only difference between the kinds of task:

    classification, multiple choice   head(hidden, extract)          [B C N]; choice has N = 1
    similarity                        head.similarity(hidden, ...)   [B N], both orders added first
    tagging                           head.tokens(hidden)            [B T N], every token
    any other summary                 head.scores(features)          [B C N], such as of `mean_state`
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from gpt.config import ModelConfig
from gpt.model.dropout import dropout


class Head(nnx.Module):
    """Linear map from hidden states to N scores in float32 (eq. 3); a key turns dropout before it on."""

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
        """Scores of each candidate at its position `extract`."""
        return self.scores(pool(hidden, extract), dropout_rate, key)

    def scores(
        self, features: Float[Array, "B C D"], dropout_rate: float = 0.0, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B C N"]:
        """Scores of each candidate from what sums it up."""
        # The candidates of one example share a mask, so that dropout never decides between them.
        mask = dropout(jnp.ones((features.shape[0], 1, features.shape[-1])), dropout_rate, key)
        return self._project(features.astype(jnp.float32) * mask)

    def similarity(
        self,
        hidden: Float[Array, "B 2 T D"],
        extract: Int[Array, "B 2"],
        dropout_rate: float = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B N"]:
        """Scores of each pair of texts from both of its orders, whose hidden states are added (section 3.3)."""
        added = pool(hidden, extract).astype(jnp.float32).sum(axis=1)
        return self._project(dropout(added, dropout_rate, key))

    def tokens(
        self, hidden: Float[Array, "B T D"], dropout_rate: float = 0.0, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T N"]:
        """Scores of every token."""
        return self._project(dropout(hidden.astype(jnp.float32), dropout_rate, key))

    def _project(self, features: Float[Array, "*batch D"]) -> Float[Array, "*batch N"]:
        return features @ self.kernel[...] + self.bias[...]


def pool(hidden: Float[Array, "*batch T D"], position: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """The hidden state at one position of each sequence."""
    return jnp.take_along_axis(hidden, position[..., None, None], axis=-2)[..., 0, :]


def last_token(mask: Bool[Array, "*batch T"]) -> Int[Array, "*batch"]:
    """Position of the last real token, with padding on either side; 0 where all is padding."""
    return jnp.where(mask, jnp.arange(mask.shape[-1]), 0).max(axis=-1)


def mean_state(hidden: Float[Array, "*batch T D"], mask: Bool[Array, "*batch T"]) -> Float[Array, "*batch D"]:
    """The mean of the hidden states of the real tokens; 0 where all is padding."""
    count = jnp.maximum(mask.sum(axis=-1), 1)
    return (hidden * mask[..., None]).sum(axis=-2) / count[..., None]
