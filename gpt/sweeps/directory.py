"""The directory of a sweep: what it was asked for, and how far each cell is.

sweep.json       the settings that all cells share, and those of each cell alone
CELL/            the run directory of a cell
.attempts/CELL/  who has tried the cell, and how it went
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, DataError
from gpt.files import create
from gpt.gin_io import settings_of
from gpt.reading import read_json
from gpt.sweeps.grid import Cell

_RECORD = "sweep.json"
_MANY = 4

Settings = dict[str, dict[str, Any]]
"""The settings of each cell by its name, without the one that says where it lies."""


def open_sweep(output: Path, cells: Sequence[Cell]) -> None:
    """Makes the directory of a sweep, or finds it with the same cells in it.

    Raises:
      ConfigError: it belongs to another sweep; names the differences.
      DataError: it cannot be written.
    """
    settings = {cell.name: settings_of(cell.config) for cell in cells}
    for values in settings.values():
        del values["RunConfig.output_dir"]
    record = output / _RECORD
    if not record.exists() and output.exists():
        others = [] if output.is_dir() else [output]
        # Another worker may be writing the record right now, under a hidden name.
        others = others or [path for path in output.iterdir() if not path.name.startswith(f".{_RECORD}")]
        if others and not record.exists():
            raise ConfigError(
                f"--output {str(output)!r} exists and is not the directory of a sweep: "
                "give a new path, so that nothing in it is overwritten"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        is_ours = not record.exists() and create(record, _format(settings))
    except OSError as error:
        raise DataError(f"cannot write to --output {str(output)!r}: {error}") from error
    if not is_ours and (changed := _differences(read_sweep(output), settings)):
        raise ConfigError(
            f"--output {str(output)!r} holds another sweep: {'; '.join(changed)}. "
            "Repeat that sweep's settings to continue it, or give another directory"
        )


def read_sweep(output: Path) -> Settings:
    """The settings of every cell of the sweep in `output`; DataError when there is none, or its record is damaged."""
    path = output / _RECORD
    if not path.exists():
        raise DataError(f"{str(output)!r} is not the directory of a sweep: there is no {_RECORD} in it")
    record = read_json(path)
    shared, cells = (record.get("settings"), record.get("cells")) if isinstance(record, dict) else (None, None)
    if not isinstance(shared, dict) or not isinstance(cells, dict):
        raise DataError(f"{path}: is no record of a sweep: expected a JSON object with settings and cells")
    for name, own in cells.items():
        # A name is that of a directory in this one.
        if not isinstance(own, dict) or name.startswith(".") or set(name) & set("/\\\0"):
            raise DataError(f"{path}: {name!r:.80} is no cell of a sweep")
        if not isinstance(task := own.get("TaskConfig.name", shared.get("TaskConfig.name")), str | None):
            raise DataError(f"{path}: TaskConfig.name of {name!r:.80} is {task!r:.80}, expected the name of a task")
    return {name: {**shared, **own} for name, own in cells.items()}


def attempts_of(output: Path, name: str) -> Path:
    """The directory of the attempts at a cell."""
    return output / ".attempts" / name


def _format(settings: Settings) -> str:
    first = next(iter(settings.values()))
    shared = {key for key in first if all(values[key] == first[key] for values in settings.values())}
    record = {
        "settings": {key: value for key, value in first.items() if key in shared},
        "cells": {
            name: {key: value for key, value in values.items() if key not in shared}
            for name, values in settings.items()
        },
    }
    return json.dumps(record, indent=2) + "\n"


def _differences(there: Settings, here: Settings) -> list[str]:
    """What two sweeps differ in, a change of many cells once."""
    lines = []
    for what, names in (("only there", there.keys() - here.keys()), ("only here", here.keys() - there.keys())):
        if names:
            lines.append(f"{what}: {_few(sorted(names), 'cells')}")
    changes: dict[str, list[str]] = defaultdict(list)
    for name in sorted(there.keys() & here.keys()):
        for key, value in here[name].items():
            # A setting that the code did not have yet is at its default there.
            if key in there[name] and there[name][key] != value:
                changes[f"{key}: {there[name][key]!r} there, {value!r} here"].append(name)
    for change, names in changes.items():
        is_everywhere = len(names) == len(here) == len(there)
        lines.append(change if is_everywhere else f"{change} (in {_few(names, 'cells')})")
    return lines


def _few(names: Sequence[str], noun: str) -> str:
    return ", ".join(names) if len(names) <= _MANY else f"{', '.join(names[:_MANY])} ... {len(names)} {noun} in all"
