"""Reading a text piece by piece: what was read is remembered, so that no token is read twice.

A reader is made from a body inside a compiled function. Its memory is a pytree whose arrays have
the batch on their first axis, so that beams can be reordered by indexing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gpt.config import ModelConfig
from gpt.model.gpt import Params, bind
from gpt.model.lstm import LSTM, Carry
from gpt.model.transformer import Transformer


class Memory(NamedTuple):
    """What a transformer has read: keys and values of S slots a layer, filled from the left by all rows alike.

    Head by head, as attention multiplies them: slot by slot, XLA would copy all of them for every token.
    """

    keys: tuple[Float[Array, "B H S K"], ...]
    values: tuple[Float[Array, "B H S K"], ...]
    is_token: Bool[Array, "B S"]  # false on slots of padding, and on those not yet filled
    num_filled: Int[Array, "B"]  # the same number in every row


class TransformerReader:
    """Reads with a cache of keys and values."""

    def __init__(self, body: Transformer, layers: list[Any] | None = None):
        self._body, self._config = body, body.config
        # Here, and not in `read`: a loop of reads must not slice the stacked parameters for every token.
        self._blocks = body.unstacked_blocks(layers)

    def start(self, batch_size: int, length: int) -> Memory:
        """An empty memory for `length` tokens, padding included."""
        config = self._config
        slots = jnp.zeros((batch_size, config.num_heads, length, config.head_dim), config.compute_dtype)
        return Memory(
            (slots,) * config.num_layers,
            (slots,) * config.num_layers,
            jnp.zeros((batch_size, length), bool),
            jnp.zeros(batch_size, jnp.int32),
        )

    def read(
        self, memory: Memory, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Memory]:
        """Hidden states of T more tokens, and the memory of all.

        The mask is false on padding, whose states mean nothing. Tokens are counted from 0 in each row,
        padding left out, as `Transformer` does. Slots after the last token of all rows are free again.
        """
        first, length = memory.num_filled[0], tokens.shape[1]
        positions = memory.is_token.sum(-1, keepdims=True) + jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
        is_token = jax.lax.dynamic_update_slice(memory.is_token, mask, (0, first))
        is_before = jnp.arange(is_token.shape[1]) <= first + jnp.arange(length)[:, None]
        visible = is_token[:, None, None, :] & is_before

        x = self._body.embed(tokens, positions)
        keys, values = [], []
        for block, old_keys, old_values in zip(self._blocks, memory.keys, memory.values, strict=True):
            q, k, v = block.attention.project(x)
            keys.append(jax.lax.dynamic_update_slice(old_keys, k.swapaxes(1, 2), (0, 0, first, 0)))
            values.append(jax.lax.dynamic_update_slice(old_values, v.swapaxes(1, 2), (0, 0, first, 0)))
            gathered, _ = block.attention.attend(q, keys[-1], values[-1], visible, None)
            x = block.add(x, gathered)
        num_read = jnp.where(mask, jnp.arange(length) + 1, 0).max()
        return x, Memory(tuple(keys), tuple(values), is_token, memory.num_filled + num_read)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every token."""
        return self._body.logits(hidden)


class LSTMReader:
    """Reads with nothing but the state of the LSTM."""

    def __init__(self, body: LSTM):
        self._body = body

    def start(self, batch_size: int, length: int) -> Carry:  # noqa: ARG002 - as TransformerReader.start
        """The state before the first token."""
        return self._body.start(batch_size)

    def read(
        self, memory: Carry, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """Hidden states of T more tokens, and the state after them; the mask is false on padding."""
        states, memory = self._body.run(self._body.embed(tokens), memory, mask)
        return self._body.out(states), memory

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every token."""
        return self._body.logits(hidden)


@functools.partial(jax.jit, static_argnums=0)
def split_layers(config: ModelConfig, params: Params) -> list[Any]:
    """The parameters of each block by itself: a copy, for programs that read one token at a time.

    Slicing the stacked ones takes such a program longer than all it computes.
    """
    body = bind(config, params).body
    return [] if isinstance(body, LSTM) else body.layers()


def make_reader(body: Transformer | LSTM, layers: list[Any] | None = None) -> Any:
    """The reader for a body; with `layers` of `split_layers`, where they are at hand."""
    return LSTMReader(body) if isinstance(body, LSTM) else TransformerReader(body, layers)
