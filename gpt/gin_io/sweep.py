"""The axes of a sweep in gin files, and the config of each of its cells.

    sweep/RunConfig.seed = [42, 43, 44]                                            # of a setting
    sweep/gin_file.task = ['../task/cola.gin', ['../task/qnli.gin', 'slice.gin']]  # of files, for several at once

A value of `gin_file.NAME` is a file or a list of files. It stands in the place of an include: the lines beside the
axis, later files and the command line win over what its files include. What they say themselves holds, as does the
value of any axis: where something else would win over it, that is an error.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.config import RunConfig
from gpt.errors import ConfigError
from gpt.gin_io.parse import Binding, is_file_axis, macros_in, read_all, read_file
from gpt.gin_io.resolve import build_config, typed

_OUTPUT = "RunConfig.output_dir"
_MAX_CELLS = 10_000


@dataclasses.dataclass(frozen=True)
class Axis:
    """What an axis sets, `Section.field` or `gin_file.NAME`, and the values of which each cell has one.

    The values of `gin_file` are tuples of paths.
    """

    key: str
    values: tuple[Any, ...]
    where: str

    @property
    def is_of_files(self) -> bool:
        """Whether the values are gin files, and not values of one setting."""
        return is_file_axis(self.key)


class SweepSettings:
    """The axes of a sweep, in the order in which they were read, and what all cells share."""

    def __init__(self, bindings: Sequence[Binding]):
        # A later axis of the same key wins, in the place of the first.
        axes = {binding.key: _axis(binding) for binding in bindings if binding.axis}
        self.axes = tuple(axes.values())
        if (num_cells := math.prod(len(axis.values) for axis in self.axes)) > _MAX_CELLS:
            raise ConfigError(f"the axes make {num_cells:,} cells; expected at most {_MAX_CELLS:,}")
        self._places: list[Axis | Binding] = []
        for binding in bindings:
            if not binding.axis:
                self._places.append(binding)
            elif axis := axes.pop(binding.key, None):
                self._places.append(axis)
        self._files = {
            path: read_file(path)
            for axis in self.axes
            if axis.is_of_files
            for path in dict.fromkeys(path for paths in axis.values for path in paths)
        }
        of_files = [(path, binding) for path, parts in self._files.items() for binding in itertools.chain(*parts)]
        # What one cell does not use, such as the weights to start from, another may.
        self._used = {name for _, binding in of_files for name in macros_in(binding.value)}
        self._used.update(name for binding in bindings for name in macros_in(binding.value))
        for path, binding in of_files:
            _refuse_output(binding)
            if binding.axis:
                raise ConfigError(
                    f"{binding.where}: `sweep/{binding.axis}`: {path} is itself a value of an axis, and has none"
                )

    def config(self, values: Sequence[Any], output_dir: str) -> RunConfig:
        """The config of the cell that has `values`, one an axis; ConfigError when it cannot run."""
        value_of = dict(zip(self.axes, values, strict=True))
        bindings: list[Binding] = []
        for place in self._places:
            if isinstance(place, Binding):
                bindings.append(place)
            elif place.is_of_files:
                for path in value_of[place]:
                    included, own = self._files[path]
                    bindings += [*included, *(binding._replace(axis=place.key) for binding in own)]
            else:
                bindings.append(Binding(place.key, value_of[place], place.where, axis=place.key))
        _refuse_undone(bindings)
        return build_config([*bindings, Binding(_OUTPUT, output_dir, "--output")], self._used)


def load_sweep(gin_files: Sequence[str | Path], overrides: Sequence[str] = ()) -> SweepSettings:
    """The sweep of gin files and overrides, as `load` takes them.

    Raises:
      ConfigError: there is no axis, or one without values, with a value twice, or of the wrong type.
    """
    bindings = read_all(gin_files, overrides)
    for binding in bindings:
        _refuse_output(binding)
    settings = SweepSettings(bindings)
    if not settings.axes:
        raise ConfigError(
            "there is no axis to sweep over: add one to a gin file, such as sweep/RunConfig.seed = [42, 43, 44]"
        )
    return settings


def _axis(binding: Binding) -> Axis:
    """The axis of a binding, its values checked one by one."""
    written, where = binding.value, f"{binding.where}: sweep/{binding.key}"
    if not isinstance(written, list | tuple):
        raise ConfigError(f"{where} = {written!r}: an axis takes a list of values, such as [{written!r}]")
    if not written:
        raise ConfigError(f"{where} is empty: give it at least one value, or delete the axis")
    if len(written) > _MAX_CELLS:
        raise ConfigError(f"{where} has {len(written):,} values; expected at most {_MAX_CELLS:,}")
    if any(macros_in(written)):
        raise ConfigError(f"{where} = {written!r}: a macro is not taken here: write the values")
    values = list(written)
    if not is_file_axis(binding.key):
        values = [typed(binding._replace(value=value)).value for value in written]
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ConfigError(f"{where} has {_text(value)} twice: each value makes cells of its own")
    return Axis(binding.key, tuple(values), binding.where)


def _text(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def _refuse_output(binding: Binding) -> None:
    if binding.key == _OUTPUT:
        raise ConfigError(f"{binding.where}: {_OUTPUT}: each cell has its own directory under --output: delete it")


def _refuse_undone(bindings: Sequence[Binding]) -> None:
    """Raises ConfigError when something that an axis sets is not what the cell gets."""
    last = {binding.key: binding for binding in bindings}
    for binding in bindings:
        winner = last[binding.key]
        if binding.axis and winner.axis != binding.axis and winner.value != binding.value:
            by = f"the axis sweep/{winner.axis}, {winner.where}" if winner.axis else winner.where
            raise ConfigError(
                f"{binding.where}: `{binding.key}` is set by the axis sweep/{binding.axis}, and once more by {by}, "
                "which would win: keep one of them (an axis may have one value)"
            )
