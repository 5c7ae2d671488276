"""The block-wise loss against the plain one, in value, gradient and memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.config import MeshConfig
from gpt.model.layers import tied_logits
from gpt.objectives import token_losses
from gpt.sharding import make_mesh, num_parts, splitting_activations
from gpt.training import softmax_loss as module
from gpt.training.softmax_loss import softmax_loss

GENERATOR = np.random.default_rng(0)
BATCH, LENGTH, WIDTH, VOCABULARY = 4, 7, 4, 11
HIDDEN = GENERATOR.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
TABLE = GENERATOR.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
TARGETS = GENERATOR.integers(VOCABULARY, size=(BATCH, LENGTH))
WEIGHTS = GENERATOR.uniform(size=(BATCH, LENGTH)).astype(np.float32)
WEIGHTS[1, 4:] = 0


def plain_loss(hidden: Any, table: Any, targets: Any, weights: Any) -> Any:
    return (token_losses(tied_logits(hidden, table), targets) * weights).sum()


def value_and_gradient(loss: Any) -> Any:
    """Of three times the loss, so that what comes from above reaches the gradient."""
    function = jax.jit(jax.value_and_grad(lambda *arguments: 3 * loss(*arguments), argnums=(0, 1)))
    return function(*map(jnp.asarray, (HIDDEN, TABLE, TARGETS, WEIGHTS)))


@pytest.mark.parametrize("num_blocks", [1, 2, 4, 8])
def test_blocks_give_the_loss_and_the_gradient_of_the_whole(num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", -(-BATCH * LENGTH * VOCABULARY // num_blocks))
    assert module._num_blocks(BATCH * LENGTH * VOCABULARY, LENGTH) == num_blocks
    actual, expected = value_and_gradient(softmax_loss), value_and_gradient(plain_loss)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-5), actual, expected)
    arguments = map(jnp.asarray, (HIDDEN, TABLE, TARGETS, WEIGHTS))
    np.testing.assert_allclose(3 * softmax_loss(*arguments), expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", [{"data": 2, "tensor": 2}, {"data": 1, "sequence": 2, "tensor": 2}], ids=str)
def test_blocks_on_four_devices_are_those_of_one(axes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = value_and_gradient(plain_loss)
    monkeypatch.setattr(module, "MOST_SCORES", BATCH * LENGTH * VOCABULARY // 8)
    with splitting_activations(make_mesh(MeshConfig(**axes), jax.devices()[:4])):
        assert num_parts("batch", "length", "logits") == 4
        actual = jax.block_until_ready(value_and_gradient(softmax_loss))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-5), actual, expected)


def test_half_precision_has_the_gradient_of_the_plain_loss() -> None:
    def gradient(loss: Any) -> Any:
        hidden = jnp.asarray(HIDDEN, jnp.bfloat16)
        return jax.grad(loss, (0, 1))(hidden, jnp.asarray(TABLE), jnp.asarray(TARGETS), jnp.asarray(WEIGHTS))

    for one, other in zip(gradient(softmax_loss), gradient(plain_loss), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=0, atol=2**-6)


@pytest.mark.parametrize("differentiate", [False, True])
def test_no_array_holds_the_scores_of_all_positions(differentiate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    length, vocabulary = 512, 1024
    monkeypatch.setattr(module, "MOST_SCORES", 2 * length * vocabulary // 16)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((2, length, WIDTH), jnp.float32), ((vocabulary, WIDTH), jnp.float32),
            ((2, length), jnp.int32), ((2, length), jnp.float32),
        )
    ]  # fmt: skip

    def needed(loss: Any) -> int:
        function = jax.grad(loss, (0, 1)) if differentiate else loss
        analysis: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    scores = 4 * 2 * length * vocabulary
    assert needed(plain_loss) >= scores
    assert needed(softmax_loss) < scores / 3
