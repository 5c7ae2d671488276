"""Sampling from a language model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt.config import ModelConfig
from gpt.model.gpt import Params, bind

UNKNOWN_ID = 0


def sample(
    config: ModelConfig, params: Params, prompt: list[int], num_tokens: int, temperature: float, seed: int
) -> list[int]:
    """The prompt and `num_tokens` more ids, each drawn from softmax(logits / temperature).

    The unknown token and the special tokens are never drawn.

    Raises:
      ValueError: an empty prompt, or a text longer than the context.
    """
    length = len(prompt) + num_tokens
    if not prompt or length > config.context_length:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and {num_tokens} more: expected at least 1 and, "
            f"together, at most ModelConfig.context_length = {config.context_length}"
        )
    tokens = np.zeros((1, length), np.int32)
    tokens[0, : len(prompt)] = prompt
    tokens = _complete(config, params, tokens, len(prompt), temperature, jax.random.key(seed))
    return np.asarray(tokens)[0].tolist()


@functools.partial(jax.jit, static_argnums=0)
def _complete(config: ModelConfig, params: Params, tokens, start, temperature, key):
    model = bind(config, params).body

    def draw(position, tokens):
        hidden = model(tokens)  # later positions hold zeros, which causality hides
        logits = model.logits(jax.lax.dynamic_slice_in_dim(hidden, position - 1, 1, axis=1))[:, 0] / temperature
        ids = jnp.arange(logits.shape[-1])
        can_be_drawn = (ids != UNKNOWN_ID) & (ids < config.vocab_size)
        drawn = jax.random.categorical(jax.random.fold_in(key, position), jnp.where(can_be_drawn, logits, -jnp.inf))
        return tokens.at[:, position].set(drawn)

    return jax.lax.fori_loop(start, tokens.shape[1], draw, tokens)
