"""gpt.training.meter and goodput: speed, its yardstick, where the time goes, and the slowest host."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.config import ModelConfig, TaskConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.model.gpt import bind, init_params
from gpt.training import meter as meter_module
from gpt.training.goodput import PARTS, Clock, difference, shares, total_shares
from gpt.training.meter import Meter, Yardstick, describe_hosts, memory, training_flops_per_token
from gpt.training.steps import LanguageModelObjective, Objective, TaskObjective

CONFIG = ModelConfig(vocab_size=256, context_length=8, num_layers=3, num_heads=2, embed_dim=16, mlp_dim=48, lstm_dim=24)
FINETUNING = dataclasses.replace(CONFIG, num_special_tokens=3)


# Operations


def matrix_product_flops(jaxpr: Any) -> float:
    """Two operations for each multiplication of every matrix product, found in the program itself."""
    flops = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            output = equation.outvars[0].aval.shape
            flops += 2 * math.prod(output) * math.prod(left[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        flops += times * sum(matrix_product_flops(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return flops


def gradient_flops(config: ModelConfig, objective: Objective, batch: Any, num_outputs: int | None) -> float:
    """Operations of the gradient of one batch, dropout off."""
    params = init_params(config, jax.random.key(0), num_outputs)

    def loss(params: Any, batch: Any) -> Any:
        totals, _ = objective.totals(bind(config, params), batch, None)
        return sum(objective.coefficients[name] * total for name, total in totals.items())

    return matrix_product_flops(jax.make_jaxpr(jax.grad(loss))(params, batch).jaxpr)


def text_batch(length: int = 8) -> TextBatch:
    return TextBatch(np.ones((2, length + 1), np.int32), np.ones((2, length), np.float32))


def task_batch() -> TaskBatch:
    tokens = np.ones((2, 3, 8), np.int32)
    return TaskBatch(
        tokens=tokens,
        weights=np.ones_like(tokens, np.float32),
        extract=np.full((2, 3), 7, np.int32),
        labels=np.zeros(2, np.int32),
        example_weights=np.ones(2, np.float32),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": False},
        {"scan_layers": True},
        {"softmax_over_positions": True, "num_special_tokens": 3},
        {"compute_dtype": "bfloat16"},
        {"architecture": "lstm"},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [5, 8])
def test_operations_are_those_of_the_matrix_products_of_the_gradient(changes: dict[str, Any], length: int) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    batch = text_batch(length)
    counted = gradient_flops(config, LanguageModelObjective(), batch, None)
    assert training_flops_per_token(config, length) * batch.weights.size == counted


@pytest.mark.parametrize("lm_coef", [0.5, 0.0])
@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
def test_fine_tuning_has_the_vocabulary_product_only_with_the_auxiliary_loss(lm_coef: float, architecture: Any) -> None:
    config = dataclasses.replace(FINETUNING, architecture=architecture)
    objective = TaskObjective(TaskConfig(lm_coef=lm_coef))
    batch = task_batch()
    counted = gradient_flops(config, objective, batch, 1)
    of_tokens = training_flops_per_token(config, 8, with_softmax=lm_coef > 0) * batch.weights.size
    of_head = 6 * batch.extract.size * config.embed_dim
    assert of_tokens + of_head == counted


# The yardstick


def test_speed_is_compared_with_the_peak_of_all_known_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module.jax, "devices", lambda: [FakeDevice("TPU v5 lite")])
    monkeypatch.setattr(meter_module.jax, "device_count", lambda: 4)
    assert Yardstick("bfloat16").shares(2 * 197e12) == {"mfu": pytest.approx(0.5)}


def test_a_chip_without_this_precision_is_compared_with_a_measured_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module.jax, "devices", lambda: [FakeDevice("Tesla T4")])
    monkeypatch.setattr(meter_module, "measure_flops", lambda _: 2e12)
    assert Yardstick("bfloat16").shares(1e12) == {"mfu_measured": 0.5, "measured_tflops": 2.0}


def test_a_run_that_beats_the_measured_product_has_it_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([1e12, 4e12, 3e12, 1e12])
    monkeypatch.setattr(meter_module, "measure_flops", lambda _: next(measured))
    yardstick = Yardstick("float32")
    assert yardstick.shares(0.5e12)["mfu_measured"] == 0.5
    assert yardstick.shares(2e12)["mfu_measured"] == 0.5
    assert yardstick.shares(3e12)["mfu_measured"] == 0.75  # not measured anew
    assert yardstick.shares(6e12) == {"mfu_measured": 1.5, "measured_tflops": 4.0}  # the slower one is no yardstick


def test_the_product_is_measured_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([1e12, 2e12])
    now = iter([0.0, 59.0, 61.0, 61.0])
    monkeypatch.setattr(meter_module, "measure_flops", lambda _: next(measured))
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: next(now))
    yardstick = Yardstick("float32")
    assert [yardstick.shares(1e12)["mfu_measured"] for _ in range(3)] == [1.0, 1.0, 0.5]


@dataclasses.dataclass
class FakeDevice:
    """A device of another machine."""

    device_kind: str = "cpu"
    stats: dict[str, int] | None = None

    def memory_stats(self) -> dict[str, int] | None:
        """Its memory, or None as on CPU."""
        return self.stats


# Memory


def test_memory_is_that_of_the_fullest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [FakeDevice(stats={"peak_bytes_in_use": 2**30 * gib, "bytes_in_use": 1}) for gib in (2, 3, 1)]
    monkeypatch.setattr(meter_module.jax, "local_devices", lambda: devices)
    assert memory() == {"peak_device_gib": 3.0}


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc, where Linux says what a process takes")
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert memory() == {"peak_process_gib": pytest.approx(peak / 2**20, rel=0.02)}


# The slowest host


def test_the_slowest_host_is_the_one_that_the_others_wait_for() -> None:
    seconds = np.array([[0.40, 0.01], [0.41, 0.30], [0.42, 0.02]], np.float32)
    assert describe_hosts(["a", "b", "c"], seconds) == {
        "step_seconds": pytest.approx(0.41),
        "slowest_host": "b (process 1)",
        "slowest_host_seconds": pytest.approx(0.30),
    }


def test_one_host_has_no_slowest_and_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module.multihost_utils, "process_allgather", None)
    assert describe_hosts(meter_module._gather_host_names(), meter_module._gather(np.array([0.4, 0.1]))) == {
        "step_seconds": pytest.approx(0.4)
    }


def test_host_names_survive_the_gathering_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(meter_module.multihost_utils, "process_allgather", lambda row: np.stack([row, row]))
    monkeypatch.setattr(meter_module.socket, "gethostname", lambda: "worker-7")
    assert meter_module._gather_host_names() == ["worker-7", "worker-7"]


# Where the time goes


class FakeTime:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        """Seconds, as time.perf_counter."""
        return self.now


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Time that passes only where a test says so."""
    fake = FakeTime()
    monkeypatch.setattr(time, "perf_counter", fake.perf_counter)
    return fake


def test_what_no_part_claims_is_other(fake_time: FakeTime) -> None:
    clock = Clock()
    fake_time.now += 2
    with clock.spent("save"):
        fake_time.now += 3
    clock.add("compile", 1.0)
    assert clock.seconds() == {"compile": 1, "data_wait": 0, "update": 0, "evaluate": 0, "save": 3, "other": 1}


def test_time_counts_also_when_it_ends_in_an_error(fake_time: FakeTime) -> None:
    clock = Clock()

    def save() -> None:
        with clock.spent("save"):
            fake_time.now += 3
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        save()
    assert clock.seconds()["save"] == 3


def test_shares_of_several_parts_of_a_run_are_weighted_by_their_length() -> None:
    nothing = dict.fromkeys(PARTS, 0.0)
    total = total_shares([shares({**nothing, "update": 9.0, "save": 1.0}), shares({**nothing, "compile": 30.0})])
    assert total == pytest.approx({**nothing, "seconds": 40, "update": 9 / 40, "save": 1 / 40, "compile": 30 / 40})
    assert total_shares([]) == {**nothing, "seconds": 0.0}


def made_update(fake_time: FakeTime, meter: Meter, seconds: float) -> Any:
    """A step that takes this long, in the loop's form."""

    def train_step(state: Any, _batch: Any) -> tuple[Any, Any]:
        fake_time.now += seconds
        return state, {"loss": jnp.float32(seconds)}

    return meter.timed(train_step)


def test_speed_leaves_out_compilation_evaluation_and_saving_and_the_shares_do_not(fake_time: FakeTime) -> None:
    meter = Meter(CONFIG)
    train_step = made_update(fake_time, meter, 2.0)

    def batches() -> Any:
        for length in (8, 8, 5, 8):
            fake_time.now += 0.5
            yield text_batch(length)

    for batch in meter.waiting(batches()):
        _, metrics = train_step(None, batch)
        meter.add(metrics, batch)
        fake_time.now += 0.25
    with meter.spent("evaluate"):
        fake_time.now += 3
    with meter.spent("save"):
        fake_time.now += 4

    values = meter.read()
    # Of four updates two are the first of their length; their waits for data and the rest count.
    training = 4 * 0.5 + 2 * 2.0 + 4 * 0.25
    assert values["tokens_per_second"] == pytest.approx(2 * 2 * 8 / training)
    assert values["step_seconds"] == pytest.approx(training / 2)
    flops = training_flops_per_token(CONFIG, 8) * 2 * 2 * 8
    assert values["mfu_measured"] == pytest.approx(flops / training / 1e12)
    total = 4 * (0.5 + 2 + 0.25) + 7
    expected = {"data_wait": 2, "compile": 4, "update": 4, "other": 1, "evaluate": 3, "save": 4}
    assert meter.read_time() == pytest.approx({"seconds": total, **{k: v / total for k, v in expected.items()}})
    assert meter.read_time()["seconds"] == 0


def test_a_reading_of_nothing_but_compilation_has_no_speed(fake_time: FakeTime) -> None:
    meter = Meter(CONFIG)
    batch = text_batch()
    _, metrics = made_update(fake_time, meter, 2.0)(None, batch)
    meter.add(metrics, batch)
    assert meter.read().keys() == {"loss", "peak_process_gib"}


def test_waiting_for_data_while_the_device_works_is_no_loss(fake_time: FakeTime) -> None:
    class Busy:
        is_done = False

        def is_ready(self) -> bool:
            return self.is_done

    def batches() -> Any:
        for _ in range(2):
            fake_time.now += 1
            yield text_batch()

    meter = Meter(CONFIG)
    update = Busy()
    meter._latest = {"loss": update}
    waiting = meter.waiting(batches())
    next(waiting)
    assert difference(meter._clock.seconds(), dict.fromkeys(PARTS, 0.0)) == {**dict.fromkeys(PARTS, 0.0), "update": 1}
    update.is_done = True
    next(waiting)
    assert meter._clock.seconds()["data_wait"] == 1
