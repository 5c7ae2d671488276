"""How much memory a compiled update takes beside its state, as XLA plans it."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np
import pytest

from gpt.config import MeshConfig, ModelConfig, OptimizerConfig
from gpt.data.batches import TextBatch
from gpt.sharding import make_mesh
from gpt.training.optimizer import make_optimizer
from gpt.training.state import Keys, create_state
from gpt.training.steps import LanguageModelObjective, make_train_step

LONG = ModelConfig(
    vocab_size=20, context_length=256, num_layers=4, num_heads=2, embed_dim=16, mlp_dim=24, scan_layers=False
)
WIDE = ModelConfig(vocab_size=8192, context_length=8, num_layers=1, num_heads=2, embed_dim=64, mlp_dim=64)


@functools.cache
def planned_bytes(config: ModelConfig, optimizer_config: OptimizerConfig | None = None) -> tuple[int, int]:
    """Of temporaries, and of the parameters."""
    optimizer = make_optimizer(optimizer_config or OptimizerConfig(), 10)
    keys = Keys(*3 * [jax.random.key(0)])
    state, shardings = create_state(config, None, optimizer, keys, make_mesh(MeshConfig(), jax.devices()[:1]))
    step: Any = make_train_step(config, LanguageModelObjective(), optimizer, 1, shardings)
    length = config.context_length
    batch = TextBatch(np.zeros((2, length + 1), np.int32), np.ones((2, length), np.float32))
    memory = step.lower(state, batch, keys.dropout).compile().memory_analysis()
    return memory.temp_size_in_bytes, sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_saves_memory_on_cpu(remat: Literal["dots", "full"]) -> None:
    none, less = (planned_bytes(dataclasses.replace(LONG, remat=which))[0] for which in ("none", remat))
    assert less < 0.85 * none


@pytest.mark.parametrize(("name", "most"), [("openai_adam", 2.1), ("adamw", 2.5)])
def test_an_update_keeps_no_copies_of_its_state(name: Literal["openai_adam", "adamw"], most: float) -> None:
    """The gradient from the softmax, the one from the look-up, and with `adamw` a moment; not the clipped gradient."""
    temporaries, params = planned_bytes(WIDE, OptimizerConfig(name=name))
    assert temporaries < most * params
