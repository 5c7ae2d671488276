"""Who runs a cell of a sweep, or trains in a run directory: one file an attempt, of which only the last counts.

An attempt begins by making the next number's file, which one process alone can do. It holds the cell until the file
says how it ended, or until it is lost: its process is gone, or, seen from another machine, its file was not touched
for a while. Nothing is ever deleted, so that a slow process cannot mistake a later attempt for an earlier one.
"""

import contextlib
import functools
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import NoneType, TracebackType
from typing import Literal, NamedTuple

from gpt.errors import DataError
from gpt.files import create, write_atomically
from gpt.reading import read_json

HEARTBEAT_SECONDS = 15.0
LOST_AFTER_SECONDS = 300.0
"""Without a sign of life for so long, an attempt on another machine is lost. NFS shows a touch after up to a minute."""

End = Literal["done", "stopped", "failed"]


class Attempt(NamedTuple):
    """One attempt at a cell, as its file tells; `end` is None while it holds the cell, unless it is lost."""

    path: Path
    number: int
    host: str
    pid: int
    machine: str
    process_start: str
    end: End | None = None
    error: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it was made on this machine, where its process can be looked for."""
        return bool(self.machine) and self.machine == _this_machine()

    @property
    def is_live(self) -> bool:
        """Whether the attempt holds its cell."""
        if self.end is not None:
            return False
        if self.is_here:
            return self.process_start == _process_start(self.pid)
        return file_time(self.path.parent) - self.path.stat().st_mtime < LOST_AFTER_SECONDS

    def text(self) -> str:
        """The content of the file."""
        return json.dumps({name: value for name, value in self._asdict().items() if name not in ("path", "number")})


_KINDS = {
    "host": (str,),
    "pid": (int,),
    "machine": (str,),
    "process_start": (str,),
    "end": (str, NoneType),
    "error": (str, NoneType),
}


def latest_attempt(folder: Path) -> Attempt | None:
    """The attempt that counts, of those in `folder`; None before the first. DataError when its file is damaged."""
    numbers = [int(path.stem) for path in folder.glob("*.json") if re.fullmatch("[0-9]{4,9}", path.stem)]
    if not numbers:
        return None
    path = _path(folder, max(numbers))
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.keys() != _KINDS.keys():
        raise DataError(f"{path}: is no attempt at a cell: expected a JSON object with {', '.join(_KINDS)}")
    for name, kinds in _KINDS.items():
        if type(tree[name]) not in kinds:
            raise DataError(f"{path}: is no attempt at a cell: {name} is {tree[name]!r:.80}")
    return Attempt(path, max(numbers), **tree)


def claim(folder: Path) -> "Lease | None":
    """A new attempt at the cell whose attempts are in `folder`; None when another one holds it."""
    latest = latest_attempt(folder)
    if latest is not None and latest.is_live:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 if latest is None else latest.number + 1
    pid = os.getpid()
    attempt = Attempt(
        _path(folder, number), number, socket.gethostname(), pid, _this_machine(), _process_start(pid) or ""
    )
    return Lease(attempt) if create(attempt.path, attempt.text()) else None


class Lease:
    """An attempt that this process makes: while entered, a thread gives signs of life."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {attempt.path}", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if self.attempt.end is None:
            self.end("stopped")

    def end(self, how: End, error: str | None = None) -> None:
        """Gives the cell back and keeps how it went."""
        self.attempt = self.attempt._replace(end=how, error=error)
        try:
            write_atomically(self.attempt.path, self.attempt.text())
        except OSError as reason:
            raise DataError(f"{str(self.attempt.path)!r} cannot be written: {reason}") from reason

    def _beat(self) -> None:
        while not self._is_over.wait(HEARTBEAT_SECONDS):
            if _path(self.attempt.path.parent, self.attempt.number + 1).exists():
                _leave_at_once(self.attempt)
            with contextlib.suppress(OSError):  # the next beat may get through
                os.utime(self.attempt.path)


def file_time(folder: Path) -> float:
    """The time by the clock that stamps files in `folder`, which may be that of another machine."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # a directory that we may only read
        return time.time()


def _leave_at_once(attempt: Attempt) -> None:
    # This process stood still, say with a sleeping laptop, and another one goes on: it must not write any more.
    print(
        f"error: {attempt.path.parent.name}: no sign of life was seen for {LOST_AFTER_SECONDS:.0f} s, "
        "and another process has taken over",
        file=sys.stderr,
        flush=True,
    )
    os._exit(75)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.json"


@functools.cache
def _this_machine() -> str:
    """What tells whether two process numbers may be compared: name, boot, process namespace; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
