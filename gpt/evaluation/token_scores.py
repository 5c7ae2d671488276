"""Log-probability of every token of given sequences, many at a time and in their order."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt.config import ModelConfig
from gpt.data.batches import padded_length
from gpt.errors import DataError
from gpt.model.gpt import Params, bind
from gpt.objectives import token_losses

LOOKAHEAD = 256
"""Sequences read before the first is answered, so that those of like length share a batch."""

_BATCH_SIZE = 8


def token_log_probs(
    config: ModelConfig, params: Params, sequences: Iterable[Sequence[int]]
) -> Iterator[list[float | None]]:
    """For each sequence, the natural logarithm of each token's probability given those before it; None for the first.

    Raises:
      DataError: a token is not in the model, a sequence is longer than its context, or the
        probabilities are not finite.
    """
    params = jax.device_put(params)
    sequences = iter(sequences)
    while chunk := list(itertools.islice(sequences, LOOKAHEAD)):
        for ids in chunk:
            check_ids(config, ids)
        yield from _score(config, params, chunk)


def check_ids(config: ModelConfig, ids: Sequence[int]) -> None:
    """Raises DataError when `ids` cannot be scored by a model of this config."""
    if len(ids) > config.context_length:
        raise DataError(
            f"{len(ids)} tokens, longer than ModelConfig.context_length = {config.context_length}: "
            "cut the sequence into shorter ones"
        )
    for token in ids:
        if not 0 <= token < config.num_embeddings:
            raise DataError(f"token id {token}: expected 0 to {config.num_embeddings - 1}, the rows of the token table")


def _score(config: ModelConfig, params: Params, chunk: list[Sequence[int]]) -> list[list[float | None]]:
    results: list[list[float | None]] = [[None] * min(len(ids), 1) for ids in chunk]
    scored = [index for index, ids in enumerate(chunk) if len(ids) > 1]
    scored.sort(key=lambda index: padded_length(len(chunk[index]), config.context_length))
    for rows in _groups(scored):
        length = padded_length(max(len(chunk[index]) for index in rows), config.context_length)
        tokens = np.zeros((len(rows), length), np.int32)
        for row, index in enumerate(rows):
            tokens[row, : len(chunk[index])] = chunk[index]
        log_probs = np.asarray(_token_log_probs(config, params, tokens))
        for row, index in enumerate(rows):
            values = log_probs[row, : len(chunk[index]) - 1]
            if not np.isfinite(values).all():
                raise DataError("the model gives probabilities that are no numbers: are there NaN among its weights?")
            results[index] += values.tolist()
    return results


def _groups(rows: list[int]) -> Iterator[list[int]]:
    # Full batches, then rows one by one: two sizes to compile for each length, and no row for nothing.
    full = len(rows) - len(rows) % _BATCH_SIZE
    yield from (rows[first : first + _BATCH_SIZE] for first in range(0, full, _BATCH_SIZE))
    yield from ([row] for row in rows[full:])


@functools.partial(jax.jit, static_argnums=0)
def _token_log_probs(config: ModelConfig, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1"]:
    model = bind(config, params).body
    hidden = model(tokens)  # padding comes last, where causality hides it
    return -token_losses(model.logits(hidden[:, :-1]), jnp.asarray(tokens)[:, 1:])
