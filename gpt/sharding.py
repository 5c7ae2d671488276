"""Where arrays live: two tables, from parameter path to logical axes and from logical axis to mesh axes.

The only file that spells mesh-axis names. Modules are written without them; XLA derives the
layout of everything in between from the layouts of parameters and batch.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt.config import MeshConfig, ModelConfig
from gpt.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")

PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    r"transformer/token_embedding": ("vocab", "embed"),
    r"transformer/position_embedding": ("position", "embed"),
    r"transformer/blocks/attention/qkv/kernel": ("layer", "embed", "heads"),
    r"transformer/blocks/attention/qkv/bias": ("layer", "heads"),
    r"transformer/blocks/attention/out/kernel": ("layer", "heads", "embed"),
    r"transformer/blocks/mlp/up/kernel": ("layer", "embed", "mlp"),
    r"transformer/blocks/mlp/up/bias": ("layer", "mlp"),
    r"transformer/blocks/mlp/down/kernel": ("layer", "mlp", "embed"),
    r"transformer/blocks/(attention/out|mlp/down)/bias": ("layer", "embed"),
    r"transformer/blocks/(attention|mlp)_norm/(scale|bias)": ("layer", "embed"),
    r"lstm/token_embedding": ("vocab", "embed"),
    r"lstm/input/kernel": ("embed", "gates"),
    r"lstm/recurrent/kernel": ("units", "gates"),
    r"lstm/recurrent/bias": ("gates",),
    r"lstm/out/kernel": ("units", "embed"),
    r"lstm/out/bias": ("embed",),
    r"head/kernel": ("embed", "output"),
    r"head/bias": ("output",),
}
"""Logical axes of each parameter. Every path matches exactly one row."""

MESH_AXES_OF: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "gates": ("tensor",),
    "units": (),
    "vocab": (),
    "position": (),
    "layer": (),
    "output": (),
}
"""Mesh axes that split each logical axis; none means a copy on every device."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh of a run, over all devices unless told which.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    given = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % given == 0:
        sizes[sizes.index(-1)] = len(devices) // given
    if int(np.prod(sizes)) != len(devices):
        raise ConfigError(
            f"MeshConfig {dict(zip(MESH_AXES, sizes, strict=True))} does not divide {len(devices)} devices: "
            "the sizes must multiply to that number; set one of them to -1 to take what the others leave"
        )
    # `jax.make_mesh` defaults to Explicit axes, which put shardings into types; we want XLA to derive them.
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def check_divisible(mesh: Mesh, model: ModelConfig, batch_size: int, accumulation_steps: int) -> None:
    """Raises ConfigError when a split axis of the model or the batch does not divide over the mesh."""
    if model.architecture == "lstm":
        inner = {"ModelConfig.lstm_dim": (model.lstm_dim, "gates")}
    else:
        inner = {"ModelConfig.num_heads": (model.num_heads, "heads"), "ModelConfig.mlp_dim": (model.mlp_dim, "mlp")}
    shares = {
        **inner,
        "ModelConfig.embed_dim": (model.embed_dim, "embed"),
        "RunConfig.batch_size / accumulation_steps": (batch_size // accumulation_steps, "batch"),
    }
    for name, (size, logical) in shares.items():
        axes = MESH_AXES_OF[logical]
        parts = int(np.prod([mesh.shape[axis] for axis in axes]))
        if size % parts:
            raise ConfigError(
                f"{name} = {size} does not divide over the {parts} devices of mesh axes {', '.join(axes)}: "
                f"take a multiple of {parts}, or smaller MeshConfig sizes"
            )


def logical_axes(path: str) -> tuple[str | None, ...]:
    """Logical axes of the parameter at `path`, such as `transformer/blocks/mlp/up/kernel`.

    Raises:
      ValueError: no row of PARAMETER_AXES matches, or several do.
    """
    rows = [axes for pattern, axes in PARAMETER_AXES.items() if re.fullmatch(pattern, path)]
    if len(rows) != 1:
        raise ValueError(f"parameter {path!r} matches {len(rows)} rows of PARAMETER_AXES, expected exactly one")
    return rows[0]


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of every leaf of `state`, a pytree of arrays or shapes.

    Optimizer moments lie as their parameter does: their path ends in the parameter's. Leaves
    outside of any parameter (step counters) are copied.
    """

    def leaf_sharding(path, _leaf) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        root = next((i for i, name in enumerate(names) if name in ("transformer", "lstm", "head")), None)
        axes = () if root is None else logical_axes("/".join(names[root:]))
        return NamedSharding(mesh, _partition(axes))

    return jax.tree.map_with_path(leaf_sharding, state)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """The batch on the devices, its leading axis split over the batch axes of the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, _partition(("batch",))))


def _partition(axes: tuple[str | None, ...]) -> PartitionSpec:
    return PartitionSpec(*(MESH_AXES_OF[axis] or None if axis else None for axis in axes))
