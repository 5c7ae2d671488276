"""How fast a run is, against what yardstick, how much memory it takes, and which host is the slowest."""

import contextlib
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from gpt.config import ModelConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.data.packing import PackedBatch
from gpt.hardware import find_chip
from gpt.training.goodput import Clock, Part, difference, shares

Batch = TypeVar("Batch")
State = TypeVar("State")


class Meter:
    """Means of the metrics and speed since the last reading, without stopping the device in between."""

    def __init__(self, config: ModelConfig, share: float = 1.0, *, with_softmax: bool = True):
        """`share` is the part of a batch that this process has: padding may differ in the others, but not by much."""
        self._share = share
        self._config, self._with_softmax = config, with_softmax
        self._yardstick = Yardstick(config.compute_dtype)
        self._hosts = _gather_host_names()
        self._clock = Clock()
        self._metrics: list[Any] = []
        self._latest: Any = None
        self._shapes: set[Any] = set()
        self._is_first = True
        self._time_read = self._clock.seconds()
        self._restart()

    def _restart(self) -> None:
        self._metrics = []
        self._updates, self._tokens, self._flops = 0, 0.0, 0.0
        self._read = self._clock.seconds()

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches. Waiting for one is `data_wait`, unless the device had an update to make all the while."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            is_busy = not all(leaf.is_ready() for leaf in jax.tree.leaves(self._latest))
            self._clock.add("update" if is_busy else "data_wait", time.perf_counter() - start)
            if batch is None:
                return
            yield batch

    def timed(self, train_step: Callable[..., tuple[State, Any]]) -> Callable[..., tuple[State, Any]]:
        """The step with its time counted: the first with each shape of batch, as a whole, is `compile`."""

        def timed_step(state: State, batch: Any, *others: Any) -> tuple[State, Any]:
            shapes = _shapes_of(batch)
            self._is_first = shapes not in self._shapes
            self._shapes.add(shapes)
            if not self._is_first:
                with self._clock.spent("update"):
                    return train_step(state, batch, *others)
            self.wait()
            with self._clock.spent("compile"):
                return jax.block_until_ready(train_step(state, batch, *others))

        return timed_step

    def is_new(self, batch: Any) -> bool:
        """Whether the step has not yet been compiled for a batch of these shapes."""
        return _shapes_of(batch) not in self._shapes

    def add(self, metrics: Any, batch: TextBatch | TaskBatch | PackedBatch) -> None:
        """Counts one update; waits for the one before, so that at most two are under way (on CPU, one)."""
        self.wait()
        self._latest = metrics
        self._metrics.append(metrics)
        if jax.default_backend() == "cpu":
            # Running ahead gains nothing where host and device are one, and several fake devices deadlock.
            self.wait()
        if self._is_first:
            return
        tokens = float(batch.weights.sum()) / self._share
        length = batch.weights.shape[-1]
        self._updates += 1
        self._tokens += tokens
        self._flops += tokens * training_flops_per_token(self._config, length, with_softmax=self._with_softmax)

    def wait(self) -> None:
        """Waits until the device has made all updates so far."""
        with self._clock.spent("update"):
            jax.block_until_ready(self._latest)

    @contextlib.contextmanager
    def spent(self, part: Part) -> Iterator[None]:
        """Counts what happens inside as `part`, and leaves it out of the speed."""
        self.wait()
        with self._clock.spent(part):
            yield

    def unread(self) -> list[dict[str, float]]:
        """The metrics of each update since the last reading, to be kept with a checkpoint."""
        return [{name: float(value) for name, value in update.items()} for update in jax.device_get(self._metrics)]

    def put_back(self, unread: Iterable[dict[str, float]]) -> None:
        """Goes on from what a checkpoint has kept: a line has the same means whether or not the run was stopped."""
        self._metrics = [{name: np.float32(value) for name, value in update.items()} for update in unread]

    def read(self) -> dict[str, Any]:
        """Means of each metric, speed and memory since the last reading; the next starts here.

        `tokens_per_second` without padding and `step_seconds` an update, both without compilation,
        evaluation and saving, and what Yardstick.shares and describe_hosts say.
        """
        with self._clock.spent("update"):
            metrics = jax.device_get(self._metrics)
        return means_of(metrics) | self.read_speed()

    def read_speed(self) -> dict[str, Any]:
        """The part of `read` that no metric is in."""
        self.wait()
        seconds = difference(self._clock.seconds(), self._read)
        values: dict[str, Any] = {}
        if self._updates:
            on_host = seconds["data_wait"] + seconds["other"]
            training = on_host + seconds["update"]
            values["tokens_per_second"] = self._tokens / training
            values |= self._yardstick.shares(self._flops / training)
            row = np.array([training / self._updates, on_host / self._updates], np.float32)
            values |= describe_hosts(self._hosts, _gather(row))
        self._restart()
        return values | memory()

    def read_time(self) -> dict[str, float]:
        """Seconds since the last reading of this kind, and the share of each part in them."""
        before, self._time_read = self._time_read, self._clock.seconds()
        return shares(difference(self._time_read, before))


def means_of(updates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each metric over the updates that were made, and how many were `skipped`, if any."""
    made = [update for update in updates if not update.get("skipped", False)]
    names = [name for name in updates[0] if name != "skipped"]
    values: dict[str, Any] = {name: float(np.mean([update[name] for update in made])) for name in names if made}
    return values if len(made) == len(updates) else {**values, "skipped": len(updates) - len(made)}


def _shapes_of(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


class Yardstick:
    """What the speed of a run is compared with."""

    def __init__(self, compute_dtype: str):
        chip = find_chip(jax.devices()[0].device_kind)
        peak = chip.device_flops(compute_dtype) if chip else None
        self._peak = None if peak is None else peak * jax.device_count()
        self._compute_dtype = compute_dtype
        self._measured, self._measured_at = 0.0, -float("inf")

    def shares(self, flops_per_second: float) -> dict[str, float]:
        """`mfu`, the share of the chips' peak in gpt.hardware; for other machines `mfu_measured`.

        That is the share of a large matrix product, the fastest of those made here so far, and
        `measured_tflops` are its operations. Other work on the machine only ever slows a product down,
        so it is made again once a minute, and whenever the run seems to be faster.
        """
        if self._peak is not None:
            return {"mfu": flops_per_second / self._peak}
        if flops_per_second > self._measured or time.monotonic() > self._measured_at + 60:
            self._measured = max(self._measured, measure_flops(self._compute_dtype))
            self._measured_at = time.monotonic()
        return {"mfu_measured": flops_per_second / self._measured, "measured_tflops": self._measured / 1e12}


def training_flops_per_token(config: ModelConfig, length: int, *, with_softmax: bool = True) -> float:
    """Operations of forward and backward pass for one token of a sequence of `length`.

    Matrix products only: 6 a weight (2 forward, 4 backward), and 12 T D a layer for attention
    scores and values, as Chowdhery et al. 2022 (PaLM), appendix B, count them: the masked half is
    computed too. An LSTM has the former alone. `with_softmax=False` is fine-tuning without auxiliary
    language model. Left out: the head, D x N an example.
    """
    softmax_rows = config.num_embeddings + (config.context_length if config.softmax_over_positions else 0)
    softmax_weights = softmax_rows * config.embed_dim if with_softmax else 0
    if config.architecture == "lstm":
        layer_weights = config.lstm_dim * (4 * (config.embed_dim + config.lstm_dim) + config.embed_dim)
        return 6.0 * (layer_weights + softmax_weights)
    block_weights = config.num_layers * (4 * config.embed_dim**2 + 2 * config.embed_dim * config.mlp_dim)
    attention = 12 * config.num_layers * config.embed_dim * length
    return 6.0 * (block_weights + softmax_weights) + attention


def measure_flops(compute_dtype: str) -> float:
    """Operations a second of a large matrix product on all devices together, measured now."""
    is_cpu = jax.default_backend() == "cpu"
    size = 2048 if is_cpu else 8192
    matrix = jnp.ones((size, size), compute_dtype)
    seconds = []
    for _ in range(6):  # the first compiles
        start = time.perf_counter()
        _product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # Fake CPU devices share the cores of one host.
    return 2.0 * size**3 / min(seconds) * (jax.process_count() if is_cpu else jax.device_count())


@jax.jit
def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    return one @ other


def memory() -> dict[str, float]:
    """`peak_device_gib`, the most that a device of this host ever held; of a CPU `peak_process_gib`, this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [of_device["peak_bytes_in_use"] for of_device in stats if "peak_bytes_in_use" in of_device]
    if peaks:
        return {"peak_device_gib": max(peaks) / 2**30}
    unit = 1 if sys.platform == "darwin" else 2**10
    return {"peak_process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def describe_hosts(names: Sequence[str], seconds: Float[np.ndarray, "hosts 2"]) -> dict[str, Any]:
    """`step_seconds`, the mean over hosts, and of several hosts the slowest.

    Each row of `seconds` is a host's time for an update, and the part of it in which the host gave its
    devices nothing to do (waiting for data, and all else but the update). Updates of all hosts end
    together, because each waits for the others: who has most time of the second kind is who they
    wait for, `slowest_host`, and `slowest_host_seconds` is that time.
    """
    values: dict[str, Any] = {"step_seconds": float(seconds[:, 0].mean())}
    if len(names) > 1:
        slowest = int(seconds[:, 1].argmax())
        values["slowest_host"] = f"{names[slowest]} (process {slowest})"
        values["slowest_host_seconds"] = float(seconds[slowest, 1])
    return values


def _gather(row: np.ndarray) -> np.ndarray:
    """The row of each process, in the order of processes; alone, without any communication."""
    return row[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(row))


def _gather_host_names() -> list[str]:
    name = socket.gethostname().encode()[:64].ljust(64)
    return [row.tobytes().decode().strip() for row in _gather(np.frombuffer(name, np.uint8))]
