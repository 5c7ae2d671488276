"""Contrastive search (Su et al. 2022, eq. 5) in one compiled loop over the cache."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpt.config import ModelConfig
from gpt.generation.decode import (
    Draft,
    Rules,
    Written,
    ban_ends,
    obey,
    pad_prompts,
    put,
    read_prompts,
    room_for,
    rules_of,
    sample_keys,
)
from gpt.generation.logits import Knobs, make_knobs
from gpt.generation.settings import Decoding, check_lengths
from gpt.model.gpt import Params, bind
from gpt.model.reader import make_reader


def search_contrastively(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> Written:
    """`max_new_tokens` tokens for each prompt; ends are for the caller to see.

    Raises:
      ConfigError: an empty prompt, or one too long for `max_new_tokens` more.
    """
    check_lengths(prompts, decoding, config.context_length)
    assert decoding.contrastive_alpha is not None
    assert decoding.top_k is not None
    tokens, mask = pad_prompts(config, prompts)
    keys = sample_keys(decoding, len(prompts))
    draft, hidden = read_prompts(config, params, tokens, mask, room_for(decoding.max_new_tokens), keys)
    limits = (np.int32(decoding.min_new_tokens), np.int32(decoding.max_new_tokens))
    knobs, rules = make_knobs([decoding] * len(prompts), config), rules_of(decoding)
    num_choices = min(decoding.top_k, config.vocab_size - 1)
    alpha = np.float32(decoding.contrastive_alpha)
    draft = _search(config, params, draft, hidden, knobs, rules, num_choices, alpha, limits)
    new = slice(tokens.shape[1], tokens.shape[1] + decoding.max_new_tokens)
    return Written(*jax.device_get((draft.tokens[:, new], draft.log_probs[:, new])))


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _search(
    config: ModelConfig,
    params: Params,
    draft: Draft,
    hidden,
    knobs: Knobs,
    rules: Rules,
    num_choices: int,
    alpha,
    limits,
) -> Draft:
    reader = make_reader(bind(config, params).body)
    min_new_tokens, max_new_tokens = limits
    batch_size, num_slots = draft.tokens.shape
    # Every choice of a text is a row with a memory of its own, of which that of the chosen one goes on.
    memory = jax.tree.map(lambda array: jnp.repeat(array, num_choices, axis=0), draft.memory)
    states = jnp.pad(_unit(hidden), ((0, 0), (0, num_slots - hidden.shape[1]), (0, 0)))
    texts = jnp.arange(batch_size)

    def step(turn, state):
        draft, memory, states = state
        possible = draft._replace(logits=ban_ends(draft.logits, rules, turn < min_new_tokens))
        probabilities, choices = jax.lax.top_k(jax.nn.softmax(obey(config, possible, knobs, rules)), num_choices)
        is_token = jnp.ones((batch_size * num_choices, 1), bool)
        hidden, memory = reader.read(memory, choices.reshape(-1, 1).astype(jnp.int32), is_token)
        new_states = _unit(hidden).reshape(batch_size, num_choices, -1)
        likeness = jnp.einsum("bkd,bsd->bks", new_states, states, precision="highest")
        repetition = jnp.where(draft.is_token[:, None], likeness, -1.0).max(-1)
        # A choice that the rules forbid has probability 0, and would else win by its difference alone.
        balance = jnp.where(probabilities > 0, (1 - alpha) * probabilities - alpha * repetition, -jnp.inf)
        winner = balance.argmax(-1)

        rows = texts * num_choices + winner
        memory = jax.tree.map(lambda array: jnp.repeat(array[rows], num_choices, axis=0), memory)
        chosen = choices[texts, winner].astype(jnp.int32)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(draft.logits), chosen[:, None], axis=-1)[:, 0]
        states = jax.lax.dynamic_update_slice(states, new_states[texts, winner][:, None], (0, draft.end, 0))
        draft = put(draft, chosen, log_probs)._replace(logits=reader.logits(hidden[rows])[:, 0])
        return draft, memory, states

    return jax.lax.fori_loop(0, max_new_tokens, step, (draft._replace(memory=None), memory, states))[0]


def _unit(hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The same directions with length 1."""
    return hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), 1e-12)
