"""Updates whose loss or gradient is not finite, or a spike: skipped, counted, named, and an end when there are many."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_population import use_devices
from toy import ROOT, Toy

from gpt import gin_io
from gpt.cli.start import run_guarded
from gpt.config import MeshConfig, OptimizerConfig, RunConfig, TokenizerConfig
from gpt.errors import ConfigError, NotFinite
from gpt.sharding import make_mesh, state_shardings
from gpt.text.tokenizer import Tokenizer
from gpt.training import meter
from gpt.training.checkpoint import Checkpoints
from gpt.training.loop import train
from gpt.training.members import Member, judge_updates
from gpt.training.optimizer import make_optimizer, watch_loss
from gpt.training.problem import load_problem
from gpt.training.run_dir import read_metrics
from gpt.training.skipped import SkippedUpdates
from gpt.training.state import TrainState
from gpt.training.steps import LanguageModelObjective, make_train_step


class Losses(LanguageModelObjective):
    """A loss of the first token's id, or no number where that is 9; its gradient is 1, or infinite where it is 8."""

    def totals(self, model: Any, batch: Any, key: Any) -> tuple[dict[str, Any], None]:  # noqa: ARG002
        table = model.body.token_embedding[...].sum()
        first = batch.tokens[0, 0].astype(jnp.float32)
        zero = (table - jax.lax.stop_gradient(table)) ** jnp.where(first == 8, 0.5, 1.0)
        return {"lm_loss": jnp.where(first == 9, jnp.nan, first) + zero}, None

    def counts(self, batch: Any) -> dict[str, Any]:  # noqa: ARG002
        return {"lm_loss": jnp.float32(1)}


def run_updates(losses: list[int], config: OptimizerConfig, num_devices: int = 1) -> list[tuple[TrainState, Any]]:
    """The state and metrics after each update; the loss of update n is `losses[n]`."""
    from test_steps import CONFIG, random_params, text_batch

    mesh = make_mesh(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])
    rule = make_optimizer(config, 100)
    params = jax.tree.map(jnp.asarray, random_params(CONFIG, None))
    state = TrainState(jnp.int32(0), params, rule.init(params))
    shardings = state_shardings(mesh, state)
    state = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=shardings)(state)
    step = make_train_step(CONFIG, Losses(), rule, 1, shardings)
    history = []
    for loss in losses:
        batch = text_batch()
        batch.tokens[0, 0] = loss
        state, metrics = jax.block_until_ready(step(state, batch, jax.random.key(0)))
        history.append(jax.device_get((state, metrics)))
    return history


@pytest.mark.parametrize(
    ("bad", "name", "num_devices"),
    [(9, "openai_adam", 1), (8, "openai_adam", 1), (9, "openai_adam", 4), (8, "openai_adam", 4), (8, "adamw", 1)],
)
def test_an_update_that_is_not_finite_leaves_the_state_as_it_was_but_for_its_step(
    bad: int, name: Any, num_devices: int
) -> None:
    (one, first), (two, second) = run_updates([3, bad], OptimizerConfig(name=name, warmup_steps=0), num_devices)
    assert (bool(first["skipped"]), bool(second["skipped"])) == (False, True)
    assert np.isfinite([second["loss"], second["gradient_norm"]]).tolist() == [bad == 8, bad == 9]
    assert (one.step, two.step) == (1, 2)
    jax.tree.map(np.testing.assert_array_equal, one[1:], two[1:])


def test_a_spike_is_skipped_once_the_mean_has_settled_and_does_not_raise_it() -> None:
    losses = [3, 19, *[3] * 25, 7, 4, 19, 3]
    history = run_updates(losses, OptimizerConfig(warmup_steps=0, max_loss_ratio=1.5, max_grad_norm=None))
    assert [index for index, (_, metrics) in enumerate(history) if metrics["skipped"]] == [27, 29]
    state: Any = history[-1][0].optimizer_state
    watch = state[-1]
    kept = [loss for index, loss in enumerate(losses) if index not in (27, 29)]
    assert float(watch.mean_loss) == pytest.approx(np.mean(kept), rel=1e-5)
    assert not any(metrics["skipped"] for _, metrics in run_updates(losses, OptimizerConfig(warmup_steps=0)))


def test_the_mean_is_of_about_the_last_hundred_updates() -> None:
    rule: Any = watch_loss(2.0)
    losses = jnp.repeat(jnp.array([9.0, 1.0]), jnp.array([100, 300]), total_repeat_length=400)
    last, _ = jax.lax.scan(lambda state, loss: (rule.update(0, state, value=loss)[1], None), rule.init(0), losses)
    assert float(last.mean_loss) == pytest.approx(1 + 8 * 0.99**300, rel=1e-4)
    assert float(last.loss_limit) == 2 * float(last.mean_loss)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_ratio_that_would_skip_everything_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match=rf"max_loss_ratio = {ratio}: must be greater than 1"):
        OptimizerConfig(max_loss_ratio=ratio)


# In a run


def config_of(toy: Toy, output: Path, **optimizer_changes: Any) -> RunConfig:
    overrides = [flag.removeprefix("--gin.") for flag in toy.pretrain_flags if flag.startswith("--gin.")]
    overrides += [f"RunConfig.output_dir={output}", "RunConfig.seed=1"]
    config = gin_io.load([ROOT / "configs" / "run" / "pretrain.gin"], overrides)
    checkpoint = dataclasses.replace(config.checkpoint, save_every_steps=4)
    rule = dataclasses.replace(config.optimizer, **optimizer_changes)
    return dataclasses.replace(config, max_steps=12, optimizer=rule, checkpoint=checkpoint, log_every_steps=5)


def test_too_many_in_a_row_end_the_run_with_the_last_good_checkpoint_and_every_batch_named(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    # From the seventh update on; the count of those made stays at 6.
    monkeypatch.setattr(
        "gpt.training.steps.is_spike", lambda state, loss: (optax.tree.get(state, "count") >= 6) & (loss > 0)
    )
    publish = Checkpoints.publish
    # What is published is a checkpoint at once: in the background that of update 8 may come before or after the end.
    monkeypatch.setattr(Checkpoints, "publish", lambda self: (publish(self), self._end_save()))
    config = dataclasses.replace(config_of(toy, tmp_path / "run", max_skipped_updates=3), data_seed=2)
    with pytest.raises(NotFinite, match=r"3 updates in a row were skipped, .*last good state is checkpoint '.*/8'"):
        train(config)
    lines = read_metrics(tmp_path / "run")
    skipped = [line for line in lines if line["kind"] == "skipped"]
    assert [line["step"] for line in skipped] == [7, 8, 9]
    problem = load_problem(config, Tokenizer.load(toy.tokenizer))
    batches = problem.batches_of_seed(config.seed_of_data)
    tokens = np.fromfile(toy.store / "train.bin", np.uint16)
    for line in skipped:
        assert line["loss"] > 0
        assert line["numbers"].keys() == {"store"}
        for window, row in zip(line["numbers"]["store"], batches[line["step"] - 1].tokens, strict=True):
            np.testing.assert_array_equal(tokens[window * 16 : window * 16 + 17], row)
    assert run_guarded(lambda: len(train(config))) == 3  # the same from the checkpoint
    assert [line for line in read_metrics(tmp_path / "run") if line["kind"] == "skipped"] == skipped


def test_means_leave_out_what_was_skipped_and_count_it() -> None:
    losses = [1.0, float("nan"), float("inf"), 4.0]
    updates = [{"loss": np.float32(loss), "skipped": np.bool_(not np.isfinite(loss))} for loss in losses]
    assert meter.means_of(updates) == {"loss": 2.5, "skipped": 2}
    assert meter.means_of(updates[1:3]) == {"skipped": 2}
    assert meter.means_of(updates[:1]) == {"loss": 1.0}


def test_a_member_with_too_many_in_a_row_fails_and_the_others_go_on(tmp_path: Path) -> None:
    said, logged = [], []

    def member(name: str) -> Any:
        config = RunConfig(
            output_dir=name, tokenizer=TokenizerConfig(path="x"), max_steps=0,
            optimizer=OptimizerConfig(max_skipped_updates=2),
        )  # fmt: skip
        log = functools.partial(logged.append if name == "bad" else pytest.fail)
        skipped = SkippedUpdates(
            config, tmp_path / name, 0, lambda seed, step: {"train": [seed, step]}, lambda *line: log(line)
        )
        one: Any = Member.__new__(Member)
        one.failure, one.run_dir, one.skipped = None, tmp_path / name, skipped
        one.report = SimpleNamespace(say=said.append)
        return one

    good, bad = member("good"), member("bad")
    losses = [[1.0, np.nan], [1.0, 1.0], [1.0, np.nan], [1.0, np.inf], [1.0, np.inf]]
    for step, values in enumerate(losses, 1):
        metrics = {"loss": np.array(values, np.float32), "skipped": ~np.isfinite(values)}
        judge_updates([good, bad], [(step, metrics)])
    assert (good.failure, bad.failure[0]) == (None, 4)
    assert [(step, values["loss"], values["numbers"]) for step, _, values in logged] == [
        (1, "nan", {"train": [42, 0]}),
        (3, "nan", {"train": [42, 2]}),
        (4, "inf", {"train": [42, 3]}),
    ]
    assert len(said) == 1
    assert "bad stops here, the others go on: 2 updates in a row were skipped" in said[0]


def test_a_resumed_run_counts_those_in_a_row_before_it(tmp_path: Path) -> None:
    lines = [{"step": step, "kind": "skipped"} for step in (2, 5, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RunConfig(
        output_dir="x", tokenizer=TokenizerConfig(path="x"), max_steps=0,
        optimizer=OptimizerConfig(max_skipped_updates=3),
    )  # fmt: skip
    for saved in (3, 6):
        (tmp_path / "checkpoints" / str(saved)).mkdir(parents=True)
    bad = {"loss": np.float32(np.nan), "skipped": np.bool_(True)}
    for first, ends in ((6, True), (5, False), (3, False)):
        skipped = SkippedUpdates(config, tmp_path, first, lambda _seed, _step: {}, lambda *_: None)
        if ends:
            with pytest.raises(NotFinite, match=r"3 updates in a row .* last good state is checkpoint '.*/6'"):
                skipped.judge(first + 1, bad)
        else:
            skipped.judge(first + 1, bad)
