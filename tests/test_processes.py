"""Runs of two real processes on this machine, held against the same run in one: this one, with four devices.

A launch costs seconds before its first update, so each serves several tests.
"""

import argparse
import json
import re
import runpy
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from toy import ROOT, Command, Run, Toy, run_python, train_to

from gpt import gin_io
from gpt.cli.start import run_guarded
from gpt.config import CheckpointConfig
from gpt.errors import ConfigError
from gpt.training import processes
from gpt.training.checkpoint import Checkpoints
from gpt.training.loop import train
from gpt.training.processes import lost_peer
from gpt.training.record import read_starts
from gpt.training.rendezvous import Place, come_together
from gpt.training.run_dir import read_metrics

NUM_STEPS = 50
COMPARED = ("loss", "lm_loss", "gradient_norm", "perplexity", "learning_rate")
LONGEST_SECONDS = 300

# A script that, when it hangs, shows where and ends: a wait within a library hears no signal.
LIMITED = f"""
import faulthandler, runpy, sys
faulthandler.dump_traceback_later({LONGEST_SECONDS}, exit=True)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# train.py, in which process 1 does something once it has counted an update.
SCRIPT = """
import os, runpy, signal, sys
import jax
from gpt.training.meter import Meter

add, last = Meter.add, int(sys.argv[1])
count = 0

def add_then_signal(self, *args):
    global count
    add(self, *args)
    count += 1
    if count == last and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)

Meter.add = add_then_signal
sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path("train.py", run_name="__main__")
"""


def flags_of(toy: Toy, output: Path) -> list[str]:
    """Fifty updates on the toy language, weights and batch split over two devices."""
    changed = {
        "RunConfig.max_steps": NUM_STEPS,
        "RunConfig.num_epochs": 5,
        "RunConfig.evaluate_every_steps": 25,
        "OptimizerConfig.learning_rate": 0.001,
        "CheckpointConfig.save_every_steps": 20,
        "MeshConfig.fsdp": 2,
        "RunConfig.output_dir": output,
    }
    kept = [flag for flag in toy.pretrain_flags if flag.removeprefix("--gin.").split("=")[0] not in changed]
    return [*kept, *(f"--gin.{key}={value}" for key, value in changed.items())]


def train_here(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The result of the run in this process."""
    monkeypatch.chdir(ROOT)
    files = [flag.removeprefix("--gin_file=") for flag in flags if flag.startswith("--gin_file=")]
    return train(gin_io.load(files, [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]))


def launch(*command: str | Path) -> Command:
    """Two processes of the script; those that take too long end with 1 and their stacks."""
    return run_python("-m", "gpt", "launch", "--processes", "2", "--", "-c", LIMITED, *command)


def interrupted_copy(run_dir: Path, kept: Path) -> None:
    """Moves a finished run to `kept`, and leaves in its place what a crash after step 40 had left."""
    shutil.copytree(run_dir, kept)
    (run_dir / "result.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / str(NUM_STEPS))


def read_values(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run that do not tell how fast it was."""
    return [line for line in read_metrics(run_dir) if line["kind"] != "time"]


def assert_same_lines(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [(line["step"], line["kind"]) for line in one] == [(line["step"], line["kind"]) for line in other]
    for name in COMPARED:
        values = [[line[name] for line in lines if name in line] for lines in (one, other)]
        assert values[0]
        tolerance = 1e-5 * (max(values[1]) if name == "perplexity" else 1.0)
        np.testing.assert_allclose(*values, rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def alone(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run in one process, which nothing disturbed; its files are `path`, its directory's copy."""
    output = tmp_path_factory.mktemp("alone") / "run"
    flags = flags_of(toy, output)
    with pytest.MonkeyPatch.context() as monkeypatch:
        result = train_here(flags, monkeypatch)
    interrupted_copy(output, output.with_name("kept"))
    return Run(output.with_name("kept"), tuple(flags), Command(0, json.dumps(result), ""))


@pytest.fixture(scope="module")
def together(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run in two processes, which nothing disturbed."""
    output = tmp_path_factory.mktemp("together") / "run"
    flags = flags_of(toy, output)
    command = launch("train.py", *flags)
    assert command.code == 0, command.err
    interrupted_copy(output, output.with_name("kept"))
    return Run(output.with_name("kept"), tuple(flags), command)


def test_two_processes_train_and_evaluate_as_one_does(alone: Run, together: Run) -> None:
    lines = read_values(alone.path)
    assert len(lines) == NUM_STEPS + 2
    assert alone.command.rows[0]["validation_tokens"] // 16 % 8 != 0  # windows do not fill the batches
    assert_same_lines(read_values(together.path), lines)


def test_only_the_first_process_writes_logs_and_result(together: Run) -> None:
    (result,) = together.command.rows
    assert (result["step"], result["validation"]) == (NUM_STEPS, read_values(together.path)[-1])
    assert json.loads((together.path / "result.json").read_text()) == result
    assert len(list((together.path / "events").iterdir())) == 1
    assert [(line["processes"], line["devices"]) for line in read_starts(together.path)] == [(2, 2)]
    shown = [line for line in together.command.err.splitlines() if "loss" in line]
    assert len(shown) == NUM_STEPS + 2
    assert not any(line.startswith("[1]") for line in shown)


def test_every_process_writes_its_part_of_the_weights(together: Run) -> None:
    params = together.path / "checkpoints" / str(NUM_STEPS) / "params"
    assert sorted(path.name for path in params.glob("ocdbt.process_*")) == ["ocdbt.process_0", "ocdbt.process_1"]
    sizes = [sum(file.stat().st_size for file in path.rglob("*")) for path in params.glob("ocdbt.process_*")]
    assert max(sizes) < 1.5 * min(sizes)


def test_one_process_goes_on_with_a_run_of_two_on_another_mesh(together: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train_here([*together.flags, "--gin.MeshConfig.tensor=2"], monkeypatch)
    assert_same_lines(read_values(Path(result["run"])), read_values(together.path))


def test_two_processes_go_on_with_a_run_of_one_and_sigterm_to_one_of_them_stops_both_after_the_same_update(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = launch(tmp_path / "script.py", "3", *alone.flags)
    message = f"error: SIGTERM to process 1: saved step 45 of {NUM_STEPS}; the same command continues from there\n"
    assert (command.code, command.out) == (75, ""), command.err
    assert f"\n{message}" in command.err
    assert f"[1] {message}" in command.err
    assert "step 40/" not in command.err
    run_dir = alone.path.with_name("run")
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["40", "45"]
    assert_same_lines(read_values(run_dir), [line for line in read_values(alone.path) if line["step"] <= 45])
    train_here(list(alone.flags), monkeypatch)
    assert_same_lines(read_values(run_dir), read_values(alone.path))


def test_eval_in_two_processes_gives_the_scores_and_predictions_of_one(
    finetuned: Run, evaluate: Callable[..., Command]
) -> None:
    one = evaluate(f"--run={finetuned.path}", "--json")
    predictions = finetuned.path / "predictions" / "validation.jsonl"
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(rows) == 29  # of batches of 8
    predictions.unlink()
    two = launch("eval.py", f"--run={finetuned.path}", "--json")
    assert two.code == 0, two.err
    for here, there in zip(two.rows, one.rows, strict=True):
        assert {**here, "value": pytest.approx(there["value"], abs=1e-5)} == {**there, "value": here["value"]}
    for line, row in zip(predictions.read_text().splitlines(), rows, strict=True):
        assert json.loads(line) == {**row, "scores": pytest.approx(row["scores"], abs=1e-5)}


# What is refused before anything is written


@pytest.fixture
def refusal(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs train.py here as process 0 of two; returns its error, after a look that no directory was made."""
    main = runpy.run_path(str(ROOT / "train.py"))["main"]
    monkeypatch.chdir(ROOT)

    def refusal(*flags: str) -> str:
        output = tmp_path / "run"
        assert run_guarded(lambda: main([*flags_of(toy, output), "--num_processes=2", "--process_id=0", *flags])) == 2
        assert not output.exists()
        return capsys.readouterr().err

    return refusal


def test_a_process_that_does_not_come_is_named(refusal: Callable[..., str]) -> None:
    error = refusal("--coordinator=127.0.0.1:47651", "--process_timeout=0.3")
    assert error.startswith("error: process 1 of 2 did not come within 0.3 s: ")


def test_a_process_with_another_config_is_named_with_its_settings_and_versions(refusal: Callable[..., str]) -> None:
    facts = {"version of jax": "0.1", "RunConfig.seed": "7"}
    heard = []

    def come() -> None:
        with pytest.raises(ConfigError) as caught:
            come_together(Place("127.0.0.1:47652", 2, 1), facts, 60.0)
        heard.append(str(caught.value))

    other = threading.Thread(target=come)
    other.start()
    error = refusal("--coordinator=127.0.0.1:47652", "--process_timeout=60")
    other.join()
    assert "has version of jax 0.1, process 0 has 0." in error
    assert error == f"error: {heard[0]}\n"


# A process that ends

PEER_ENDED = (
    jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [::1]:4"),
    ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error [127.0.0.1]:13730: Connection reset by peer"),
    jax.errors.JaxRuntimeError(
        "UNAVAILABLE: tasks are unhealthy (stopped sending heartbeats):\n/job:jax_worker/task:1"
    ),
)
OTHERS = (
    "RESOURCE_EXHAUSTED: Out of memory allocating 34359738368 bytes.",
    "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/allreduce.cc:30] Unsupported datatype",
)


@pytest.mark.parametrize("error", PEER_ENDED, ids=str)
def test_a_process_that_has_ended_is_an_error_that_says_how_to_go_on(error: Exception) -> None:
    lost = lost_peer(error)
    assert lost is not None
    assert lost.exit_code == 5
    assert str(lost) == (
        f"another process of this run has ended: {str(error).splitlines()[0]}. Look there for the cause; "
        "the same command on all hosts continues from the newest checkpoint"
    )


@pytest.mark.parametrize("text", OTHERS)
def test_other_errors_of_the_runtime_stay_what_they_are(text: str) -> None:
    assert lost_peer(jax.errors.JaxRuntimeError(text)) is None
    assert lost_peer(RuntimeError(str(PEER_ENDED[0]))) is None


def test_a_process_that_has_ended_ends_this_one_with_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "find_place", lambda _: Place("127.0.0.1:4000", 2, 1))
    monkeypatch.setattr(processes, "come_together", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(processes, "_end_now", sys.exit)

    def train_until_it_ends() -> None:
        with processes.joined(argparse.Namespace(coordinator=None, process_timeout=1.0), {}):
            raise PEER_ENDED[0]

    with pytest.raises(SystemExit) as end:
        train_until_it_ends()
    assert end.value.code == 5
    assert capsys.readouterr().err == f"error: {lost_peer(PEER_ENDED[0])}\n"


def test_a_save_that_waits_for_a_process_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    is_over, waited = threading.Event(), []

    def train_until_it_ends() -> None:
        with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
            checkpoints._executor.submit(lambda: waited.append(is_over.wait(2)))
            raise PEER_ENDED[0]

    with pytest.raises(jax.errors.JaxRuntimeError):
        train_until_it_ends()
    assert not waited
    is_over.set()


FAIL = """
import os, runpy, sys
from gpt.errors import DataError
from gpt.training import {module} as module

def fail(*args):
    raise DataError("the disk of this host is gone")

if "--process_id=1" in sys.argv:
    module.{name} = fail
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "text"),
    [
        (1, r"^error: another process of this run has ended: .* command on all hosts continues from the newest"),
        (0, r"^\[1\] (error: another process of this run has ended: .*|.* indicates that another task died;)"),
    ],
)
def test_when_one_of_two_is_killed_the_other_says_so_and_the_same_command_goes_on(
    victim: int, text: str, toy: Toy, tmp_path: Path
) -> None:
    script = SCRIPT.replace("signal.SIGTERM", "signal.SIGKILL").replace("index() == 1", f"index() == {victim}")
    (tmp_path / "script.py").write_text(script)
    flags = flags_of(toy, tmp_path / "run")
    killed = launch(tmp_path / "script.py", "25", *flags)
    assert (killed.code, killed.out) == (128 + signal.SIGKILL, "")
    assert re.search(text, killed.err, re.MULTILINE), killed.err
    assert "Traceback" not in killed.err
    repeated = launch("train.py", *flags)
    assert repeated.code == 0, repeated.err
    assert "step 20/" not in repeated.err
    assert [line["step"] for line in read_values(tmp_path / "run") if line["kind"] == "train"] == [
        *range(1, NUM_STEPS + 1)
    ]


@pytest.mark.slow
def test_what_only_one_process_lacks_ends_both_before_anything_is_written(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(FAIL.format(module="loop", name="load_problem"))
    command = launch(tmp_path / "script.py", *flags_of(toy, tmp_path / "run"))
    assert (command.code, command.out) == (2, "")
    assert "\nerror: process 1 has failed: DataError: the disk of this host is gone\n" in f"\n{command.err}"
    assert "[1] error: the disk of this host is gone\n" in command.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_fails_in_the_middle_ends_at_once_and_the_others_with_it(toy: Toy, tmp_path: Path) -> None:
    script = FAIL.format(module="loop", name="shard_batch")
    (tmp_path / "script.py").write_text(script)
    command = launch(tmp_path / "script.py", *flags_of(toy, tmp_path / "run"))
    assert (command.code, command.out) == (2, "")
    assert "[1] error: the disk of this host is gone\n" in command.err


@pytest.mark.slow
def test_two_processes_fine_tune_from_a_run_of_one_as_one_does(
    toy: Toy, pretrained: Run, finetuned: Run, tmp_path: Path
) -> None:
    command = launch("train.py", *toy.finetune_flags(pretrained.path), f"--gin.RunConfig.output_dir={tmp_path / 'run'}")
    assert command.code == 0, command.err
    one, two = read_values(finetuned.path), read_values(tmp_path / "run")
    for name in ("loss", "task_loss", "lm_loss", "matthews"):
        values = [[line[name] for line in lines if name in line] for lines in (two, one)]
        np.testing.assert_allclose(*values, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_two_processes_fine_tune_on_packed_examples_as_one_does(toy: Toy, tmp_path: Path) -> None:
    flags = (*toy.finetune_flags(None), "--gin.RunConfig.pack_size=2", "--gin.RunConfig.max_steps=4")
    alone = train_to(tmp_path / "alone", flags)
    command = launch("train.py", *flags, f"--gin.RunConfig.output_dir={tmp_path / 'together'}")
    assert command.code == 0, command.err
    one, two = read_values(alone.path), read_values(tmp_path / "together")
    for name in ("loss", "task_loss", "lm_loss", "matthews"):
        values = [[line[name] for line in lines if name in line] for lines in (two, one)]
        np.testing.assert_allclose(*values, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_ctrl_c_of_the_launcher_stops_both_processes_with_everything_saved(toy: Toy, tmp_path: Path) -> None:
    script = SCRIPT.replace("jax.process_index() == 1", "jax.process_index() == 0")
    script = script.replace("os.getpid(), signal.SIGTERM", "os.getppid(), signal.SIGINT")
    (tmp_path / "script.py").write_text(script)
    command = launch(tmp_path / "script.py", "3", *flags_of(toy, tmp_path / "run"))
    assert command.code == 75, command.err
    assert command.err.count("error: SIGINT to process ") == 2
