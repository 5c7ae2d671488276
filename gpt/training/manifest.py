"""The manifest of a checkpoint: the sha256 of every file in it. A checkpoint is used only if all of them are right."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpt.errors import DataError
from gpt.files import sync, sync_directory
from gpt.reading import read_json

NAME = "manifest.json"
_VERIFYING_THREADS = 4


def write_manifest(checkpoint: Path, step: int, notes: dict[str, Any]) -> None:
    """Writes the last file of a checkpoint: its step, the sha256 and length of every file in it, and `notes`."""
    files = _files(checkpoint)
    manifest = {
        "step": step,
        "notes": notes,
        "files": {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()},
    }
    with (checkpoint / NAME).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        sync(file)
    sync_directory(checkpoint)


def read_notes(checkpoint: Path) -> dict[str, Any]:
    """The `notes` of a checkpoint, which is a verified one."""
    return read_json(checkpoint / NAME)["notes"]


def find_damage(checkpoint: Path, step: int, is_used: Callable[[str], bool] = lambda _: True) -> str | None:
    """What is wrong with a checkpoint, in words; None when every file is as it was written.

    `is_used` chooses the files that are read and hashed, by their names; that none is missing or too many is looked
    at for all.
    """
    try:
        return _find_damage(checkpoint, step, is_used)
    except OSError as error:
        return f"it cannot be read: {error}"
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} is damaged"


def _find_damage(checkpoint: Path, step: int, is_used: Callable[[str], bool]) -> str | None:
    if not (checkpoint / NAME).is_file():
        return (
            f"it has no {NAME}, so it cannot be verified: the file is gone, or an earlier version of gpt wrote the "
            "checkpoint (`gpt verify --sign RUN` takes its files as they are)"
        )
    manifest = read_json(checkpoint / NAME)
    if manifest["step"] != step:
        return f"it is the checkpoint of step {manifest['step']}"
    expected, there = manifest["files"], _files(checkpoint)
    for name in sorted(expected.keys() | there.keys()):
        if name not in there:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        size = there[name].stat().st_size
        if size != expected[name]["bytes"]:
            return f"{name} has {size:,} bytes, and was written with {expected[name]['bytes']:,}"
    used: Sequence[str] = [name for name in expected if is_used(name)]
    with ThreadPoolExecutor(_VERIFYING_THREADS) as pool:
        for name, digest in zip(used, pool.map(lambda name: _sha256(there[name]), used), strict=True):
            if digest != expected[name]["sha256"]:
                return f"{name} is not what was written: its sha256 differs"
    return None


def _files(checkpoint: Path) -> dict[str, Path]:
    """Every file below, by its name from there; without those that file managers and NFS leave behind."""
    found = {}
    for directory, _, names in os.walk(checkpoint):
        paths = [Path(directory, name) for name in names if not name.startswith(".")]
        found |= {path.relative_to(checkpoint).as_posix(): path for path in paths}
    found.pop(NAME, None)
    return dict(sorted(found.items()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
