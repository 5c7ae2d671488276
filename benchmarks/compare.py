"""Two or more sides of a comparison take turns, each in a process of its own.

A side is a function of `ours.py` or of a peer's module. It takes the case's settings and returns a *turn*: a call that
does the work once and says what it measured, such as `{"seconds": 0.4}`. Sides stay in their processes, warm and
waiting, while the others have their turn (A B A B), so that drift of the machine meets all alike, and no side finds the
memory of another. What is reported of each measure is the median over turns; a ratio is the peer's over ours. Programs
that a side compiles are kept on disk for the next time, ours as the commands do, PyTorch's by itself.

After a pause a process finds its memory given away and its caches full of others' data: of GPT-1's update on two
cores, the first after another side's turn took 3.4 s where those that followed took 2.0. Long work does not pause, so a
side of short work does some that does not count before what does (`after_another`).

All sides get the same processor cores and as many threads.
"""

import argparse
import contextlib
import importlib
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.cli.start import set_cache_environment

ROOT = Path(__file__).parents[1]

Measures = dict[str, float]
Turn = Callable[[], Measures]
"""One repetition of the work of a side, and what it measured; `seconds` always."""


def after_another(turn: Turn, lead_in: Callable[[], object] | None = None) -> Turn:
    """`turn` as it is once at work: after `lead_in`, or after itself, which do not count."""

    def at_work() -> Measures:
        (lead_in or turn)()
        return turn()

    return at_work


class Side:
    """A side in a process of its own; a context that begins when it is ready for its first turn, and ends it."""

    def __init__(self, function: str, case: Mapping[str, Any], environment: Mapping[str, str] | None = None):
        self._function = function
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare", function, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), **(environment or {})},
        )

    def turn(self) -> Measures:
        """What the next turn measured; `peak_gib` is the most memory that the process ever held."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> Measures:
        assert self._process.stdout is not None
        reply = self._process.stdout.readline()
        if not reply:
            code = self._process.wait()
            raise RuntimeError(f"{self._function} ended with exit code {code}: its message stands above")
        return json.loads(reply)

    def __enter__(self) -> "Side":
        with contextlib.ExitStack() as stack:
            stack.push(self.__exit__)
            self._reply()  # none may take its turn while another compiles
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def alternate(sides: Mapping[str, Turn], turns: int, *, warm_up: bool = True) -> dict[str, Measures]:
    """The median of each measure of each side, over `turns` turns in alternation, after one that warms up.

    Without it, PyTorch's second update at (2, 512) took 8.0 s among others, where its fourth took 4.2, probably as a
    virtual machine is slow to give memory for the first time. Work of a minute needs none.
    """
    measured: dict[str, list[Measures]] = {name: [] for name in sides}
    for number in range(turns + warm_up):
        for name, turn in sides.items():
            found = turn()
            if number >= warm_up:
                measured[name].append(found)
    return {
        name: {measure: statistics.median(row[measure] for row in rows) for measure in rows[0]}
        for name, rows in measured.items()
    }


def report(benchmark: str, case: Mapping[str, Any], sides: dict[str, Measures]) -> None:
    """Prints a line: the case, each side's medians, and of each other side its seconds over ours, `ratio_SIDE`.

    `memory_SIDE` is our peak memory over theirs.
    """
    ours = sides["ours"]
    others = {name: side for name, side in sides.items() if name != "ours"}
    ratios = {f"ratio_{name}": side["seconds"] / ours["seconds"] for name, side in others.items()}
    if "peak_gib" in ours:
        ratios |= {f"memory_{name}": ours["peak_gib"] / side["peak_gib"] for name, side in others.items()}
    emit({"benchmark": benchmark, **case, **ratios, "sides": sides})


def emit(line: Mapping[str, Any]) -> None:
    """Prints a line with the command that made it."""
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    print(json.dumps({**_rounded(line), "command": command}), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(entry) for name, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """One side, that answers each line of standard input with a turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("function", help="such as benchmarks.ours.training")
    parser.add_argument("case", type=json.loads)
    args = parser.parse_args(arguments)
    # What libraries print must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    set_cache_environment()
    module, _, function = args.function.rpartition(".")
    turn = getattr(importlib.import_module(module), function)(**args.case)
    print("{}", file=replies, flush=True)
    for _ in sys.stdin:
        found = turn()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"peak_gib": peak, **found}), file=replies, flush=True)


if __name__ == "__main__":
    main()
