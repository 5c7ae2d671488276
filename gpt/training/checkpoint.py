"""Checkpoints on disk, through Orbax: the only module that knows it.

A checkpoint holds two items, `params` and `optimizer`, so that fine-tuning and evaluation read
the weights alone. Orbax writes to a temporary name and renames: a checkpoint is whole or absent.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from gpt.config import CheckpointConfig
from gpt.errors import DataError
from gpt.model.gpt import Params
from gpt.sharding import sharded_shapes
from gpt.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run directory, as a context manager that waits for the last save."""

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        directory = str((run_dir / "checkpoints").resolve())  # Orbax wants an absolute path
        policy: Any = ocp.training.preservation_policies.LatestN(config.keep)
        try:
            self._checkpointer = ocp.training.Checkpointer(
                directory, preservation_policy=policy, cleanup_tmp_directories=True
            )
        except OSError as error:
            raise DataError(f"cannot write checkpoints to {directory!r}: {error}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # a background save that failed is raised by the next call
            reason = str(error).splitlines()[0]
            raise DataError(
                f"a checkpoint could not be written to {str(self._checkpointer.directory)!r}: {reason}. "
                "Earlier checkpoints are whole; make room, and repeat the command"
            ) from error

    @property
    def latest_step(self) -> int | None:
        """The newest step on disk."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; waits first for the save before it, if that still runs."""
        step = int(state.step)
        if step == self.latest_step:
            return
        items = {"params": state.params, "optimizer": state.optimizer_state}
        # We decide when to save; Orbax's own policy would skip a save while another one runs.
        with self._writing():
            self._checkpointer.save_checkpointables_async(step, items, force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, with the shapes and shardings of `like`.

        Raises:
          DataError: the checkpoint holds other arrays, shapes or dtypes.
        """
        expected = {"params": like.params, "optimizer": like.optimizer_state}
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        _check_same_arrays(saved, expected, f"checkpoint of step {step}")
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), expected)
        items = self._checkpointer.load_checkpointables(step, abstract)
        return TrainState(jax.device_put(np.int32(step), like.step.sharding), items["params"], items["optimizer"])


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of the checkpoints that a run has kept, ascending."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal())


def find_checkpoint(run_dir: Path, step: int | None = None) -> Path:
    """The checkpoint that a run saved at `step` (None: latest); DataError when there is none."""
    directory = (run_dir / "checkpoints").resolve()
    steps = saved_steps(run_dir)
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        there = f"; there are steps {', '.join(map(str, steps))}" if steps else ": train there first"
        raise DataError(f"{str(run_dir)!r} does not hold {wanted}{there}")
    return directory / str(steps[-1] if step is None else step)


def load_params(checkpoint: Path, mesh: Mesh) -> Params:
    """The weights of one checkpoint, laid out on `mesh`."""
    path = str(checkpoint)
    abstract = sharded_shapes(mesh, _as_dicts(ocp.checkpointables_metadata(path).metadata["params"]))
    return ocp.load_checkpointables(path, {"params": abstract})["params"]


def save_params(run_dir: Path, params: Params) -> None:
    """Writes weights as the checkpoint of step 0, to start from or to evaluate; no optimizer state."""
    path = (run_dir / "checkpoints" / "0").resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ocp.save_checkpointables(str(path), {"params": params})
    except (OSError, ValueError) as error:
        raise DataError(f"weights could not be written to {str(path)!r}: {str(error).splitlines()[0]}") from error


def _as_dicts(metadata: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)


def _check_same_arrays(saved: Any, expected: Any, what: str) -> None:
    # Orbax would cast a dtype in silence, and its own message for a shape is a page long.
    def arrays(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
        return {_path_text(path): (leaf.shape, np.dtype(leaf.dtype).name) for path, leaf in leaves}

    there, here = arrays(saved), arrays(expected)
    if there != here:
        name = sorted(path for path in there.keys() | here.keys() if there.get(path) != here.get(path))[0]
        raise DataError(
            f"{what}: {name} is {there.get(name, 'absent')} there, but {here.get(name, 'absent')} in this config; "
            "use the config the run was started with, or another RunConfig.output_dir"
        )


def _path_text(path: tuple[Any, ...]) -> str:
    # Orbax gives back tuples and named tuples as lists and dicts: compare by names and positions alike.
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path)
