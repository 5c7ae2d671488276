"""Where arrays live: two tables, from array to logical axes and from logical axis to mesh axes.

The only file that spells mesh-axis names. Modules name the logical axes of a few activations by
`constrain`; XLA derives the layout of everything in between.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from gpt.config import MeshConfig, ModelConfig
from gpt.errors import ConfigError

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
"""In the order of rising traffic: the last gets the shortest ways between devices."""

SLICE_AXES = {"data": "dcn_data", "fsdp": "dcn_fsdp"}
"""Mesh axes that may reach across slices, and the setting that says over how many."""

PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    r"transformer/token_embedding": ("vocab", "table_embed"),
    r"transformer/position_embedding": ("position", "embed"),
    r"transformer/blocks/attention/qkv/kernel": ("layer", "embed", "heads"),
    r"transformer/blocks/attention/qkv/bias": ("layer", "heads"),
    r"transformer/blocks/attention/out/kernel": ("layer", "heads", "embed"),
    r"transformer/blocks/mlp/up/kernel": ("layer", "embed", "mlp"),
    r"transformer/blocks/mlp/up/bias": ("layer", "mlp"),
    r"transformer/blocks/mlp/down/kernel": ("layer", "mlp", "embed"),
    r"transformer/blocks/(attention/out|mlp/down)/bias": ("layer", "embed"),
    r"transformer/blocks/(attention|mlp)_norm/(scale|bias)": ("layer", "embed"),
    r"lstm/token_embedding": ("vocab", "table_embed"),
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
    "population": MESH_AXES,
    "length": ("sequence",),
    "stream_length": ("sequence", "tensor"),
    "logits": ("tensor",),
    "lookup": ("tensor",),
    "embed": ("fsdp",),
    "table_embed": ("tensor", "fsdp"),
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

    Devices of several slices (TPU) or hosts (GPU) have a `slice_index`: the traffic of each axis stays inside
    of one, but for `dcn_data` and `dcn_fsdp`.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices; names the nearest that do.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(slices.values())) > 1:
        raise ConfigError(f"a mesh needs slices of equal size, but they have {sorted(slices.values())} devices")
    across = _fill(config, tuple(SLICE_AXES.values()), len(slices), f"{len(slices)} slices")
    per_slice = len(devices) // len(slices)
    what = f"{per_slice} devices" if len(slices) == 1 else f"{per_slice} devices of each of {len(slices)} slices"
    within = [_fill(config, MESH_AXES, per_slice, what)[axis] for axis in MESH_AXES]
    # Splitting a physical axis of the network between two mesh axes is slower than not, but faster than an error.
    if len(slices) == 1:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        copies = [across.get(SLICE_AXES.get(axis, ""), 1) for axis in MESH_AXES]
        grid = mesh_utils.create_hybrid_device_mesh(within, copies, devices, allow_split_physical_axes=True)
    # Explicit axes would put shardings into types; we want XLA to derive them.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _fill(config: MeshConfig, names: tuple[str, ...], total: int, what: str) -> dict[str, int]:
    """The sizes of some axes with -1 replaced by what the others leave of `total`."""
    given = {name: getattr(config, name) for name in names}
    sizes = _resolve(given, total)
    if sizes is not None:
        return sizes
    fixes = {}
    for name, size in given.items():
        nearest = _nearest(size, lambda n, name=name: _resolve({**given, name: n}, total) is not None, total)
        if size != -1 and nearest:
            fixes[name] = nearest
    fixes = {name: size for name, size in fixes.items() if given[name] > 1} or fixes
    way_out = " or ".join(f"MeshConfig.{name} = {size}" for name, size in fixes.items())
    raise ConfigError(
        f"MeshConfig {given} does not divide {what}: the sizes must multiply to that number, and one may be -1, "
        f"for what the others leave; the nearest that works is {way_out or f'a divisor of {total} on each axis'}"
    )


def _resolve(given: dict[str, int], total: int) -> dict[str, int] | None:
    left = total // math.prod(size for size in given.values() if size != -1)
    sizes = {name: left if size == -1 else size for name, size in given.items()}
    return sizes if math.prod(sizes.values()) == total else None


def _nearest(value: int, works: Callable[[int], bool], limit: int) -> int | None:
    """The number from 1 to `limit` nearest to `value` that works."""
    return min(filter(works, range(1, limit + 1)), key=lambda n: (abs(n - value), n), default=None)


def check_divisible(
    mesh: Mesh, model: ModelConfig, batch_size: int, accumulation_steps: int, pack_size: int | None = None
) -> None:
    """Raises ConfigError when a split axis of the model or the batch does not divide over the mesh.

    A batch is split between its packs of `pack_size` examples, if it has any.

    The error names the setting and the nearest value that works. Every vocabulary works: the stored table is
    split along its width, and XLA pads the rows that a compiled program splits unevenly.
    """

    def check(
        setting: str, value: int, logical: str, works: Callable[[int], bool], num_parts: int = 1, parts: str = ""
    ) -> None:
        axes = [axis for axis in MESH_AXES_OF[logical] if mesh.shape[axis] > 1]
        devices = math.prod(mesh.shape[axis] for axis in axes)
        unit = devices * num_parts
        if value % unit == 0:
            return
        nearest = _nearest(value, lambda n: n % unit == 0 and works(n), 2 * max(value, unit))
        fewer = _nearest(devices, lambda n: value // num_parts % n == 0 and mesh.size % n == 0, mesh.size)
        raise ConfigError(
            f"{setting} = {value}{parts} does not divide over the {devices} devices of mesh "
            f"{'axes' if len(axes) > 1 else 'axis'} {' x '.join(axes)}: the nearest that works is "
            f"{f'{setting} = {nearest} or ' if nearest else ''}"
            f"{' x '.join(f'MeshConfig.{axis}' for axis in axes)} = {fewer}"
        )

    split = {"embed_dim": "table_embed"}
    if model.architecture == "lstm":
        split |= {"lstm_dim": "gates"}
    else:
        split |= {"num_heads": "heads", "mlp_dim": "mlp", "context_length": "length"}
    for name, logical in split.items():
        check(f"ModelConfig.{name}", getattr(model, name), logical, lambda n, name=name: _is_valid(model, name, n))
    parts = f" in RunConfig.accumulation_steps = {accumulation_steps} parts" if accumulation_steps > 1 else ""
    parts += "" if pack_size is None else f" of packs of RunConfig.pack_size = {pack_size}"
    check("RunConfig.batch_size", batch_size, "batch", lambda _: True, accumulation_steps * (pack_size or 1), parts)


def _is_valid(model: ModelConfig, name: str, value: int) -> bool:
    try:
        dataclasses.replace(model, **{name: value})
    except ConfigError:
        return False
    return True


def logical_axes(path: str) -> tuple[str | None, ...]:
    """Logical axes of the parameter at `path`, such as `transformer/blocks/mlp/up/kernel`.

    Raises:
      ValueError: no row of PARAMETER_AXES matches, or several do.
    """
    rows = [axes for pattern, axes in PARAMETER_AXES.items() if re.fullmatch(pattern, path)]
    if len(rows) != 1:
        raise ValueError(f"parameter {path!r} matches {len(rows)} rows of PARAMETER_AXES, expected exactly one")
    return rows[0]


def state_shardings(mesh: Mesh | AbstractMesh, state: Any) -> Any:
    """The sharding of every leaf of `state`, a pytree of arrays or shapes.

    Optimizer moments lie as their parameter does: their path ends in the parameter's. Leaves
    outside of any parameter (step counters) are copied.
    """

    def leaf_sharding(path, _leaf) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        root = next((i for i, name in enumerate(names) if name in ("transformer", "lstm", "head")), None)
        axes = () if root is None else logical_axes("/".join(names[root:]))
        return NamedSharding(mesh, partition(axes))

    return jax.tree.map_with_path(leaf_sharding, state)


def sharded_shapes(mesh: Mesh, shapes: Any) -> Any:
    """`shapes`, a pytree of arrays or shapes, as abstract arrays that lie on the mesh; nothing is allocated."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def splitting_activations(mesh: Mesh) -> AbstractContextManager[None]:
    """A context in which `constrain` splits activations over `mesh`; works inside and outside of `jax.jit`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: Array, *axes: str | None) -> Array:
    """`x` split along its logical axes inside of `splitting_activations`; `x` itself elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _is_split(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes)))


def num_parts(*axes: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Devices of `mesh` over which these logical axes are split; by default of `splitting_activations`, 1 elsewhere."""
    if mesh is None:
        mesh = jax.sharding.get_abstract_mesh()
    if not _is_split(mesh):
        return 1
    return math.prod(mesh.shape[name] for axis in axes for name in MESH_AXES_OF[axis])


def constrain_state(state: Any) -> Any:
    """`state`, such as gradients, split like parameters inside of `splitting_activations`; itself elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _is_split(mesh):
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))


def _is_split(mesh: Any) -> bool:
    """Whether arrays are to be split over this mesh; where its axes are Manual, each device works by itself."""
    return not mesh.empty and mesh.size > 1 and AxisType.Manual not in mesh.axis_types


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold, ascending: all that it needs to build."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def shard_batch(mesh: Mesh, batch: Any, batch_size: int) -> Any:
    """A batch of `batch_size` rows on the devices of all processes, split over the batch axes of the mesh.

    The arrays of `batch` hold the `local_rows` of it.
    """
    rows = local_rows(mesh, batch_size)

    def place(leaf: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return leaf[(slice(*np.searchsorted(rows, (start, stop))), *index[1:])]

        return jax.make_array_from_callback((batch_size, *leaf.shape[1:]), batch_sharding(mesh), part)

    return jax.tree.map(place, batch)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How every array of a batch is split."""
    return NamedSharding(mesh, partition(("batch",)))


def check_population(mesh: Mesh) -> None:
    """Raises ConfigError when the mesh splits parameters: a member of a population is whole on its device."""
    for axis in MESH_AXES[1:]:
        if mesh.shape[axis] > 1:
            raise ConfigError(
                f"MeshConfig.{axis} = {mesh.shape[axis]}: each member of a population is whole on one device: "
                f"set it to 1, or train the runs one by one"
            )


def shard_population(mesh: Mesh, tree: Any) -> Any:
    """The tree on the devices, its leading axis, one entry a member, split over all of them."""
    return jax.device_put(tree, NamedSharding(mesh, partition(("population",))))


def map_population(mesh: Mesh, function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`jax.vmap(function, in_axes)`, each device on its own members and with no word between devices."""
    members = partition(("population",))
    specs = tuple(PartitionSpec() if axis is None else members for axis in in_axes)
    mapped = jax.vmap(function, in_axes)
    # Nothing is reduced over devices, so there is nothing for the check of replication to find.
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=members, check_vma=False)


def member_of(population: Any, index: int) -> Any:
    """The arrays of one member, on the device that holds it."""

    def take(leaf: jax.Array) -> jax.Array:
        for shard in leaf.addressable_shards:
            start, stop, _ = shard.index[0].indices(len(leaf))
            if start <= index < stop:
                return shard.data[index - start]
        raise IndexError(f"no device of this process holds member {index} of {len(leaf)}")

    return jax.tree.map(take, population)


def partition(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes that split an array along its logical axes."""
    return PartitionSpec(*(MESH_AXES_OF[axis] or None if axis else None for axis in axes))
