"""The whole model, and the bridge between modules and plain parameter dicts."""

import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key

from gpt.config import ModelConfig
from gpt.model.heads import Head
from gpt.model.lstm import LSTM
from gpt.model.transformer import Transformer

Params = dict[str, Any]
"""Nested dict of arrays: `transformer` or `lstm`, and `head` when there is a classifier."""


class GPT(nnx.Module):
    """A body that reads text, by `ModelConfig.architecture`, and, for fine-tuning, a head of `num_outputs` scores."""

    transformer: Transformer
    lstm: LSTM

    def __init__(self, config: ModelConfig, num_outputs: int | None, rngs: nnx.Rngs):
        if config.architecture == "lstm":
            self.lstm = LSTM(config, rngs)
        else:
            self.transformer = Transformer(config, rngs)
        self.head = None if num_outputs is None else Head(config, num_outputs, rngs)

    @property
    def body(self) -> Transformer | LSTM:
        """Token ids to hidden states, and these to the logits of the next token."""
        return self.lstm if hasattr(self, "lstm") else self.transformer


def init_params(config: ModelConfig, key: Key[Array, ""], num_outputs: int | None = None) -> Params:
    """Fresh parameters: matrices and embeddings N(0, init_std), biases 0, gains 1."""
    return nnx.to_pure_dict(nnx.state(GPT(config, num_outputs, nnx.Rngs(params=key))))


@functools.lru_cache(maxsize=16)
def _template(config: ModelConfig, num_outputs: int | None) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: GPT(config, num_outputs, nnx.Rngs(0))))


def bind(config: ModelConfig, params: Params) -> GPT:
    """The model that computes with `params`.

    Raises:
      ValueError: names every parameter that is missing, unexpected or of another shape.
        (`nnx.merge` alone would match them by order and swap misnamed ones in silence.)
    """
    num_outputs = params["head"]["bias"].shape[-1] if "head" in params else None
    graph, expected = _template(config, num_outputs)
    shapes = path_shapes(nnx.to_pure_dict(expected))
    given = path_shapes(params)
    if shapes != given:
        problems = [f"missing {path} {shapes[path]}" for path in shapes.keys() - given.keys()]
        problems += [f"unexpected {path} {given[path]}" for path in given.keys() - shapes.keys()]
        problems += [
            f"{path} is {given[path]}, expected {shapes[path]}"
            for path in shapes.keys() & given.keys()
            if shapes[path] != given[path]
        ]
        raise ValueError("parameters do not fit the ModelConfig: " + "; ".join(sorted(problems)))
    state = jax.tree.map(lambda leaf: leaf, expected)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def body_name(params: Params) -> str:
    """`lstm` or `transformer`: what the body of these parameters is called."""
    return "lstm" if "lstm" in params else "transformer"


def path_shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by its path, such as `transformer/blocks/mlp/up/kernel`."""
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}


def param_shapes(config: ModelConfig, num_outputs: int | None = None) -> Params:
    """The parameter dict with `jax.ShapeDtypeStruct` in place of arrays; nothing is allocated."""
    return nnx.to_pure_dict(_template(config, num_outputs)[1])
