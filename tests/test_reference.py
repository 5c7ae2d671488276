"""The reference is itself proved: by hand, and against a run of OpenAI's own functions."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

NUM_HEADS = 2


def random_params() -> reference.Params:
    """Width 4, two layers, five tokens, six positions."""
    rng = np.random.default_rng(0)

    def linear(inputs: int, outputs: int) -> reference.Params:
        return {"kernel": rng.normal(size=(2, inputs, outputs)), "bias": rng.normal(size=(2, outputs))}

    def norm() -> reference.Params:
        return {"scale": rng.normal(size=(2, 4)), "bias": rng.normal(size=(2, 4))}

    blocks = {
        "attention": {"qkv": linear(4, 12), "out": linear(4, 4)},
        "attention_norm": norm(),
        "mlp": {"up": linear(4, 16), "down": linear(16, 4)},
        "mlp_norm": norm(),
    }
    embeddings = {"token_embedding": rng.normal(size=(5, 4)), "position_embedding": rng.normal(size=(6, 4))}
    return {"transformer": {**embeddings, "blocks": blocks}}


def attention_params(qkv: list[np.ndarray]) -> reference.Params:
    """Given q, k and v kernels, no biases, and an output projection that changes nothing."""
    return {
        "qkv": {"kernel": np.concatenate(qkv, axis=-1), "bias": np.zeros(12)},
        "out": {"kernel": np.eye(4), "bias": np.zeros(4)},
    }


@pytest.mark.parametrize(("x", "expected"), [(-1.0, -0.1588080), (0.5, 0.3457140), (1.0, 0.8411920), (2.0, 1.9545977)])
def test_gelu_is_the_tanh_form(x: float, expected: float):
    assert reference.gelu(np.array(x)) == pytest.approx(expected, abs=1e-7)


def test_layer_norm_divides_by_the_biased_deviation_and_adds_epsilon_under_the_root():
    params = {"scale": np.array([1.0, 2.0]), "bias": np.array([0.0, 10.0])}
    # Mean 3 and variance 1: the deviations -1 and 1 shrink by the root of 1 + 1e-5.
    expected = [-1 / math.sqrt(1 + 1e-5), 10 + 2 / math.sqrt(1 + 1e-5)]
    np.testing.assert_allclose(reference.layer_norm(np.array([2.0, 4.0]), params), expected, rtol=1e-14)


def test_attention_without_preference_averages_itself_and_what_came_before():
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    params = attention_params([np.zeros((4, 4)), np.zeros((4, 4)), np.eye(4)])
    expected = x.cumsum(axis=1) / np.arange(1, 6)[:, None]
    np.testing.assert_allclose(reference.attention(x, params, NUM_HEADS), expected, atol=1e-14)


def test_attention_divides_scores_by_the_root_of_the_head_width():
    x = np.eye(4)[:2]
    params = attention_params([2 * np.eye(4), np.eye(4), np.eye(4)])
    # The second position scores 0 on the first and 2 / sqrt(4) = 1 on itself.
    expected = [[1, 0, 0, 0], [1 / (1 + math.e), math.e / (1 + math.e), 0, 0]]
    np.testing.assert_allclose(reference.attention(x, params, num_heads=1), expected, atol=1e-14)


def test_heads_are_separate_attentions_over_contiguous_channels():
    x, *qkv = np.random.default_rng(0).normal(size=(4, 4, 4))
    expected = np.zeros((4, 4))
    for half in ([1, 1, 0, 0], [0, 0, 1, 1]):
        # One wide head on channels that are 0 outside the half sees only the half, but scales by its own width.
        query, key, value = (kernel * half for kernel in qkv)
        expected += reference.attention(x, attention_params([query * math.sqrt(2), key, value]), num_heads=1)
    np.testing.assert_allclose(reference.attention(x, attention_params(qkv), NUM_HEADS), expected, atol=1e-14)


def test_a_block_of_silent_sub_layers_normalises_twice():
    blocks = reference.flatten(random_params()["transformer"]["blocks"])
    params = reference.unflatten({path: array[0] * ("norm" in path) for path, array in blocks.items()})
    x = np.random.default_rng(1).normal(size=(3, 4))
    expected = reference.layer_norm(reference.layer_norm(x, params["attention_norm"]), params["mlp_norm"])
    np.testing.assert_allclose(reference.block(x, params, NUM_HEADS), expected, atol=1e-14)


def test_a_later_token_changes_nothing_before_it():
    params = random_params()
    before, after = (reference.forward(params, np.array([1, 2, 3, t, 0]), NUM_HEADS) for t in (4, 1))
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.all(np.abs(before - after)[3:].max(-1) > 1e-3)


def test_only_the_position_embedding_tells_equal_tokens_apart():
    params = random_params()
    tokens = np.array([2, 2, 2])
    assert not np.allclose(*reference.forward(params, tokens, NUM_HEADS)[:2])
    params["transformer"]["position_embedding"] = np.zeros((6, 4))
    hidden = reference.forward(params, tokens, NUM_HEADS)
    np.testing.assert_allclose(hidden, hidden[[0, 0, 0]], atol=1e-13)


def test_float32_parameters_are_computed_in_float64():
    params = reference.unflatten({path: a.astype(np.float32) for path, a in reference.flatten(random_params()).items()})
    assert reference.logits(params, reference.forward(params, np.array([0, 1]), NUM_HEADS)).dtype == np.float64


def test_lm_loss_by_hand_averages_each_sequence_over_its_own_tokens():
    params = {"transformer": {"token_embedding": np.array([[0.0], [math.log(3)]])}}
    # Probabilities 1/4 and 3/4 after the first token, 1/2 and 1/2 after the second; the third predicts nothing.
    hidden = np.tile([[1.0], [0.0], [9.0]], (2, 1, 1))
    log_probs = reference.token_log_probs(params, hidden, np.array([[0, 1, 0], [0, 0, 1]]))
    np.testing.assert_allclose(log_probs, np.log([[0.75, 0.5], [0.25, 0.5]]), atol=1e-14)
    losses = reference.lm_losses(log_probs, weights=np.array([[1, 1, 1], [1, 1, 0]]))
    np.testing.assert_allclose(losses, -np.log([0.75 * 0.5, 0.25]) / [2, 1], atol=1e-14)


def test_position_rows_compete_in_the_softmax_when_asked():
    params = {"transformer": {"token_embedding": np.zeros((2, 4)), "position_embedding": np.zeros((6, 4))}}
    arguments = params, np.ones((2, 4)), np.array([0, 1])
    assert reference.token_log_probs(*arguments) == pytest.approx(-math.log(2))
    assert reference.token_log_probs(*arguments, position_rows=True) == pytest.approx(-math.log(8))


def test_task_scores_read_the_extract_position_of_each_candidate():
    params = {"head": {"kernel": np.array([[10.0], [1.0]]), "bias": np.array([100.0])}}
    hidden = np.arange(12.0).reshape(1, 2, 3, 2)
    scores = reference.task_scores(params, hidden, extract=np.array([[2, 0]]))
    np.testing.assert_array_equal(scores, [[[100 + 40 + 5], [100 + 60 + 7]]])


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 1)], ids=["classes", "candidates"])
def test_task_loss_by_hand(shape: tuple[int, ...]):
    scores = np.array([0.0, math.log(3)]).reshape(shape)
    assert reference.task_losses(scores, np.array([0])) == pytest.approx(math.log(4))
    assert reference.task_losses(scores, np.array([1])) == pytest.approx(math.log(4 / 3))


def test_combined_loss_adds_lambda_times_the_mean_lm_loss_of_sequences():
    params = random_params()
    norm = params["transformer"]["blocks"]["mlp_norm"]
    norm["scale"], norm["bias"] = np.zeros((2, 4)), np.tile([1.0, 0, 0, 0], (2, 1))
    # The hidden state is the bias everywhere; it picks the first feature of either output matrix.
    params["transformer"]["token_embedding"] = np.array([[0.0, 5, 5, 5], [math.log(3), 5, 5, 5]])
    params["head"] = {"kernel": np.array([[0.0, math.log(3)], [5, 7], [5, 7], [5, 7]]), "bias": np.zeros(2)}
    tokens, weights = np.array([[[0, 1, 1]], [[0, 0, 1]]]), np.array([[[1, 1, 1]], [[1, 1, 0]]])
    extract, labels = np.array([[2], [1]]), np.array([1, 0])
    loss = reference.combined_loss(params, tokens, weights, extract, labels, num_heads=NUM_HEADS, lm_coef=0.5)
    task = lm = (math.log(4 / 3) + math.log(4)) / 2
    assert loss == pytest.approx(task + 0.5 * lm, rel=1e-14)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (reference.linear_schedule, [0.5 * 0.9, 0.8, 0.5, 0.0]),
        (reference.cosine_schedule, [0.5, 1.0, 0.5, 0.0]),
        (reference.constant_schedule, [0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules_by_hand(schedule: Any, values: list[float]):
    assert [schedule(fraction, 0.2) for fraction in (0.1, 0.2, 0.5, 1.0)] == pytest.approx(values, abs=1e-15)


def adam_step(step: int = 1, moments: Any = (), **settings: Any) -> tuple[reference.FlatParams, reference.Moments]:
    params = {"kernel": np.array([[2.0]]), "token_embedding": np.array([[2.0]]), "bias": np.array([[2.0]])}
    gradients = {"kernel": np.array([[2.0]]), "token_embedding": np.array([[-2.0]]), "bias": np.array([[1.0]])}
    return reference.openai_adam(params, gradients, dict(moments), step, **settings)


def test_first_update_moves_by_the_learning_rate_and_decays_matrices_only():
    params, _ = adam_step(learning_rate=0.1)
    # The bias correction sqrt(0.001) / 0.1 undoes the ratio of the moments, and shrinks the decay.
    decay = 0.1 * math.sqrt(0.001) / 0.1 * 0.01 * 2.0
    assert params["kernel"] == pytest.approx(2.0 - 0.1 - decay, abs=1e-7)
    assert params["token_embedding"] == pytest.approx(2.0 + 0.1 - decay, abs=1e-7)
    assert params["bias"] == pytest.approx(2.0 - 0.1, abs=1e-7)


def test_a_constant_gradient_moves_by_the_learning_rate_every_time():
    _, moments = adam_step(1, learning_rate=0.1)
    params, _ = adam_step(2, moments, learning_rate=0.1)
    assert params["bias"] == pytest.approx(2.0 - 0.1, abs=1e-7)


def test_epsilon_joins_the_uncorrected_root():
    params, _ = adam_step(learning_rate=0.1, epsilon=1.0)
    assert params["bias"] == pytest.approx(2.0 - 0.1 / (1 + 1.0 / math.sqrt(0.001)), rel=1e-14)


@pytest.mark.parametrize(("max_grad_norm", "factor"), [(1.5, 0.5), (4.0, 1.0), (None, 1.0)])
def test_clipping_scales_all_gradients_by_their_common_norm(max_grad_norm: float | None, factor: float):
    _, moments = adam_step(learning_rate=0.1, max_grad_norm=max_grad_norm)
    assert moments["kernel"][0] == pytest.approx(0.1 * factor * 2.0)
    assert moments["bias"][1] == pytest.approx(0.001 * (factor * 1.0) ** 2)


def test_the_first_update_moves_and_the_last_one_is_null():
    first, last = (adam_step(step, learning_rate=reference.linear_schedule(step / 10, 0.25))[0] for step in (1, 10))
    assert all(np.all(array != 2.0) for array in first.values())
    assert all(np.all(array == 2.0) for array in last.values())


def test_numerical_gradient_of_a_cubic():
    array = np.array([[1.0, 2.0], [3.0, 4.0]])
    slopes = reference.numerical_gradient(lambda a: (a**3).sum(), array, [(0, 1), (1, 0)])
    np.testing.assert_allclose(slopes, [12.0, 27.0], rtol=1e-8)


class Original:
    """A run of OpenAI's own functions: its inputs in our layout, and what it recorded."""

    def __init__(self, record: dict[str, Any]):
        self.record = record
        self.hyper = record["hyper"]
        self.tokens = np.array(record["xmb"])[..., 0]
        self.weights = np.array(record["mmb"])
        self.extract = (self.tokens == self.hyper["clf_token"]).argmax(-1)
        self.labels = np.array(record["labels"])

    def initial_params(self) -> reference.FlatParams:
        """Parameter k of the run is 0.2 sin(0.7 j + 1.3 k + 0.1) at its entry j, plus 1 for gains."""
        arrays = []
        for k, (name, shape) in enumerate(zip(self.record["names"], self.record["shapes"], strict=True)):
            wave = 0.2 * np.sin(0.7 * np.arange(math.prod(shape)) + 1.3 * k + 0.1) + name.endswith("/g")
            # A kernel is the only tap of a convolution.
            arrays.append(wave.astype(np.float32).reshape(shape[1:] if len(shape) == 3 else shape))
        table, *blocks, kernel, bias = arrays
        tokens, positions = np.split(table, [-self.hyper["n_ctx"]])
        stacked = map(np.stack, zip(blocks[:12], blocks[12:], strict=True))
        arrays = [tokens, positions, *stacked, kernel, bias]
        paths = [*reference.flatten(random_params()), "head/kernel", "head/bias"]
        return reference.flatten(dict(zip(paths, arrays, strict=True)))

    def by_name(self, flat: reference.FlatParams) -> dict[str, np.ndarray]:
        """Our arrays under OpenAI's names."""
        tokens, positions, *stacked, kernel, bias = flat.values()
        blocks = [array[layer] for layer in range(self.hyper["n_layer"]) for array in stacked]
        arrays = [np.concatenate([tokens, positions]), *blocks, kernel, bias]
        return dict(zip(self.record["names"], arrays, strict=True))

    def loss(self, flat: reference.FlatParams) -> float:
        inputs = self.tokens, self.weights, self.extract, self.labels
        settings = {"num_heads": self.hyper["n_head"], "lm_coef": self.hyper["lm_coef"]}
        return reference.combined_loss(reference.unflatten(flat), *inputs, **settings, position_rows=True)

    def gradients(self, flat: reference.FlatParams) -> reference.FlatParams:
        return {
            path: reference.numerical_gradient(
                lambda changed, path=path: self.loss(flat | {path: changed}), array, np.ndindex(array.shape)
            ).reshape(array.shape)
            for path, array in flat.items()
        }

    def assert_losses_match(self, flat: reference.FlatParams, recorded: dict[str, Any], tolerance: float) -> None:
        params = reference.unflatten(flat)
        hidden = reference.forward(params, self.tokens, self.hyper["n_head"])
        task = reference.task_losses(reference.task_scores(params, hidden, self.extract), self.labels)
        log_probs = reference.token_log_probs(params, hidden, self.tokens, position_rows=True)
        lm = reference.lm_losses(log_probs, self.weights)
        np.testing.assert_allclose(task, recorded["clf_losses"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(lm.ravel(), recorded["lm_losses"], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def original() -> Original:
    assets = os.environ.get("GPT_TEST_ASSETS")
    if assets is None:
        pytest.skip("GPT_TEST_ASSETS is not set: it names the directory with gpt1/openai_tiny_training.json")
    return Original(json.loads((Path(assets) / "gpt1" / "openai_tiny_training.json").read_text()))


def test_losses_equal_those_of_openai(original: Original):
    params = original.initial_params()
    original.assert_losses_match(params, original.record["eval"], tolerance=3e-7)
    assert original.loss(params) == pytest.approx(original.record["train_loss"], abs=3e-7)


def test_gradients_and_four_updates_follow_openai(original: Original):
    hyper, params, moments = original.hyper, original.initial_params(), {}
    # Biases of exactly zero gradient are among these: Adam divides their rounding noise by rounding noise.
    noise = {"model/clf/b", "model/h0/attn/c_attn/b", "model/h1/attn/c_attn/b"}
    for step, recorded in enumerate(original.record["steps"], start=1):
        gradients = original.gradients(params)
        if step == 1:
            norms = {name: np.linalg.norm(array) for name, array in original.by_name(gradients).items()}
            assert norms == pytest.approx(original.record["grad_norms"], abs=1e-6)
            assert reference.global_norm(gradients) == pytest.approx(original.record["grad_global_norm"], abs=1e-6)

        rate = hyper["lr"] * reference.linear_schedule(step / hyper["n_updates_total"], hyper["lr_warmup"])
        settings = {"learning_rate": rate, "weight_decay": hyper["l2"], "max_grad_norm": hyper["max_grad_norm"]}
        params, moments = reference.openai_adam(params, gradients, moments, step, **settings)

        sums = {name: array.sum() for name, array in original.by_name(params).items() if name not in noise}
        expected = {name: total for name, total in recorded["param_sums"].items() if name not in noise}
        assert sums == pytest.approx(expected, rel=0, abs=1e-5)
        original.assert_losses_match(params, recorded["eval_after"], tolerance=1e-5)
