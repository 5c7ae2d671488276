"""A run that hangs ends with the stacks of all threads and exit code 4; one that is slow or was stopped does not."""

import os
import signal
import subprocess
import sys
import time

import pytest
from toy import ROOT, run_python

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
        [sys.executable, "-c", SCRIPT, "0.6", "0.8", "0.1"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "update 2\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate()[0].splitlines()[-1] == "done"
    assert process.returncode == 0


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
def test_a_run_that_hangs_in_an_evaluation_ends_with_exit_code_4_and_resumes(toy, tmp_path) -> None:
    flags = (*toy.pretrain_flags, f"--gin.RunConfig.output_dir={tmp_path}/run")
    timeout = "--gin.RunConfig.update_timeout_seconds=2"
    hung = run_python("-c", TRAIN, *flags, timeout)
    assert hung.code == 4, hung.err
    assert "error: the evaluation after update 8 hangs" in hung.err
    assert run_python("train.py", *flags, timeout).code == 0
