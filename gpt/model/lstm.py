"""The LSTM of table 5 (Radford et al. 2018, section 5): one layer in the place of the transformer.

The paper says no more than its width. The cell is that of Hochreiter and Schmidhuber 1997 with a forget
gate; a linear map brings its state to the width of the tied softmax. It needs no positions.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from gpt.config import ModelConfig
from gpt.model.dropout import dropout
from gpt.model.layers import rematerialise, tied_logits
from gpt.sharding import constrain

Carry = tuple[Float[Array, "B U"], Float[Array, "B U"]]
"""State and cell."""


class LSTM(nnx.Module):
    """Embedding, one recurrent layer of U = lstm_dim units with G = 4 U gates, and a projection to D.

    Parameters start as the transformer's do, but the forget gate opens with a bias of 1, so that the
    first gradients reach back in time (Jozefowicz et al. 2015).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(config.init_std)
        units, width = config.lstm_dim, config.embed_dim
        self.token_embedding = nnx.Param(normal(rngs.params(), (config.num_embeddings, width)))
        self.input = Weights(normal(rngs.params(), (width, 4 * units)))
        self.recurrent = Weights(normal(rngs.params(), (units, 4 * units)), _gate_bias(units))
        self.out = Weights(normal(rngs.params(), (units, width)), jnp.zeros(width))

    def __call__(self, inputs: Int[Array, "B T"], key: Key[Array, ""] | None = None) -> Float[Array, "B T D"]:
        """What the tied softmax and the head read at each position; a key turns dropout on."""
        length, limit = inputs.shape[1], self.config.context_length
        if length > limit:
            raise ValueError(f"{length} tokens do not fit into ModelConfig.context_length = {limit}")
        embed_key, out_key = (None, None) if key is None else jax.random.split(key)
        x = self.embed(inputs)
        x = dropout(x, self.config.embed_dropout_rate, embed_key)
        states, _ = self.run(x, self.start(inputs.shape[0]))
        return self.out(dropout(states, self.config.residual_dropout_rate, out_key))

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What the recurrent layer reads."""
        table = constrain(self.token_embedding[...], "vocab", "lookup")
        return table[tokens].astype(self.config.compute_dtype)

    def start(self, batch_size: int) -> Carry:
        """State and cell before the first token."""
        zeros = jnp.zeros((batch_size, self.config.lstm_dim), jnp.float32)
        return zeros.astype(self.config.compute_dtype), zeros

    def run(
        self, x: Float[Array, "B T D"], carry: Carry, mask: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T U"], Carry]:
        """The state after each embedded token, and the last; where the mask is false, nothing changes."""
        # One product for all positions; only what depends on the state has to wait for it.
        gates = self.input(x).swapaxes(0, 1)

        def step(carry, inputs):
            gates, is_token = inputs
            after = self._step(carry, gates)
            if is_token is not None:
                after = jax.tree.map(lambda new, old: jnp.where(is_token[:, None], new, old), after, carry)
            return after, after[0]

        step = rematerialise(self.config, step, in_scan=True)
        carry, states = jax.lax.scan(step, carry, (gates, None if mask is None else mask.swapaxes(0, 1)))
        return states.swapaxes(0, 1), carry

    def logits(self, hidden: Float[Array, "B T D"], key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        """Scores of every token, in float32, by the transposed token table (eq. 2)."""
        return tied_logits(hidden, self.softmax_table(key))

    def softmax_table(self, key: Key[Array, ""] | None = None) -> Float[Array, "V D"]:  # noqa: ARG002 - as Transformer
        """What hidden states are multiplied with for scores."""
        return constrain(self.token_embedding[...], "vocab", "lookup")

    def _step(self, carry: Carry, from_input: Float[Array, "B G"]) -> Carry:
        """State and cell after one more token; the cell, a sum over time, is kept in float32."""
        state, cell = carry
        gates = (from_input + self.recurrent(state)).astype(jnp.float32)
        write, keep, candidate, read = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
        state = (jax.nn.sigmoid(read) * jnp.tanh(cell)).astype(state.dtype)
        return state, cell


class Weights(nnx.Module):
    """A linear map in the precision of its input, with or without a bias."""

    def __init__(self, kernel: Float[Array, "I O"], bias: Float[Array, "O"] | None = None):
        self.kernel = nnx.Param(kernel)
        self.bias = None if bias is None else nnx.Param(bias)

    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        """`x W + b`."""
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def _gate_bias(units: int) -> Float[Array, "G"]:
    return jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), units)
