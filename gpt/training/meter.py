"""How fast a run is: tokens a second, and MFU against the chip's peak or, where that is not known, a measured one."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt.config import ModelConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.hardware import find_chip


class Meter:
    """Means of the metrics and speed since the last reading, without stopping the device in between."""

    def __init__(self, config: ModelConfig):
        self._config = config
        self._peak = peak_flops(config.compute_dtype)
        self._metrics: list[Any] = []
        self._is_compiled = False
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._tokens, self._flops, self._start = 0.0, 0.0, time.perf_counter()

    def add(self, metrics: Any, batch: TextBatch | TaskBatch) -> None:
        """Counts one update; waits for the one before, so that at most two are under way (on CPU, one)."""
        if self._metrics:
            jax.block_until_ready(self._metrics[-1])
        self._metrics.append(metrics)
        if jax.default_backend() == "cpu":
            # Running ahead gains nothing where host and device are one, and several fake devices deadlock.
            jax.block_until_ready(metrics)
        if not self._is_compiled:
            jax.block_until_ready(metrics)
            self._is_compiled = True
            self._restart_clock()
            return
        tokens = float(batch.weights.sum())
        self._tokens += tokens
        self._flops += tokens * training_flops_per_token(self._config, batch.weights.shape[-1])

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the time."""
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Means of each metric, `tokens_per_second` (padding left out) and `mfu`; the next reading starts here."""
        metrics = jax.device_get(self._metrics)
        seconds = time.perf_counter() - self._start
        values = {name: float(np.mean([update[name] for update in metrics])) for name in metrics[0]}
        if self._tokens:
            values["tokens_per_second"] = self._tokens / seconds
            values["mfu"] = self._flops / seconds / self._peak
        self._metrics = []
        self._restart_clock()
        return values


def training_flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations of forward and backward pass for one token of a sequence of `length`.

    Matrix products only: 6 a weight (2 forward, 4 backward), and 12 T D a layer for attention
    scores and values, as Chowdhery et al. 2022 (PaLM), appendix B, count them. An LSTM has the former alone.
    """
    if config.architecture == "lstm":
        layer_weights = config.lstm_dim * (4 * (config.embed_dim + config.lstm_dim) + config.embed_dim)
        return 6.0 * (layer_weights + config.num_embeddings * config.embed_dim)
    block_weights = config.num_layers * (4 * config.embed_dim**2 + 2 * config.embed_dim * config.mlp_dim)
    softmax_weights = config.num_embeddings * config.embed_dim
    attention = 12 * config.num_layers * config.embed_dim * length
    return 6.0 * (block_weights + softmax_weights) + attention


def peak_flops(compute_dtype: str) -> float:
    """Operations a second that all devices together could do: by their maker if the chip is known, else as measured."""
    chip = find_chip(jax.devices()[0].device_kind)
    of_device = chip.device_flops(compute_dtype) if chip else None
    return measure_peak_flops(compute_dtype) if of_device is None else of_device * jax.device_count()


def measure_peak_flops(compute_dtype: str) -> float:
    """Operations a second of a large matrix product on all devices together, measured now.

    The yardstick of MFU: what this very machine reaches in the precision of the run.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), compute_dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # The fastest, because other work on the machine only ever slows a product down.
    best = min(seconds)
    # Fake CPU devices share the cores of one.
    devices = 1 if jax.default_backend() == "cpu" else jax.device_count()
    return 2.0 * size**3 / best * devices
