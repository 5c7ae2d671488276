"""Hardware by the names its users know, and its devices, which are not there and can only be compiled for."""

import dataclasses
import functools
import importlib.util
import math
import re
from typing import Any

from gpt.errors import ConfigError
from gpt.files import did_you_mean
from gpt.hardware import CHIPS, Chip
from gpt.planning.libtpu import set_libtpu_environment

_GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Family:
    """Chips that are rented under one name, and the sizes in which they come.

    `hbm_bytes` is what a program may use, as libtpu 0.0.42.1 puts it when it refuses one; None: not known.
    """

    chip: str
    shapes: tuple[str, ...]
    hbm_bytes: float | None = None
    chip_config: str = "default"
    unit: int | None = None
    """Other shapes exist too, when all of their sizes are multiples of this."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
_NODE = ("1", "2", "4", "8")

FAMILIES: dict[str, Family] = {
    "v4": Family("TPU v4", _DEEP, 30.75 * _GIB, "megacore", unit=4),
    "v5e": Family("TPU v5e", _FLAT, 15.75 * _GIB),
    "v5p": Family("TPU v5p", _DEEP, 95.74 * _GIB, "megacore", unit=4),
    "v6e": Family("TPU v6e", _FLAT, 31.25 * _GIB),
    "a100": Family("NVIDIA A100 80GB SXM", _NODE),
    "h100": Family("NVIDIA H100 SXM", _NODE),
    "h200": Family("NVIDIA H200", _NODE),
    "b200": Family("NVIDIA B200", _NODE),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some slices of TPU chips, or nodes of GPUs, of the same shape."""

    name: str
    family: str
    shape: tuple[int, ...]
    num_slices: int

    @property
    def chip(self) -> Chip:
        """The makers' figures."""
        return next(chip for chip in CHIPS if chip.name == FAMILIES[self.family].chip)

    @property
    def hbm_bytes(self) -> float:
        """Memory of a chip that a program may use; of a GPU, all there is."""
        return FAMILIES[self.family].hbm_bytes or self.chip.hbm_bytes

    @property
    def slice_size(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def num_chips(self) -> int:
        """Chips of all slices."""
        return self.slice_size * self.num_slices

    @property
    def can_compile(self) -> bool:
        """Whether libtpu, which compiles for TPUs only, is installed and knows this hardware."""
        return self.chip.name.startswith("TPU") and importlib.util.find_spec("libtpu") is not None


def find_topology(name: str, num_slices: int | None = None) -> Topology:
    """The topology called `v5e:16x16`, `h100:8`, or `2*v5e:4x4`, which is the same as `num_slices` = 2.

    Raises:
      ConfigError: the name is not known; lists those that are.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", name.strip().lower())
    if not match:
        raise ConfigError(f"--topology {name!r}: expected CHIP:SHAPE or SLICES*CHIP:SHAPE. {_known()}")
    prefix, family, shape = match.groups()
    if family not in FAMILIES:
        raise ConfigError(f"--topology {name!r}: unknown chip {family!r}{did_you_mean(family, FAMILIES)}. {_known()}")
    if prefix and num_slices not in (None, int(prefix)):
        raise ConfigError(f"--topology {name!r} says {prefix} slices and --slices {num_slices}: leave one of them out")
    slices = int(prefix or num_slices or 1)
    if slices < 1:
        raise ConfigError(f"--topology {name!r}: expected 1 slice or more")
    sizes = tuple(map(int, shape.split("x")))
    known = FAMILIES[family]
    is_cube = known.unit and len(sizes) == 3 and all(size and size % known.unit == 0 for size in sizes)
    if shape not in known.shapes and not is_cube:
        others = f", and any AxBxC of multiples of {known.unit}" if known.unit else ""
        raise ConfigError(
            f"--topology {name!r}: {family} has no shape {shape!r}; it comes as {', '.join(known.shapes)}{others}"
        )
    return Topology(f"{slices}*{family}:{shape}" if slices > 1 else f"{family}:{shape}", family, sizes, slices)


def _known() -> str:
    lines = [f"\n  {name}: {name}:{f', {name}:'.join(family.shapes)}" for name, family in FAMILIES.items()]
    return f"Known, each also in slices or nodes such as 2*v5e:4x4:{''.join(lines)}"


@dataclasses.dataclass(frozen=True)
class _Placeholder:
    """Stands for a device where nothing is compiled, but sizes of shards are asked for."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "none"
    device_kind: str = "none"


def devices(topology: Topology) -> list[Any]:
    """Devices to make a mesh of: those that libtpu compiles for, or placeholders."""
    if not topology.can_compile:
        return [_Placeholder(number, number // topology.slice_size) for number in range(topology.num_chips)]
    return list(_compile_only_devices(topology))


@functools.lru_cache(maxsize=4)
def _compile_only_devices(topology: Topology) -> tuple[Any, ...]:
    from jax.experimental import topologies

    set_libtpu_environment()
    options: dict[str, Any] = {"chip_config_name": FAMILIES[topology.family].chip_config}
    if topology.slice_size == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    name = f"{topology.family}:{'x'.join(map(str, topology.shape))}"
    description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return tuple(description.devices)
