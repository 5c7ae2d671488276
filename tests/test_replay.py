"""What a run records of how it was made, and its first updates made again."""

import dataclasses
import datetime
import inspect
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from test_population import use_devices
from test_skipped import config_of as toy_config
from toy import Command, Run, Toy

import gpt
from gpt.config import ModelConfig, RunConfig, TokenizerConfig
from gpt.errors import ConfigError
from gpt.text.tokenizer import Tokenizer
from gpt.training import loop, record
from gpt.training.problem import Problem
from gpt.training.record import read_starts, record_start
from gpt.training.state import create_state, make_creation, make_keys
from gpt.training.steps import make_train_step


def config_of(**seeds: Any) -> RunConfig:
    return RunConfig(output_dir="x", max_steps=0, tokenizer=TokenizerConfig(path="x"), **seeds)


def keys_of(**seeds: Any) -> list[list[int]]:
    return [jax.random.key_data(key).tolist() for key in make_keys(config_of(**seeds))]


# Seeds


def test_without_seeds_of_their_own_all_follow_the_seed() -> None:
    init, dropout = jax.random.key_data(jax.random.split(jax.random.key(7, impl="threefry2x32"))).tolist()
    assert keys_of(seed=7) == [init, init, dropout]
    assert config_of(seed=7).seed_of_data == 7


@pytest.mark.parametrize(
    ("name", "changed"), [("init_seed", [0, 1]), ("head_seed", [1]), ("dropout_seed", [2]), ("data_seed", [])]
)
def test_a_seed_of_its_own_changes_nothing_else(name: str, changed: list[int]) -> None:
    before, after = keys_of(seed=7), keys_of(seed=7, **{name: 8})
    assert [index for index in range(3) if before[index] != after[index]] == changed
    assert config_of(seed=7, **{name: 8}).seed_of_data == (8 if name == "data_seed" else 7)


def test_the_head_alone_follows_its_seed() -> None:
    model = ModelConfig(vocab_size=20, num_layers=1, num_heads=2, embed_dim=8, mlp_dim=8, context_length=8)
    create = make_creation(model, 3, optax.identity())
    one, other = (create(make_keys(config_of(**seeds))).params for seeds in ({"seed": 1}, {"seed": 1, "head_seed": 2}))
    jax.tree.map(np.testing.assert_array_equal, one["transformer"], other["transformer"])
    assert not np.array_equal(one["head"]["kernel"], other["head"]["kernel"])


class Enough(Exception):
    """No more is needed of a run than its first update."""


def first_update(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, tuple[Any, ...]]:
    """The compiled update of a run, and what its first one takes."""
    updates: list[tuple[Any, tuple[Any, ...]]] = []

    def make_recorded(*arguments: Any) -> Any:
        step = make_train_step(*arguments)

        def train_step(*arguments: Any) -> None:
            updates.append((step, arguments))
            raise Enough

        return train_step

    use_devices(monkeypatch, 1)
    monkeypatch.setattr(loop, "make_train_step", make_recorded)
    with pytest.raises(Enough):
        loop.train(config)
    return updates[0]


def test_training_takes_each_seed_for_its_part_alone(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    load = loop.load_inputs

    def load_inputs(config: RunConfig) -> tuple[Tokenizer, Problem]:
        tokenizer, problem = load(config)

        def batches_of_seed(seed: int, rows: Any) -> Any:
            taken["data"] = seed
            return problem.batches_of_seed(seed, rows=rows)

        return tokenizer, dataclasses.replace(problem, batches_of_seed=batches_of_seed)

    def create_recorded(*arguments: Any) -> Any:
        taken["keys"] = arguments[3]
        return create_state(*arguments)

    monkeypatch.setattr(loop, "load_inputs", load_inputs)
    monkeypatch.setattr(loop, "create_state", create_recorded)
    seeds = {"seed": 1, "init_seed": 2, "head_seed": 3, "data_seed": 4, "dropout_seed": 5}
    _, (_, _, dropout_key) = first_update(dataclasses.replace(toy_config(toy, tmp_path / "run"), **seeds), monkeypatch)
    assert taken["data"] == 4
    keys = [jax.random.key_data(key).tolist() for key in (*taken["keys"], dropout_key)]
    assert keys == [*keys_of(**seeds), keys_of(**seeds)[2]]


def test_runs_that_differ_in_their_seed_alone_are_one_program(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second then finds it in the compilation cache."""
    programs = []
    for seed in (1, 2):
        config = dataclasses.replace(toy_config(toy, tmp_path / str(seed)), seed=seed)
        step, arguments = first_update(config, monkeypatch)
        programs.append(step.lower(*arguments).as_text())
    assert programs[0] == programs[1]


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"RunConfig\.data_seed = -1: must be from 0 to"):
        config_of(data_seed=-1)


# Records


def test_every_start_leaves_a_line_of_what_made_it(pretrained: Run) -> None:
    (line,) = read_starts(pretrained.path)
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
    here = {"python": platform.python_version(), "gpt": gpt.__version__, **{name: version(name) for name in packages}}
    assert {name: line["versions"][name] for name in here} == here
    assert "train.py --gin_file=configs/run/pretrain.gin" in line["command"]
    assert (line["after_update"], line["devices"], line["platform"], line["processes"]) == (0, 1, "cpu", 1)


def test_every_field_is_of_the_process_that_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = {"commit": "f" * 40, "changed": True}
    monkeypatch.setattr(sys, "argv", ["train.py", "a b"])
    monkeypatch.setattr(jax, "process_count", lambda: 7)
    monkeypatch.setattr(record, "git_state", lambda: git)
    monkeypatch.chdir(tmp_path)
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    record_start(tmp_path, 5, num_members=3)
    (line,) = read_starts(tmp_path)
    assert before <= datetime.datetime.fromisoformat(line.pop("time")) <= datetime.datetime.now(datetime.UTC)
    del line["versions"]
    assert line == {
        "after_update": 5, "command": "train.py 'a b'", "directory": str(tmp_path), "host": socket.gethostname(),
        "pid": os.getpid(), "processes": 7, "devices": len(jax.devices()), "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(), "population": 3, "git": git,
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git, which is asked for the commit")
def test_the_commit_and_whether_the_code_was_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in [name for name in os.environ if name.startswith("GIT_")]:  # in a hook they name another repository
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    state_of: Any = inspect.unwrap(record.git_state)
    code = tmp_path / "gpt" / "__init__.py"
    code.parent.mkdir()
    code.write_text("one = 1\n")
    monkeypatch.setattr(record, "gpt", types.SimpleNamespace(__file__=str(code)))
    git("init")
    git("commit", "--allow-empty", "--message=of something else")
    assert state_of() is None
    git("add", "gpt")
    git("commit", "--message=first")
    (tmp_path / "notes.txt").write_text("beside the code")
    os.utime(code, (0, 0))  # git would write down that it is unchanged
    index = (tmp_path / ".git" / "index").read_bytes()
    assert state_of() == {"commit": git("rev-parse", "HEAD"), "changed": False}
    assert (tmp_path / ".git" / "index").read_bytes() == index
    code.write_text("one = 2\n")
    assert state_of() == {"commit": git("rev-parse", "HEAD"), "changed": True}


def test_later_starts_add_lines_and_one_cut_short_is_left_out(tmp_path: Path) -> None:
    record_start(tmp_path, 0)
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"time": "2\n')
    record_start(tmp_path, 5, num_members=3)
    assert [(line["after_update"], line["population"]) for line in read_starts(tmp_path)] == [(0, 1), (5, 3)]


# Replay


@pytest.fixture
def replay(gpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    use_devices(monkeypatch, 1)
    return lambda *arguments: gpt("replay", *arguments)


def test_the_first_updates_made_again_have_the_same_losses_bit_by_bit(
    pretrained: Run, replay: Callable[..., Command]
) -> None:
    command = replay(pretrained.path, "--steps", "3", "--json")
    assert command.code == 0, command.err
    rows = [json.loads(line) for line in command.out.splitlines() if line.startswith("{")]
    assert [(row["step"], row["metric"]) for row in rows][:3] == [(1, "loss"), (1, "lm_loss"), (1, "gradient_norm")]
    assert {row["step"] for row in rows} == {1, 2, 3}
    assert all(row["same"] and row["then"] == row["now"] for row in rows)


def test_one_bit_of_difference_is_told(pretrained: Run, tmp_path: Path, replay: Callable[..., Command]) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[0]["loss"] = float(np.nextafter(np.float32(lines[0]["loss"]), np.float32(9)))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = replay(run, "--steps", "1")
    assert command.code == 2
    assert command.out.count(": different") == 1
    assert "error: 1 of 3 values differ, first loss of update 1: other data, code, library versions" in command.err


@pytest.mark.parametrize(("steps", "message"), [("99", "updates: from 1 to 24; give"), ("-1", "from 1 to 24; give")])
def test_updates_that_were_not_logged_are_refused(
    steps: str, message: str, pretrained: Run, replay: Callable[..., Command]
) -> None:
    command = replay(pretrained.path, "--steps", steps)
    assert command.code == 2
    assert message in command.err


def test_a_member_of_a_population_is_not_replayed(
    pretrained: Run, tmp_path: Path, replay: Callable[..., Command]
) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    record_start(run, 0, num_members=4)
    assert "was trained in a population, whose sums are rounded" in replay(run).err
