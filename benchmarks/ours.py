"""Our side of each comparison: what the commands run, on random weights and ids."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.compare import Turn, after_another
from benchmarks.lengths import draw_examples
from gpt.config import MeshConfig, ModelConfig, OptimizerConfig, TaskConfig
from gpt.data.batches import TaskExamples, TextBatch, finetuning_batches
from gpt.data.packing import packed_batches
from gpt.evaluation.token_scores import token_log_probs
from gpt.generation.settings import Decoding
from gpt.generation.texts import continue_texts
from gpt.model.gpt import init_params
from gpt.sharding import make_mesh, shard_batch
from gpt.training.optimizer import make_optimizer
from gpt.training.state import Keys, TrainState, create_state
from gpt.training.steps import LanguageModelObjective, Objective, TaskObjective, make_train_step


def training(batch: int, length: int, model: Mapping[str, Any]) -> Turn:
    """The update of `train.py`; seconds of one."""
    config, mesh = ModelConfig(**model), one_device()
    state, step, key = start(config, LanguageModelObjective(), None)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(batch, length + 1), dtype=np.int32)
    text = TextBatch(tokens, np.ones((batch, length), np.float32))

    def turn() -> dict[str, float]:
        nonlocal state
        began = time.perf_counter()
        state, metrics = step(state, shard_batch(mesh, text, batch), key)
        jax.block_until_ready(metrics)
        return {"seconds": time.perf_counter() - began}

    return after_another(turn)


def finetuning(
    task: str, examples: int, batch: int, batches: int, model: Mapping[str, Any], packed: bool = False
) -> Turn:
    """The first batches of an epoch as `train.py` makes them, no auxiliary loss; seconds of all.

    Each has a row of its own, or if `packed` all of a batch share rows, as with RunConfig.pack_size = batch.
    """
    config, mesh = ModelConfig(num_special_tokens=3, **model), one_device()
    state, step, key = start(config, TaskObjective(TaskConfig(name=task, lm_coef=0.0)), 2)
    sequences = [[ids] for ids in draw_examples(task, examples, config.vocab_size)]
    labels = np.arange(examples, dtype=np.int32) % 2
    source = (TaskExamples(sequences, labels), config.context_length, batch, 1)
    epoch = packed_batches(*source, seed=0, pack_size=batch) if packed else finetuning_batches(*source, seed=0)

    def turn(numbers: Iterable[int] = range(batches)) -> dict[str, float]:
        nonlocal state
        began = time.perf_counter()
        for number in numbers:
            state, metrics = step(state, shard_batch(mesh, epoch[number], 1 if packed else batch), key)
            jax.block_until_ready(metrics)
        return {"seconds": time.perf_counter() - began}

    turn({jax.tree.map(np.shape, epoch[number]): number for number in range(batches)}.values())  # compiles every shape
    return after_another(turn, lambda: turn([0]))


def scoring(batch: int, length: int, model: Mapping[str, Any]) -> Turn:
    """The log-probability of every token, as `gpt score`; seconds of all."""
    config = ModelConfig(**model)
    params = init_params(config, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(batch, length)).tolist()

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        list(token_log_probs(config, params, tokens))
        return {"seconds": time.perf_counter() - began}

    return after_another(turn)


def generation(batch: int, prompt: int, new: int, model: Mapping[str, Any]) -> Turn:
    """The likeliest tokens after each prompt, as `gpt generate`; seconds of all."""
    config = ModelConfig(**model)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    prompts = np.random.default_rng(0).integers(1, config.vocab_size, size=(batch, prompt)).tolist()
    decoding = Decoding(max_new_tokens=new, temperature=0.0)

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        continue_texts(config, params, prompts, decoding)
        return {"seconds": time.perf_counter() - began}

    turn()  # compiles
    return turn


def one_device() -> Mesh:
    """The mesh of a run on a single device."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


def start(config: ModelConfig, objective: Objective, num_outputs: int | None) -> tuple[TrainState, Any, Any]:
    """A fresh state, the compiled update of `train.py`, and the key of its dropout."""
    optimizer = make_optimizer(OptimizerConfig(), num_steps=100_000)
    keys = Keys(*jax.random.split(jax.random.key(0), 3))
    state, shardings = create_state(config, num_outputs, optimizer, keys, one_device())
    return state, make_train_step(config, objective, optimizer, 1, shardings), keys.dropout
