"""The two tables, meshes, and their errors. What four devices compute is in test_devices.py.

After an intended change, `GPT_UPDATE_GOLDEN=1 pytest tests/test_sharding.py` writes the golden text anew.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt import gin_io
from gpt.config import MeshConfig, ModelConfig, OptimizerConfig
from gpt.errors import ConfigError
from gpt.model.gpt import param_shapes, path_shapes
from gpt.sharding import (
    MESH_AXES,
    PARAMETER_AXES,
    check_divisible,
    logical_axes,
    make_mesh,
    state_shardings,
)
from gpt.training.optimizer import make_optimizer
from gpt.training.state import TrainState

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "shardings"
MESH_FILES = sorted((ROOT / "configs" / "mesh").glob("*.gin"))
REQUIRED_SETTINGS = ("RunConfig.output_dir=run", "TokenizerConfig.path=tokenizer", "DataConfig.token_store=tokens")


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What a mesh wants to know of a device."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


SLICES = [FakeDevice(number, slice_index=number // 8) for number in range(16)]

# Every dropout is on: the devices must draw the masks that one device draws.
CONFIG = ModelConfig(
    vocab_size=20, num_special_tokens=3, context_length=8, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=24,
    scan_layers=True,
)  # fmt: skip
NUM_OUTPUTS = 1
MESHES = ("data=4", "data=2 fsdp=2", "data=1 fsdp=2 tensor=2", "data=2 tensor=2")
PATHS = sorted(path_shapes(param_shapes(CONFIG, NUM_OUTPUTS)))


def mesh_of(sizes: str) -> Any:
    """The mesh of `data=2 tensor=2`, on four devices."""
    config = MeshConfig(**{name: int(size) for name, size in (part.split("=") for part in sizes.split())})
    return make_mesh(config, jax.devices()[:4])


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


@pytest.mark.parametrize("file", MESH_FILES, ids=lambda file: file.stem)
def test_the_shardings_of_a_shipped_mesh_are_their_golden_text(file: Path) -> None:
    mesh = make_mesh(gin_io.load([ROOT / "configs" / "run" / "pretrain.gin", file], REQUIRED_SETTINGS).mesh, SLICES)
    lines = [
        "published model and LSTM, two slices of 8: path, stored shape, layout, shape on a device",
        str(mesh.shape),
    ]
    for architecture in ("transformer", "lstm"):
        shapes = param_shapes(ModelConfig(architecture=architecture, num_special_tokens=3), num_outputs=2)
        for (path, shape), leaf in zip(
            path_shapes(shapes).items(), jax.tree.leaves(state_shardings(mesh, shapes)), strict=True
        ):
            lines.append(f"{path:<41} {shape!s:<16} {tuple(leaf.spec)!s:<29} {leaf.shard_shape(shape)}")
    text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
    golden = GOLDEN / f"{file.stem}.txt"
    if os.environ.get("GPT_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "the shardings have changed: read the head of this file"


def test_every_golden_text_belongs_to_a_shipped_mesh() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {file.stem for file in MESH_FILES}


@pytest.mark.parametrize("name", ["openai_adam", "adamw"])
def test_optimizer_moments_lie_as_their_parameter_and_counters_everywhere(name: Any) -> None:
    optimizer = make_optimizer(OptimizerConfig(name=name), 10)
    state = jax.eval_shape(
        lambda params: TrainState(jnp.int32(0), params, optimizer.init(params)), param_shapes(CONFIG, NUM_OUTPUTS)
    )
    placed = state_shardings(mesh_of("data=1 fsdp=2 tensor=2"), state)
    by_parameter: dict[str, list[Any]] = {}
    for path, leaf in jax.tree.leaves_with_path(placed):
        *_, parameter = re.split(r"(?=\['(?:transformer|head)'\])", jax.tree_util.keystr(path))
        by_parameter.setdefault(parameter if "['" in parameter else "", []).append(leaf.spec)
    counters = by_parameter.pop("")
    assert set(counters) == {jax.sharding.PartitionSpec()}
    assert len(by_parameter) == len(PATHS)
    for path, (spec, *moments) in by_parameter.items():
        assert moments == [spec, spec], path


# Meshes and their errors


def test_minus_one_takes_the_devices_that_the_others_leave() -> None:
    def shape(**sizes: int) -> tuple[int, ...]:
        return tuple(make_mesh(MeshConfig(**sizes), jax.devices()[:4]).shape.values())

    assert MESH_AXES == ("data", "fsdp", "sequence", "tensor")
    assert shape() == (4, 1, 1, 1)
    assert shape(tensor=2) == (2, 1, 1, 2)
    assert shape(data=1, fsdp=-1) == (1, 4, 1, 1)
    assert shape(data=1, sequence=-1, tensor=2) == (1, 1, 2, 2)


def test_without_further_settings_slices_split_the_batch() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), SLICES)
    assert tuple(mesh.shape.values()) == (2, 8, 1, 1)
    for number in range(2):
        assert {device.slice_index for device in mesh.devices[number].flat} == {number}


def test_only_the_axis_that_is_told_to_reaches_across_slices() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, dcn_data=1, dcn_fsdp=2), SLICES)
    assert tuple(mesh.shape.values()) == (2, 4, 1, 2)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    np.testing.assert_array_equal(slices, np.broadcast_to(np.array([0, 0, 1, 1])[:, None, None], (2, 4, 1, 2)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "{'data': 3, 'fsdp': 1, 'sequence': 1, 'tensor': 1} does not divide 4 devices: the sizes must "
         "multiply to that number, and one may be -1, for what the others leave; the nearest that works is "
         "MeshConfig.data = 4"),
        ({"data": 2}, "nearest that works is MeshConfig.data = 4"),
        ({"tensor": 3}, "nearest that works is MeshConfig.tensor = 2"),
        ({"data": 1, "fsdp": -1, "sequence": 5, "tensor": 2}, "nearest that works is MeshConfig.sequence = 2"),
        ({"data": 1, "fsdp": 2}, "nearest that works is MeshConfig.fsdp = 4"),
        ({"fsdp": 3, "tensor": 5}, "nearest that works is a divisor of 4 on each axis"),
        ({"dcn_data": 2}, "{'dcn_data': 2, 'dcn_fsdp': 1} does not divide 1 slices: .* is MeshConfig.dcn_data = 1"),
    ],
)  # fmt: skip
def test_a_mesh_of_another_number_of_devices_is_refused_with_the_nearest_that_works(
    sizes: dict[str, int], message: str
) -> None:
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(ConfigError, match=f"^MeshConfig .*{pattern}$"):
        make_mesh(MeshConfig(**sizes), jax.devices()[:4])


def test_a_mesh_that_does_not_divide_a_slice_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"does not divide 8 devices of each of 2 slices: .* is MeshConfig\.fsdp = 8$"
    ):
        make_mesh(MeshConfig(data=1, fsdp=16), SLICES)
    with pytest.raises(ConfigError, match=r"slices of equal size, but they have \[3, 8\] devices"):
        make_mesh(MeshConfig(), SLICES[:11])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 1}, "ModelConfig.num_heads = 1 does not divide over the 2 devices of mesh axis tensor: "
         "the nearest that works is ModelConfig.num_heads = 2 or MeshConfig.tensor = 1"),
        ({"num_heads": 3, "embed_dim": 24}, "is ModelConfig.num_heads = 2 or MeshConfig.tensor = 1"),
        ({"num_heads": 5, "embed_dim": 20}, "is ModelConfig.num_heads = 4 or MeshConfig.tensor = 1"),
        ({"mlp_dim": 25}, "ModelConfig.mlp_dim = 25 does not divide over the 2 devices of mesh axis tensor: "
         "the nearest that works is ModelConfig.mlp_dim = 24 or MeshConfig.tensor = 1"),
        ({"embed_dim": 18}, "ModelConfig.embed_dim = 18 does not divide over the 4 devices of mesh axes tensor x fsdp: "
         "the nearest that works is ModelConfig.embed_dim = 16 or MeshConfig.tensor x MeshConfig.fsdp = 2"),
        ({"architecture": "lstm", "lstm_dim": 21}, "is ModelConfig.lstm_dim = 20 or MeshConfig.tensor = 1"),
    ],
)  # fmt: skip
def test_a_setting_of_the_model_that_does_not_divide_is_named_with_the_nearest_that_works(
    changes: dict[str, Any], message: str
) -> None:
    config = ModelConfig(**{"num_heads": 2, "embed_dim": 16, "mlp_dim": 24, **changes})
    with pytest.raises(ConfigError, match=f"{re.escape(message)}$"):
        check_divisible(mesh_of("data=1 fsdp=2 tensor=2"), config, 8, 1)


def test_a_context_that_does_not_divide_is_named_with_the_nearest_that_works() -> None:
    mesh = mesh_of("data=1 sequence=4")
    with pytest.raises(
        ConfigError, match=r"context_length = 510 .* is ModelConfig.context_length = 508 or MeshConfig.seq.* = 2$"
    ):
        check_divisible(mesh, ModelConfig(context_length=510), 8, 1)
    check_divisible(mesh, ModelConfig(context_length=510, architecture="lstm"), 8, 1)


def test_a_batch_that_does_not_divide_is_named_with_the_nearest_that_works() -> None:
    mesh = mesh_of("data=2 fsdp=2")
    check_divisible(mesh, CONFIG, batch_size=8, accumulation_steps=2)
    message = (
        "RunConfig.batch_size = 6 does not divide over the 4 devices of mesh axes data x fsdp: "
        "the nearest that works is RunConfig.batch_size = 4 or MeshConfig.data x MeshConfig.fsdp = 2"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_divisible(mesh, CONFIG, batch_size=6, accumulation_steps=1)
    message = (
        "RunConfig.batch_size = 8 in RunConfig.accumulation_steps = 4 parts does not .* RunConfig.batch_size = 16 or"
    )
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_divisible(mesh, CONFIG, batch_size=8, accumulation_steps=4)


def test_any_vocabulary_divides() -> None:
    check_divisible(mesh_of("data=1 tensor=4"), dataclasses.replace(CONFIG, vocab_size=40478, num_heads=4), 8, 1)
