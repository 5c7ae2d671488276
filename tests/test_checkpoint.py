"""Checkpoints: verified by their manifest before anything is read, gone back from, kept by rule, and tried again."""

import dataclasses
import errno
import io
import json
import os
import resource
import shutil
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_population import use_devices
from test_skipped import config_of
from toy import Command, Run, Toy

from gpt.cli.start import run_guarded
from gpt.config import CheckpointConfig, MeshConfig, RunConfig, TokenizerConfig
from gpt.errors import ConfigError, DataError
from gpt.sharding import make_mesh
from gpt.training import checkpoint
from gpt.training.checkpoint import Checkpoints, find_checkpoint, load_params, save_params
from gpt.training.checkpoint_dir import best_step, newest_verified, saved_steps
from gpt.training.loop import train
from gpt.training.members import Member, common_step
from gpt.training.population import train_population
from gpt.training.report import Report, warn
from gpt.training.run_dir import load_config, read_metrics
from gpt.training.state import TrainState


def state_at(step: int, scale: float = 1.0) -> TrainState:
    values = scale * jax.random.normal(jax.random.key(step), (100, 40))
    params = {"transformer": {"token_embedding": values}}
    return TrainState(jnp.array(step, jnp.int32), params, (jnp.array(step, jnp.int32), params))


def save(run: Path, *steps: int, scores: dict[int, float] | None = None, **config: Any) -> None:
    with Checkpoints(run, CheckpointConfig(save_every_steps=1, **config)) as checkpoints:
        for step in steps:
            checkpoints.begin_save(state_at(step), {"score": (scores or {}).get(step)})
            checkpoints.publish()


def newest(run: Path) -> tuple[int | None, TrainState | None]:
    """The newest step that is whole, and what is restored from it."""
    with Checkpoints(run, CheckpointConfig()) as checkpoints:
        step = checkpoints.newest_verified()
        return step, None if step is None else checkpoints.restore(step, state_at(0))


def largest_file(run: Path, step: int, item: str = "params") -> Path:
    files = [path for path in (run / "checkpoints" / str(step) / item).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


# Verified before anything is read

DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda run: flip(largest_file(run, 2), 70_001), "is not what was written: its sha256 differs"),
    "a file cut short": (lambda run: os.truncate(largest_file(run, 2), 900), "has 900 bytes, and was written with"),
    "a file is gone": (lambda run: largest_file(run, 2, "optimizer").unlink(), " is missing"),
    "a file too many": (
        lambda run: (run / "checkpoints/2/params/d/zero").write_bytes(b"0"),
        "params/d/zero does not belong to it",
    ),
    "no manifest": (lambda run: (run / "checkpoints/2/manifest.json").unlink(), "has no manifest.json"),
    "a manifest cut short": (lambda run: os.truncate(run / "checkpoints/2/manifest.json", 99), "manifest.json is dam"),
    "another step": (
        lambda run: (
            shutil.rmtree(run / "checkpoints/2"),
            shutil.copytree(run / "checkpoints/1", run / "checkpoints/2"),
        ),
        "it is the checkpoint of step 1",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_moved_aside_with_a_warning_and_the_one_before_is_used(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGE[name]
    save(tmp_path, 1, 2)
    damage(tmp_path)
    there = {path: path.stat().st_size for path in (tmp_path / "checkpoints/2").rglob("*") if path.is_file()}
    step, state = newest(tmp_path)
    assert step == 1
    assert state is not None
    jax.tree.map(np.testing.assert_array_equal, state, state_at(1))
    warning = capsys.readouterr().err
    assert "warning: checkpoint " in warning
    assert message in warning
    assert "going back to step 1. It was moved to '2.damaged'" in warning
    moved = {path: path.stat().st_size for path in (tmp_path / "checkpoints/2.damaged").rglob("*") if path.is_file()}
    assert list(moved.values()) == list(there.values())


def test_files_that_a_file_manager_leaves_behind_do_no_harm(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "checkpoints/2/.DS_Store").write_text("x")
    assert newest(tmp_path)[0] == 2


def test_a_second_damaged_checkpoint_of_the_same_step_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for name in ("2.damaged", "2.damaged-2"):
        flip(largest_file(tmp_path, 2), 800)
        assert newest(tmp_path)[0] == 1
        assert (tmp_path / "checkpoints" / name).is_dir()
        save(tmp_path, 2)


def test_without_any_whole_checkpoint_nothing_is_moved_and_each_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        flip(largest_file(tmp_path, step), 800)
    with pytest.raises(DataError, match=r"step 2 is damaged: params/.*; that of step 1 is damaged: .*from a copy, or"):
        newest(tmp_path)
    assert saved_steps(tmp_path) == [1, 2]


def test_a_reader_of_weights_refuses_damaged_ones_and_reads_no_optimizer_state(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    flip(largest_file(tmp_path, 2, "optimizer"), 800)
    load_params(find_checkpoint(tmp_path), one_device())
    flip(largest_file(tmp_path, 2), 800)
    with pytest.raises(
        DataError, match=r"2' is damaged: params/.* sha256 differs\. Nothing .* steps 1; `gpt verify RUN`"
    ):
        load_params(find_checkpoint(tmp_path), one_device())
    assert saved_steps(tmp_path) == [1, 2]


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    save_params(tmp_path, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state_at(0).params))
    with pytest.raises(DataError, match="transformer/token_embedding is bfloat16, and weights are float32"):
        load_params(find_checkpoint(tmp_path), one_device())


def test_a_population_goes_back_to_a_step_that_is_whole_in_all_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def member(name: str, *steps: int) -> Any:
        save(tmp_path / name, *steps, keep=3)
        one: Any = Member.__new__(Member)
        one.run_dir, one.steps, one._last_step = tmp_path / name, list(steps), steps[-1]
        return one

    ahead, behind = member("ahead", 1, 2, 3), member("behind", 1, 2)
    assert common_step([ahead, behind, behind]) == 2
    flip(largest_file(ahead.run_dir, 2, "optimizer"), 800)
    assert common_step([ahead, behind, behind]) == 1
    assert "2' is damaged: optimizer/" in capsys.readouterr().err
    assert (ahead.run_dir / "checkpoints/2.damaged").is_dir()
    assert [saved_steps(one.run_dir) for one in (ahead, behind)] == [[1, 3], [1, 2]]


@pytest.fixture
def damaged_run(pretrained: Run, tmp_path: Path) -> Path:
    run = shutil.copytree(pretrained.path, tmp_path / "damaged")
    flip(largest_file(run, 24), 800)
    return run


def test_every_command_that_reads_weights_refuses_damaged_ones(
    damaged_run: Path, tmp_path: Path, evaluate: Callable[..., Command], gpt: Callable[..., Command]
) -> None:
    data = tmp_path / "cola.jsonl"
    data.write_text('{"text": "the cat sleeps", "label": 1}\n{"text": "cat the sleeps", "label": 0}\n')
    commands = {
        "eval": evaluate(f"--run={damaged_run}"),
        "convert": gpt("convert", "--from", "run", "--to", "huggingface", damaged_run, tmp_path / "converted"),
        "zeroshot": gpt("zeroshot", "--model", damaged_run, "--task", "cola", "--data", data),
    }
    flip(largest_file(damaged_run, 24), 800)  # as it was
    flip(largest_file(damaged_run, 20), 800)
    commands["zeroshot --checkpoints"] = gpt(
        "zeroshot", "--model", damaged_run, "--checkpoints", "--task", "cola", "--data", data, "--output",
        tmp_path / "x.png",
    )  # fmt: skip
    for name, command in commands.items():
        step = 20 if name == "zeroshot --checkpoints" else 24
        assert command.code == 2, name
        assert f"{step}' is damaged: params/" in command.err, name
    assert not (tmp_path / "converted").exists()


def test_fine_tuning_refuses_damaged_weights_before_its_directory_is_made(
    damaged_run: Path, finetuned: Run, tmp_path: Path
) -> None:
    config = load_config(finetuned.path)
    config = dataclasses.replace(config, init_from=str(damaged_run), output_dir=str(tmp_path / "run"))
    with pytest.raises(DataError, match=r"24' is damaged: params/"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    damaged_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    (damaged_run / "result.json").unlink()
    train(dataclasses.replace(load_config(damaged_run), output_dir=str(damaged_run)))
    assert (damaged_run / "checkpoints/24.damaged").is_dir()
    assert newest_verified(damaged_run) == 24


def test_verify_tells_which_checkpoints_are_whole(damaged_run: Path, gpt: Callable[..., Command]) -> None:
    command = gpt("verify", damaged_run, "--json")
    assert command.code == 2
    rows = {row["step"]: row["damage"] for row in command.rows}
    assert rows[20] is None
    assert "sha256 differs" in rows[24]
    assert "error: 1 of 2 checkpoints is damaged" in command.err


def test_what_is_no_run_is_not_verified(tmp_path: Path, gpt: Callable[..., Command]) -> None:
    command = gpt("verify", tmp_path)
    assert command.code == 2
    assert "config.gin" in command.err


def test_verify_signs_a_checkpoint_without_manifest_and_no_other(
    damaged_run: Path, gpt: Callable[..., Command]
) -> None:
    (damaged_run / "checkpoints/20/manifest.json").unlink()
    assert "20: damaged: it has no manifest.json" in gpt("verify", damaged_run).out
    assert gpt("verify", damaged_run, "--sign").code == 2
    out = gpt("verify", damaged_run).out
    assert "20: whole" in out
    assert "24: damaged: " in out


# Which are kept


def test_the_newest_every_nth_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {1: float("nan"), 2: 0.2, 3: 0.9, 4: 0.1, 5: 0.3, 7: 0.9, 8: 0.4, 9: 0.5}
    save(tmp_path, *range(1, 8), scores=scores, keep_every_steps=5, keep_best=True)
    assert saved_steps(tmp_path) == [5, 6, 7]
    save(tmp_path, 8, 9, 10, scores=scores, keep_every_steps=5, keep_best=True)
    assert (saved_steps(tmp_path), best_step(tmp_path)) == ([5, 7, 9, 10], 7)


def test_the_newest_alone_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 6), scores={1: 0.9}, keep=3)
    assert saved_steps(tmp_path) == [3, 4, 5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CheckpointConfig(keep=1), "keep = 1: must be at least 2"),
        (lambda: CheckpointConfig(save_every_steps=10, keep_every_steps=15), "keep_every_steps = 15: must be a mul"),
        (
            lambda: RunConfig(
                output_dir="x", evaluate_every_steps=7, max_steps=0, tokenizer=TokenizerConfig(path="x"),
                checkpoint=CheckpointConfig(save_every_steps=10, keep_best=True),
            ),
            r"needs a score of each checkpoint: make CheckpointConfig.save_every_steps = 10 a multiple of .* = 7",
        ),
    ],
)  # fmt: skip
def test_rules_that_keep_nothing_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# Written in the background


def test_a_state_that_was_not_published_is_no_checkpoint(tmp_path: Path) -> None:
    def fail() -> None:
        with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
            checkpoints.begin_save(state_at(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert newest(tmp_path)[0] is None
    assert list((tmp_path / "checkpoints").iterdir()) == []  # the next start has swept


def test_the_name_of_a_checkpoint_is_put_on_the_disk_before_an_older_one_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, list[int]]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, saved_steps(tmp_path)))
        fsync(descriptor)

    save(tmp_path, 1, 2)
    monkeypatch.setattr(os, "fsync", record)
    save(tmp_path, 3)
    renamed = tmp_path / "checkpoints/3"
    manifest, inside, names = (path.stat().st_ino for path in (renamed / "manifest.json", renamed, renamed.parent))
    assert synced[-3:] == [(manifest, [1, 2]), (inside, [1, 2]), (names, [1, 2, 3])]
    assert saved_steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("run", [train, lambda config: train_population([config])], ids=["run", "population"])
def test_a_checkpoint_waits_until_all_lines_before_it_are_on_the_disk(
    run: Callable[[RunConfig], Any], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config_of(toy, tmp_path / "run"), max_steps=1)
    kinds = []

    def fail(_report: Report) -> None:
        kinds.extend(line["kind"] for line in read_metrics(tmp_path / "run"))
        raise RuntimeError

    use_devices(monkeypatch, 1)
    monkeypatch.setattr("gpt.training.steps.is_spike", lambda _state, loss: loss > 0)
    monkeypatch.setattr(Report, "sync", fail)
    with pytest.raises(RuntimeError):
        run(config)
    assert kinds == ["skipped", "train", "validation", "time"]
    assert saved_steps(tmp_path / "run") == []


@pytest.fixture
def full_disk() -> Iterator[Callable[[bool], None]]:
    """Lets no file grow beyond 10 kB, until it is told that there is room again."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def set_full(is_full: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]) if is_full else before)

    yield set_full
    set_full(False)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_save_that_failed_is_said_and_tried_again_with_the_next_state_and_loses_no_older_one(
    tmp_path: Path,
    full_disk: Callable[[bool], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(checkpoint, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    with Checkpoints(tmp_path, CheckpointConfig(save_every_steps=100)) as checkpoints:
        for step in (1, 2):
            checkpoints.begin_save(state_at(step))
            checkpoints.publish()
        checkpoints.finish(state_at(2))
        assert not checkpoints.is_due(3)
        full_disk(True)
        checkpoints.begin_save(state_at(3))
        checkpoints.publish()
        deadline = time.monotonic() + 60
        while not checkpoints.is_due(4) and checkpoints._failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        clock[0] = 30.0
        assert not checkpoints.is_due(4)
        clock[0] = 30.1
        assert checkpoints.is_due(4)
        assert saved_steps(tmp_path) == [1, 2]
        full_disk(False)
        checkpoints.begin_save(state_at(4))
        checkpoints.publish()
        checkpoints.finish(state_at(4))
        assert not checkpoints.is_due(5)
    err = capsys.readouterr().err
    assert "warning: the checkpoint of step 3 could not be written to " in err
    assert "File too large" in err
    assert newest(tmp_path)[0] == 4


def test_the_last_save_is_tried_again_with_the_state_at_hand_and_is_an_error_in_the_end(
    tmp_path: Path, full_disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []
    monkeypatch.setattr(checkpoint.time, "sleep", pauses.append)

    def save_on_full_disk() -> None:
        with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
            full_disk(True)
            checkpoints.begin_save(state_at(3))
            checkpoints.publish()
            checkpoints.finish(state_at(3))
            pytest.fail("it was not written")

    save(tmp_path, 1, 2)
    with pytest.raises(DataError, match=r"a checkpoint could not be written .* are whole; make room"):
        save_on_full_disk()
    assert pauses == [1.0, 5.0]
    full_disk(False)
    assert saved_steps(tmp_path) == [1, 2]
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: full_disk(False))
    full_disk(True)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.begin_save(state_at(3))
        checkpoints.publish()
        checkpoints.finish(state_at(3), {"score": 1.0})
    assert newest(tmp_path)[0] == best_step(tmp_path) == 3


def test_what_a_failed_save_left_is_not_in_the_way_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, write = [OSError(errno.ENOSPC, "No space left on device")], checkpoint.write_manifest

    def fail_once(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        write(*arguments)

    monkeypatch.setattr(checkpoint, "_LAST_PAUSES", (0.0,))
    monkeypatch.setattr(checkpoint, "write_manifest", fail_once)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.begin_save(state_at(3))
        checkpoints.publish()
        checkpoints.finish(state_at(3))
    assert newest(tmp_path)[0] == 3


def test_five_failures_in_a_row_are_an_error_before_the_end(tmp_path: Path, full_disk: Callable[[bool], None]) -> None:
    begun = []

    def save_on_full_disk() -> None:
        with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
            for step in range(1, 10):
                full_disk(step != 2)
                checkpoints.begin_save(state_at(step))
                checkpoints.publish()
                checkpoints._end_save()
                begun.append(step)

    with pytest.raises(DataError, match="make room"):
        save_on_full_disk()
    assert begun == [1, 2, 3, 4, 5, 6, 7]
    assert saved_steps(tmp_path) == [2]


@pytest.mark.parametrize("during", ["begin", "write"])
def test_a_save_that_a_lost_process_ended_is_no_failed_write(
    during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_args: object, **_kwargs: object) -> Any:
        if during == "begin" or threading.current_thread() is not threading.main_thread():
            raise ValueError("gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4000")
        return types.SimpleNamespace(result=lose)

    def save_without_peer() -> None:
        with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
            checkpoints.begin_save(state_at(1))
            checkpoints.publish()
            checkpoints.finish(state_at(1))

    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", lose)
    with pytest.raises(ValueError, match="closed by peer"):
        save_without_peer()


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def refuse() -> int:
        raise DataError("a checkpoint could not be written")

    monkeypatch.setattr("sys.stderr", FullDisk())
    warn("an older checkpoint is damaged")
    assert run_guarded(refuse) == 2


def test_a_manifest_names_every_file_with_its_sha256(tmp_path: Path) -> None:
    save(tmp_path, 1)
    directory = tmp_path / "checkpoints/1"
    manifest = json.loads((directory / "manifest.json").read_text())
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert manifest["files"].keys() | {"manifest.json"} == files
    assert manifest["step"] == 1
