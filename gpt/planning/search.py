"""All meshes that a topology allows, ranked."""

import dataclasses
from collections.abc import Iterator

from gpt.config import RunConfig
from gpt.errors import ConfigError
from gpt.planning.plan import Plan, make_plan
from gpt.planning.topology import Topology
from gpt.sharding import MESH_AXES, MESH_AXES_OF


def search(config: RunConfig, topology: Topology, num_compiled: int) -> list[Plan]:
    """Plans of all meshes that divide chips, model and batch, best first.

    All are estimated; `num_compiled` of the best are compiled, where that is possible, and only those are given
    back then.
    Slices, if there are several, split the batch.

    Raises:
      ConfigError: no mesh does.
    """
    plans: list[tuple[RunConfig, Plan]] = []
    reason = None
    for candidate in _candidates(config, topology.slice_size):
        try:
            plans.append((candidate, make_plan(candidate, topology, estimate=True)))
        except ConfigError as error:
            reason = reason or error
    if not plans:
        raise ConfigError(f"--search: no mesh of {topology.name} divides model and batch; the first of them: {reason}")
    plans.sort(key=lambda pair: rank(pair[1]))
    if num_compiled == 0 or not topology.can_compile:
        return [plan for _, plan in plans]
    compiled = [make_plan(candidate, topology) for candidate, _ in plans[:num_compiled]]
    return sorted(compiled, key=rank)


def rank(plan: Plan) -> tuple[bool, float, float]:
    """Order of plans: those that fit, by their bound; then by memory."""
    bound = float("inf") if plan.roofline is None else plan.roofline.bound
    return not plan.fits, bound if plan.fits else 0.0, plan.memory.peak


def _candidates(config: RunConfig, num_chips: int) -> Iterator[RunConfig]:
    """Configs with each factorisation of the chips of a slice over the mesh axes.

    At most one axis splits what belongs to one sequence: each is for models and lengths that the others cannot serve.
    """
    within = {axis for logical in ("heads", "length") for axis in MESH_AXES_OF[logical]}
    for sizes in _factorisations(num_chips, len(MESH_AXES)):
        axes: dict[str, int] = dict(zip(MESH_AXES, sizes, strict=True))
        if sum(axes[axis] > 1 for axis in within) <= 1:
            yield dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **axes))


def _factorisations(number: int, num_factors: int) -> Iterator[tuple[int, ...]]:
    if num_factors == 1:
        yield (number,)
        return
    for first in range(number, 0, -1):
        if number % first == 0:
            for rest in _factorisations(number // first, num_factors - 1):
                yield (first, *rest)
