"""Continuing texts: one compiled loop that reads with a cache and writes a token a turn."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from gpt.config import ModelConfig
from gpt.data.batches import padded_length
from gpt.generation.logits import (
    Knobs,
    ban_repeated_ngrams,
    ban_sequences,
    can_be_drawn,
    make_knobs,
    penalise_repetition,
    truncate,
    truncates,
)
from gpt.generation.settings import Decoding, check_lengths
from gpt.model.gpt import Params, bind
from gpt.model.reader import make_reader

_ROOM = 32
"""New tokens are made room for in multiples of this, so that few lengths are compiled."""


class Draft(NamedTuple):
    """Texts in the making. All end at the same slot, so that shorter prompts start with padding."""

    tokens: Int[Array, "B S"]
    is_token: Bool[Array, "B S"]
    log_probs: Float[Array, "B S"]  # of each new token under the model as it is
    end: Int[Array, ""]  # slots filled
    logits: Float[Array, "B V"]  # of the next token
    memory: Any
    keys: Key[Array, "B"]


class Continuation(NamedTuple):
    """The new tokens of one text, and the natural logarithm of each one's probability."""

    ids: list[int]
    log_probs: list[float]


class Rules(NamedTuple):
    """What of `Decoding` is compiled in, the same for all rows."""

    no_repeat_ngram: int | None
    banned: tuple[tuple[int, ...], ...]
    has_penalty: bool


def continue_texts(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> list[list[Continuation]]:
    """`num_samples` continuations of each prompt. A prompt's answer does not depend on those beside it.

    Raises:
      ConfigError: an empty prompt, or one too long for `max_new_tokens` more.
    """
    check_lengths(prompts, decoding, config.context_length)
    rows = [ids for ids in prompts for _ in range(decoding.num_samples)]
    draft = start(config, params, rows, decoding.max_new_tokens, sample_keys(decoding, len(prompts)))
    knobs = make_knobs([decoding] * len(rows), config)
    draft = extend(config, params, draft, knobs, rules_of(decoding), decoding.max_new_tokens)
    new = slice(int(draft.end) - decoding.max_new_tokens, int(draft.end))
    ids, log_probs = jax.device_get((draft.tokens[:, new], draft.log_probs[:, new]))
    found = [Continuation(row.tolist(), scores.tolist()) for row, scores in zip(ids, log_probs, strict=True)]
    return [found[at : at + decoding.num_samples] for at in range(0, len(found), decoding.num_samples)]


def sample_keys(decoding: Decoding, num_prompts: int) -> Key[Array, "B"]:
    """A key a row: sample i of any prompt has the same."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(decoding.seed)))
    return keys(np.tile(np.arange(decoding.num_samples), num_prompts))


def rules_of(decoding: Decoding) -> Rules:
    """The compiled part of the settings."""
    return Rules(decoding.no_repeat_ngram, decoding.banned, decoding.repetition_penalty != 1)


def start(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], num_new: int, keys: Key[Array, "B"]
) -> Draft:
    """The prompts read, with room for `num_new` tokens more.

    Padded to a few lengths, each a compiled program of its own.
    """
    length = padded_length(max(map(len, prompts)), config.context_length)
    tokens = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, ids in enumerate(prompts):
        tokens[row, length - len(ids) :], mask[row, length - len(ids) :] = ids, True
    room = -(-num_new // _ROOM) * _ROOM
    return _read_prompts(config, params, tokens, mask, room, keys)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _read_prompts(config: ModelConfig, params: Params, tokens, mask, room: int, keys) -> Draft:
    reader = make_reader(bind(config, params).body)
    batch_size, length = tokens.shape
    hidden, memory = reader.read(reader.start(batch_size, length + room), tokens, mask)
    return Draft(
        jnp.pad(tokens, ((0, 0), (0, room))),
        jnp.pad(mask, ((0, 0), (0, room))),
        jnp.zeros((batch_size, length + room), jnp.float32),
        jnp.array(length),
        reader.logits(hidden[:, -1:])[:, 0],
        memory,
        keys,
    )


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def extend(config: ModelConfig, params: Params, draft: Draft, knobs: Knobs, rules: Rules, num_tokens) -> Draft:
    """The texts with `num_tokens` more."""
    reader = make_reader(bind(config, params).body)

    def write(_, draft: Draft) -> Draft:
        chosen = choose(config, draft, knobs, rules)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(draft.logits), chosen[:, None], axis=-1)
        hidden, memory = reader.read(draft.memory, chosen[:, None], jnp.ones((len(chosen), 1), bool))
        at = (0, draft.end)
        return Draft(
            jax.lax.dynamic_update_slice(draft.tokens, chosen[:, None], at),
            jax.lax.dynamic_update_slice(draft.is_token, jnp.ones((len(chosen), 1), bool), at),
            jax.lax.dynamic_update_slice(draft.log_probs, log_probs, at),
            draft.end + 1,
            reader.logits(hidden)[:, 0],
            memory,
            draft.keys,
        )

    return jax.lax.fori_loop(0, num_tokens, write, draft)


def choose(config: ModelConfig, draft: Draft, knobs: Knobs, rules: Rules) -> Int[Array, "B"]:
    """The next token of each row: the likeliest at temperature 0, or drawn."""
    logits = jnp.where(can_be_drawn(config, draft.logits.shape[-1]), draft.logits, -jnp.inf)
    if rules.has_penalty:
        logits = penalise_repetition(logits, draft.tokens, draft.is_token, knobs.repetition_penalty)
    if rules.no_repeat_ngram is not None:
        logits = ban_repeated_ngrams(logits, draft.tokens, draft.is_token, draft.end, rules.no_repeat_ngram)
    if rules.banned:
        logits = ban_sequences(logits, draft.tokens, draft.end, rules.banned)

    likeliest = logits.argmax(-1).astype(jnp.int32)
    warmed = logits / jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)[:, None]
    # It sorts the vocabulary: not for rows that are all greedy or drawn from all of it.
    warmed = jax.lax.cond(truncates(knobs, config).any(), truncate, lambda logits, _: logits, warmed, knobs)
    # By the count of tokens, not by the slot, which depends on the longest prompt of the batch.
    keys = jax.vmap(jax.random.fold_in)(draft.keys, draft.is_token.sum(-1))
    drawn = jax.vmap(jax.random.categorical)(keys, warmed).astype(jnp.int32)
    return jnp.where(knobs.temperature > 0, drawn, likeliest)
