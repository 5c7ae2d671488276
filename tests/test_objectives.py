from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gpt.objectives import (
    classification_losses,
    multi_label_losses,
    regression_losses,
    tagging_losses,
    target_weights,
    token_losses,
)

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(0, 3, size=(2, 3, 5, 7)).astype(np.float32)
TOKENS = GENERATOR.integers(7, size=(2, 3, 5))
WEIGHTS = np.float32(np.array([5, 4, 2, 3, 5, 5])[:, None] > np.arange(5)).reshape(2, 3, 5)


def losses(logits: Any = LOGITS, tokens: Any = TOKENS, weights: Any = WEIGHTS) -> np.ndarray:
    """Of each sequence, as `TaskObjective` sums them."""
    targets = jnp.roll(jnp.asarray(tokens), -1, axis=-1)
    return np.array((token_losses(jnp.asarray(logits), targets) * target_weights(jnp.asarray(weights))).sum(-1))


def test_token_losses_equal_the_reference() -> None:
    expected = -np.take_along_axis(reference.log_softmax(LOGITS.astype(float)), TOKENS[..., None], -1)[..., 0]
    actual = token_losses(jnp.asarray(LOGITS), jnp.asarray(TOKENS))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_a_model_without_preference_loses_the_logarithm_of_the_vocabulary() -> None:
    actual = token_losses(jnp.zeros((2, 7)), jnp.array([0, 6]))
    np.testing.assert_allclose(actual, np.log(7), rtol=1e-6)


def test_losses_of_huge_scores_stay_finite() -> None:
    logits = jnp.array([[3e4, -3e4], [-1e9, 0.0]])
    np.testing.assert_array_equal(token_losses(logits, jnp.array([1, 1])), [6e4, 0])
    np.testing.assert_array_equal(classification_losses(logits, jnp.array([1, 1])), [6e4, 0])


def test_sequence_losses_equal_the_reference() -> None:
    log_probs = reference.log_softmax(LOGITS[..., :-1, :].astype(float))
    log_probs = np.take_along_axis(log_probs, TOKENS[..., 1:, None], -1)[..., 0]
    np.testing.assert_allclose(losses(), reference.lm_losses(log_probs, WEIGHTS), rtol=0, atol=1e-5)


def test_the_first_token_and_the_last_scores_are_never_judged() -> None:
    logits, tokens = LOGITS.copy(), TOKENS.copy()
    logits[..., -1, :] = 9.0
    tokens[..., 0] = (tokens[..., 0] + 1) % 7
    np.testing.assert_array_equal(losses(logits, tokens), losses())


def test_padding_does_not_count() -> None:
    tokens = np.where(WEIGHTS > 0, TOKENS, 0)
    np.testing.assert_array_equal(losses(tokens=tokens), losses())


@pytest.mark.parametrize("length", [0, 1])
def test_a_sequence_with_nothing_to_predict_loses_nothing(length: int) -> None:
    weights = WEIGHTS.copy()
    weights[0, 1] = np.arange(5) < length
    actual, expected = losses(weights=weights), losses()
    expected[0, 1] = 0
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("axis", ["classes", "candidates"])
def test_classification_losses_equal_the_reference(axis: str) -> None:
    scores, labels = LOGITS[0, 0], np.array([0, 6, 3, 2, 2])
    outputs = scores[:, None] if axis == "classes" else scores[..., None]
    expected = reference.task_losses(outputs.astype(float), labels)
    actual = classification_losses(jnp.asarray(scores), jnp.asarray(labels))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_labels_of_their_own_each_lose_the_logarithm_of_their_probability() -> None:
    scores = jnp.log(jnp.array([[3.0, 1.0], [1.0, 9.0]]))  # probabilities 3/4 and 1/2, then 1/2 and 9/10
    expected = -np.log([[0.75, 0.5], [0.5, 0.1]]).mean(-1)
    np.testing.assert_allclose(multi_label_losses(scores, jnp.array([[1.0, 0.0], [0.0, 0.0]])), expected, rtol=1e-6)


def test_numbers_lose_the_square_of_their_distance() -> None:
    losses = regression_losses(jnp.array([[1.0, 2.0], [5.0, 5.0]]), jnp.array([[4.0, 2.0], [5.0, 3.0]]))
    np.testing.assert_allclose(losses, [4.5, 2.0])


def test_tags_of_weight_0_lose_nothing() -> None:
    scores = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0], [1.0, 4.0]]]))
    losses = tagging_losses(scores, jnp.array([[0, 1, 0]]), jnp.array([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(losses, [-np.log(0.75 * 0.5)], rtol=1e-6)
