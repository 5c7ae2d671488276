"""Continuing texts: against full forward passes, and each way to choose a token against its definition."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.config import ModelConfig
from gpt.errors import ConfigError
from gpt.generation.logits import (
    UNKNOWN_ID,
    ban_repeated_ngrams,
    ban_sequences,
    make_knobs,
    penalise_repetition,
    truncate,
)
from gpt.generation.settings import Decoding
from gpt.generation.texts import Continuation, continue_texts
from gpt.model.gpt import bind, init_params

CONFIG = ModelConfig(
    vocab_size=20,
    num_special_tokens=3,
    context_length=24,
    num_layers=2,
    num_heads=2,
    embed_dim=16,
    mlp_dim=32,
    lstm_dim=16,
    init_std=0.3,
)
GREEDY = Decoding(max_new_tokens=12, temperature=0.0)
FORBIDDEN = [UNKNOWN_ID, 20, 21, 22]


@pytest.fixture(scope="module")
def params() -> Any:
    return init_params(CONFIG, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config: ModelConfig, params, tokens):
    model = bind(config, params).body
    return model.logits(model(tokens))


def biased(params: Any, preferences: dict[int, float]) -> Any:
    """Parameters whose logits are the given numbers wherever they stand, and -30 for all other ids."""
    blocks = params["transformer"]["blocks"]
    norm = {"scale": jnp.zeros((2, 16)), "bias": jnp.tile(jnp.eye(1, 16), (2, 1))}
    table = jnp.full((CONFIG.num_embeddings, 16), -30.0)
    table = table.at[jnp.array([*preferences])].set(jnp.array([*preferences.values()])[:, None])
    return {"transformer": {**params["transformer"], "token_embedding": table, "blocks": {**blocks, "mlp_norm": norm}}}


def greedily(config: ModelConfig, params: Any, prompt: list[int], num_tokens: int) -> Continuation:
    """By a full forward pass over all of the text, as it is."""
    text, log_probs = list(prompt), []
    for _ in range(num_tokens):
        padded = jnp.array([text + [0] * (config.context_length - len(text))])
        logits = np.array(logits_of(config, params, padded))[0, len(text) - 1]
        scores = logits - np.logaddexp.reduce(logits)
        logits[FORBIDDEN] = -np.inf
        text.append(int(logits.argmax()))
        log_probs.append(float(scores[text[-1]]))
    return Continuation(text[len(prompt) :], log_probs)


@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
def test_temperature_0_takes_the_likeliest_tokens_of_full_forward_passes(architecture: str) -> None:
    config = dataclasses.replace(CONFIG, architecture=architecture)
    params = init_params(config, jax.random.key(1))
    prompts = [[5, 3, 9, 1], [7, 2, 2, 4, 11, 6, 1, 8, 3], [4]]
    for prompt, (found,) in zip(prompts, continue_texts(config, params, prompts, GREEDY), strict=True):
        expected = greedily(config, params, prompt, 12)
        assert found.ids == expected.ids
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)
        assert len(set(found.ids)) > 1, "a constant text would prove little"


def test_a_prompt_is_continued_alike_alone_and_among_others(params: Any) -> None:
    decoding = Decoding(max_new_tokens=10, temperature=0.9, top_k=8, num_samples=2, seed=3)
    prompts = [[5, 3, 9, 1], [7, 2, 2, 4, 11, 6, 1, 8, 3], [4]]
    together = continue_texts(CONFIG, params, prompts, decoding)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = continue_texts(CONFIG, params, [prompt], decoding)
        assert [sample.ids for sample in found] == [sample.ids for sample in alone]
        assert found[0].ids != found[1].ids, "two samples are not the same text twice"


def test_the_unknown_and_special_tokens_are_never_drawn(params: Any) -> None:
    wishful = biased(params, dict.fromkeys(FORBIDDEN, 50.0) | {4: 0.0, 19: 0.0})
    assert logits_of(CONFIG, wishful, jnp.array([[1, 2]]))[0, -1].argmax() in FORBIDDEN
    ((found,),) = continue_texts(CONFIG, wishful, [[1, 2, 3]], Decoding(max_new_tokens=20))
    assert set(found.ids) == {4, 19}


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.75), (0.5, 0.9)])
def test_tokens_are_drawn_from_the_softmax_of_logits_over_temperature(
    params: Any, temperature: float, share: float
) -> None:
    preferring = biased(params, {7: np.log(3.0), 8: 0.0})
    decoding = Decoding(max_new_tokens=20, temperature=temperature, num_samples=20)
    (samples,) = continue_texts(CONFIG, preferring, [[1, 2, 3]], decoding)
    drawn = [token for sample in samples for token in sample.ids]
    assert set(drawn) == {7, 8}
    assert drawn.count(7) / len(drawn) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(drawn)))


def test_the_seed_governs_the_text(params: Any) -> None:
    first, again, other = (
        continue_texts(CONFIG, params, [[5, 3, 9]], Decoding(max_new_tokens=12, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def left(probabilities: list[float], **settings: Any) -> list[int]:
    """The ids that truncation leaves."""
    logits = jnp.log(jnp.array([probabilities], jnp.float32))
    return np.flatnonzero(np.isfinite(truncate(logits, make_knobs([Decoding(**settings)], CONFIG))[0])).tolist()


def test_truncation_leaves_the_tokens_of_its_definition() -> None:
    probabilities = [0.1, 0.5, 0.05, 0.3, 0.05]
    assert left(probabilities) == [0, 1, 2, 3, 4]
    assert left(probabilities, top_k=2) == [1, 3]
    assert left(probabilities, top_p=0.5) == [1]
    assert left(probabilities, top_p=0.51) == [1, 3]
    assert left(probabilities, top_k=2, top_p=0.63) == [1, 3], "of what top-k leaves, 0.5 / 0.8 = 0.625"
    assert left(probabilities, top_k=2, top_p=0.62) == [1]
    # The entropy is 1.24 nats; 0.3 has a surprise of 1.20, 0.5 of 0.69, 0.1 of 2.30.
    assert left(probabilities, typical_p=0.3) == [3]
    assert left(probabilities, typical_p=0.31) == [1, 3]


def test_every_row_is_truncated_by_its_own_settings() -> None:
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.4]] * 2))
    knobs = make_knobs([Decoding(top_k=1), Decoding(top_p=0.95)], CONFIG)
    assert np.isfinite(truncate(logits, knobs)).tolist() == [[False, True, False], [True, True, True]]


def test_repetition_is_penalised_on_both_sides_of_0_and_not_on_padding() -> None:
    logits = jnp.array([[2.0, -2.0, 2.0, -2.0]])
    tokens, is_token = jnp.array([[3, 0, 1]]), jnp.array([[False, True, True]])
    found = penalise_repetition(logits, tokens, is_token, jnp.array([2.0]))
    assert found.tolist() == [[1.0, -4.0, 2.0, -2.0]]


def banned_by_ngrams(tokens: list[int], n: int) -> list[int]:
    row = jnp.array([[0, *tokens, 0]])
    is_token = jnp.array([[False, *[True] * len(tokens), False]])
    found = ban_repeated_ngrams(jnp.zeros((1, 8)), row, is_token, jnp.array(len(tokens) + 1), n)
    return np.flatnonzero(np.isneginf(found[0])).tolist()


def test_no_ngram_comes_twice() -> None:
    assert banned_by_ngrams([1, 2, 3, 1, 2], 3) == [3]
    assert banned_by_ngrams([1, 2, 3, 1, 2, 4, 1], 2) == [2]
    assert banned_by_ngrams([1, 2, 1, 3, 1], 2) == [2, 3]
    assert banned_by_ngrams([1, 2], 1) == [1, 2]
    assert banned_by_ngrams([1, 2], 3) == []
    assert banned_by_ngrams([0, 0], 3) == [], "padding is no part of the text"


def test_a_banned_sequence_is_never_completed() -> None:
    tokens = jnp.array([[0, 5, 6, 0], [5, 6, 7, 0]])
    found = ban_sequences(jnp.zeros((2, 8)), tokens, jnp.array(3), ((5, 6, 7), (2,), (7, 1), (1, 2, 3, 4, 5)))
    assert [np.flatnonzero(np.isneginf(row)).tolist() for row in np.array(found)] == [[2, 7], [1, 2]]


def test_rules_hold_through_a_whole_text(params: Any) -> None:
    repetitive = biased(params, {4: 3.0, 5: 2.0, 6: 1.0})
    decoding = dataclasses.replace(GREEDY, no_repeat_ngram=2, banned=((5, 5),))
    ((found,),) = continue_texts(CONFIG, repetitive, [[1]], decoding)
    assert found.ids[:6] == [4, 4, 5, 4, 6, 4]
    pairs = list(zip([1, *found.ids], found.ids, strict=False))
    assert len(set(pairs)) == len(pairs)
    assert (5, 5) not in pairs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature = -0.1: must be 0 \(take the likeliest\) or more"),
        ({"top_p": 1.5}, "top_p = 1.5: must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k = 0: must be 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0: must be 1 or more"),
        ({"temperature": 0.0, "num_samples": 2}, "num_samples = 2: at temperature 0 all samples would be the same"),
        ({"banned": ((),)}, "an empty sequence would ban everything"),
        ({"min_new_tokens": 200}, "min_new_tokens = 200: must be 0 or more, and at most max_new_tokens = 128"),
        ({"length_penalty": 2.0}, "length_penalty = 2.0: is a number for num_beams above 1"),
        ({"num_beams": 2, "num_samples": 3}, "num_samples = 3: beam search finds 2 at most"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature = 0.5: beam search draws nothing; leave it out"),
        ({"num_beams": 2, "top_p": 0.5}, "top_p = 0.5: beam search has no use for it; leave it out"),
        ({"num_beams": 2, "sliding_window": True}, "sliding_window = True: beam search works within one context"),
        ({"contrastive_alpha": 0.6}, "top_k = None: contrastive_alpha chooses among top_k tokens: set 2 or more"),
        ({"contrastive_alpha": 1.6, "top_k": 4}, "contrastive_alpha = 1.6: must be from 0 to 1"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoding(**settings)


def test_an_empty_prompt_or_a_text_beyond_the_context_is_refused(params: Any) -> None:
    with pytest.raises(ConfigError, match="prompt 2 is empty: it needs at least one token"):
        continue_texts(CONFIG, params, [[1], []], GREEDY)
    with pytest.raises(ConfigError, match=r"13 tokens and max_new_tokens = 12: together more than .* = 24"):
        continue_texts(CONFIG, params, [[1] * 13], GREEDY)
