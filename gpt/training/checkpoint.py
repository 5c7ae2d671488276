"""Checkpoints on disk, through Orbax: the only module that knows it.

A checkpoint holds two items, `params` and `optimizer`, so that fine-tuning and evaluation read the weights alone, and
a manifest (`gpt/training/manifest.py`), by which it is verified before it is read. It is written under a temporary
name in the background, hashed there, and renamed: a checkpoint is whole or absent.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from gpt.config import CheckpointConfig
from gpt.errors import DataError
from gpt.files import sync_directory
from gpt.model.gpt import Params
from gpt.sharding import sharded_shapes
from gpt.training.checkpoint_dir import (
    WRITING,
    delete_old,
    directory_of,
    newest_verified,
    path_of,
    saved_steps,
    sweep,
)
from gpt.training.manifest import find_damage, read_notes, write_manifest
from gpt.training.processes import is_first, lost_peer, meet
from gpt.training.report import warn
from gpt.training.run_dir import read_result
from gpt.training.state import TrainState

RETRY_SECONDS = 30.0
"""After a save that failed, the next is tried so much later, or when it is due."""
_MOST_FAILURES = 5
_LAST_PAUSES = (1.0, 5.0)


class _Save(NamedTuple):
    step: int
    may_be_seen: Future[bool]
    future: Future[None]


class Checkpoints:
    """The checkpoints of one run directory, as a context manager that waits for the last save."""

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        self._run_dir, self._config = run_dir, config
        self._directory = directory_of(run_dir).resolve()  # Orbax wants an absolute path
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save: _Save | None = None
        self._failure: BaseException | None = None  # of the save before, until one succeeds
        self._num_failures, self._failed_at = 0, 0.0
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if is_first():
                sweep(self._run_dir)
        except OSError as error:
            raise DataError(f"cannot write checkpoints to {str(self._directory)!r}: {error}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if lost_peer(error) is not None:
            self._executor.shutdown(wait=False)  # a save under way waits for the part of the process that has ended
            return
        try:
            if self._save is not None and not self._save.may_be_seen.done():
                self._save.may_be_seen.set_result(False)  # what belongs before it was not written
            self._end_save()
            if error is None:
                self._require_written(most_failures=1)
        finally:
            self._executor.shutdown()

    # Reading

    def newest_verified(self) -> int | None:
        """The newest step whose files are as they were written; None when nothing was saved. The same in all processes.

        Newer ones are moved to `STEP.damaged`, with a warning.

        Raises:
          DataError: none of those that are there can be used.
        """
        step = (newest_verified(self._run_dir) or 0) if is_first() else -1
        meet()
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return step or None

    def notes(self, step: int) -> dict[str, Any]:
        """What `begin_save` was given to keep beside the state."""
        return read_notes(self._directory / str(step))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, which was verified, with the shapes and shardings of `like`.

        Raises:
          DataError: the checkpoint holds other arrays, shapes or dtypes.
        """
        expected = {"params": like.params, "optimizer": like.optimizer_state}
        path = self._directory / str(step)
        with _reading(path):
            saved = ocp.checkpointables_metadata(str(path)).metadata
            _check_same_arrays({name: saved.get(name, {}) for name in expected}, expected, f"checkpoint of step {step}")
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), expected)
            items = ocp.load_checkpointables(str(path), abstract)
        return TrainState(jax.device_put(np.int32(step), like.step.sharding), items["params"], items["optimizer"])

    # Writing

    def is_due(self, step: int) -> bool:
        """Whether to save after this update: as the config says, and soon after a save that failed."""
        if self._save is not None and self._save.future.done():
            self._end_save()
        is_retry = self._failure is not None and time.monotonic() > self._failed_at + RETRY_SECONDS
        # Several processes save after the same update, and only the due ones are known to all.
        return step % self._config.save_every_steps == 0 or (is_retry and jax.process_count() == 1)

    def begin_save(self, state: TrainState, notes: dict[str, Any] | None = None) -> None:
        """Copies the state and writes it, with `notes`, in the background; `publish` makes it a checkpoint.

        Waits first for the save before it, if that still runs. One that failed is said, and tried again with the
        state of a later step; older checkpoints are left alone.

        Raises:
          DataError: too many saves in a row have failed.
        """
        self._end_save()
        self._require_written(_MOST_FAILURES if jax.process_count() == 1 else 1)
        step = int(state.step)
        if not (self._directory / str(step)).exists():
            self._begin(state, step, notes or {})

    def publish(self) -> None:
        """From here on, the state of `begin_save` may become a checkpoint: all that belongs before it is written."""
        if self._save is not None and not self._save.may_be_seen.done():
            self._save.may_be_seen.set_result(True)

    def finish(self, state: TrainState, notes: dict[str, Any] | None = None) -> None:
        """Returns once the state that was saved last, still at hand, is a checkpoint.

        Raises:
          DataError: it could not be written, several times.
        """
        self._end_save()
        for pause in _LAST_PAUSES:
            if self._failure is None or jax.process_count() > 1:
                break
            time.sleep(pause)
            self._begin(state, int(state.step), notes or {})
            self.publish()
            self._end_save()
        self._require_written(most_failures=1)

    def _begin(self, state: TrainState, step: int, notes: dict[str, Any]) -> None:
        items = {"params": state.params, "optimizer": state.optimizer_state}
        may_be_seen: Future[bool] = Future()
        try:
            # A new writer each time: nothing of a save that failed is left in it.
            response = ocp.save_checkpointables_async(str(self._directory / f"{WRITING}{step}"), items, overwrite=True)
            future = self._executor.submit(self._complete, response, step, notes, may_be_seen)
        except (OSError, ValueError) as error:
            if lost_peer(error) is not None:
                raise  # no disk is full: the run is over
            future: Future[None] = Future()
            future.set_exception(error)
        self._save = _Save(step, may_be_seen, future)

    def _complete(self, response: Any, step: int, notes: dict[str, Any], may_be_seen: Future[bool]) -> None:
        response.result()  # of all processes
        if not is_first():
            return
        path = self._directory / f"{WRITING}{step}"
        write_manifest(path, step, notes)
        if not may_be_seen.result():
            return
        path.rename(self._directory / str(step))
        sync_directory(self._directory)
        delete_old(self._run_dir, self._config)

    def _end_save(self) -> None:
        """Waits for the save under way; says so when it has failed."""
        save, self._save = self._save, None
        if save is None:
            return
        try:
            save.future.result()
        except (OSError, ValueError) as error:
            if lost_peer(error) is not None:
                raise
            self._failure, self._failed_at = error, time.monotonic()
            self._num_failures += 1
            warn(f"the checkpoint of step {save.step} {self._not_written(error)}")
            return
        self._failure, self._num_failures = None, 0

    def _require_written(self, most_failures: int) -> None:
        if self._failure is not None and self._num_failures >= most_failures:
            raise DataError(
                f"a checkpoint {self._not_written(self._failure)}; make room, and repeat the command"
            ) from self._failure

    def _not_written(self, error: BaseException) -> str:
        return f"could not be written to {str(self._directory)!r}: {_first_line(error)}. Earlier checkpoints are whole"


def find_checkpoint(run_dir: Path, step: int | None = None) -> Path:
    """The checkpoint that a run saved at `step`; DataError when there is none.

    Without a step it is the latest, or the best of a finished run that `RunConfig.patience` chose it for.
    """
    if step is None:
        step = ((read_result(run_dir) or {}).get("best") or {}).get("step")
    directory = directory_of(run_dir).resolve()
    steps = saved_steps(run_dir)
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        there = f"; there are steps {', '.join(map(str, steps))}" if steps else ": train there first"
        raise DataError(f"{str(run_dir)!r} does not hold {wanted}{there}")
    return directory / str(steps[-1] if step is None else step)


def require_whole(checkpoint: Path) -> None:
    """Raises DataError when a file of the weights is not as it was written; the first process looks for all."""
    if not is_first():
        return
    damage = find_damage(checkpoint, int(checkpoint.name), lambda name: not name.startswith("optimizer/"))
    if damage is not None:
        others = [str(step) for step in saved_steps(checkpoint.parents[1]) if str(step) != checkpoint.name]
        way_out = f"there are also steps {', '.join(others)}; " if others else ""
        raise DataError(
            f"checkpoint {str(checkpoint)!r} is damaged: {damage}. Nothing of it is used; {way_out}`gpt verify RUN` "
            "looks at all, and train.py, repeated before the run is finished, goes back to the newest that is whole"
        )


def load_params(checkpoint: Path, mesh: Mesh) -> Params:
    """The weights of one checkpoint, laid out on `mesh`, once their files are verified.

    Raises:
      DataError: a file is not as it was written, or the weights are not float32.
    """
    require_whole(checkpoint)
    meet()
    path = str(checkpoint)
    with _reading(checkpoint):
        shapes = _as_dicts(ocp.checkpointables_metadata(path).metadata["params"])
        for name, leaf in jax.tree.leaves_with_path(shapes):
            if leaf.dtype != np.float32:
                raise DataError(f"checkpoint {path!r}: {_path_text(name)} is {leaf.dtype}, and weights are float32")
        return ocp.load_checkpointables(path, {"params": sharded_shapes(mesh, shapes)})["params"]


def save_params(run_dir: Path, params: Params) -> None:
    """Writes weights as the checkpoint of step 0, to start from or to evaluate; no optimizer state."""
    path = path_of(run_dir, 0).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ocp.save_checkpointables(str(path), {"params": params})
        write_manifest(path, 0, {})
    except (OSError, ValueError) as error:
        raise DataError(f"weights could not be written to {str(path)!r}: {_first_line(error)}") from error


@contextlib.contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"checkpoint {str(checkpoint)!r} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
