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
from gpt.model import dropout as dropout_module
from gpt.model.dropout import dropout, random_words
from gpt.model.gpt import bind, init_params, param_shapes, path_shapes
from gpt.model.heads import last_token, mean_state

CONFIG = ModelConfig(
    vocab_size=50, num_special_tokens=3, context_length=11, num_layers=2, num_heads=4, embed_dim=32, mlp_dim=48
)
NUM_OUTPUTS = 2
SILENT = {"embed_dropout_rate": 0.0, "attention_dropout_rate": 0.0, "residual_dropout_rate": 0.0}
KEY = jax.random.key(7)
REMAT = ("none", "dots", "full")


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
def hidden_states(config: ModelConfig, params, tokens, key=None, **inputs):
    return bind(config, params).transformer(tokens, key, **inputs)


@functools.partial(jax.jit, static_argnums=0)
def activations_of(config: ModelConfig, params, tokens, key=None):
    return bind(config, params).transformer.activations(tokens, key)


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


def test_similarity_scores_add_both_orders_before_the_head(params: Any) -> None:
    hidden = np.random.default_rng(2).normal(size=(3, 2, 11, CONFIG.embed_dim)).astype(np.float32)
    extract = np.array([[3, 0], [10, 5], [2, 2]])
    head = bind(CONFIG, params).head
    assert head is not None
    pooled = np.take_along_axis(hidden, extract[..., None, None], axis=-2)[:, :, 0]
    expected = reference.linear(pooled[:, 0] + pooled[:, 1], params["head"])
    np.testing.assert_allclose(head.similarity(jnp.asarray(hidden), jnp.asarray(extract)), expected, rtol=0, atol=1e-5)


def test_tags_are_scores_of_every_token(params: Any) -> None:
    hidden = np.random.default_rng(2).normal(size=(3, 11, CONFIG.embed_dim)).astype(np.float32)
    head = bind(CONFIG, params).head
    assert head is not None
    expected = reference.linear(hidden, params["head"])
    np.testing.assert_allclose(head.tokens(jnp.asarray(hidden)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["similarity", "tokens"])
def test_a_key_drops_features_in_front_of_every_head(params: Any, name: str) -> None:
    hidden = jnp.ones((2, 2, 11, CONFIG.embed_dim)) if name == "similarity" else jnp.ones((2, 11, CONFIG.embed_dim))
    where = [jnp.zeros((2, 2), int)] if name == "similarity" else []
    run = getattr(bind(CONFIG, params).head, name)
    one, other, silent = (run(hidden, *where, 0.5, key) for key in (KEY, jax.random.key(8), None))
    assert np.abs(one - other).min() > 1e-4
    assert np.abs(one - silent).min() > 1e-4


# Padding, positions, segments, embeddings


def pad_left(tokens: np.ndarray, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The first tokens of each row behind padding, and the mask."""
    mask = np.arange(tokens.shape[1]) >= tokens.shape[1] - np.array(lengths)[:, None]
    padded = np.full_like(tokens, 7)
    for row, length in enumerate(lengths):
        padded[row, tokens.shape[1] - length :] = tokens[row, :length]
    return padded, mask


def test_padding_on_the_left_leaves_real_tokens_as_they_are(params: Any, tokens: np.ndarray) -> None:
    lengths = [11, 6, 1, 3]
    padded, mask = pad_left(tokens, lengths)
    hidden = hidden_states(CONFIG, params, padded, mask=mask)
    for row, length in enumerate(lengths):
        expected = reference.forward(params, tokens[row, :length], CONFIG.num_heads)
        np.testing.assert_allclose(hidden[row, -length:], expected, rtol=0, atol=1e-5)


def test_positions_of_ones_choice_are_looked_up(params: Any, tokens: np.ndarray) -> None:
    backwards = np.tile(np.arange(CONFIG.context_length)[::-1], (4, 1))
    hidden = hidden_states(CONFIG, params, tokens, positions=backwards)
    transformer = params["transformer"] | {"position_embedding": params["transformer"]["position_embedding"][::-1]}
    expected = reference.forward({"transformer": transformer}, tokens, CONFIG.num_heads)
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)


def test_embeddings_stand_for_tokens_and_segments_are_added(params: Any, tokens: np.ndarray) -> None:
    table, segments = params["transformer"]["token_embedding"], np.roll(tokens, 1)
    run = functools.partial(hidden_states, CONFIG, params)
    np.testing.assert_array_equal(run(table[tokens]), run(tokens))
    both = run(table[tokens] + table[segments])
    np.testing.assert_allclose(run(tokens, segments=segments), both, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_activations_are_every_depth_and_probabilities_over_the_past(
    params: Any, tokens: np.ndarray, scan: bool
) -> None:
    config = with_settings(scan_layers=scan)
    hidden, attentions = activations_of(config, params, tokens)
    transformer = params["transformer"]
    embedded = transformer["token_embedding"][tokens] + transformer["position_embedding"]
    np.testing.assert_allclose(hidden[0], embedded, rtol=0, atol=1e-6)
    first = jax.tree.map(lambda leaf: leaf[0], transformer["blocks"])
    np.testing.assert_allclose(hidden[1], reference.block(embedded, first, CONFIG.num_heads), rtol=0, atol=1e-5)
    np.testing.assert_allclose(hidden[2], hidden_states(config, params, tokens), rtol=0, atol=1e-5)
    assert attentions.shape == (2, 4, CONFIG.num_heads, 11, 11)
    np.testing.assert_allclose(attentions.sum(-1), 1, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.triu(attentions, 1), 0)


def test_the_last_token_is_found_behind_and_before_padding() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(last_token(jnp.asarray(mask)), [1, 3, 3, 0])


def test_the_mean_state_leaves_padding_out() -> None:
    hidden = jnp.array([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[5.0, 5.0]] * 3])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(mean_state(hidden, mask), [[2, 4], [0, 0]])


@pytest.mark.parametrize(
    ("name", "function"),
    [("relu", lambda x: np.maximum(x, 0)), ("silu", lambda x: x / (1 + np.exp(-x))), ("gelu", reference.gelu)],
)
def test_the_activation_is_the_one_of_the_config(
    params: Any, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: Any, function: Any
) -> None:
    monkeypatch.setattr(reference, "gelu", function)  # the one place where the reference names it
    expected = reference.forward(params, tokens, CONFIG.num_heads)
    np.testing.assert_allclose(
        hidden_states(with_settings(activation=name), params, tokens), expected, rtol=0, atol=1e-5
    )


# What OpenAI's code does


def test_positions_compete_in_the_softmax_when_asked(params: Any, tokens: np.ndarray) -> None:
    logits = logits_of(with_settings(softmax_over_positions=True), params, tokens)
    hidden = reference.forward(params, tokens, CONFIG.num_heads)
    np.testing.assert_allclose(logits, reference.logits(params, hidden, position_rows=True), rtol=0, atol=1e-4)


def test_table_dropout_takes_the_same_entries_from_every_occurrence_and_from_the_softmax(params: Any) -> None:
    config = with_settings(embedding_table_dropout=True, **{**SILENT, "embed_dropout_rate": 0.5})
    ones = jax.tree.map(lambda leaf: leaf, params)
    ones["transformer"]["token_embedding"] = jnp.ones((53, 32))
    ones["transformer"]["position_embedding"] = jnp.zeros((11, 32))
    model = bind(config, ones).transformer
    embedded = np.asarray(model.activations(jnp.array([[3, 4, 3], [4, 3, 3]]), KEY).hidden[0])
    assert set(np.unique(embedded)) == {0.0, 2.0}
    three, four = embedded[0, 0], embedded[0, 1]
    np.testing.assert_array_equal(embedded, [[three, four, three], [four, three, three]])
    assert (three != four).any()
    # Unit vectors as hidden states read the matrix of the softmax.
    table = np.asarray(model.logits(jnp.eye(32)[None], KEY))[0].T
    np.testing.assert_array_equal(table[[3, 4]], [three, four])
    np.testing.assert_array_equal(model.logits(jnp.eye(32)[None])[0].T, 1)


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
def traced_gradient(scan: bool, remat: str = "none"):
    """A loss and its gradient with dropout on, traced."""

    def loss(params, tokens):
        hidden = bind(with_settings(scan_layers=scan, remat=remat), params).transformer(tokens, KEY)
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


def subjaxprs(equation: Any) -> list[Any]:
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns"))
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if hasattr(leaf, "eqns")]


def count_products(jaxpr: Any) -> int:
    """Matrix products of a program, those of the programs in it included."""
    return sum(
        (equation.primitive.name == "dot_general") + sum(map(count_products, subjaxprs(equation)))
        for equation in jaxpr.eqns
    )


@pytest.mark.parametrize("scan", [True, False])
def test_remat_chooses_how_many_products_backward_computes_again(scan: bool) -> None:
    none, dots, full = (count_products(traced_gradient(scan, remat).jaxpr.jaxpr) for remat in REMAT)
    assert none < dots < full


def test_remat_changes_neither_value_nor_gradient(params: Any, tokens: np.ndarray) -> None:
    expected, *others = (
        traced_gradient(True, remat).lower().compile()(params, tokens.astype(np.int32)) for remat in REMAT
    )
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)


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


@pytest.mark.parametrize("shape", [(), (1,), (5, 2), (3, 4, 7)])
def test_random_words_are_those_of_jax(shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(random_words(KEY, shape), jax.random.bits(KEY, shape, jnp.uint32))


def test_words_differ_where_one_counter_cannot_number_them(monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.asarray(random_words(KEY, (8, 64)))
    monkeypatch.setattr(dropout_module, "_MOST_WORDS", 512)
    many = np.asarray(random_words(KEY, (8, 64)))
    assert len(np.unique(many)) == 512
    np.testing.assert_array_equal(many[0], few[0])
    assert not (many[1:] == few[1:]).any()


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
