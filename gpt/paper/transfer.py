"""Scores against the number of pretrained layers that fine-tuning starts from (Radford et al. 2018, figure 2 left)."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt import gin_io
from gpt.config import RunConfig
from gpt.errors import DataError
from gpt.evaluation.curves import save_figure
from gpt.paper.runs import FinishedRun, by_seed, finished_runs, setting_of
from gpt.tasks.registry import find_task


@dataclasses.dataclass(frozen=True)
class Curve:
    """One task: its scores in percent by number of transferred layers, and then by seed.

    `points` has 0 (embeddings alone) to all layers, and None: no pre-training. Those without runs are empty.
    """

    task: str
    metric: str
    points: dict[int | None, dict[int, float]]

    @property
    def missing(self) -> list[int | None]:
        """The points without runs."""
        return [number for number, scores in self.points.items() if not scores]

    def to_json(self) -> list[dict[str, Any]]:
        """Every number of each point; None where there is none."""
        num_layers = max(number for number in self.points if number is not None)
        return [
            {
                "task": self.task,
                "metric": self.metric,
                "pretrained": number is not None,
                "num_transferred_layers": number,
                "num_layers": num_layers,
                "split": "validation",
                **_statistics(scores),
            }
            for number, scores in self.points.items()
        ]


def _statistics(scores: dict[int, float]) -> dict[str, Any]:
    values = list(scores.values())
    return {
        "n": len(values),
        "seeds": list(scores),
        "median": statistics.median(values) if values else None,
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
    }


def collect_curves(root: Path) -> tuple[list[Curve], list[str]]:
    """The curve of each task that has a partly transferred run under `root`, and notes for the reader.

    The runs of a curve differ in nothing but the layers, the seed, and for the point without
    pre-training in `init_from`. Where there are several settings, the one with most points is taken, of
    equal ones the one with most runs, then the one that comes first by path, and a note says so.

    Raises:
      DataError: `root` is no directory, there is no run in it, or none that takes over some layers only.
    """
    runs, notes = finished_runs(root)
    by_task: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        by_task[str(run.config.task.name)].append(run)
    curves = []
    for task, members in sorted(by_task.items()):
        if all(run.config.transfers_all_layers for run in members):
            notes.append(f"{task}: left out, no run takes over some layers only (RunConfig.num_transferred_layers)")
        else:
            curves.append(_curve(task, members, notes))
    if not curves:
        raise DataError(
            f"--runs {str(root)!r} holds no finished run that takes over some layers only: fine-tune with "
            "RunConfig.num_transferred_layers"
        )
    return curves, notes


def _curve(task: str, runs: list[FinishedRun], notes: list[str]) -> Curve:
    settings: dict[RunConfig, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        settings[_setting_of(run.config)].append(run)
    pretrained = {setting: members for setting, members in settings.items() if setting.init_from is not None}
    # `max` keeps the first of equals, and the runs came in the order of their paths.
    chosen = max(
        pretrained, key=lambda setting: (len(set(map(_num_layers, settings[setting]))), len(settings[setting]))
    )
    without = dataclasses.replace(chosen, init_from=None)
    for setting, others in settings.items():
        if setting not in (chosen, without):
            differences = "; ".join(gin_io.differences(setting, chosen))
            notes.append(f"{task}: {len(others)} runs of other settings left out ({differences})")
    metric = find_task(task).metrics[0]
    points: dict[int | None, dict[int, float]] = {}
    for number in (None, *range(chosen.model.num_layers + 1)):
        members = settings[chosen if number is not None else without]
        at_point = [run for run in members if _num_layers(run) == number]
        scores = by_seed(at_point, notes)
        points[number] = {seed: 100 * scores[seed][metric] for seed in sorted(scores) if metric in scores[seed]}
    return Curve(task, metric, points)


def _setting_of(config: RunConfig) -> RunConfig:
    return dataclasses.replace(setting_of(config), num_transferred_layers=None)


def _num_layers(run: FinishedRun) -> int | None:
    """How many layers a run took over; None: it started from random weights."""
    config = run.config
    if config.init_from is None:
        return None
    return config.model.num_layers if config.num_transferred_layers is None else config.num_transferred_layers


def draw_curves(curves: Iterable[Curve], output: Path) -> None:
    """Writes a PNG with one line a task through the medians, and bars from the lowest to the highest seed.

    The scores without pre-training stand apart, left of 0 layers. Raises DataError when it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="layers transferred", ylabel="score on validation x 100")
    last = 0
    for color, curve in enumerate(curves):
        style = {"color": f"C{color}", "marker": "o", "markersize": 4, "capsize": 2}
        drawn = [number for number in curve.points if number is not None and curve.points[number]]
        axes.errorbar(drawn, *_medians_and_spreads(curve, drawn), **style, label=f"{curve.task}, {curve.metric}")
        last = max(last, *drawn)
        if curve.points[None]:
            axes.errorbar([-1], *_medians_and_spreads(curve, [None]), **style)
    axes.set_xticks(range(-1, last + 1), ["no pre-\ntraining", *map(str, range(last + 1))])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, output)


def _medians_and_spreads(curve: Curve, numbers: list[Any]) -> tuple[list[float], list[list[float]]]:
    scores = [list(curve.points[number].values()) for number in numbers]
    medians = [statistics.median(values) for values in scores]
    below = [median - min(values) for median, values in zip(medians, scores, strict=True)]
    above = [max(values) - median for median, values in zip(medians, scores, strict=True)]
    return medians, [below, above]
