"""Updates that were skipped: each is logged with what was in its batch, and too many in a row end the run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gpt.config import RunConfig
from gpt.errors import NotFinite
from gpt.training.checkpoint_dir import path_of, saved_steps
from gpt.training.run_dir import read_metrics

Numbers = Callable[[int, int], dict[str, list[int]]]
"""What is in the batch of a seed and a step, as `Problem.numbers_of` tells."""


class Finished:
    """The metrics of updates, each once its successor is under way, so that nothing waits for them."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Any]] = []

    def add(self, step: int, metrics: Any) -> list[tuple[int, Any]]:
        """Takes note of an update just begun; the steps and metrics of those before it."""
        for value in jax.tree.leaves(metrics):
            value.copy_to_host_async()
        before = self.rest()
        self._pending.append((step, metrics))
        return before

    def rest(self) -> list[tuple[int, Any]]:
        """Those of all updates so far that were not given yet."""
        pending, self._pending = self._pending, []
        return pending


class SkippedUpdates:
    """Logs the updates of a run that were skipped, and counts those in a row."""

    def __init__(self, config: RunConfig, run_dir: Path, first: int, numbers_of: Numbers, log: Callable[..., None]):
        """For a run that continues after update `first`; `log` takes step, kind and values of a line."""
        self._config, self._run_dir, self._numbers_of, self._log = config, run_dir, numbers_of, log
        skipped = {line["step"] for line in read_metrics(run_dir) if line["kind"] == "skipped"}
        self._in_a_row = next(count for count in range(len(skipped) + 1) if first - count not in skipped)

    def judge(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of the next update, in order.

        Raises:
          NotFinite: with this one, too many in a row were skipped.
        """
        if not metrics["skipped"]:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        values = {name: _as_json(float(value)) for name, value in metrics.items() if name != "skipped"}
        self._log(step, "skipped", {**values, "numbers": self._numbers_of(self._config.seed_of_data, step - 1)})
        most = self._config.optimizer.max_skipped_updates
        if self._in_a_row < most:
            return
        steps = saved_steps(self._run_dir)
        good = "nothing was saved yet"
        if steps:
            good = f"the last good state is checkpoint {str(path_of(self._run_dir, steps[-1]))!r}"
        raise NotFinite(
            f"{self._in_a_row} updates in a row were skipped, because their loss or gradient was not finite or a spike "
            f"(OptimizerConfig.max_skipped_updates = {most}). No weight was changed by them; "
            f"{good}. metrics.jsonl has the numbers of their examples in its "
            'lines of kind "skipped": look at these, or train in another directory with a lower '
            "OptimizerConfig.learning_rate"
        )


def _as_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
