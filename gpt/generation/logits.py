"""From the model's logits to those that a token is drawn from; every row of a batch has settings of its own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gpt.config import ModelConfig
from gpt.generation.settings import Decoding

UNKNOWN_ID = 0


class Knobs(NamedTuple):
    """The numbers of `Decoding` as arrays with an entry a row, so that no value of them compiles anew."""

    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"]
    top_p: Float[Array, "B"]
    typical_p: Float[Array, "B"]
    repetition_penalty: Float[Array, "B"]


def make_knobs(decodings: list[Decoding], config: ModelConfig) -> Knobs:
    """The knobs of a batch whose rows are decoded so."""
    return Knobs(
        jnp.array([decoding.temperature for decoding in decodings], jnp.float32),
        jnp.array([decoding.top_k or config.num_embeddings for decoding in decodings], jnp.int32),
        jnp.array([decoding.top_p for decoding in decodings], jnp.float32),
        jnp.array([decoding.typical_p for decoding in decodings], jnp.float32),
        jnp.array([decoding.repetition_penalty for decoding in decodings], jnp.float32),
    )


def can_be_drawn(config: ModelConfig, num_logits: int) -> Bool[Array, "V"]:
    """All ids but the unknown token, the special tokens, and positions where the softmax has them."""
    ids = jnp.arange(num_logits)
    return (ids != UNKNOWN_ID) & (ids < config.vocab_size)


def penalise_repetition(
    logits: Float[Array, "B V"], tokens: Int[Array, "B S"], is_token: Bool[Array, "B S"], penalty: Float[Array, "B"]
) -> Float[Array, "B V"]:
    """Logits of tokens in the text made less likely."""
    rows = jnp.arange(logits.shape[0])[:, None]
    seen = jnp.zeros(logits.shape, bool).at[rows, tokens].max(is_token)
    penalised = jnp.where(logits > 0, logits / penalty[:, None], logits * penalty[:, None])
    return jnp.where(seen, penalised, logits)


def ban_repeated_ngrams(
    logits: Float[Array, "B V"], tokens: Int[Array, "B S"], is_token: Bool[Array, "B S"], end: Int[Array, ""], n: int
) -> Float[Array, "B V"]:
    """-inf for each token that would complete a sequence of n tokens which the text has already.

    The text fills the slots before `end`.
    """
    length = tokens.shape[1]
    if length < n:
        return logits
    num_windows = length - n + 1
    windows = jnp.stack([tokens[:, shift : shift + num_windows] for shift in range(n)], axis=-1)
    whole = jnp.stack([is_token[:, shift : shift + num_windows] for shift in range(n)], axis=-1).all(-1)
    # Where fewer than n - 1 tokens are there, `end - n + 1` is clipped to 0 and padding makes no window whole.
    tail = jax.lax.dynamic_slice_in_dim(tokens, end - n + 1, n - 1, axis=1)
    repeats = (windows[..., :-1] == tail[:, None]).all(-1) & whole & (end >= n - 1)
    rows = jnp.arange(logits.shape[0])[:, None]
    banned = jnp.zeros(logits.shape, bool).at[rows, windows[..., -1]].max(repeats)
    return jnp.where(banned, -jnp.inf, logits)


def ban_sequences(
    logits: Float[Array, "B V"], tokens: Int[Array, "B S"], end: Int[Array, ""], banned: tuple[tuple[int, ...], ...]
) -> Float[Array, "B V"]:
    """-inf for each token that would complete one of the banned sequences."""
    for *start, last in banned:
        if len(start) > tokens.shape[1]:
            continue
        tail = jax.lax.dynamic_slice_in_dim(tokens, end - len(start), len(start), axis=1)
        completes = (tail == jnp.array(start, jnp.int32)).all(-1) & (end >= len(start))
        logits = logits.at[:, last].set(jnp.where(completes, -jnp.inf, logits[:, last]))
    return logits


def truncates(knobs: Knobs, config: ModelConfig) -> Bool[Array, "B"]:
    """Which rows `truncate` changes the draws of."""
    is_narrow = (knobs.top_k < config.num_embeddings) | (knobs.top_p < 1) | (knobs.typical_p < 1)
    return is_narrow & (knobs.temperature > 0)


def truncate(logits: Float[Array, "B V"], knobs: Knobs) -> Float[Array, "B V"]:
    """-inf outside of the tokens that top-k, then top-p, then typical-p leave; at least one stays.

    One sort serves top-k and top-p. Ties at the edge stay in, as a threshold on the value cannot split them.
    """
    descending = -jnp.sort(-logits, axis=-1)
    kth = jnp.take_along_axis(descending, jnp.minimum(knobs.top_k, logits.shape[-1])[:, None] - 1, axis=-1)
    descending = jnp.where(descending >= kth, descending, -jnp.inf)
    probabilities = jax.nn.softmax(descending)
    # A token stays while those likelier than it have less than top_p. All of them may sum to less than 1.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    stays = (before < knobs.top_p[:, None]) & (probabilities > 0)
    edge = jnp.where(stays, descending, jnp.inf).min(-1, keepdims=True)
    return _typical(jnp.where(logits >= edge, logits, -jnp.inf), knobs.typical_p)


def _typical(logits: Float[Array, "B V"], typical_p: Float[Array, "B"]) -> Float[Array, "B V"]:
    log_probs = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(log_probs)
    entropy = -jnp.where(probabilities > 0, probabilities * log_probs, 0).sum(-1, keepdims=True)
    distance = jnp.abs(-log_probs - entropy)
    order = jnp.argsort(distance, axis=-1)
    ordered = jnp.take_along_axis(probabilities, order, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    edge = jnp.where(before < typical_p[:, None], jnp.take_along_axis(distance, order, axis=-1), -jnp.inf)
    keep = (distance <= edge.max(-1, keepdims=True)) | (typical_p[:, None] >= 1)
    return jnp.where(keep, logits, -jnp.inf)
