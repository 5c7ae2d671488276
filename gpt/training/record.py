"""What made a run: a line in RUN/starts.jsonl for each start of it, with versions, git state, devices and command."""

import contextlib
import datetime
import functools
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import gpt
from gpt.errors import DataError
from gpt.files import sync
from gpt.reading import lines_of, parse_json

NAME = "starts.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers", "libtpu")


def record_start(run_dir: Path, first: int, num_members: int = 1) -> None:
    """Adds the line of a start after update `first`, of a run or of one of `num_members` of a population."""
    devices = jax.devices()
    line = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "after_update": first,
        "command": shlex.join(sys.argv),
        "directory": str(Path.cwd()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": jax.process_count(),
        "devices": len(devices),
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "population": num_members,
        "versions": _versions(),
        "git": git_state(),
    }
    try:
        with (run_dir / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            sync(file)
    except OSError as error:
        raise DataError(f"cannot write to RunConfig.output_dir = {str(run_dir)!r}: {error}") from error


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of all starts, oldest first; a line cut short by a crash is left out."""
    path = run_dir / NAME
    if not path.exists():
        return []
    lines = []
    with path.open("rb") as file:
        for line in lines_of(file, path):
            with contextlib.suppress(DataError):
                lines.append(parse_json(line))
    return lines


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "gpt": gpt.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@functools.cache
def git_state() -> dict[str, Any] | None:
    """The commit of this code and whether it was changed since; None where it is in no git repository of its own."""
    root = Path(gpt.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            # Without optional locks, nothing is written there.
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it lies in the repository of something else
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
