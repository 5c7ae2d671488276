"""What to change when a step needs more memory than a chip has."""

import dataclasses

from jax.sharding import Mesh

from gpt.config import RunConfig
from gpt.planning.estimate import estimate_step
from gpt.planning.step import Memory
from gpt.sharding import MESH_AXES_OF, num_parts
from gpt.training.softmax_loss import MOST_SCORES


def advise(config: RunConfig, mesh: Mesh, memory: Memory, limit: float) -> list[str]:
    """Changes that would make the step fit, each by itself, as far as memory grows with the batch; [] when it fits."""
    if memory.peak <= limit:
        return []
    # Gradients, a third of parameters and two moments, do not shrink with the batch.
    gradients = min(memory.arguments / 3, memory.temporaries)
    per_chip = config.batch_size // config.accumulation_steps // num_parts("batch", mesh=mesh)
    fixed = min(gradients + _softmax_block(config, mesh, per_chip), memory.temporaries)
    room = limit - memory.arguments - fixed
    advice = []
    # What a chip keeps of a part of the batch is in proportion to the part.
    smaller = [size for size in range(1, per_chip) if (memory.temporaries - fixed) * size / per_chip <= room]
    if divisors := [size for size in smaller if per_chip % size == 0]:
        steps = config.accumulation_steps * per_chip // divisors[-1]
        advice.append(f"RunConfig.accumulation_steps = {steps}: the same batch in more parts")
    if smaller:
        size = smaller[-1] * num_parts("batch", mesh=mesh) * config.accumulation_steps
        advice.append(f"RunConfig.batch_size = {size}")
    if remat := _remat_that_fits(config, mesh, memory, limit):
        advice.append(f"ModelConfig.remat = {remat!r}: computes activations again in the backward pass")
    splits = [("heads", "state and activations")]
    if memory.arguments > limit / 4:
        splits.insert(0, ("embed", "state"))
    for logical, what in splits:
        (axis,) = MESH_AXES_OF[logical]
        if mesh.shape[axis] < mesh.size:
            advice.append(f"MeshConfig.{axis} more than {mesh.shape[axis]}: splits the {what} over more chips")
    return advice or ["chips with more memory: a single sequence is too much"]


def _softmax_block(config: RunConfig, mesh: Mesh, sequences: int) -> int:
    """Bytes of the scores and their gradient that a chip holds at a time, when it computes them in blocks; else 0."""
    tokens = sequences * config.model.context_length // num_parts("length", mesh=mesh)
    scores = tokens * config.model.num_embeddings // num_parts("logits", mesh=mesh)
    return 2 * 4 * MOST_SCORES if scores > MOST_SCORES else 0


def _remat_that_fits(config: RunConfig, mesh: Mesh, memory: Memory, limit: float) -> str | None:
    """The least that has to be computed again to fit, if the compiler saves as much as the estimate says."""
    policies = ("none", "dots", "full")
    now = estimate_step(config, mesh, 1).memory.temporaries
    for remat in policies[policies.index(config.model.remat) + 1 :]:
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
        share = estimate_step(other, mesh, 1).memory.temporaries / now
        if memory.arguments + memory.temporaries * share <= limit:
            return remat
    return None
