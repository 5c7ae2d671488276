"""A run that hangs ends with the stacks of all threads and exit code 4; one that is slow or was stopped does not."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_population import use_devices
from test_skipped import config_of
from toy import ROOT, Toy, run_python

from gpt.training import loop, population
from gpt.training.watchdog import Watchdog

SCRIPT = """
import sys, threading, time
from gpt.training.watchdog import Watchdog

def wait_for_what_never_comes():
    threading.Event().wait()

with Watchdog(float(sys.argv[1])) as watchdog:
    watchdog.expects("the first update", patience=3)
    time.sleep(float(sys.argv[2]))
    for update in range(2, 6):
        watchdog.expects(f"update {update}")
        print("update", update, flush=True)
        time.sleep(float(sys.argv[3]))
    if len(sys.argv) > 4:
        wait_for_what_never_comes()
print("done")
"""


def test_a_hang_ends_the_process_with_all_stacks_and_exit_code_4() -> None:
    command = run_python("-c", SCRIPT, "0.4", "0.6", "0.01", "hang")
    assert command.code == 4
    assert command.out.splitlines()[-1] == "update 5"
    assert "in wait_for_what_never_comes" in command.err
    assert "error: update 5 hangs: it has not ended within the limit that RunConfig.update_timeout" in command.err


def test_what_is_slow_within_its_limit_or_was_stopped_for_longer_goes_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "0.6", "0.8", "0.25"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "update 2\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate()[0].splitlines()[-1] == "done"
    assert process.returncode == 0


@pytest.mark.parametrize("kind", ["run", "population"])
def test_a_run_tells_what_it_expects_and_has_patience_with_what_is_slow(
    kind: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Listener(Watchdog):
        def __init__(self, limit: float | None):
            super().__init__(None)
            told.append(limit)

        def expects(self, what: str, *, patience: float = 1.0) -> None:
            told.append((what, patience))

    use_devices(monkeypatch, 1)
    monkeypatch.setattr(loop if kind == "run" else population, "Watchdog", Listener)
    config = dataclasses.replace(config_of(toy, tmp_path / "run"), max_steps=2, update_timeout_seconds=70.0)
    if kind == "run":
        loop.train(config)
    else:
        population.train_population([config])
    assert told == [
        70.0,
        ("update 1", 10.0),  # compiles
        ("the batch of update 2", 1.0),
        ("update 2", 1.0),
        ("the evaluation after update 2", 10.0),
        ("the checkpoint of update 2" if kind == "run" else "the checkpoints of update 2", 10.0),
        ("the batch of update 3", 1.0),
    ]


TRAIN = """
import runpy, sys, threading
from gpt.training import loop

def evaluate(*args):
    threading.Event().wait()

loop.evaluate = evaluate
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_that_hangs_in_an_evaluation_ends_with_exit_code_4_and_resumes(toy: Toy, tmp_path: Path) -> None:
    flags = (*toy.pretrain_flags, f"--gin.RunConfig.output_dir={tmp_path}/run")
    timeout = "--gin.RunConfig.update_timeout_seconds=2"
    hung = run_python("-c", TRAIN, *flags, timeout)
    assert hung.code == 4, hung.err
    assert "error: the evaluation after update 8 hangs" in hung.err
    assert run_python("train.py", *flags, timeout).code == 0
