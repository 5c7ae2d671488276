"""gpt launch: the same script in several processes of this machine, and how they end together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import ROOT, Command

# What a process of a run does, without JAX: it tells its flags, and waits for a signal or ends at once.
SCRIPT = """
import os, pathlib, signal, sys, time
flags = dict(flag.removeprefix("--").split("=") for flag in sys.argv[2:])
number = int(flags["process_id"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without
print(sys.argv[1], sorted(flags), os.environ["JAX_NUM_CPU_DEVICES"], os.environ["JAX_LOCAL_DEVICE_IDS"], flush=True)
pathlib.Path(f"pid{number}").write_text(str(os.getpid()))
mode = sys.argv[1]
if mode == "end":
    sys.exit(0)
if number == 1 and mode == "fail":
    sys.exit(3)
if number == 1 and mode == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
if mode in ("lose", "hang") and number == 0:
    sys.exit(5)  # before the cause of it, or alone
if mode == "lose":
    time.sleep(0.2)
    sys.exit(3)
if mode == "fail":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a process that waits for the other one in a collective
time.sleep(60)
"""


@pytest.fixture
def launch(tmp_path: Path) -> Callable[[str], "subprocess.Popen[str]"]:
    """Starts `gpt launch` of two processes of SCRIPT."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import sys; from gpt.cli import launch, main; launch._GRACE_SECONDS = 0.5; sys.exit(main.main())"

    def launch(mode: str) -> "subprocess.Popen[str]":
        flags = ["launch", "--processes", "2", "--devices_per_process", "3", "--", "script.py", mode]
        return subprocess.Popen(
            [sys.executable, "-c", code, *flags],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return launch


def finish(process: "subprocess.Popen[str]") -> Command:
    out, err = process.communicate(timeout=60)
    return Command(process.returncode, out, err)


def children_of(directory: Path) -> list[int]:
    """The process ids of both children, once they are ready for signals."""
    files = [directory / "pid0", directory / "pid1"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def are_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_each_process_gets_its_number_and_devices_and_only_the_first_writes_to_standard_output(
    launch: Callable[[str], "subprocess.Popen[str]"],
) -> None:
    flags = "['coordinator', 'num_processes', 'process_id']"
    assert finish(launch("end")) == (0, f"end {flags} 3 0,1,2\n", f"[1] end {flags} 3 3,4,5\n")


@pytest.mark.parametrize(("mode", "code"), [("fail", 3), ("crash", 128 + signal.SIGKILL), ("lose", 3), ("hang", 5)])
def test_when_one_process_dies_the_others_are_ended_and_its_code_is_the_result(
    mode: str, code: int, tmp_path: Path, launch: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    assert finish(launch(mode)).code == code
    assert are_gone(children_of(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all_processes_and_75_stays_75(
    number: signal.Signals, tmp_path: Path, launch: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    process = launch("wait")
    pids = children_of(tmp_path)
    process.send_signal(number)
    command = finish(process)
    assert command.code == (75 if number == signal.SIGTERM else 130)
    assert are_gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_no_process_outlives_a_launcher_that_was_killed(
    tmp_path: Path, launch: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    process = launch("wait")
    pids = children_of(tmp_path)
    process.kill()
    finish(process)
    assert are_gone(pids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "2"], "no script given: expected gpt launch --processes N -- train.py"),
        (["--processes", "0", "--", "train.py"], "--processes=0: must be at least 1"),
        (["--processes", "2", "--devices_per_process", "0", "--", "x"], "--devices_per_process=0: must be at least 1"),
    ],
)
def test_a_launch_of_nothing_is_refused(arguments: list[str], message: str, gpt: Callable[..., Command]) -> None:
    command = gpt("launch", *arguments)
    assert (command.code, command.out) == (2, "")
    assert message in command.err
