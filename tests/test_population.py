"""Populations: each member is its solo run, on one device and on four, and no device speaks to another."""

import dataclasses
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import ROOT, Command, Toy, toy_sentences, write_rows

from gpt import gin_io
from gpt.config import MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig
from gpt.errors import ConfigError, Preempted
from gpt.sharding import make_mesh
from gpt.text.tokenizer import Tokenizer
from gpt.training import loop, population
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.checkpoint_dir import path_of, saved_steps
from gpt.training.loop import train
from gpt.training.manifest import read_notes
from gpt.training.population import make_population_steps, population_key, train_population
from gpt.training.report import Report
from gpt.training.run_dir import load_config, read_metrics, read_result

SPEED = {"tokens_per_second", "step_seconds", "mfu_measured", "measured_tflops", "peak_process_gib"}
NUM_STEPS = 12
MEMBERS: dict[str, dict[str, Any]] = {
    "one": {"seed": 1, "learning_rate": 0.01, "weight_decay": 0.01, "lm_coef": 0.5},
    "two": {"seed": 2, "learning_rate": 0.003, "weight_decay": 0.3, "lm_coef": 0.5},
    "three": {"seed": 1, "learning_rate": 0.01, "weight_decay": 0.01, "lm_coef": 2.0},
}


@pytest.fixture(scope="module")
def base(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Fine-tuning on short and long texts, two buckets, with dropout, 12 updates of 3 epochs."""
    data = tmp_path_factory.mktemp("data")
    for split, seed, count in (("train", 3, 35), ("validation", 4, 11)):
        sentences = toy_sentences(seed, count)
        rows = [
            {"text": text if k % 2 else " ".join(text.split()[:3]), "label": int("cat" in text or "dog" in text)}
            for k, text in enumerate(sentences)
        ]
        write_rows(data / f"{split}.jsonl", rows)
    flags = [flag.removeprefix("--gin.") for flag in toy.finetune_flags(None) if flag.startswith("--gin.")]
    config = gin_io.load(
        [ROOT / "configs" / "task" / "cola.gin"], [*flags, "RunConfig.output_dir=unused", "RunConfig.seed=0"]
    )
    return dataclasses.replace(
        config,
        evaluate_every_steps=5,
        log_every_steps=2,
        model=dataclasses.replace(config.model, context_length=32, num_layers=1),
        task=dataclasses.replace(config.task, data_dir=str(data)),
        checkpoint=dataclasses.replace(config.checkpoint, save_every_steps=5),
    )


def member(base: RunConfig, path: Path, name: str = "one", **changes: Any) -> RunConfig:
    values = {**MEMBERS[name], **changes}
    return dataclasses.replace(
        base,
        output_dir=str(path),
        seed=values["seed"],
        optimizer=dataclasses.replace(
            base.optimizer, learning_rate=values["learning_rate"], weight_decay=values["weight_decay"]
        ),
        task=dataclasses.replace(base.task, lm_coef=values["lm_coef"]),
    )


def use_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Lets runs see that many devices."""
    for module in (loop, population):
        monkeypatch.setattr(
            module, "make_mesh", lambda config, devices=None: make_mesh(config, devices or jax.devices()[:count])
        )


@pytest.fixture(scope="module")
def solo(base: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each member by itself, on one device."""
    root = tmp_path_factory.mktemp("solo")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_devices(monkeypatch, 1)
        for name in MEMBERS:
            train(member(base, root / name, name))
    return {name: root / name for name in MEMBERS}


def assert_same_run(run: Path, expected: Path) -> None:
    """Log lines, result and weights of two runs that differ in rounding alone."""
    lines, expected_lines = (
        [line for line in read_metrics(path) if line["kind"] != "time"] for path in (run, expected)
    )
    assert [(line["step"], line["kind"]) for line in lines] == [(line["step"], line["kind"]) for line in expected_lines]
    for line, expected_line in zip(lines, expected_lines, strict=True):
        assert line.keys() - SPEED == expected_line.keys() - SPEED
        for name in line.keys() - SPEED - {"kind"}:
            assert line[name] == pytest.approx(expected_line[name], rel=1e-5, abs=1e-5), (line["step"], name)
    assert (read_result(run) or {}).keys() == (read_result(expected) or {}).keys()
    assert saved_steps(run) == saved_steps(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), final_params(run), final_params(expected)
    )


def final_params(run: Path) -> Any:
    params = load_params(find_checkpoint(run), make_mesh(MeshConfig(), jax.devices()[:1]))
    # The biases of keys have no gradient: Adam divides their rounding noise by rounding noise.
    bias = params["transformer"]["blocks"]["attention"]["qkv"]["bias"]
    third = bias.shape[-1] // 3
    params["transformer"]["blocks"]["attention"]["qkv"]["bias"] = bias.at[:, third : 2 * third].set(0)
    return params


class Together(NamedTuple):
    """A population on four devices, its results, and the text of the programs it ran."""

    root: Path
    results: dict[str, dict[str, Any]]
    programs: list[str]


@pytest.fixture(scope="module")
def together(base: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Five members on four devices, which take eight: those of MEMBERS, one of them twice, and one that diverges."""
    root, programs = tmp_path_factory.mktemp("together"), []
    configs = {name: member(base, root / name, name) for name in MEMBERS}
    configs |= {"again": member(base, root / "again", "two"), "bad": member(base, root / "bad", learning_rate=1e30)}

    def make_recorded(*args: Any) -> Any:
        return tuple(recorded(step, programs) for step in make_population_steps(*args))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(population, "make_population_steps", make_recorded)
        results = train_population(list(configs.values()))
    return Together(root, dict(zip(configs, results, strict=True)), programs)


def recorded(step: Any, programs: list[str]) -> Callable[..., Any]:
    compiled: dict[Any, Any] = {}

    def run(*args: Any) -> Any:
        shapes = str(jax.tree.map(jnp.shape, args))
        if shapes not in compiled:
            compiled[shapes] = step.lower(*args).compile()
            programs.append(compiled[shapes].as_text())
        return jax.block_until_ready(compiled[shapes](*args))

    return run


# Equal to solo runs


@pytest.mark.parametrize("name", MEMBERS)
def test_each_member_equals_its_solo_run(name: str, together: Together, solo: dict[str, Path]) -> None:
    assert_same_run(together.root / name, solo[name])


def test_members_differ_by_each_of_what_they_may_differ_in(solo: dict[str, Path]) -> None:
    final = [(read_result(path) or {})["train"]["lm_loss"] for path in solo.values()]
    assert min(abs(np.diff([*final, final[0]]))) > 1e-3


def test_members_of_equal_settings_are_equal(together: Together) -> None:
    one, again = (final_params(together.root / name) for name in ("two", "again"))
    jax.tree.map(np.testing.assert_array_equal, one, again)


def test_a_member_has_a_run_directory_like_any_other(together: Together, base: RunConfig) -> None:
    for name in MEMBERS:
        run = together.root / name
        assert together.results[name] == read_result(run)
        assert load_config(run) == member(base, run, name)
        assert list((run / "events").iterdir())
        assert Tokenizer.load(run / "tokenizer").vocab_size == base.model.vocab_size


def test_a_member_is_evaluated_like_any_other_run(together: Together, evaluate: Callable[..., Command]) -> None:
    rows = {row["metric"]: row["value"] for row in evaluate(f"--run={together.root / 'one'}", "--json").rows}
    expected = together.results["one"]["validation"]
    assert rows["task_loss"] == pytest.approx(expected["task_loss"], rel=1e-5)
    assert rows["matthews"] == pytest.approx(expected["matthews"], rel=1e-5)


def test_a_population_that_was_stopped_continues_from_what_all_have_saved(
    base: RunConfig, solo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    configs = [member(base, tmp_path / name, name) for name in MEMBERS]
    advance = Report.advance

    def advance_then_signal(self: Report, step: int) -> None:
        advance(self, step)
        if step == 7:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "advance", advance_then_signal)
        with pytest.raises(Preempted, match="SIGTERM: saved step 7 of 12; the same command continues from there"):
            train_population(configs)
    assert [saved_steps(tmp_path / name) for name in MEMBERS] == [[5, 7]] * 3
    for name in MEMBERS:
        (line,) = [line for line in read_metrics(tmp_path / name) if line["kind"] == "validation"]
        notes = [read_notes(path_of(tmp_path / name, step)) for step in (5, 7)]
        assert [note["score"] for note in notes] == [line["matthews"], None]
    train(configs[0])  # alone
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "7")  # as when its save was cut short
    results = train_population(configs)
    assert results == [read_result(tmp_path / name) for name in MEMBERS]
    for name in MEMBERS:
        assert_same_run(tmp_path / name, solo[name])


@pytest.mark.slow
def test_pretraining_takes_a_population_too(
    toy: Toy, base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    adamw = dataclasses.replace(base.optimizer, name="adamw")
    text = dataclasses.replace(base.data, token_store=str(toy.store))
    base = dataclasses.replace(base, optimizer=adamw, data=text, task=TaskConfig(), max_steps=4)
    names = ("one", "two")
    train_population([member(base, tmp_path / name, name) for name in names])
    for name in names:
        train(member(base, tmp_path / f"{name}-solo", name))
        assert_same_run(tmp_path / name, tmp_path / f"{name}-solo")


# Apart from each other


def test_devices_do_not_speak_to_each_other(together: Together) -> None:
    assert len(together.programs) == 4  # an update and an evaluation, of two padded lengths
    for program in together.programs:
        assert "num_partitions=4" in program
        collectives = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
        assert not re.findall(collectives, program)


def test_a_member_that_diverges_stops_and_leaves_the_others_as_they_are(
    together: Together, solo: dict[str, Path]
) -> None:
    result = together.results["bad"]
    assert (result["run"], result["step"]) == (str(together.root / "bad"), 5)
    assert "have scores that are not finite numbers: the weights have diverged" in result["error"]
    assert read_result(together.root / "bad") is None
    assert [(line["step"], line["kind"]) for line in read_metrics(together.root / "bad")][-2:] == [
        (4, "train"),
        (5, "skipped"),
    ]
    assert saved_steps(together.root / "bad") == []
    assert_same_run(together.root / "one", solo["one"])


# Who belongs together


def test_the_key_is_the_same_for_what_members_may_differ_in(base: RunConfig) -> None:
    keys = {population_key(member(base, Path(name), name)) for name in MEMBERS}
    assert len(keys) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"task": TaskConfig(name="cola", lm_coef=0.0)},
        {"batch_size": 4},
        {"num_epochs": 1},
        {"init_from": "elsewhere"},
        {"optimizer": OptimizerConfig(b1=0.8)},
        {"model": ModelConfig(num_special_tokens=3, residual_dropout_rate=0.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_is_another_one_for_what_makes_another_program(base: RunConfig, change: dict[str, Any]) -> None:
    base = dataclasses.replace(
        base, task=TaskConfig(name="cola"), optimizer=OptimizerConfig(), model=ModelConfig(num_special_tokens=3)
    )
    assert population_key(dataclasses.replace(base, **change)) != population_key(base)


def test_runs_that_do_not_belong_together_are_refused(base: RunConfig, tmp_path: Path) -> None:
    one, two = member(base, tmp_path / "one"), member(base, tmp_path / "two", "two")
    with pytest.raises(ConfigError, match=r"weight_decay, and TaskConfig\.lm_coef above 0 alone: group them by"):
        train_population([one, dataclasses.replace(two, batch_size=4)])
    with pytest.raises(ConfigError, match=r"have the same RunConfig\.output_dir: give each its own"):
        train_population([one, dataclasses.replace(two, output_dir=f"{tmp_path}/x/../one")])
    with pytest.raises(ConfigError, match="needs at least one config"):
        train_population([])
    assert not list(tmp_path.iterdir())


def test_a_mesh_that_splits_parameters_is_refused(base: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(member(base, tmp_path / "one"), mesh=MeshConfig(tensor=2))
    with pytest.raises(ConfigError, match=r"MeshConfig\.tensor = 2: each member of a population is whole"):
        train_population([config])
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused(base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"trains in one process, and here are 2: .* `gpt sweep --shard i/n`"):
        train_population([member(base, tmp_path / "one")])
