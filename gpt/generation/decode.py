"""Continuing texts: one compiled loop that reads with a cache and writes a token a turn."""

import functools
from collections.abc import Iterator, Sequence
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


class Rules(NamedTuple):
    """What of `Decoding` is compiled in, the same for all rows."""

    no_repeat_ngram: int | None
    banned: tuple[tuple[int, ...], ...]
    has_penalty: bool
    end_ids: tuple[int, ...] = ()


class Written(NamedTuple):
    """The next tokens of all rows, and the natural logarithm of each one's probability."""

    ids: Int[np.ndarray, "B N"]
    log_probs: Float[np.ndarray, "B N"]


def write(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], decoding: Decoding, num_at_once: int
) -> Iterator[Written]:
    """`max_new_tokens` for each of `num_samples` rows a prompt, `num_at_once` at a time.

    Tokens that end a text are for the caller to see. With `sliding_window` a row whose context is full goes on with
    the last half of it, which is read again, since its positions are other ones then.

    Raises:
      ConfigError: an empty prompt, or one too long for `max_new_tokens` more.
    """
    check_lengths(prompts, decoding, config.context_length)
    rows = [list(ids) for ids in prompts for _ in range(decoding.num_samples)]
    keys = sample_keys(decoding, len(prompts))
    knobs, rules = make_knobs([decoding] * len(rows), config), rules_of(decoding)
    num_written = 0
    while num_written < decoding.max_new_tokens:
        is_full = np.array([len(row) >= config.context_length for row in rows])
        if is_full.any():
            rows = [
                row[-max(config.context_length // 2, 1) :] if full else row
                for row, full in zip(rows, is_full, strict=True)
            ]
            # Draws are numbered by the tokens in the context, and these numbers begin anew.
            keys = jnp.where(is_full, jax.vmap(jax.random.fold_in, (0, None))(keys, num_written), keys)
        num_new = min(decoding.max_new_tokens - num_written, config.context_length - max(map(len, rows)))
        draft = start(config, params, rows, num_new, keys)
        for first in range(num_written, num_written + num_new, num_at_once):
            count = min(num_at_once, num_written + num_new - first)
            draft = extend(config, params, draft, knobs, rules, count, decoding.min_new_tokens - first)
            new = slice(int(draft.end) - count, int(draft.end))
            ids, log_probs = jax.device_get((draft.tokens[:, new], draft.log_probs[:, new]))
            for row, row_ids in zip(rows, ids, strict=True):
                row.extend(row_ids.tolist())
            yield Written(ids, log_probs)
        num_written += num_new


def sample_keys(decoding: Decoding, num_prompts: int) -> Key[Array, "B"]:
    """A key a row: sample i of any prompt has the same."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(decoding.seed)))
    return keys(np.tile(np.arange(decoding.num_samples), num_prompts))


def rules_of(decoding: Decoding) -> Rules:
    """The compiled part of the settings."""
    has_penalty = decoding.repetition_penalty != 1
    return Rules(decoding.no_repeat_ngram, decoding.banned, has_penalty, decoding.end_ids)


def start(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], num_new: int, keys: Key[Array, "B"]
) -> Draft:
    """The prompts read, with room for `num_new` tokens more."""
    return read_prompts(config, params, *pad_prompts(config, prompts), room_for(num_new), keys)[0]


def pad_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]]
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """The prompts at the right edge of one array, and where they are; of a few lengths, each a compiled program."""
    length = padded_length(max(map(len, prompts)), config.context_length)
    tokens = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, ids in enumerate(prompts):
        tokens[row, length - len(ids) :], mask[row, length - len(ids) :] = ids, True
    return tokens, mask


def room_for(num_new: int) -> int:
    """Slots for so many tokens, of few lengths as well."""
    return -(-num_new // _ROOM) * _ROOM


@functools.partial(jax.jit, static_argnums=(0, 4))
def read_prompts(
    config: ModelConfig, params: Params, tokens, mask, room: int, keys
) -> tuple[Draft, Float[Array, "B T D"]]:
    """The prompts as drafts with room for more tokens, and their hidden states."""
    reader = make_reader(bind(config, params).body)
    batch_size, length = tokens.shape
    hidden, memory = reader.read(reader.start(batch_size, length + room), tokens, mask)
    draft = Draft(
        jnp.pad(tokens, ((0, 0), (0, room))),
        jnp.pad(mask, ((0, 0), (0, room))),
        jnp.zeros((batch_size, length + room), jnp.float32),
        jnp.array(length),
        reader.logits(hidden[:, -1:])[:, 0],
        memory,
        keys,
    )
    return draft, hidden


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def extend(
    config: ModelConfig, params: Params, draft: Draft, knobs: Knobs, rules: Rules, num_tokens, num_before_end=0
) -> Draft:
    """The texts with `num_tokens` more, of which the first `num_before_end` are no end."""
    reader = make_reader(bind(config, params).body)

    def write_one(turn, draft: Draft) -> Draft:
        possible = ban_ends(draft.logits, rules, turn < num_before_end)
        chosen = choose(config, draft._replace(logits=possible), knobs, rules)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(draft.logits), chosen[:, None], axis=-1)
        return append(reader, draft, chosen, log_probs[:, 0])[0]

    return jax.lax.fori_loop(0, num_tokens, write_one, draft)


def append(
    reader: Any, draft: Draft, chosen: Int[Array, "B"], log_probs: Float[Array, "B"]
) -> tuple[Draft, Float[Array, "B D"]]:
    """The texts with one more token each, read, and its hidden states."""
    hidden, memory = reader.read(draft.memory, chosen[:, None], jnp.ones((len(chosen), 1), bool))
    draft = put(draft, chosen, log_probs)._replace(logits=reader.logits(hidden)[:, 0], memory=memory)
    return draft, hidden[:, 0]


def put(draft: Draft, chosen: Int[Array, "B"], log_probs: Float[Array, "B"]) -> Draft:
    """The texts with one more token each, which is not yet read."""
    at = (0, draft.end)
    return draft._replace(
        tokens=jax.lax.dynamic_update_slice(draft.tokens, chosen[:, None], at),
        is_token=jax.lax.dynamic_update_slice(draft.is_token, jnp.ones((len(chosen), 1), bool), at),
        log_probs=jax.lax.dynamic_update_slice(draft.log_probs, log_probs[:, None], at),
        end=draft.end + 1,
    )


def ban_ends(logits: Float[Array, "B V"], rules: Rules, is_early: Bool[Array, ""]) -> Float[Array, "B V"]:
    """-inf for the tokens that end a text, as long as it is too early for that."""
    for token in rules.end_ids:
        logits = logits.at[:, token].set(jnp.where(is_early, -jnp.inf, logits[:, token]))
    return logits


def obey(config: ModelConfig, draft: Draft, knobs: Knobs, rules: Rules) -> Float[Array, "B V"]:
    """The logits of the drafts under the rules: -inf for what may not come."""
    logits = jnp.where(can_be_drawn(config, draft.logits.shape[-1]), draft.logits, -jnp.inf)
    if rules.has_penalty:
        logits = penalise_repetition(logits, draft.tokens, draft.is_token, knobs.repetition_penalty)
    if rules.no_repeat_ngram is not None:
        logits = ban_repeated_ngrams(logits, draft.tokens, draft.is_token, draft.end, rules.no_repeat_ngram)
    if rules.banned:
        logits = ban_sequences(logits, draft.tokens, draft.end, rules.banned)
    return logits


def choose(config: ModelConfig, draft: Draft, knobs: Knobs, rules: Rules) -> Int[Array, "B"]:
    """The next token of each row: the likeliest at temperature 0, or drawn."""
    logits = obey(config, draft, knobs, rules)
    likeliest = logits.argmax(-1).astype(jnp.int32)

    def draw():
        warmed = logits / jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)[:, None]
        # It sorts the vocabulary: not for rows that are all greedy or drawn from all of it.
        warmed = jax.lax.cond(truncates(knobs, config).any(), truncate, lambda logits, _: logits, warmed, knobs)
        # By the count of tokens, not by the slot, which depends on the longest prompt of the batch.
        keys = jax.vmap(jax.random.fold_in)(draft.keys, draft.is_token.sum(-1))
        drawn = jax.vmap(jax.random.categorical)(keys, warmed).astype(jnp.int32)
        return jnp.where(knobs.temperature > 0, drawn, likeliest)

    # It takes a random number for every token of the vocabulary: not for rows that are all greedy.
    return jax.lax.cond((knobs.temperature > 0).any(), draw, lambda: likeliest)
