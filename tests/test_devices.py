"""Four devices compute what one does: the same losses, gradients, updates and dropout on every mesh."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import ROOT, Toy

from gpt.config import CheckpointConfig, MeshConfig, ModelConfig, OptimizerConfig, TaskConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.model.dropout import dropout
from gpt.model.gpt import param_shapes
from gpt.sharding import constrain, make_mesh, shard_batch, splitting_activations, state_shardings
from gpt.text.tokenizer import Tokenizer
from gpt.training.checkpoint import Checkpoints, find_checkpoint, load_params
from gpt.training.optimizer import make_optimizer
from gpt.training.state import Keys, TrainState, create_state
from gpt.training.steps import LanguageModelObjective, Objective, TaskObjective, make_eval_step, make_train_step

# Every dropout is on: the devices must draw the masks that one device draws. 20 + 3 rows divide by nothing.
CONFIG = ModelConfig(
    vocab_size=20, num_special_tokens=3, context_length=8, num_layers=2, num_heads=4, embed_dim=16, mlp_dim=24,
    lstm_dim=12, scan_layers=True,
)  # fmt: skip

BATCH = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to train, of which no result may depend on the mesh."""

    config: ModelConfig = CONFIG
    is_task: bool = False
    accumulation_steps: int = 1

    @property
    def objective(self) -> Objective:
        return TaskObjective(TaskConfig(name="choice")) if self.is_task else LanguageModelObjective()

    @property
    def num_outputs(self) -> int | None:
        return 1 if self.is_task else None


def changed(**settings: Any) -> ModelConfig:
    return dataclasses.replace(CONFIG, **settings)


CASES = {
    "pretraining": Case(),
    "pretraining in two parts": Case(accumulation_steps=2),
    "pretraining unrolled": Case(changed(scan_layers=False, remat="dots")),
    "fine-tuning": Case(changed(remat="dots"), is_task=True),
    "fine-tuning in two parts": Case(changed(remat="full"), is_task=True, accumulation_steps=2),
    "fine-tuning unrolled": Case(changed(scan_layers=False, remat="full"), is_task=True),
    "fine-tuning as OpenAI's code": Case(
        changed(softmax_over_positions=True, embedding_table_dropout=True), is_task=True
    ),
    "LSTM": Case(changed(architecture="lstm", remat="full")),
    "fine-tuning the LSTM": Case(changed(architecture="lstm"), is_task=True, accumulation_steps=2),
}
MESHES = (
    "data=4", "data=2 fsdp=2", "fsdp=4", "data=2 tensor=2", "tensor=4", "fsdp=2 tensor=2",
    "data=2 sequence=2", "fsdp=2 sequence=2", "sequence=2 tensor=2", "sequence=4",
)  # fmt: skip
# Each axis, and most ways to train; the slow suite has all pairs.
PAIRS = (
    ("fsdp=4", "pretraining"), ("sequence=2 tensor=2", "pretraining"), ("fsdp=2 tensor=2", "LSTM"),
    ("data=2 tensor=2", "fine-tuning in two parts"), ("fsdp=2 sequence=2", "fine-tuning in two parts"),
)  # fmt: skip
ALL_PAIRS = [(mesh, case) for mesh in MESHES for case in CASES if (mesh, case) not in PAIRS]


def mesh_of(sizes: str) -> Any:
    """The mesh of `data=2 tensor=2`, on four devices."""
    config = MeshConfig(
        **{"data": 1, **{name: int(size) for name, size in (part.split("=") for part in sizes.split())}}
    )
    return make_mesh(config, jax.devices()[:4])


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def batch_of(case: Case, seed: int) -> TextBatch | TaskBatch:
    """Eight rows of any length; for a task examples of two candidates, the last example padding."""
    generator = np.random.default_rng(seed)
    shape = (BATCH, 2) if case.is_task else (BATCH,)
    lengths = generator.integers(2, 9, size=shape, dtype=np.int32)
    weights = (lengths[..., None] > np.arange(8)).astype(np.float32)
    if not case.is_task:
        return TextBatch(generator.integers(23, size=(BATCH, 9), dtype=np.int32), weights)
    tokens = generator.integers(23, size=(BATCH, 2, 8), dtype=np.int32)
    labels = generator.integers(2, size=BATCH, dtype=np.int32)
    return TaskBatch(tokens, weights, lengths - 1, labels, np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32))


DROPOUT_KEY = jax.random.key(1)

# Puts the gradients into the state, to be compared as well.
KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, state, params=None: (updates, updates),  # noqa: ARG005
)


def start(case: Case, mesh: Any) -> tuple[TrainState, Any]:
    """A state of weights far from their start, and the compiled update."""
    generator = np.random.default_rng(0)
    shapes = param_shapes(case.config, case.num_outputs)
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    # Epsilon well above rounding noise, which Adam would scale up to a whole step where the gradient is 0.
    adam = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0, epsilon=1e-4), num_steps=4)
    optimizer = optax.chain(KEEP_GRADIENT, adam)
    state = TrainState(jnp.int32(0), params, jax.jit(optimizer.init)(params))
    shardings = state_shardings(mesh, state)
    step = make_train_step(case.config, case.objective, optimizer, case.accumulation_steps, shardings)
    return jax.device_put(state, shardings), step


def three_updates(case: Case, mesh: Any) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after three updates on `mesh`, and the metrics of each."""
    state, step = start(case, mesh)
    history = []
    for seed in range(3):
        old: Any = state
        state, metrics = step(state, shard_batch(mesh, batch_of(case, seed), BATCH), DROPOUT_KEY)
        jax.block_until_ready(state)
        history.append({name: float(value) for name, value in metrics.items()})
        # Were a buffer not usable for the new state, JAX would warn, and here warnings are errors.
        given = (old.step, old.params, old.optimizer_state[1])
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given)), "the old state's memory was not given away"
    return state, history


@functools.cache
def on_one_device(name: str) -> tuple[Any, list[dict[str, float]]]:
    state, history = three_updates(CASES[name], one_device())
    return jax.device_get(state), history


def check_same_mathematics(sizes: str, name: str) -> None:
    expected_state, expected_history = on_one_device(name)
    mesh = mesh_of(sizes)
    state, history = three_updates(CASES[name], mesh)
    for metrics, expected in zip(history, expected_history, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-5)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(state_shardings(mesh, state)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), jax.device_get(state), expected_state
    )


@pytest.mark.parametrize(("sizes", "name"), PAIRS)
def test_three_updates_with_dropout_on_four_devices_equal_those_on_one(sizes: str, name: str) -> None:
    check_same_mathematics(sizes, name)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "name"), ALL_PAIRS)
def test_three_updates_on_every_mesh_equal_those_on_one_device(sizes: str, name: str) -> None:
    check_same_mathematics(sizes, name)


def check_same_evaluation(sizes: str, name: str) -> None:
    case, mesh = CASES[name], mesh_of(sizes)
    params = start(case, one_device())[0].params
    eval_step = make_eval_step(case.config, case.objective)
    expected = jax.device_get(eval_step(params, batch_of(case, 5)))
    with splitting_activations(mesh):
        found = eval_step(
            jax.device_put(params, state_shardings(mesh, params)), shard_batch(mesh, batch_of(case, 5), BATCH)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), jax.device_get(found), expected)


def test_held_out_scores_on_four_devices_equal_those_on_one() -> None:
    check_same_evaluation("sequence=2 tensor=2", "fine-tuning")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("name", ["pretraining", "fine-tuning as OpenAI's code", "LSTM"])
def test_held_out_scores_on_every_mesh_equal_those_on_one_device(sizes: str, name: str) -> None:
    check_same_evaluation(sizes, name)


@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
def test_initial_values_do_not_depend_on_the_mesh(architecture: str) -> None:
    config, optimizer = changed(architecture=architecture), make_optimizer(OptimizerConfig(), 10)
    found, expected = (
        jax.device_get(create_state(config, 1, optimizer, Keys(*3 * [jax.random.key(7)]), mesh)[0].params)
        for mesh in (mesh_of("fsdp=2 tensor=2"), one_device())
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path: Path) -> None:
    state, _ = start(CASES["fine-tuning"], mesh_of("fsdp=2 tensor=2"))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.begin_save(state)
        checkpoints.publish()
    like, _ = start(CASES["fine-tuning"], mesh := mesh_of("data=2 sequence=2"))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        restored = checkpoints.restore(0, like=like)
    params = load_params(find_checkpoint(tmp_path), one_device())
    for found, expected in ((restored.params, state.params), (params, state.params)):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))
    assert jax.tree.leaves(restored.params)[0].sharding.mesh == mesh


def test_no_device_holds_all_scores_or_all_positions_of_the_residual_stream() -> None:
    mesh = mesh_of("sequence=2 tensor=2")
    state, step = start(CASES["pretraining"], mesh)
    batch = shard_batch(mesh, batch_of(CASES["pretraining"], 0), BATCH)
    program = step.lower(state, batch, DROPOUT_KEY).compile().as_text()
    assert "f32[8,4,12]" in program, "8 sequences, half of 8 positions, half of 23 rows, rounded up"
    assert not re.search(r"f32\[8,\d,2[34]\]", program)
    assert "f32[8,2,16]" in program, "8 sequences, a quarter of 8 positions, the whole width"
    assert "f32[8,8,16]" not in program


def test_an_activation_is_split_along_its_logical_axes_and_outside_of_a_mesh_left_alone() -> None:
    x = np.ones((4, 8, 12), np.float32)
    assert constrain(y := jnp.asarray(x), "batch", "length", "heads") is y
    with splitting_activations(mesh_of("data=2 tensor=2")):
        placed = jax.jit(lambda x: constrain(x, "batch", "length", "heads"))(
            shard_batch(mesh_of("data=2 tensor=2"), x, len(x))
        )
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 8, 6)}


def test_devices_draw_the_mask_that_one_device_draws() -> None:
    x, key = np.ones((8, 6, 5), np.float32), jax.random.key(3)
    drop = jax.jit(lambda x: dropout(x, 0.5, key))
    expected = np.asarray(drop(x))
    np.testing.assert_array_equal(drop(shard_batch(mesh_of("data=2 fsdp=2"), x, len(x))), expected)
    assert not np.array_equal(expected[:2], expected[2:4]), "each device draws the same mask"


def test_a_batch_is_split_over_the_batch_axes() -> None:
    batch = shard_batch(mesh_of("data=2 fsdp=2"), batch_of(CASES["fine-tuning"], 0), BATCH)
    assert {shard.data.shape for leaf in batch for shard in leaf.addressable_shards} == {(2, 2, 8), (2, 2), (2,)}
    batch = shard_batch(mesh_of("fsdp=2 tensor=2"), batch_of(CASES["fine-tuning"], 0), BATCH)
    assert {shard.data.shape for shard in batch.tokens.addressable_shards} == {(4, 2, 8)}


@pytest.mark.slow
def test_the_command_for_a_laptop_trains_on_four_devices(toy: Toy, tmp_path: Path) -> None:
    (command,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "mesh.md").read_text(), re.DOTALL)
    for name, path in (("tokenizer", toy.tokenizer), ("store", toy.store), ("mesh", tmp_path / "run")):
        command = command.replace(f"runs/{name}", str(path))
    vocab_size = Tokenizer.load(toy.tokenizer).vocab_size
    command = f"{command.rstrip()} --gin.ModelConfig.vocab_size={vocab_size} --gin.ModelConfig.context_length=16"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"MeshConfig\.tensor += 4", (tmp_path / "run" / "config.gin").read_text())
    assert not re.search("donated|rematerialization", done.stderr)
