"""Prompts to texts: the searches, the window, and what ends a text."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding import CONFIG, make_params

from gpt.config import ModelConfig
from gpt.errors import ConfigError, DataError
from gpt.generation.settings import Decoding
from gpt.generation.texts import Text, continue_texts, write_texts
from gpt.interop.weights import Model
from gpt.model.gpt import bind, init_params
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

PARAMS = make_params(2)
PROMPTS = [[5, 3, 9, 1], [7, 2, 2, 4, 11, 6, 1, 8, 3], [4]]
GREEDY = Decoding(max_new_tokens=12, temperature=0.0)


@functools.partial(jax.jit, static_argnums=0)
def hidden_and_logits(config: ModelConfig, params: Any, tokens: Any) -> Any:
    body = bind(config, params).body
    hidden = body(tokens)
    return hidden, body.logits(hidden)


def at_last_token(ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of all tokens, and the log-probabilities of the next one, by a full forward pass."""
    padded = jnp.array([ids + [0] * (CONFIG.context_length - len(ids))])
    hidden, logits = hidden_and_logits(CONFIG, PARAMS, padded)
    return np.array(hidden)[0, : len(ids)], np.array(jax.nn.log_softmax(logits[0, len(ids) - 1]))


def contrastively(prompt: list[int], alpha: float, top_k: int, num_new: int) -> list[int]:
    """Su et al. 2022, equation 5, as it is written."""
    text = list(prompt)
    for _ in range(num_new):
        states, log_probs = at_last_token(text)
        log_probs[0] = -np.inf
        scores = {}
        for token in np.argsort(-log_probs)[:top_k].tolist():
            state = at_last_token([*text, token])[0][-1]
            likeness = states @ state / np.linalg.norm(states, axis=-1) / np.linalg.norm(state)
            scores[token] = (1 - alpha) * np.exp(log_probs[token]) - alpha * likeness.max()
        text.append(max(scores, key=scores.__getitem__))
    return text[len(prompt) :]


def test_contrastive_search_is_its_equation() -> None:
    decoding = Decoding(max_new_tokens=12, top_k=4, contrastive_alpha=0.6)
    for prompt, (found,) in zip(PROMPTS, continue_texts(CONFIG, PARAMS, PROMPTS, decoding), strict=True):
        assert found.ids == contrastively(prompt, 0.6, 4, 12)
        expected = [at_last_token(prompt + found.ids[:place])[1][token] for place, token in enumerate(found.ids)]
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)
        assert found.ids != contrastively(prompt, 0.0, 4, 12), "the difference counts"


def test_the_score_of_a_beam_is_its_log_probability_over_its_length() -> None:
    decoding = Decoding(max_new_tokens=12, num_beams=4, num_samples=4, end_ids=(6, 11), length_penalty=2.0)
    for beams in continue_texts(CONFIG, PARAMS, PROMPTS, decoding):
        for beam in beams:
            assert beam.score == pytest.approx(sum(beam.log_probs) / len(beam.ids) ** 2, abs=1e-4)
        scores = [beam.score or 0.0 for beam in beams]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(beam.ids) for beam in beams}) == 4


@pytest.mark.slow
def test_beams_of_an_lstm_are_those_of_each_prompt_alone() -> None:
    config = dataclasses.replace(CONFIG, architecture="lstm", lstm_dim=16, init_std=0.4)
    params = init_params(config, jax.random.key(0))
    decoding = Decoding(max_new_tokens=8, num_beams=3)
    together = continue_texts(config, params, PROMPTS[:2], decoding)
    for prompt, (found,) in zip(PROMPTS, together, strict=False):
        assert found.ids == continue_texts(config, params, [prompt], decoding)[0][0].ids


def test_a_beam_wider_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_beams = 40: more than the 39 tokens that a text can go on with"):
        continue_texts(CONFIG, PARAMS, [[1]], Decoding(num_beams=40, max_new_tokens=4))


def test_the_window_goes_on_with_the_last_half_of_the_text_and_each_row_by_itself() -> None:
    prompts = [[5, 3, 9, 1], [*range(1, 15)], [*range(1, 33)]]
    decoding = dataclasses.replace(GREEDY, max_new_tokens=30, sliding_window=True)
    for prompt, (found,) in zip(prompts, continue_texts(CONFIG, PARAMS, prompts, decoding), strict=True):
        context = list(prompt)
        for token, log_prob in zip(found.ids, found.log_probs, strict=True):
            context = context[-12:] if len(context) >= 24 else context
            log_probs = at_last_token(context)[1]
            assert log_prob == pytest.approx(log_probs[token], abs=1e-4)
            assert token == 1 + log_probs[1:].argmax()
            context.append(token)
        assert len(found.ids) == 30


@pytest.mark.slow
def test_draws_behind_the_edge_of_the_window_are_new_ones() -> None:
    decoding = Decoding(max_new_tokens=72, sliding_window=True, num_samples=2)
    first, second = continue_texts(CONFIG, PARAMS, [[5] * 12], decoding)[0]
    assert first.ids != second.ids
    stretches = [first.ids[at : at + 12] for at in range(0, 72, 12)]
    assert all(one != other for one, other in itertools.combinations(stretches, 2))


@pytest.fixture(scope="module")
def model() -> Model:
    """A model with a vocabulary of its size."""
    tokenizer = train_bpe(["the cat sat on the mat and the dog saw it ."] * 5, CONFIG.vocab_size)
    return Model(CONFIG, PARAMS, tokenizer)


def tokenizer_of(model: Model) -> Tokenizer:
    assert model.tokenizer is not None
    return model.tokenizer


def test_texts_are_those_of_their_ids_in_the_order_of_the_prompts(model: Model) -> None:
    prompts = ["the cat", "it", "the mat and the dog", "The cat."]
    decoding = Decoding(max_new_tokens=8, num_samples=2, seed=1)
    texts = list(write_texts(model, prompts, decoding, batch_size=3))
    ids = [tokenizer_of(model).encode(prompt) for prompt in prompts]
    expected = list(itertools.chain.from_iterable(continue_texts(CONFIG, PARAMS, ids, decoding)))
    assert [text.prompt for text in texts] == [prompt for prompt in prompts for _ in range(2)]
    assert [text.ids for text in texts] == [continuation.ids for continuation in expected]
    assert {text.finish_reason for text in texts} == {"length"}
    for text in texts:
        raw = tokenizer_of(model).decode(tokenizer_of(model).encode(text.prompt) + text.ids)
        assert (text.prompt.lower() + text.text).replace(" ", "") == raw.replace(" ", "")


def only(model: Model, prompt: str = "the cat", **options: Any) -> Text:
    settings = {name: options.pop(name) for name in [*options] if name in Decoding.__dataclass_fields__}
    (text,) = write_texts(model, [prompt], dataclasses.replace(GREEDY, **settings), **options)
    return text


def test_a_stop_string_ends_text_ids_and_scores_alike(model: Model) -> None:
    whole = only(model)
    stop = whole.text[4:6]
    cut = only(model, stops=["never", stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert len(cut.ids) < len(whole.ids)
    assert len(cut.log_probs) == len(cut.ids)
    assert only(model, stops=[stop], num_beams=2, temperature=1.0).finish_reason in ("stop", "length")


def test_a_stop_string_that_never_comes_changes_nothing(model: Model) -> None:
    assert only(model, stops=["@"]) == only(model)


def test_an_end_token_is_the_last_of_the_ids_and_no_part_of_the_text(model: Model) -> None:
    whole = only(model)
    end = whole.ids[6]
    text = only(model, end_ids=(end,))
    count = whole.ids.index(end) + 1
    assert (text.finish_reason, text.ids) == ("end", whole.ids[:count])
    assert whole.text.startswith(text.text)
    assert len(text.text) < len(whole.text)
    later = only(model, end_ids=(end,), min_new_tokens=9)
    assert end not in later.ids[:9]
    assert later.ids[: count - 1] == whole.ids[: count - 1]


def test_a_text_is_shown_word_by_word(model: Model) -> None:
    shown: list[str] = []
    text = only(model, show=shown.append)
    assert "".join(shown) == text.text == only(model).text
    assert sum(map(bool, shown)) > 2


def test_prompts_that_cannot_be_continued_are_refused_before_anything_is_written(model: Model) -> None:
    with pytest.raises(ConfigError, match="the vocabulary knows no character of the prompt '東京'"):
        next(write_texts(model, ["the", "東京"], GREEDY))
    with pytest.raises(ConfigError, match="prompt 2 is empty"):
        next(write_texts(model, ["the", "  "], GREEDY))
    with pytest.raises(ConfigError, match=r"13 tokens .*context_length = 24.*--sliding_window` goes on"):
        next(write_texts(model, ["the " * 13], GREEDY))
    with pytest.raises(DataError, match="no tokenizer to read prompts with: give --tokenizer DIR"):
        next(write_texts(dataclasses.replace(model, tokenizer=None), ["the"], GREEDY))
