"""What a run says while it works: metrics.jsonl and TensorBoard always, a bar on a terminal, lines in a log."""

import contextlib
import functools
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gpt.errors import DataError
from gpt.files import sync, write_atomically
from gpt.training.goodput import PARTS
from gpt.training.processes import is_first
from gpt.training.run_dir import read_metrics, write_num_steps


@functools.cache
def console() -> Console:
    """The console on standard error: one a process, because live displays nest on the same one alone."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """One warning for people, of whichever process."""
    with contextlib.suppress(OSError):  # standard error may be a file on the same full disk
        console().print(f"warning: {text}", markup=False)


class Silence:
    """What all processes but the first have for a report."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, step: int) -> None:
        """Does nothing."""

    def say(self, text: str) -> None:
        """Does nothing."""

    def log(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""


def open_report(run_dir: Path, start_step: int, num_steps: int, title: str) -> "Report | Silence":
    """The log of a run in its first process, and silence in the others."""
    return Report(run_dir, start_step, num_steps, title) if is_first() else Silence()


class Report:
    """The log of one run, continued from `start_step`: lines of later steps, which will be made again, are dropped.

    Unless it `is_shown`, it keeps what it is told and says nothing.
    """

    def __init__(self, run_dir: Path, start_step: int, num_steps: int, title: str, *, is_shown: bool = True):
        # Imported here because it takes a second, which `--help` and bad settings should not wait for.
        from tensorboardX import SummaryWriter

        kept = [line for line in read_metrics(run_dir) if line["step"] <= start_step]
        path = run_dir / "metrics.jsonl"
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run_dir / "events"), purge_step=start_step + 1)
        write_num_steps(run_dir, num_steps)
        self._console = console() if is_shown else Console(quiet=True)
        self._start_step, self._num_steps, self._start = start_step, num_steps, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal or not is_shown,
        )
        self._task = self._bar.add_task(title, total=num_steps, completed=start_step, status="compiling")

    def __enter__(self) -> "Report":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()
        self._events.close()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """One line for people, above the bar or in the log."""
        with contextlib.suppress(OSError):  # as in warn
            self._console.print(text, markup=False)

    def log(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Keeps the values of `kind` ("train", "validation" or "time") at `step`, and shows them."""
        try:
            self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{self._file.name!r} cannot be written: {error}. All checkpoints are whole; make room, and repeat the "
                "command"
            ) from error
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}", value, step)
        text = ", ".join(_format(name, value) for name, value in values.items())
        if kind == "train" and not self._bar.disable:
            self._bar.update(self._task, status=text)
        else:
            self.say(f"step {step}/{self._num_steps} {kind}: {text}{self._time_left(step)}")

    def sync(self) -> None:
        """Puts the lines so far on the disk itself: what a checkpoint follows is never missing behind it."""
        sync(self._file)

    def _time_left(self, step: int) -> str:
        done = step - self._start_step
        if not done:
            return ""
        seconds = (time.monotonic() - self._start) / done * (self._num_steps - step)
        return f", {int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d} left"


_SHOWN = {
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "mfu_measured": "{:.1%} of a measured matrix product",
    "measured_tflops": "that of {:.3g} TFLOP/s",
    "step_seconds": "{:.3g} s an update",
    "slowest_host": "slowest host {}",
    "slowest_host_seconds": "{:.3g} s of its own",
    "peak_device_gib": "{:.2f} GiB at most on a device",
    "peak_process_gib": "{:.2f} GiB at most in this process",
    "learning_rate": "lr {:.2e}",
    "seconds": "{:,.1f} s",
    **{part: part.replace("_", " ") + " {:.1%}" for part in PARTS},
}


def _format(name: str, value: Any) -> str:
    if isinstance(value, str | dict) and name not in _SHOWN:
        return f"{name} {value}"
    return _SHOWN.get(name, name + " {:.4g}").format(value)
