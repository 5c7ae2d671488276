"""The cells of a sweep: every combination of the values of its axes, each a run of its own."""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt.config import RunConfig
from gpt.errors import ConfigError
from gpt.gin_io import Axis, SweepSettings


class Cell(NamedTuple):
    """One run of a sweep: its name, which is also that of its directory, and its config."""

    name: str
    config: RunConfig


def make_cells(settings: SweepSettings, output: Path, data_root: Path | None = None) -> list[Cell]:
    """All cells, the values of the last axis varying fastest, each with its directory in `output`.

    With `data_root`, a task reads the folder of its name in it, unless its TaskConfig.data_dir is set. Letter case
    and punctuation of folders are of no matter: SST-2 is that of sst2.

    Raises:
      ConfigError: a cell cannot run, or two cells have one name or are the same run.
    """
    cells: dict[str, Cell] = {}
    places: dict[RunConfig, str] = {}
    for values in itertools.product(*(axis.values for axis in settings.axes)):
        name = "-".join(
            _value_name(axis, value, settings.axes) for axis, value in zip(settings.axes, values, strict=True)
        )
        if name in cells:
            raise ConfigError(f"two cells are called {name!r}: rename one of the files that they come from")
        try:
            config = settings.config(values, str(output / name))
        except ConfigError as error:
            raise ConfigError(f"cell {name}: {error}") from None
        if data_root is not None and config.task.name is not None and config.task.data_dir is None:
            task = dataclasses.replace(config.task, data_dir=str(_task_folder(data_root, config.task.name)))
            config = dataclasses.replace(config, task=task)
        same = places.setdefault(dataclasses.replace(config, output_dir=""), name)
        if same != name:
            raise ConfigError(f"cells {same} and {name} are the same run: the values of an axis do not differ")
        cells[name] = Cell(name, config)
    return list(cells.values())


def group_cells(cells: Sequence[Cell], key: Callable[[RunConfig], Any], at_most: int | None) -> list[list[Cell]]:
    """The cells in groups of equal `key`, each `at_most` so large, in the order of their first members."""
    by_key: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_key[key(cell.config)].append(cell)
    size = at_most or len(cells)
    return [group[start : start + size] for group in by_key.values() for start in range(0, len(group), size)]


def take_shard(groups: Sequence[list[Cell]], shard: str) -> list[list[Cell]]:
    """Every n-th of the groups for the shard `i/n`, from 1/n to n/n; ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"--shard {shard!r}: expected i/n, i from 1 to n, such as 1/4 for the first of four parts")
    return list(groups[number - 1 :: count])


def _task_folder(root: Path, task: str) -> Path:
    """The folder of a task, which need not be there."""
    found = []
    if root.is_dir() and not (root / task).exists():
        found = [path for path in sorted(root.iterdir()) if _letters(path.name) == _letters(task)]
    if len(found) > 1:
        raise ConfigError(
            f"--data_root {str(root)!r} has several folders for the task {task!r}: {', '.join(p.name for p in found)}"
        )
    return found[0] if found else root / task


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _value_name(axis: Axis, value: Any, axes: tuple[Axis, ...]) -> str:
    """The part of a cell's name that tells its value of one axis: `cola`, `seed=42`."""
    if axis.is_of_files:
        return _safe("+".join(path.stem for path in value))
    field = axis.key.rpartition(".")[2]
    if sum(other.key.endswith(f".{field}") for other in axes) > 1:
        field = axis.key
    # Of paths the last part is enough, where it tells them apart.
    texts = [Path(text).name if isinstance(text, str) else str(text) for text in axis.values]
    is_enough = len(set(texts)) == len(texts)
    return _safe(f"{field}={texts[axis.values.index(value)] if is_enough else value}")


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+=-]", "_", text).lstrip(".")
