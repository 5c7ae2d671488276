"""The two tables, and four devices against one.

After an intended change, `GPT_UPDATE_GOLDEN=1 pytest tests/test_sharding.py` writes the golden text anew.
"""

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.config import MeshConfig, ModelConfig, OptimizerConfig, TaskConfig
from gpt.data.batches import TaskBatch
from gpt.errors import ConfigError
from gpt.model.gpt import param_shapes, path_shapes
from gpt.model.transformer import dropout
from gpt.sharding import PARAMETER_AXES, check_divisible, logical_axes, make_mesh, shard_batch, state_shardings
from gpt.training.optimizer import make_optimizer
from gpt.training.state import TrainState
from gpt.training.steps import TaskObjective, make_train_step

GOLDEN = Path(__file__).parent / "golden" / "shardings.txt"

# Every dropout is on: the devices must draw the masks that one device draws.
CONFIG = ModelConfig(
    vocab_size=20, num_special_tokens=3, context_length=8, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=24,
    scan_layers=True,
)  # fmt: skip
NUM_OUTPUTS = 1
MESHES = {
    "data=4": MeshConfig(data=4),
    "data=2 fsdp=2": MeshConfig(data=2, fsdp=2),
    "fsdp=2 tensor=2": MeshConfig(data=1, fsdp=2, tensor=2),
    "data=2 tensor=2": MeshConfig(data=2, tensor=2),
}
PATHS = sorted(path_shapes(param_shapes(CONFIG, NUM_OUTPUTS)))


def mesh_of(name: str) -> Any:
    return make_mesh(MESHES[name], jax.devices()[:4])


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


# Tables


@pytest.mark.parametrize("path", PATHS)
def test_every_parameter_matches_exactly_one_row_with_an_axis_for_each_dimension(path: str) -> None:
    rows = [axes for pattern, axes in PARAMETER_AXES.items() if re.fullmatch(pattern, path)]
    assert rows == [logical_axes(path)]
    assert len(rows[0]) == len(path_shapes(param_shapes(CONFIG, NUM_OUTPUTS))[path])


def test_every_row_has_a_parameter() -> None:
    lstm = path_shapes(param_shapes(dataclasses.replace(CONFIG, architecture="lstm")))
    unused = [pattern for pattern in PARAMETER_AXES if not any(re.fullmatch(pattern, path) for path in (*PATHS, *lstm))]
    assert not unused


def test_a_parameter_without_row_is_named() -> None:
    message = "parameter 'transformer/blocks/mlp/gate/kernel' matches 0 rows of PARAMETER_AXES, expected exactly one"
    with pytest.raises(ValueError, match=message):
        logical_axes("transformer/blocks/mlp/gate/kernel")


def test_a_parameter_with_two_rows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARAMETER_AXES, r"head/.*", ("output",))
    with pytest.raises(ValueError, match="parameter 'head/bias' matches 2 rows"):
        logical_axes("head/bias")


def test_the_shardings_of_the_published_model_are_their_golden_text() -> None:
    shapes = param_shapes(ModelConfig(num_special_tokens=3), num_outputs=2)
    placed = state_shardings(mesh_of("fsdp=2 tensor=2"), shapes)
    text = "".join(
        f"{path:<45} {shape!s:<18} {tuple(leaf.spec)}\n"
        for (path, shape), leaf in zip(path_shapes(shapes).items(), jax.tree.leaves(placed), strict=True)
    )
    if os.environ.get("GPT_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "the shardings have changed: read the head of this file"


@pytest.mark.parametrize("name", ["openai_adam", "adamw"])
def test_optimizer_moments_lie_as_their_parameter_and_counters_everywhere(name: Any) -> None:
    optimizer = make_optimizer(OptimizerConfig(name=name), 10)
    state = jax.eval_shape(
        lambda params: TrainState(jnp.int32(0), params, optimizer.init(params)), param_shapes(CONFIG, NUM_OUTPUTS)
    )
    placed = state_shardings(mesh_of("fsdp=2 tensor=2"), state)
    by_parameter: dict[str, list[Any]] = {}
    for path, leaf in jax.tree.leaves_with_path(placed):
        *_, parameter = re.split(r"(?=\['(?:transformer|head)'\])", jax.tree_util.keystr(path))
        by_parameter.setdefault(parameter if "['" in parameter else "", []).append(leaf.spec)
    counters = by_parameter.pop("")
    assert set(counters) == {jax.sharding.PartitionSpec()}
    assert len(by_parameter) == len(PATHS)
    for path, (spec, *moments) in by_parameter.items():
        assert moments == [spec, spec], path


# Errors


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(data=3), "{'data': 3, 'fsdp': 1, 'tensor': 1} does not divide 4 devices"),
        (MeshConfig(data=2), "{'data': 2, 'fsdp': 1, 'tensor': 1} does not divide 4 devices"),
        (MeshConfig(data=-1, tensor=3), "{'data': -1, 'fsdp': 1, 'tensor': 3} does not divide 4 devices"),
    ],
)
def test_a_mesh_of_another_number_of_devices_is_refused(config: MeshConfig, sizes: str) -> None:
    with pytest.raises(ConfigError, match=f"^MeshConfig {re.escape(sizes)}.* set one of them to -1"):
        make_mesh(config, jax.devices()[:4])


def test_minus_one_takes_the_devices_that_the_others_leave() -> None:
    assert make_mesh(MeshConfig(tensor=2), jax.devices()[:4]).shape == {"data": 2, "fsdp": 1, "tensor": 2}
    assert make_mesh(MeshConfig(data=1, fsdp=-1), jax.devices()[:4]).shape == {"data": 1, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("changes", "batch_size", "message"),
    [
        ({"num_heads": 1}, 8, "ModelConfig.num_heads = 1 does not divide over the 2 devices of mesh axes tensor"),
        ({"mlp_dim": 25}, 8, "ModelConfig.mlp_dim = 25 does not divide over the 2 devices of mesh axes tensor"),
        ({"embed_dim": 15, "num_heads": 3, "mlp_dim": 26}, 8, "ModelConfig.num_heads = 3 does not divide"),
        (
            {},
            7,
            "RunConfig.batch_size / accumulation_steps = 7 does not divide over the 2 devices of mesh axes data, fsdp",
        ),
    ],
)
def test_an_axis_that_does_not_divide_is_named_by_its_setting(
    changes: dict[str, Any], batch_size: int, message: str
) -> None:
    config = ModelConfig(**{"num_heads": 2, "embed_dim": 16, "mlp_dim": 24, **changes})
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}.* smaller MeshConfig sizes"):
        check_divisible(mesh_of("fsdp=2 tensor=2"), config, batch_size, 1)


def test_an_embedding_that_does_not_divide_is_named() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    with pytest.raises(
        ConfigError, match=r"^ModelConfig\.embed_dim = 18 does not divide over the 4 devices of .* fsdp"
    ):
        check_divisible(mesh, ModelConfig(num_heads=2, embed_dim=18), 8, 1)


def test_the_part_of_a_batch_that_is_computed_at_once_must_divide() -> None:
    check_divisible(mesh_of("data=4"), CONFIG, batch_size=8, accumulation_steps=2)
    with pytest.raises(ConfigError, match="accumulation_steps = 2 does not divide over the 4 devices"):
        check_divisible(mesh_of("data=4"), CONFIG, batch_size=8, accumulation_steps=4)


# Four devices and one


def task_batch(seed: int) -> TaskBatch:
    """Four examples of two candidates of any length, the last example padding."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(23, size=(4, 2, 8), dtype=np.int32)
    lengths = generator.integers(2, 9, size=(4, 2), dtype=np.int32)
    weights = (lengths[..., None] > np.arange(8)).astype(np.float32)
    labels = generator.integers(2, size=4, dtype=np.int32)
    return TaskBatch(tokens, weights, lengths - 1, labels, np.array([1, 1, 1, 0], np.float32))


def three_updates(mesh: Any) -> tuple[TrainState, list[float]]:
    """The state after three updates on `mesh`, and the loss of each."""
    generator = np.random.default_rng(0)
    shapes = param_shapes(CONFIG, NUM_OUTPUTS)
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    # Epsilon well above rounding noise, which Adam would scale up to a whole step where the gradient is 0.
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0, epsilon=1e-4), num_steps=4)
    state = TrainState(jnp.int32(0), params, jax.jit(optimizer.init)(params))
    shardings = state_shardings(mesh, state)
    state = jax.device_put(state, shardings)
    step = make_train_step(CONFIG, TaskObjective(TaskConfig(name="choice")), optimizer, jax.random.key(1), 1, shardings)
    losses = []
    for seed in range(3):
        state, metrics = step(state, shard_batch(mesh, task_batch(seed)))
        losses.append(float(metrics["loss"]))
        jax.block_until_ready(state)
    return state, losses


@functools.cache
def on_one_device() -> tuple[Any, list[float]]:
    state, losses = three_updates(one_device())
    return jax.device_get(state), losses


@pytest.mark.parametrize("name", MESHES)
def test_three_updates_with_dropout_on_four_devices_equal_those_on_one(name: str) -> None:
    expected_state, expected_losses = on_one_device()
    state, losses = three_updates(mesh_of(name))
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), jax.device_get(state), expected_state
    )

    moments: Any = state.optimizer_state
    kernel, moment = (tree["transformer"]["blocks"]["mlp"]["up"]["kernel"] for tree in (state.params, moments[1].mu))
    shape = (2, 16 // MESHES[name].fsdp, 24 // MESHES[name].tensor)
    assert kernel.addressable_shards[0].data.shape == moment.addressable_shards[0].data.shape == shape
    assert len(kernel.sharding.device_set) == 4


def test_devices_draw_the_mask_that_one_device_draws() -> None:
    x, key = jnp.ones((8, 6, 5)), jax.random.key(3)
    drop = jax.jit(lambda x: dropout(x, 0.5, key))
    expected = np.asarray(drop(x))
    np.testing.assert_array_equal(drop(shard_batch(mesh_of("data=2 fsdp=2"), x)), expected)
    assert not np.array_equal(expected[:2], expected[2:4]), "each device draws the same mask"


def test_a_batch_is_split_over_the_batch_axes() -> None:
    batch = shard_batch(mesh_of("data=2 fsdp=2"), task_batch(0))
    assert {shard.data.shape for leaf in batch for shard in leaf.addressable_shards} == {(1, 2, 8), (1, 2), (1,)}
    batch = shard_batch(mesh_of("fsdp=2 tensor=2"), task_batch(0))
    assert {shard.data.shape for shard in batch.tokens.addressable_shards} == {(2, 2, 8)}
