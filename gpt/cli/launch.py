"""Run train.py or eval.py in several processes on this machine, as `torchrun` does: CPU devices or GPUs.

    gpt launch --processes 2 -- train.py --gin_file=configs/run/pretrain.gin ...

The first process has this terminal; what the others print comes on standard error, behind their number. SIGTERM and
Ctrl-C go to all of them. When one fails, the others are ended and its exit code is that of the command (75: stopped
by a signal, with everything saved).
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from gpt.errors import ConfigError, PeerLost

_GRACE_SECONDS = 10.0
"""How long the others may take to end by themselves after one has failed or was told to stop."""
_POLL_SECONDS = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", required=True, type=int, metavar="N", help="how many to start")
    parser.add_argument(
        "--devices_per_process",
        default=1,
        type=int,
        metavar="K",
        help="CPU devices, or GPUs, of each: the first process takes GPUs 0 to K - 1 (default: %(default)s)",
    )
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="-- SCRIPT ...", help="train.py and its flags")


def run(args: argparse.Namespace) -> int:
    command = args.script[1:] if args.script[:1] == ["--"] else args.script
    if not command:
        raise ConfigError("no script given: expected gpt launch --processes N -- train.py --gin_file=...")
    for flag in ("processes", "devices_per_process"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag}={getattr(args, flag)}: must be at least 1")
    coordinator = f"127.0.0.1:{_free_port()}"
    children = [
        _start([*command, f"--coordinator={coordinator}", f"--num_processes={args.processes}", f"--process_id={i}"],
               i, args.devices_per_process)
        for i in range(args.processes)
    ]  # fmt: skip
    readers = [
        threading.Thread(target=_pass_on, args=(number, child)) for number, child in enumerate(children) if child.stdout
    ]
    for reader in readers:
        reader.start()
    code = _wait(children)
    for reader in readers:
        reader.join()
    return code


def _start(command: Sequence[str], number: int, num_devices: int) -> subprocess.Popen[str]:
    devices = range(number * num_devices, (number + 1) * num_devices)
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, devices)),  # of GPUs
    }
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if number else None,
        stderr=subprocess.STDOUT if number else None,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C of the terminal comes through us, once
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    set_death_signal = 1  # PR_SET_PDEATHSIG, of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _pass_on(number: int, child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            sys.stderr.write(f"[{number}] {line}")


def _wait(children: Sequence[subprocess.Popen[str]]) -> int:
    """The exit code of the first child that failed, 0 when none did; all have ended then.

    One that has only lost another gives way to that other, whose end may be seen with its own or after it.
    """

    def forward(signal_number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(signal_number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    code, deadline = 0, float("inf")
    try:
        while None in (codes := [child.poll() for child in children]):
            code = _cause(code, *codes)
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS) if code else deadline
            if time.monotonic() > deadline:
                for child in children:
                    child.kill()
                    child.wait()
                break  # and how they end is our doing
            time.sleep(_POLL_SECONDS)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    code = _cause(code, *codes)
    return code if code >= 0 else 128 - code


def _cause(*codes: int | None) -> int:
    return min(filter(None, codes), key=lambda code: code == PeerLost.exit_code, default=0)
