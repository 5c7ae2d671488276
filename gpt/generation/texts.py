"""Prompts to texts: by any way of decoding, in batches, up to an end token or a stop string."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax

from gpt.config import ModelConfig
from gpt.errors import ConfigError, DataError
from gpt.generation.beam import search_beams
from gpt.generation.contrastive import search_contrastively
from gpt.generation.decode import Written, write
from gpt.generation.logits import UNKNOWN_ID
from gpt.generation.settings import Decoding, check_beams, check_lengths
from gpt.generation.stream import TextStream, check_stops
from gpt.interop.weights import Model
from gpt.model.gpt import Params
from gpt.text.tokenizer import Tokenizer

BATCH_SIZE = 8
"""Texts written at the same time, unless told."""

_CHUNK = 16
"""Tokens written before the texts are looked at."""


class Continuation(NamedTuple):
    """The new tokens of one text, and the natural logarithm of each one's probability under the model as it is."""

    ids: list[int]
    log_probs: list[float]
    score: float | None = None
    """Of a text that beam search found: the sum of its log-probabilities over its length to the `length_penalty`."""


class Text(NamedTuple):
    """A text as it was written; what ended it is no part of `text`, an end token is the last of `ids`."""

    prompt: str
    text: str
    ids: list[int]
    log_probs: list[float]
    finish_reason: Literal["length", "stop", "end"]
    score: float | None


def continue_texts(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> list[list[Continuation]]:
    """`num_samples` continuations of each prompt. A prompt's answer does not depend on those beside it.

    Raises:
      ConfigError: an empty prompt, or one too long for `max_new_tokens` more.
    """
    if decoding.num_beams > 1:
        return [[Continuation(*beam) for beam in beams] for beams in search_beams(config, params, prompts, decoding)]
    num_at_once = _CHUNK if decoding.end_ids else decoding.max_new_tokens
    found = _collect(_chunks(config, params, prompts, decoding, num_at_once), len(prompts), decoding)
    return [found[at : at + decoding.num_samples] for at in range(0, len(found), decoding.num_samples)]


def write_texts(
    model: Model,
    prompts: Sequence[str],
    decoding: Decoding,
    stops: Sequence[str] = (),
    *,
    is_raw: bool = False,
    batch_size: int = BATCH_SIZE,
    show: Callable[[str], object] | None = None,
) -> Iterator[Text]:
    """`num_samples` texts for each prompt, in their order; about `batch_size` are written at the same time.

    `show` is called with what each token adds to a text for good; it is for one text alone.

    Raises:
      ConfigError: a stop string or a prompt that cannot be used, before anything is written.
      DataError: the model has no tokenizer.
    """
    check_stops(stops)
    if model.tokenizer is None:
        raise DataError("the model has no tokenizer to read prompts with: give --tokenizer DIR")
    all_ids = [_encode(model.tokenizer, prompt) for prompt in prompts]
    check_lengths(all_ids, decoding, model.config.context_length)
    check_beams(decoding, model.config)
    params = jax.device_put(model.params)
    size = max(1, batch_size // decoding.num_samples)
    for at in range(0, len(prompts), size):
        batch = all_ids[at : at + size]
        streams = [
            TextStream(model.tokenizer, ids, stops, min_new_tokens=decoding.min_new_tokens, is_raw=is_raw)
            for ids in batch
            for _ in range(decoding.num_samples)
        ]
        found = _write_batch(model.config, params, batch, decoding, streams, show)
        for row, (stream, continuation) in enumerate(zip(streams, found, strict=True)):
            is_ended = continuation.ids[-1:] and continuation.ids[-1] in decoding.end_ids
            reason = "stop" if stream.is_stopped else "end" if is_ended else "length"
            prompt = prompts[at + row // decoding.num_samples]
            yield Text(prompt, stream.text, continuation.ids, continuation.log_probs, reason, continuation.score)


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    ids = tokenizer.encode(prompt)
    if ids and set(ids) == {UNKNOWN_ID}:
        raise ConfigError(
            f"the vocabulary knows no character of the prompt {prompt.strip()!r:.60}: the model was trained on other "
            "text; prompt it in the language and script of that"
        )
    return ids


def _write_batch(
    config: ModelConfig,
    params: Params,
    prompts: list[list[int]],
    decoding: Decoding,
    streams: list[TextStream],
    show: Callable[[str], object] | None,
) -> list[Continuation]:
    """The continuation of each stream, cut where its text stops."""
    num_at_once = 1 if show else _CHUNK
    show = show or (lambda _: None)
    if decoding.num_beams > 1:
        found = list(itertools.chain.from_iterable(continue_texts(config, params, prompts, decoding)))
        for stream, continuation in zip(streams, found, strict=True):
            show(_push(stream, continuation, 0, decoding))
    else:

        def is_stopped(row: int, continuation: Continuation, first: int) -> bool:
            show(_push(streams[row], continuation, first, decoding))
            return streams[row].is_stopped

        chunks = _chunks(config, params, prompts, decoding, num_at_once)
        found = _collect(chunks, len(prompts), decoding, is_stopped)
    for stream, continuation in zip(streams, found, strict=True):
        show(stream.finish())
        if stream.is_stopped:
            del continuation.ids[stream.num_ids :], continuation.log_probs[stream.num_ids :]
    return found


def _push(stream: TextStream, continuation: Continuation, first: int, decoding: Decoding) -> str:
    """What the tokens from the `first` on add to the text; one that ends it is no part of it."""
    return stream.push([token for token in continuation.ids[first:] if token not in decoding.end_ids])


def _chunks(
    config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], decoding: Decoding, num_at_once: int
) -> Iterable[Written]:
    if decoding.contrastive_alpha is not None:
        return [search_contrastively(config, params, prompts, decoding)]
    return write(config, params, prompts, decoding, num_at_once)


def _collect(
    chunks: Iterable[Written],
    num_prompts: int,
    decoding: Decoding,
    is_stopped: Callable[[int, Continuation, int], bool] = lambda *_: False,
) -> list[Continuation]:
    """A continuation a row, each up to its end token or until `is_stopped`; no more chunks are made than that takes.

    `is_stopped` is asked with the row, its continuation, and the place of the first token that is new in it.
    """
    found = [Continuation([], []) for _ in range(num_prompts * decoding.num_samples)]
    is_done = [False] * len(found)
    for chunk in chunks:
        for row, continuation in enumerate(found):
            if not is_done[row]:
                first = len(continuation.ids)
                is_ended = _take(chunk, row, continuation, decoding)
                is_done[row] = is_stopped(row, continuation, first) or is_ended
        if all(is_done):
            break
    return found


def _take(chunk: Written, row: int, continuation: Continuation, decoding: Decoding) -> bool:
    """Adds the row's new tokens, up to the first that ends the text; whether there is one."""
    ids = chunk.ids[row].tolist()
    num_ids = next((place + 1 for place, token in enumerate(ids) if token in decoding.end_ids), len(ids))
    continuation.ids.extend(ids[:num_ids])
    continuation.log_probs.extend(chunk.log_probs[row, :num_ids].tolist())
    return continuation.ids[-1] in decoding.end_ids
