"""A first signal is a request to stop; a second one ends the process at once."""

import signal

import pytest
from toy import run_python

SCRIPT = """
import signal, sys
from gpt.training.interrupt import StopSignals

with StopSignals():
    signal.raise_signal(int(sys.argv[1]))
    print("asked", flush=True)
    signal.raise_signal(int(sys.argv[1]))
    print("still here", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    command = run_python("-c", SCRIPT, str(int(number)))
    assert (command.code, command.out) == (-number, "asked\n")
