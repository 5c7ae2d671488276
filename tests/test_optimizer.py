import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import reference

from gpt.config import ModelConfig, OptimizerConfig
from gpt.model.gpt import param_shapes
from gpt.training.optimizer import decay_mask, make_optimizer, make_schedule

NUM_STEPS = 8
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": reference.cosine_schedule,
    "linear": reference.linear_schedule,
    "constant": reference.constant_schedule,
}
SHAPES = {
    "transformer/token_embedding": (5, 4),
    "transformer/blocks/mlp/up/kernel": (2, 4, 3),
    "transformer/blocks/mlp/up/bias": (2, 3),
    "transformer/blocks/mlp_norm/scale": (2, 4),
    "head/bias": (2,),
}

Flat = reference.FlatParams


def draw(seed: int, scale: float = 1.0) -> Flat:
    """Arrays of float32 precision, so that both sides start from the same numbers."""
    generator = np.random.default_rng(seed)
    arrays = {path: generator.normal(0, scale, shape) for path, shape in SHAPES.items()}
    return {path: array.astype(np.float32).astype(float) for path, array in arrays.items()}


# The norms of these gradients are on both sides of the default limit of 1.
GRADIENTS = [draw(seed, scale) for seed, scale in enumerate([1.0, 0.01, 3.0, 0.05, 1.0, 0.1, 0.3, 1.0], start=1)]


def as_tree(flat: Flat) -> Any:
    return jax.tree.map(np.float32, reference.unflatten(flat))


def settings(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 0.05, "warmup_steps": 2, **changes})


def updates(config: OptimizerConfig) -> list[Flat]:
    """Parameters before the first and after each of the updates."""
    optimizer = make_optimizer(config, NUM_STEPS)
    params: Any = as_tree(draw(0))
    state = optimizer.init(params)
    history = [reference.flatten(params)]
    step = jax.jit(optimizer.update)
    for gradients in GRADIENTS:
        change, state = step(as_tree(gradients), state, params)
        params = optax.apply_updates(params, change)
        history.append(reference.flatten(params))
    return history


def assert_equal(actual: Flat, expected: Flat) -> None:
    assert actual.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(actual[path], array, rtol=0, atol=1e-5, err_msg=path)


# Schedules


@pytest.mark.parametrize("warmup", [{"warmup_steps": 3}, {"warmup_steps": None, "warmup_fraction": 0.3}, {}])
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_equal_the_reference(name: Any, warmup: dict[str, Any]) -> None:
    config = settings(schedule=name, **warmup)
    schedule = make_schedule(config, 10)
    share = 0.2 if not warmup else 0.3
    expected = [0.05 * SCHEDULES[name](n / 10, share) for n in range(1, 11)]
    np.testing.assert_allclose([schedule(count) for count in range(10)], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "first"), [("cosine", 0.5 * (1 + math.cos(math.pi / 10))), ("constant", 1.0)])
def test_without_warm_up_the_schedule_begins_at_once(name: Any, first: float) -> None:
    assert make_schedule(settings(schedule=name, warmup_steps=0), 10)(0) == pytest.approx(0.05 * first)


@pytest.mark.parametrize(("name", "is_null"), [("cosine", True), ("linear", True), ("constant", False)])
@pytest.mark.parametrize("rule", ["openai_adam", "adamw"])
def test_the_last_update_of_a_decaying_schedule_is_null(rule: Any, name: Any, is_null: bool) -> None:
    *_, before, after = updates(settings(name=rule, schedule=name))
    for path in SHAPES:
        assert np.allclose(after[path], before[path], rtol=0, atol=1e-8) == is_null, path


# Update rules


@pytest.mark.parametrize("max_grad_norm", [1.0, None])
@pytest.mark.parametrize("name", SCHEDULES)
def test_updates_of_openai_adam_equal_the_reference(name: Any, max_grad_norm: float | None) -> None:
    params, moments = draw(0), {}
    for n, actual in enumerate(updates(settings(schedule=name, max_grad_norm=max_grad_norm))[1:], start=1):
        rate = 0.05 * SCHEDULES[name](n / NUM_STEPS, 2 / NUM_STEPS)
        params, moments = reference.openai_adam(
            params, GRADIENTS[n - 1], moments, n, learning_rate=rate, max_grad_norm=max_grad_norm
        )
        assert_equal(actual, params)


def test_adamw_corrects_both_moments_before_epsilon_and_decays_by_the_learning_rate() -> None:
    config = settings(name="adamw", schedule="constant", warmup_steps=0, epsilon=0.1, max_grad_norm=None)
    params = draw(0)
    mean = square = dict.fromkeys(SHAPES, 0.0)
    for n, actual in enumerate(updates(config)[1:], start=1):
        gradients = GRADIENTS[n - 1]
        mean = {path: 0.9 * mean[path] + 0.1 * gradients[path] for path in SHAPES}
        square = {path: 0.999 * square[path] + 0.001 * gradients[path] ** 2 for path in SHAPES}
        for path in SHAPES:
            step = mean[path] / (1 - 0.9**n) / (np.sqrt(square[path] / (1 - 0.999**n)) + 0.1)
            decay = 0.01 if path.endswith(("kernel", "embedding")) else 0.0
            params[path] = params[path] - 0.05 * (step + decay * params[path])
        assert_equal(actual, params)


def test_the_two_rules_are_one_without_decay_and_epsilon() -> None:
    ours, optaxs = (updates(settings(name=name, weight_decay=0.0, epsilon=1e-12)) for name in ("openai_adam", "adamw"))
    for actual, expected in zip(ours, optaxs, strict=True):
        assert_equal(actual, expected)


def test_the_original_multiplies_decay_by_the_bias_correction() -> None:
    def decays(name: Any) -> np.ndarray:
        """What weight decay takes from the embedding in the first update."""
        path = "transformer/token_embedding"
        options = {"name": name, "schedule": "constant", "warmup_steps": 0}
        with_decay, without = (updates(settings(**options, weight_decay=rate))[1][path] for rate in (0.5, 0.0))
        return without - with_decay

    expected = 0.05 * 0.5 * draw(0)["transformer/token_embedding"]
    np.testing.assert_allclose(decays("adamw"), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(decays("openai_adam"), expected * math.sqrt(0.001) / 0.1, rtol=0, atol=1e-6)


# Decay mask


def test_decay_goes_by_name_whatever_the_rank() -> None:
    assert reference.flatten(decay_mask(as_tree(draw(0)))) == {
        path: path.endswith(("kernel", "embedding")) for path in SHAPES
    }


def test_biases_and_gains_do_not_decay() -> None:
    shapes = param_shapes(ModelConfig(num_special_tokens=3), num_outputs=2)
    mask = reference.flatten(decay_mask(shapes))
    assert {path.rsplit("/", 1)[1] for path, decays in mask.items() if not decays} == {"bias", "scale"}
    assert {path.rsplit("/", 1)[1] for path, decays in mask.items() if decays} == {
        "kernel",
        "token_embedding",
        "position_embedding",
    }


def test_the_published_number_of_parameters_decays() -> None:
    shapes = param_shapes(ModelConfig())
    sizes = jax.tree.map(lambda shape, decays: shape.size * decays, shapes, decay_mask(shapes))
    assert sum(jax.tree.leaves(sizes)) == 116_414_976
