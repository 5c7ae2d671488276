"""The directory of a run's checkpoints: which there are, which of them are whole, and which are kept."""

import contextlib
import math
import shutil
from pathlib import Path

from gpt.config import CheckpointConfig
from gpt.errors import DataError
from gpt.training.manifest import find_damage, read_notes
from gpt.training.report import warn

WRITING = ".saving-"
"""What the name of a checkpoint begins with until it is one."""
_DELETING = ".deleting-"


def directory_of(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def path_of(run_dir: Path, step: int) -> Path:
    """The checkpoint of a step, whether it is there or not."""
    return directory_of(run_dir) / str(step)


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of the checkpoints that a run has kept, ascending."""
    return sorted(int(path.name) for path in directory_of(run_dir).glob("*") if path.name.isdecimal())


def best_step(run_dir: Path) -> int | None:
    """The kept step with the highest `score` in its notes, of equal ones the last; None when none has a score."""
    scores = {}
    for step in saved_steps(run_dir):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # one that is damaged has none
            score = read_notes(path_of(run_dir, step))["score"]
            if score is not None and math.isfinite(score):
                scores[step] = float(score)
    return max(scores, key=lambda step: (scores[step], step), default=None)


def newest_verified(run_dir: Path) -> int | None:
    """The newest step whose files are as they were written; None when nothing was saved.

    Newer ones are moved to `STEP.damaged`, with a warning.

    Raises:
      DataError: none of those that are there can be used.
    """
    damage: dict[int, str] = {}
    newest = None
    for step in reversed(saved_steps(run_dir)):
        what = find_damage(path_of(run_dir, step), step)
        if what is None:
            newest = step
            break
        damage[step] = what
    if damage and newest is None:
        raise _all_damaged(run_dir, damage)
    for step, what in damage.items():
        set_aside(run_dir, step, f"{what}; going back to step {newest}")
    return newest


def set_aside(run_dir: Path, step: int, why: str) -> None:
    """Moves a damaged checkpoint to a name under which nothing looks for it, and says so."""
    path, number = path_of(run_dir, step), 1
    target = path.with_name(f"{step}.damaged")
    while target.exists():
        number += 1
        target = path.with_name(f"{step}.damaged-{number}")
    try:
        path.rename(target)
    except OSError as error:
        raise DataError(f"checkpoint {str(path)!r} is damaged and cannot be moved aside: {error}") from error
    warn(f"checkpoint {str(path)!r} is damaged: {why}. It was moved to {target.name!r}")


def delete_old(run_dir: Path, config: CheckpointConfig) -> None:
    """Deletes the checkpoints that `config` does not keep."""
    steps = saved_steps(run_dir)
    kept = set(steps[-config.keep :])
    if config.keep_every_steps is not None:
        kept |= {step for step in steps if step % config.keep_every_steps == 0}
    if config.keep_best and (best := best_step(run_dir)) is not None:
        kept.add(best)
    try:
        for step in sorted(set(steps) - kept):
            path = path_of(run_dir, step)
            doomed = path.with_name(f"{_DELETING}{step}")
            path.rename(doomed)  # so that no half of it is ever taken for a checkpoint
            shutil.rmtree(doomed)
    except OSError as error:
        warn(f"an old checkpoint could not be deleted: {error}")


def sweep(run_dir: Path) -> None:
    """Deletes what a killed process was writing or deleting."""
    for path in directory_of(run_dir).iterdir():
        if path.name.startswith((WRITING, _DELETING)):
            shutil.rmtree(path)


def _all_damaged(run_dir: Path, damage: dict[int, str]) -> DataError:
    return DataError(
        f"{str(run_dir)!r} has no checkpoint to continue from: "
        + "; ".join(f"that of step {step} is damaged: {what}" for step, what in damage.items())
        + ". Bring back one of them from a copy, or begin again in another RunConfig.output_dir"
    )
