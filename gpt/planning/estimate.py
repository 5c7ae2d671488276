"""Memory and traffic of a step from shapes alone, for hardware that cannot be compiled for, and to rank meshes.

The constants are counts of what XLA keeps of GPT-1's step in bfloat16, compiled for TPU v5e;
the arrays are those of Korthikanti et al. 2022, section 4, and float32 copies beside them.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gpt.config import MeshConfig, ModelConfig, OptimizerConfig, RunConfig
from gpt.planning.collectives import Collective, add_up, sent_bytes
from gpt.planning.step import Memory, batch_shapes, num_sequences, sharded_bytes
from gpt.sharding import make_mesh, num_parts, sharded_shapes
from gpt.training.optimizer import make_optimizer
from gpt.training.problem import find_objective
from gpt.training.softmax_loss import MOST_SCORES
from gpt.training.state import state_shapes

_FLOAT32 = 4
_STATE_PASSES = 8
"""Parameters and two moments are read and written, gradients written and read: so many float32 a parameter."""
_ACTIVATION_PASSES = 8
"""How often what the backward pass needs is written or read on the way: 41 GB for 5.4 GB in GPT-1."""
_REMAT_PASSES = 3
"""The same where the backward pass computes it again: most of it is then used where it is computed."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a chip holds, moves and sends in one step."""

    memory: Memory
    hbm_traffic: float
    collectives: list[Collective]


@dataclasses.dataclass(frozen=True)
class _Shares:
    """Over how many chips each thing is split, and how large one chip's part of the work is."""

    batch: int
    fsdp: int
    length: int
    heads: int
    params: float
    """Parameters of the whole model."""
    tokens: float
    """Tokens of one chip and one part of an accumulated batch, counted as if it had no tensor axis."""


def estimate_step(config: RunConfig, mesh: Mesh, num_slices: int) -> Estimate:
    """The step that `config` describes on `mesh`, without compiling it."""
    model = config.model
    arguments, params = _state_bytes(config, mesh)
    arguments += sharded_bytes(batch_shapes(config, mesh))
    batch, length = num_parts("batch", mesh=mesh), num_parts("length", mesh=mesh)
    sequences = config.batch_size * num_sequences(config) / config.accumulation_steps
    shares = _Shares(
        batch=batch,
        fsdp=num_parts("embed", mesh=mesh),
        length=length,
        heads=num_parts("heads", mesh=mesh),
        params=params,
        tokens=sequences * model.context_length / batch / length,
    )
    width = jnp.dtype(model.compute_dtype).itemsize
    own_params = params / shares.fsdp / shares.heads
    activations = kept = model.num_layers * _layer_bytes(model, shares, width)
    if model.remat != "none":
        # The block, or the step of an LSTM, that is computed again has all its arrays, the others what they keep.
        pieces = model.context_length if model.architecture == "lstm" else model.num_layers
        kept = model.num_layers * _kept_bytes(model, shares, width) + activations / pieces
    logits = shares.tokens * model.num_embeddings / shares.heads * 2 * _FLOAT32
    weights = params / shares.heads * width
    temporaries = own_params * _FLOAT32 + kept + min(logits, MOST_SCORES * 2 * _FLOAT32)
    passes = _ACTIVATION_PASSES if model.remat == "none" else _REMAT_PASSES
    traffic = (
        own_params * _STATE_PASSES * _FLOAT32
        + config.accumulation_steps * (3 * weights + passes * activations + 2 * logits)
    )  # fmt: skip
    return Estimate(
        Memory(arguments, temporaries, arguments + temporaries),
        traffic,
        add_up(_collectives(config, shares, width, num_slices)),
    )


def _layer_bytes(model: ModelConfig, shares: _Shares, width: int) -> float:
    """What the backward pass needs of one layer."""
    if model.architecture == "lstm":
        return shares.tokens / model.num_layers * (10 * model.lstm_dim + 2 * model.embed_dim) * width
    stream = shares.tokens * model.embed_dim * (3 * width + 6 * _FLOAT32 + 2)
    split = shares.tokens * (3 * model.embed_dim + 6 * model.mlp_dim) * width
    # Scores in float32, which of them dropout keeps, and what it leaves.
    scores = shares.tokens * model.context_length * model.num_heads * (_FLOAT32 + 1 + width)
    return (stream + split + scores) / shares.heads


def _kept_bytes(model: ModelConfig, shares: _Shares, width: int) -> float:
    """What one layer keeps for a backward pass that computes the rest again: its input, with `dots` products too."""
    if model.architecture == "lstm":
        kept = 6 * model.lstm_dim if model.remat == "dots" else 2 * model.lstm_dim
        return shares.tokens / model.num_layers * (kept + model.embed_dim) * width
    products = 5 * model.embed_dim + model.mlp_dim if model.remat == "dots" else 0
    return shares.tokens * (model.embed_dim + products) * width / shares.heads


def recomputed_flops_per_token(model: ModelConfig) -> float:
    """Operations for a token that the backward pass does a second time, beside those of `training_flops_per_token`."""
    if model.remat == "none":
        return 0.0
    if model.architecture == "lstm":
        weights = 4 * model.lstm_dim * (model.embed_dim + model.lstm_dim)
        return 2.0 * weights if model.remat == "full" else 0.0
    attention = 4.0 * model.num_layers * model.embed_dim * model.context_length
    weights = model.num_layers * (4 * model.embed_dim**2 + 2 * model.embed_dim * model.mlp_dim)
    return attention + (2.0 * weights if model.remat == "full" else 0.0)


def _collectives(config: RunConfig, shares: _Shares, width: int, num_slices: int) -> Iterator[Collective]:
    """Those of data, parameter, tensor and sequence parallelism, and of the sum over slices."""
    parts = config.accumulation_steps
    weights = shares.params / shares.heads * width

    def ici(kind: str, num_bytes: float, group: int, count: int) -> Collective:
        return Collective(kind, "ici", count, count * sent_bytes(kind, num_bytes, group))

    if shares.fsdp > 1:
        yield ici("all-gather", weights, shares.fsdp, 2 * parts)
        yield ici("reduce-scatter", weights, shares.fsdp, parts)
    copies = shares.batch // shares.fsdp // num_slices * shares.length
    yield ici("all-reduce", weights / shares.fsdp, max(copies, 1), 1)
    stream = shares.tokens * config.model.embed_dim * width
    yield ici("all-reduce", stream, shares.heads, 4 * config.model.num_layers * parts)
    gathered = 2 * stream * shares.length / shares.heads
    yield ici("all-gather", gathered, shares.length, 2 * config.model.num_layers * parts)
    yield ici("reduce-scatter", gathered, shares.length, config.model.num_layers * parts)
    if num_slices > 1:
        own = weights / shares.fsdp / max(copies, 1)
        yield Collective("all-reduce", "dcn", 1, sent_bytes("all-reduce", own, num_slices))


def _state_bytes(config: RunConfig, mesh: Mesh) -> tuple[float, float]:
    """Bytes of a chip's share of the state, exactly, and the number of parameters."""
    _, task = find_objective(config)
    shapes = _shapes(config.model, config.optimizer, None if task is None else task.num_outputs)
    num_params = float(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params)))
    return sharded_bytes(sharded_shapes(mesh, shapes)), num_params


@functools.lru_cache(maxsize=4)
def _shapes(model: ModelConfig, optimizer: OptimizerConfig, num_outputs: int | None) -> Any:
    return state_shapes(model, num_outputs, make_optimizer(optimizer, 1), make_mesh(MeshConfig(), jax.devices()[:1]))
