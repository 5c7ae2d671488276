"""The compiled programs of the server: all texts in the making are the slots of one state.

Each slot has settings of its own as entries of arrays, so that no request compiles anything: one program reads a
prompt (for each padded length), one puts what was read into a slot, one writes a token in every slot.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gpt.config import ModelConfig
from gpt.data.batches import padded_length
from gpt.generation.decode import Draft, Rules, choose
from gpt.generation.logits import Knobs, can_be_drawn, make_knobs
from gpt.generation.settings import Decoding
from gpt.model.gpt import Params, bind
from gpt.model.reader import make_reader, split_layers

NUM_TOP = 5
"""Likeliest tokens that are told beside each token."""

_RULES = Rules(no_repeat_ngram=None, banned=(), has_penalty=True)


class Weights(NamedTuple):
    """The parameters of a model, and those of its layers one by one."""

    params: Params
    layers: list[Any]


class Slots(NamedTuple):
    """Texts in the making, each in a slot."""

    tokens: Int[Array, "B S"]
    length: Int[Array, "B"]
    logits: Float[Array, "B V"]  # of the next token
    memory: Any  # a slot's is that of a batch of one
    keys: Key[Array, "B"]
    knobs: Knobs


class Reading(NamedTuple):
    """A prompt that was read, as often as it is to be continued."""

    tokens: Int[Array, "1 S"]
    length: Int[Array, ""]
    hidden: Float[Array, "1 T D"]
    logits: Float[Array, "V"]
    memory: Any


class Scores(NamedTuple):
    """Natural logarithms of the probabilities of tokens, and of those that were likeliest in their place."""

    ids: Int[Array, "N"]
    log_probs: Float[Array, "N"]
    top_ids: Int[Array, "N top"]
    top_log_probs: Float[Array, "N top"]


def make_weights(config: ModelConfig, params: Params) -> Weights:
    """The weights on the device."""
    params = jax.device_put(params)
    return Weights(params, split_layers(config, params))


def _reader(config: ModelConfig, weights: Weights) -> Any:
    return make_reader(bind(config, weights.params).body, weights.layers)


def empty_slots(config: ModelConfig, weights: Weights, num_slots: int) -> Slots:
    """Slots without texts."""
    decoding = [Decoding()] * num_slots
    tokens = jnp.zeros((num_slots, config.context_length), jnp.int32)
    state = jax.eval_shape(functools.partial(_read, config), weights, tokens[:1, :1], tokens[:1], jnp.array(1))
    memory = jax.tree.map(lambda leaf: jnp.zeros((num_slots, *leaf.shape), leaf.dtype), state.memory)
    logits = jnp.zeros((num_slots, *state.logits.shape), jnp.float32)
    keys = jax.random.split(jax.random.key(0), num_slots)
    return Slots(tokens, jnp.zeros(num_slots, jnp.int32), logits, memory, keys, make_knobs(decoding, config))


def read(config: ModelConfig, weights: Weights, ids: Sequence[int]) -> Reading:
    """The prompt, read."""
    row = np.zeros((1, config.context_length), np.int32)
    row[0, : len(ids)] = ids
    length = padded_length(len(ids), config.context_length)
    return _read(config, weights, row[:, :length], row, np.int32(len(ids)))


@functools.partial(jax.jit, static_argnums=0)
def _read(config: ModelConfig, weights: Weights, prompt, tokens, length) -> Reading:
    reader = _reader(config, weights)
    mask = jnp.arange(prompt.shape[1])[None] < length
    hidden, memory = reader.read(reader.start(1, config.context_length), prompt, mask)
    logits = reader.logits(jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1))
    return Reading(jnp.asarray(tokens), jnp.asarray(length), hidden, logits[0, 0], memory)


@functools.partial(jax.jit, static_argnums=0)
def score(config: ModelConfig, weights: Weights, reading: Reading) -> Scores:
    """What the tokens of the prompt but the first have, given those before them; then as much as padding has."""
    hidden = reading.hidden[:, :-1]
    logits = _reader(config, weights).logits(hidden)[0]
    return _scores(config, logits, reading.tokens[0, 1 : 1 + len(logits)], jnp.array(True))


def seat(config: ModelConfig, slots: Slots, slot: int, reading: Reading, decoding: Decoding, sample: int) -> Slots:
    """The slots with the prompt in one of them, to be continued as `continue_texts` would its sample of that number."""
    text = (reading.tokens[0], reading.length, reading.logits, reading.memory)
    knobs = make_knobs([decoding], config)
    return _seat(slots, np.int32(slot), text, np.uint32(decoding.seed), np.uint32(sample), knobs)


@functools.partial(jax.jit, donate_argnums=0)
def _seat(slots: Slots, slot, text, seed, sample, knobs: Knobs) -> Slots:
    tokens, length, logits, memory = text
    key = jax.random.fold_in(jax.random.key(seed), sample)
    new = Slots(tokens, length, logits, memory, key, jax.tree.map(lambda row: row[0], knobs))
    return jax.tree.map(lambda every, one: every.at[slot].set(one), slots, new)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def write(config: ModelConfig, weights: Weights, slots: Slots, is_busy, wants_top) -> tuple[Slots, Scores]:
    """The slots with one token more in each that is busy (bool [B]), and these tokens."""
    reader = _reader(config, weights)
    is_token = jnp.arange(slots.tokens.shape[1]) < slots.length[:, None]
    draft = Draft(slots.tokens, is_token, jnp.zeros(is_token.shape), slots.length[0], slots.logits, None, slots.keys)
    chosen = choose(config, draft, slots.knobs, _RULES)
    scores = _scores(config, slots.logits, chosen, wants_top)

    # A slot is a batch of one: so each has a place of its own where the next token goes.
    hidden, memory = jax.vmap(reader.read)(slots.memory, chosen[:, None, None], is_busy[:, None, None])
    rows = jnp.arange(len(chosen))
    tokens = slots.tokens.at[rows, jnp.where(is_busy, slots.length, slots.tokens.shape[1])].set(chosen, mode="drop")
    logits = reader.logits(hidden[:, 0])[:, 0]
    return Slots(tokens, slots.length + is_busy, logits, memory, slots.keys, slots.knobs), scores


def _scores(config: ModelConfig, logits: Float[Array, "N V"], ids: Int[Array, "N"], wants_top) -> Scores:
    log_probs = jax.nn.log_softmax(logits)
    num_top = min(NUM_TOP, config.vocab_size)

    def find_top(log_probs):
        return tuple(jax.lax.top_k(jnp.where(can_be_drawn(config, log_probs.shape[-1]), log_probs, -jnp.inf), num_top))

    def find_nothing(log_probs):
        return jnp.zeros((len(ids), num_top), log_probs.dtype), jnp.zeros((len(ids), num_top), jnp.int32)

    top, top_ids = jax.lax.cond(wants_top, find_top, find_nothing, log_probs)
    return Scores(ids, jnp.take_along_axis(log_probs, ids[:, None], axis=-1)[:, 0], top_ids, top)
