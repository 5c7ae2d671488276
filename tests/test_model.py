"""The network against the NumPy reference, and what the reference does not have: dropout, scan, precision, errors."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from gpt.config import ModelConfig
from gpt.model.gpt import bind, init_params, param_shapes, path_shapes
from gpt.model.transformer import dropout

CONFIG = ModelConfig(
    vocab_size=50, num_special_tokens=3, context_length=11, num_layers=2, num_heads=4, embed_dim=32, mlp_dim=48
)
NUM_OUTPUTS = 2
SILENT = {"embed_dropout_rate": 0.0, "attention_dropout_rate": 0.0, "residual_dropout_rate": 0.0}
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def params() -> Any:
    """Parameters with every bias and gain away from 0 and 1, so that none can be forgotten."""
    generator = np.random.default_rng(0)
    fresh = init_params(CONFIG, jax.random.key(0), NUM_OUTPUTS)
    return jax.tree.map(lambda leaf: leaf + generator.normal(0, 0.2, leaf.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(CONFIG.num_embeddings, size=(4, CONFIG.context_length))


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config: ModelConfig, params, tokens, key=None):
    return bind(config, params).transformer(tokens, key)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config: ModelConfig, params, tokens):
    model = bind(config, params)
    return model.transformer.logits(model.transformer(tokens))


@functools.partial(jax.jit, static_argnums=2)
def scores_of(params, hidden, rate=0.0, key=None):
    head = bind(CONFIG, params).head
    assert head is not None
    return head(hidden, jnp.array([[3, 0], [10, 5]]), rate, key)


def with_settings(**settings: Any) -> ModelConfig:
    return dataclasses.replace(CONFIG, **settings)


# Against the reference


def test_hidden_states_equal_the_reference(params: Any, tokens: np.ndarray) -> None:
    expected = reference.forward(params, tokens, CONFIG.num_heads)
    np.testing.assert_allclose(hidden_states(CONFIG, params, tokens), expected, rtol=0, atol=1e-5)


def test_logits_equal_the_reference(params: Any, tokens: np.ndarray) -> None:
    expected = reference.logits(params, reference.forward(params, tokens, CONFIG.num_heads))
    np.testing.assert_allclose(logits_of(CONFIG, params, tokens), expected, rtol=0, atol=1e-4)


def test_a_text_shorter_than_the_context_takes_the_first_positions(params: Any, tokens: np.ndarray) -> None:
    expected = reference.forward(params, tokens[:, :4], CONFIG.num_heads)
    np.testing.assert_allclose(hidden_states(CONFIG, params, tokens[:, :4]), expected, rtol=0, atol=1e-5)


def test_classifier_scores_equal_the_reference(params: Any) -> None:
    hidden = np.random.default_rng(2).normal(size=(2, 2, 11, CONFIG.embed_dim)).astype(np.float32)
    expected = reference.task_scores(params, hidden, np.array([[3, 0], [10, 5]]))
    np.testing.assert_allclose(scores_of(params, hidden), expected, rtol=0, atol=1e-5)


def test_normalisation_keeps_its_digits_far_from_zero(tokens: np.ndarray) -> None:
    # All sub-layers silent: only the two normalisations of each layer are left.
    params = init_params(CONFIG, jax.random.key(0))
    blocks = {
        path: array * ("scale" in path) for path, array in reference.flatten(params["transformer"]["blocks"]).items()
    }
    params["transformer"]["blocks"] = jax.tree.map(np.float32, reference.unflatten(blocks))
    params["transformer"]["position_embedding"] += 100
    expected = reference.forward(params, tokens, CONFIG.num_heads)
    np.testing.assert_allclose(hidden_states(CONFIG, params, tokens), expected, rtol=0, atol=2e-3)


def test_a_later_token_changes_nothing_before_it(params: Any, tokens: np.ndarray) -> None:
    changed = tokens.copy()
    changed[:, 6] = (changed[:, 6] + 1) % CONFIG.num_embeddings
    before, after = hidden_states(CONFIG, params, tokens, KEY), hidden_states(CONFIG, params, changed, KEY)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.all(np.abs(before - after)[:, 6:].max(-1) > 1e-4)


# Scan and unrolled


@functools.cache
def traced_gradient(scan: bool):
    """A loss and its gradient with dropout on, traced."""

    def loss(params, tokens):
        hidden = bind(with_settings(scan_layers=scan), params).transformer(tokens, KEY)
        return (hidden[..., 0] ** 2).mean()

    shape = jax.ShapeDtypeStruct((4, CONFIG.context_length), jnp.int32)
    return jax.jit(jax.value_and_grad(loss)).trace(param_shapes(CONFIG, NUM_OUTPUTS), shape)


@pytest.mark.parametrize("scan", [True, False])
def test_scan_layers_chooses_the_program(scan: bool) -> None:
    assert ("scan[" in str(traced_gradient(scan).jaxpr)) == scan


def test_scanned_layers_equal_unrolled_ones_in_value_and_gradient_with_dropout(params: Any, tokens: np.ndarray) -> None:
    scanned, unrolled = (
        traced_gradient(scan).lower().compile()(params, tokens.astype(np.int32)) for scan in (True, False)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), scanned, unrolled)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(scanned[1])) > 1e-2


def test_scanned_layers_equal_unrolled_ones_without_dropout(params: Any, tokens: np.ndarray) -> None:
    scanned = hidden_states(with_settings(scan_layers=True), params, tokens)
    np.testing.assert_allclose(scanned, hidden_states(CONFIG, params, tokens), rtol=0, atol=1e-5)


# Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_at_its_rate_and_scales_the_rest(rate: float) -> None:
    dropped = np.asarray(dropout(jnp.full((400, 500), 3.0), rate, KEY))
    share = (dropped == 0).mean()
    assert share == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / dropped.size))
    np.testing.assert_allclose(dropped[dropped != 0], 3 / (1 - rate), rtol=2**-14)


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_dropout_is_alike_and_independent_in_every_column(length: int) -> None:
    dropped = np.asarray(dropout(jnp.ones((40_000, length)), 0.5, KEY))
    assert dropped.shape == (40_000, length)
    correlation = np.atleast_2d(np.corrcoef(dropped, rowvar=False))
    np.testing.assert_allclose(dropped.mean(0), 1, atol=0.025)  # five deviations
    np.testing.assert_allclose(correlation, np.eye(length), atol=0.025)


def test_dropout_without_key_or_rate_changes_nothing() -> None:
    x = jnp.arange(6.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, KEY) is x


def test_dropout_is_governed_by_its_key() -> None:
    masks = [np.asarray(dropout(jnp.ones((64, 64)), 0.5, jax.random.key(seed))) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] == masks[2]).mean() == pytest.approx(0.5, abs=0.05)


def test_a_key_without_rates_changes_nothing_in_the_model(params: Any, tokens: np.ndarray) -> None:
    config = with_settings(**SILENT)
    np.testing.assert_array_equal(
        hidden_states(config, params, tokens, KEY), hidden_states(config, params, tokens, None)
    )


@pytest.mark.parametrize("name", SILENT)
def test_each_dropout_rate_of_the_model_has_an_effect(params: Any, tokens: np.ndarray, name: str) -> None:
    config = with_settings(**{**SILENT, name: 0.3})
    same = np.tile(tokens[:1], (2, 1))
    first, second = hidden_states(config, params, same, KEY)
    assert np.abs(first - hidden_states(CONFIG, params, same)[0]).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2, "the sequences of a batch share a mask"


def test_candidates_of_one_example_share_the_classifiers_mask(params: Any) -> None:
    hidden = np.ones((2, 2, 11, CONFIG.embed_dim), np.float32)
    scores = scores_of(params, hidden, 0.5, KEY)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])
    assert np.abs(scores[0] - scores[1]).min() > 1e-3, "the examples of a batch share a mask"
    assert np.abs(scores - scores_of(params, hidden)).min() > 1e-3


# Parameters


def test_the_defaults_have_the_published_number_of_parameters() -> None:
    assert sum(leaf.size for leaf in jax.tree.leaves(param_shapes(ModelConfig()))) == 116_534_784


def test_initial_weights_are_normal_biases_zero_and_gains_one() -> None:
    config = with_settings(vocab_size=200, num_special_tokens=0, context_length=128, init_std=0.05)
    for path, array in reference.flatten(init_params(config, jax.random.key(3), num_outputs=40)).items():
        if path.endswith(("kernel", "embedding")):
            # Five deviations of the estimates from this many draws.
            assert array.std() == pytest.approx(0.05, rel=5 / np.sqrt(2 * array.size)), path
            assert abs(array.mean()) < 5 * 0.05 / np.sqrt(array.size), path
        else:
            assert np.all(array == path.endswith("scale")), path


def test_every_layer_starts_with_weights_of_its_own_and_they_follow_the_key() -> None:
    kernels = [
        init_params(CONFIG, jax.random.key(s))["transformer"]["blocks"]["mlp"]["up"]["kernel"] for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    layers = np.concatenate([kernels[0], kernels[2]]).reshape(2 * CONFIG.num_layers, -1)
    np.testing.assert_allclose(np.corrcoef(layers), np.eye(len(layers)), atol=0.15)


def test_the_described_shapes_are_those_of_fresh_parameters() -> None:
    assert path_shapes(param_shapes(CONFIG, NUM_OUTPUTS)) == path_shapes(init_params(CONFIG, KEY, NUM_OUTPUTS))


# Errors of bind and call


def renamed(params: Any, names: dict[str, str]) -> Any:
    """The parameters with other names in the output projection of attention."""
    copy = jax.tree.map(lambda leaf: leaf, params)
    attention = copy["transformer"]["blocks"]["attention"]
    attention["out"] = {names.get(name, name): leaf for name, leaf in attention["out"].items() if names.get(name, name)}
    return copy


def test_bind_names_a_missing_parameter(params: Any) -> None:
    with pytest.raises(ValueError, match=r"missing transformer/blocks/attention/out/bias \(2, 32\)$"):
        bind(CONFIG, renamed(params, {"bias": ""}))


def test_bind_names_a_misnamed_parameter_and_the_one_it_lacks(params: Any) -> None:
    message = r"missing .*/out/kernel \(2, 32, 32\); unexpected .*/out/weight \(2, 32, 32\)$"
    with pytest.raises(ValueError, match=message):
        bind(CONFIG, renamed(params, {"kernel": "weight"}))


def test_bind_refuses_kernel_and_bias_under_each_others_name(params: Any) -> None:
    message = r"out/bias is \(2, 32, 32\), expected \(2, 32\); .*out/kernel is \(2, 32\), expected \(2, 32, 32\)$"
    with pytest.raises(ValueError, match=message):
        bind(CONFIG, renamed(params, {"kernel": "bias", "bias": "kernel"}))


def test_bind_names_a_misshapen_parameter(params: Any) -> None:
    with pytest.raises(ValueError, match=r"transformer/position_embedding is \(11, 32\), expected \(12, 32\)$"):
        bind(with_settings(context_length=12), params)


def test_bind_goes_by_names_not_by_order(params: Any, tokens: np.ndarray) -> None:
    reversed_params = reference.unflatten(dict(reversed(reference.flatten(params).items())))
    reversed_params = jax.tree.map(np.float32, reversed_params)
    expected = hidden_states(CONFIG, params, tokens)
    np.testing.assert_array_equal(hidden_states(CONFIG, reversed_params, tokens), expected)


def test_a_text_longer_than_the_context_is_refused(params: Any) -> None:
    with pytest.raises(ValueError, match=r"12 tokens do not fit into ModelConfig\.context_length = 11"):
        hidden_states(CONFIG, params, np.zeros((1, 12), np.int32))


# Precision


def test_bfloat16_computes_in_halves_and_keeps_parameters_and_logits_in_float32(
    params: Any, tokens: np.ndarray
) -> None:
    config = with_settings(compute_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(init_params(config, KEY, NUM_OUTPUTS))} == {jnp.dtype("float32")}
    hidden, logits = hidden_states(config, params, tokens), logits_of(config, params, tokens)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert scores_of(params, jnp.ones((2, 2, 11, 32), jnp.bfloat16)).dtype == jnp.float32
    # Eight bits of mantissa leave two or three digits.
    exact = hidden_states(CONFIG, params, tokens)
    assert 1e-4 < np.abs(hidden.astype(np.float32) - exact).mean() < 0.03
