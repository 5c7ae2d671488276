"""The state of training: what a checkpoint holds and an update replaces."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from gpt.config import ModelConfig, RunConfig
from gpt.model.gpt import Params, body_name, init_params
from gpt.sharding import sharded_shapes


class TrainState(NamedTuple):
    """Updates made, parameters (float32), and the optimizer's moments."""

    step: Int[Array, ""]
    params: Params
    optimizer_state: optax.OptState


class Keys(NamedTuple):
    """The keys of the initial weights, of those of the head, and of dropout."""

    init: Key[Array, ""]
    head: Key[Array, ""]
    dropout: Key[Array, ""]


def make_keys(config: RunConfig) -> Keys:
    """The keys of a run, each of its own seed if it has one; of the same generator whatever JAX is configured to."""
    init_seed = config.seed if config.init_seed is None else config.init_seed
    head_seed = init_seed if config.head_seed is None else config.head_seed
    dropout_seed = config.seed if config.dropout_seed is None else config.dropout_seed
    pairs = [
        jax.random.split(jax.random.key(seed, impl="threefry2x32")) for seed in (init_seed, head_seed, dropout_seed)
    ]
    return Keys(pairs[0][0], pairs[1][0], pairs[2][1])


def create_state(
    model_config: ModelConfig,
    num_outputs: int | None,
    optimizer: optax.GradientTransformation,
    keys: Keys,
    mesh: Mesh,
) -> tuple[TrainState, TrainState]:
    """A fresh state, made on the mesh it will live on, and the sharding of each of its leaves."""
    shardings = jax.tree.map(lambda shape: shape.sharding, state_shapes(model_config, num_outputs, optimizer, mesh))
    create = make_creation(model_config, num_outputs, optimizer)
    return jax.jit(create, out_shardings=shardings)(keys), shardings


def state_shapes(
    model_config: ModelConfig, num_outputs: int | None, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """The state with shape, type and sharding in place of each array; nothing is allocated."""
    keys = Keys(*3 * [jax.random.key(0, impl="threefry2x32")])
    shapes = jax.eval_shape(make_creation(model_config, num_outputs, optimizer), keys)
    return sharded_shapes(mesh, shapes)


def make_creation(
    model_config: ModelConfig, num_outputs: int | None, optimizer: optax.GradientTransformation
) -> Callable[[Keys], TrainState]:
    """What `create_state` compiles: from keys to a fresh state."""

    def create(keys: Keys) -> TrainState:
        params = init_params(model_config, keys.init, num_outputs)
        if num_outputs is not None:
            params["head"] = init_params(model_config, keys.head, num_outputs)["head"]
        return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))

    return create


def transfer(params: Params, pretrained: Params, num_layers: int | None = None) -> Params:
    """`params` with the transformer (or LSTM) of `pretrained`; rows of tokens it did not have keep their fresh values.

    With `num_layers`, only the lowest blocks are taken over, that many, and the others keep their fresh
    values: Radford et al. 2018, section 5, "Impact of number of layers transferred". 0: embeddings alone.

    Raises:
      ValueError: a parameter of it is missing or of another shape.
    """
    body = body_name(params)
    if body not in pretrained:
        raise ValueError(f"the pretrained model has no {body}, as ModelConfig.architecture asks")
    fresh, trained = params[body], pretrained[body]
    rows = trained["token_embedding"].shape[0]
    table = jnp.concatenate([trained["token_embedding"], fresh["token_embedding"][rows:]])
    transferred = {**trained, "token_embedding": table}
    if jax.tree.map(jnp.shape, transferred) != jax.tree.map(jnp.shape, fresh):
        raise ValueError(f"the pretrained {body} has another shape than ModelConfig describes")
    if num_layers is not None:
        transferred["blocks"] = jax.tree.map(
            lambda old, new: jnp.concatenate([old[:num_layers], new[num_layers:]]), trained["blocks"], fresh["blocks"]
        )
    return {
        **params,
        body: jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), transferred, fresh),
    }
