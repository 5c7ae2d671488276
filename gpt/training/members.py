"""The runs of a population: what each has in its directory, and what is written there."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt.config import RunConfig
from gpt.errors import NotFinite
from gpt.sharding import member_of
from gpt.training.checkpoint import Checkpoints
from gpt.training.checkpoint_dir import path_of, saved_steps, set_aside
from gpt.training.loop import summary
from gpt.training.manifest import find_damage
from gpt.training.meter import Meter, means_of
from gpt.training.optimizer import make_schedule
from gpt.training.owner import owned
from gpt.training.problem import Problem
from gpt.training.report import Report
from gpt.training.run_dir import write_result
from gpt.training.skipped import SkippedUpdates
from gpt.training.state import TrainState

Window = list[dict[str, Any]]
"""The metrics of each update since the last log line: of each metric one value a member."""


class Member:
    """One run of a population: its directory, and what is written there.

    What the run had saved when it was opened is not written again, should others be behind.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path, problem: Problem, stack: contextlib.ExitStack, *, is_shown: bool
    ):
        self.config, self.run_dir = config, run_dir
        stack.enter_context(owned(run_dir))
        self.schedule = make_schedule(config.optimizer, problem.num_steps)
        self.checkpoints = stack.enter_context(Checkpoints(run_dir, config.checkpoint))
        self._last_step = self.checkpoints.newest_verified() or 0
        self.steps = saved_steps(run_dir)
        title = config.task.name or "pretraining"
        self.report = stack.enter_context(Report(run_dir, self._last_step, problem.num_steps, title, is_shown=is_shown))
        self.score: float | None = None
        """Of the evaluation after the latest update, if there was one."""
        self.failure: tuple[int, str] | None = None

    def log(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """A log line of the member."""
        if step > self._last_step and self.failure is None:
            self.report.log(step, kind, values)

    def watch_updates(self, problem: Problem, first: int) -> None:
        """Counts skipped updates from the one after `first`."""
        self.skipped = SkippedUpdates(self.config, self.run_dir, first, problem.numbers_of, self.log)

    def begin_save(self, step: int, population: TrainState, index: int, window: Window) -> None:
        """Writes the member's part of the state in the background."""
        if step > self._last_step and self.failure is None:
            self.checkpoints.begin_save(member_of(population, index), self._notes(index, window))

    def finish(self, step: int, population: TrainState, index: int, window: Window) -> None:
        """Returns once that is a checkpoint."""
        if step > self._last_step and self.failure is None:
            self.checkpoints.finish(member_of(population, index), self._notes(index, window))

    def _notes(self, index: int, window: Window) -> dict[str, Any]:
        unread = [{name: float(value) for name, value in of_member(update, index).items()} for update in window]
        return {"score": self.score, "unread": unread}

    def find_damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; the newest was verified when the run was opened."""
        return None if step == self._last_step else find_damage(path_of(self.run_dir, step), step)

    def result(self, problem: Problem) -> dict[str, Any]:
        """The summary of the run, or where and how it failed."""
        if self.failure is not None:
            return {"run": str(self.run_dir), "step": self.failure[0], "error": self.failure[1]}
        result = summary(self.run_dir, problem)
        write_result(self.run_dir, result)
        return result


def of_member(tree: Any, index: int) -> Any:
    """A member's part of arrays on the host that have one a member."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def judge_updates(members: list[Member], updates: list[tuple[int, Any]]) -> None:
    """Logs the updates of each member that were skipped; a member with too many in a row has failed."""
    for step, metrics in updates:
        by_member = jax.device_get(metrics)
        for index, member in enumerate(members):
            if member.failure is not None:
                continue
            try:
                member.skipped.judge(step, of_member(by_member, index))
            except NotFinite as error:
                member.failure = (step, str(error))
                members[0].report.say(f"warning: {member.run_dir} stops here, the others go on: {error}")


def log_updates(members: list[Member], step: int, speed: dict[str, Any], window: Window) -> None:
    """A line of each member: the means of its own metrics since the last, and the speed of the whole program."""
    for index, member in enumerate(members):
        own = means_of([of_member(metrics, index) for metrics in window])
        rate = float(member.schedule(step - 1))
        member.log(step, "train", {**speed, **own, "learning_rate": rate})


def save_members(
    members: list[Member], step: int, state: TrainState, meter: Meter, window: Window, *, is_last: bool
) -> None:
    """Saves all members in the background, the last time in the foreground."""
    with meter.spent("save"):
        for index, member in enumerate(members):
            member.begin_save(step, state, index, window)
    time = meter.read_time()
    for member in members:
        member.log(step, "time", time)
        member.report.sync()
        member.checkpoints.publish()
    if is_last:
        for index, member in enumerate(members):
            member.finish(step, state, index, window)


def common_step(lanes: list[Member]) -> int | None:
    """The newest step that all members have saved and that is whole in all."""
    while common := set.intersection(*(set(member.steps) for member in lanes)):
        step = max(common)
        damage = {member: member.find_damage(step) for member in set(lanes)}
        for member, what in damage.items():
            if what is not None:
                set_aside(member.run_dir, step, what)
                member.steps.remove(step)
        if not any(damage.values()):
            return step
    return None


def unread(lanes: list[Member], step: int) -> Window:
    """The metrics of updates since the last log line, as all members have kept them."""
    kept = [member.checkpoints.notes(step)["unread"] for member in lanes]
    return [
        {name: float_array(update[name] for update in updates) for name in updates[0]}
        for updates in zip(*kept, strict=True)
    ]


def float_array(values: Iterable[float]) -> np.ndarray:
    """The values as the step takes them."""
    return np.array(list(values), np.float32)
