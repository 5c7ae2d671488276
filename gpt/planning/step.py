"""The step of a run, compiled for a mesh of devices that need not be there."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from gpt.config import RunConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.sharding import batch_sharding
from gpt.training.optimizer import make_optimizer
from gpt.training.problem import find_objective
from gpt.training.state import make_keys, state_shapes
from gpt.training.steps import make_train_step

_GIB = 2.0**30
_RACE_CHOICES, _OTHER_CHOICES = 4, 2


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip while it makes a step: the state and batch, what comes and goes, and all at once."""

    arguments: float
    temporaries: float
    peak: float


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says: the memory that a step needs, and its program, or None when that is too much."""

    memory: Memory
    text: str | None


def compile_step(config: RunConfig, mesh: Mesh, num_steps: int) -> Compiled:
    """The very step that `train.py` runs, compiled for the devices of `mesh`, which are TPUs."""
    objective, task = find_objective(config)
    # What None means on a TPU: `gpt.model` looks at the machine it runs on, which is another one here.
    scan_layers = True if config.model.scan_layers is None else config.model.scan_layers
    model = dataclasses.replace(config.model, scan_layers=scan_layers)
    optimizer = make_optimizer(config.optimizer, num_steps)
    state = state_shapes(model, None if task is None else task.num_outputs, optimizer, mesh)
    batch = batch_shapes(config, mesh)
    shardings = jax.tree.map(lambda shape: shape.sharding, state)
    step: Any = make_train_step(model, objective, optimizer, config.accumulation_steps, shardings)
    try:
        with _without_cache():
            compiled = step.lower(state, batch, make_keys(config).dropout).compile()
    except jax.errors.JaxRuntimeError as error:
        return Compiled(_refused(str(error), sharded_bytes((state, batch))), None)
    sizes = compiled.memory_analysis()
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    temporaries = sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes
    return Compiled(
        Memory(float(sizes.argument_size_in_bytes), float(temporaries), float(kept + temporaries)),
        compiled.as_text(),
    )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Keeps programs out of the cache on disk: those for devices that are not there cannot be read back."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether there is one, is asked once and remembered
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _refused(message: str, arguments: float) -> Memory:
    """The memory that a program would need, by the compiler's words; other errors are raised again."""
    if match := re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message):
        temporaries = _bytes(*match.groups())
        return Memory(arguments, temporaries, arguments + temporaries)
    if match := re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message):
        peak = _bytes(*match.groups())
        return Memory(arguments, peak - arguments, peak)
    raise jax.errors.JaxRuntimeError(message)


def _bytes(number: str, unit: str) -> float:
    return float(number) * 1024.0 ** (1 + "KMGT".index(unit))


def batch_shapes(config: RunConfig, mesh: Mesh) -> TextBatch | TaskBatch:
    """A batch with shape, type and sharding in place of each array; of labelled tasks the longest there is.

    Multiple choice: four candidates in RACE, two in all other tasks. The longest leave no room for a second in
    their row, so that a packed batch is as large.
    """
    size, length = config.batch_size, config.model.context_length

    def array(dtype, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    _, task = find_objective(config)
    if task is None:
        return TextBatch(array(jnp.int32, size, length + 1), array(jnp.float32, size, length))
    choices = num_sequences(config)
    labels = array(jnp.int32, size) if task.targets == "class" else array(jnp.float32, size, task.num_outputs)
    return TaskBatch(
        tokens=array(jnp.int32, size, choices, length),
        weights=array(jnp.float32, size, choices, length),
        extract=array(jnp.int32, size, choices),
        labels=labels,
        example_weights=array(jnp.float32, size),
    )


def num_sequences(config: RunConfig) -> int:
    """Sequences of one example: its candidates, or both orders of a pair; a window of text is one."""
    _, task = find_objective(config)
    if task is None:
        return 1
    if task.transform.both_orders:
        return 2
    if task.num_outputs > 1 or task.targets != "class":
        return 1
    return _RACE_CHOICES if (config.task.name or "").startswith("race") else _OTHER_CHOICES


def sharded_bytes(shapes: Any) -> float:
    """Bytes of one chip's shards of all arrays."""
    return float(
        sum(
            jnp.dtype(leaf.dtype).itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(shapes)
        )
    )
