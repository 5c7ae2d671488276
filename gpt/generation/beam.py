"""Beam search in one compiled loop over the cache, step by step what `transformers` does.

Every prompt has K running texts. Each is scored with every next token; those of the best that end are kept apart, and
K of the others run on. What is found is ranked by its log-probability over its length to a power.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gpt.config import ModelConfig
from gpt.generation.decode import (
    Draft,
    Rules,
    append,
    ban_ends,
    obey,
    pad_prompts,
    read_prompts,
    room_for,
    rules_of,
)
from gpt.generation.logits import Knobs, make_knobs
from gpt.generation.settings import Decoding, check_beams, check_lengths
from gpt.model.gpt import Params, bind
from gpt.model.reader import make_reader

_OUT = -1e9
"""Added to the score of what must not be chosen."""


class Found(NamedTuple):
    """The best texts so far, best first, with their ends; scores of places not filled are about -1e9."""

    tokens: Int[Array, "P K S"]
    log_probs: Float[Array, "P K S"]
    ends: Int[Array, "P K"]
    scores: Float[Array, "P K"]
    is_whole: Bool[Array, "P K"]


class Search(NamedTuple):
    """The state of the loop: P prompts with K running texts each, which are P x K rows of the draft."""

    draft: Draft
    running: Float[Array, "P K"]  # log-probabilities
    found: Found
    can_improve: Bool[Array, "P 1"]
    turn: Int[Array, ""]


class Beam(NamedTuple):
    """The new tokens of one text, their log-probabilities, and the score by which it was ranked."""

    ids: list[int]
    log_probs: list[float]
    score: float


def search_beams(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> list[list[Beam]]:
    """The `num_samples` best continuations of each prompt, best first; end tokens are kept.

    Raises:
      ConfigError: an empty prompt, one too long for `max_new_tokens` more, or more beams than tokens.
    """
    check_lengths(prompts, decoding, config.context_length)
    check_beams(decoding, config)
    tokens, mask = pad_prompts(config, prompts)
    keys = jax.random.split(jax.random.key(0), len(prompts))  # of no use: nothing is drawn
    draft, _ = read_prompts(config, params, tokens, mask, room_for(decoding.max_new_tokens), keys)
    limits = (np.int32(decoding.min_new_tokens), np.int32(decoding.max_new_tokens), np.float32(decoding.length_penalty))
    knobs = make_knobs([decoding] * (len(prompts) * decoding.num_beams), config)
    found = jax.device_get(_search(config, params, draft, knobs, rules_of(decoding), decoding.num_beams, limits))
    first = tokens.shape[1]
    return [
        [
            Beam(
                found.tokens[prompt, rank, first : found.ends[prompt, rank]].tolist(),
                found.log_probs[prompt, rank, first : found.ends[prompt, rank]].tolist(),
                float(found.scores[prompt, rank]),
            )
            for rank in range(decoding.num_samples)
        ]
        for prompt in range(len(prompts))
    ]


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _search(
    config: ModelConfig, params: Params, draft: Draft, knobs: Knobs, rules: Rules, num_beams: int, limits
) -> Found:
    reader = make_reader(bind(config, params).body)
    min_new_tokens, max_new_tokens, length_penalty = limits
    num_prompts, num_slots = draft.tokens.shape
    shape = (num_prompts, num_beams)
    state = Search(
        _repeat(draft, num_beams),
        # One of the texts, equal at first, has all the chances.
        jnp.broadcast_to(jnp.where(jnp.arange(num_beams) == 0, 0.0, _OUT), shape),
        Found(
            jnp.zeros((*shape, num_slots), jnp.int32),
            jnp.zeros((*shape, num_slots)),
            jnp.zeros(shape, jnp.int32),
            jnp.full(shape, _OUT),
            jnp.zeros(shape, bool),
        ),
        jnp.ones((num_prompts, 1), bool),
        jnp.zeros((), jnp.int32),
    )

    def goes_on(state: Search) -> Bool[Array, ""]:
        return (state.turn < max_new_tokens) & state.can_improve.any()

    def step(state: Search) -> Search:
        length = state.turn + 1.0
        best = _best_next(config, state, knobs, rules, min_new_tokens)
        ends = jnp.isin(best.tokens, jnp.array(rules.end_ids, jnp.int32)) | (length >= max_new_tokens)
        found = _collect(state, best, ends, length**length_penalty)

        running = best.scores + ends * _OUT
        running, order = jax.lax.top_k(running, num_beams)
        chosen = jax.tree.map(lambda array: jnp.take_along_axis(array, order, axis=1), best)
        parents = (chosen.parents + jnp.arange(num_prompts)[:, None] * num_beams).reshape(-1)
        draft = _take(state.draft, parents)
        draft, _ = append(reader, draft, chosen.tokens.reshape(-1), chosen.log_probs.reshape(-1))

        possible = running[:, :1] / length**length_penalty
        worst = jnp.where(found.is_whole, found.scores.min(axis=1, keepdims=True), _OUT)
        can_improve = state.can_improve & (possible > worst).any(axis=1, keepdims=True)
        return Search(draft, running, found, can_improve, state.turn + 1)

    return jax.lax.while_loop(goes_on, step, state).found


class _Next(NamedTuple):
    """The best texts with one token more, best first: M = K (1 + number of end tokens), at least 2 K."""

    scores: Float[Array, "P M"]
    parents: Int[Array, "P M"]
    tokens: Int[Array, "P M"]
    log_probs: Float[Array, "P M"]  # of the tokens


def _best_next(config: ModelConfig, state: Search, knobs: Knobs, rules: Rules, min_new_tokens) -> _Next:
    num_prompts, num_beams = state.running.shape
    log_probs = jax.nn.log_softmax(state.draft.logits)
    draft = state.draft._replace(logits=ban_ends(log_probs, rules, state.turn < min_new_tokens))
    vocab_size = log_probs.shape[-1]
    scores = obey(config, draft, knobs, rules).reshape(num_prompts, num_beams, vocab_size) + state.running[..., None]
    count = max(2, 1 + len(rules.end_ids)) * num_beams
    best, places = jax.lax.top_k(scores.reshape(num_prompts, -1), min(count, num_beams * vocab_size))
    of_tokens = jnp.take_along_axis(log_probs.reshape(num_prompts, -1), places, axis=1)
    return _Next(best, places // vocab_size, places % vocab_size, of_tokens)


def _collect(state: Search, best: _Next, ends: Bool[Array, "P M"], divisor: Float[Array, ""]) -> Found:
    """The best of what was found before and of the first K texts where they end with this turn."""
    num_prompts, num_beams = state.running.shape
    counts = ends & (jnp.arange(best.scores.shape[1]) < num_beams)
    scores = best.scores / divisor + (~state.can_improve) * _OUT + (~counts) * _OUT
    at = state.draft.end
    parents = best.parents[..., None]

    def grown(array: Array, last: Array) -> Array:
        rows = jnp.take_along_axis(array.reshape(num_prompts, num_beams, -1), parents, axis=1)
        return rows.at[:, :, at].set(last)

    new = Found(
        grown(state.draft.tokens, best.tokens),
        grown(state.draft.log_probs, best.log_probs),
        jnp.full(scores.shape, at + 1),
        scores,
        counts,
    )
    all_found = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.found, new)
    order = jax.lax.top_k(all_found.scores, num_beams)[1]

    def pick(array: Array) -> Array:
        return jnp.take_along_axis(array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), axis=1)

    return jax.tree.map(pick, all_found)


def _repeat(draft: Draft, count: int) -> Draft:
    """Each row of the draft so many times."""
    return _take(draft, jnp.repeat(jnp.arange(len(draft.tokens)), count))


def _take(draft: Draft, rows: Int[Array, "N"]) -> Draft:
    """These rows of the draft."""
    # `end` is one for all rows.
    return jax.tree.map(lambda array: array[rows], draft._replace(end=None))._replace(end=draft.end)
