"""Loss curves as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.errors import DataError
from gpt.training.run_dir import read_metrics


def draw_loss_curves(run_dirs: Sequence[Path], output: Path) -> None:
    """Writes a PNG with the training and validation loss of each run against its updates.

    Raises:
      DataError: a directory holds no metrics, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="updates", ylabel="loss (nats)")
    for index, run_dir in enumerate(run_dirs):
        lines = read_metrics(run_dir)
        if not lines:
            raise DataError(f"{str(run_dir)!r} has no metrics.jsonl with log lines: give run directories")
        for kind, style in (("train", "-"), ("validation", "o--")):
            points = [(line["step"], _loss(line, run_dir)) for line in lines if line["kind"] == kind]
            if points:
                steps, losses = zip(*points, strict=True)
                axes.plot(steps, losses, style, color=f"C{index}", markersize=3, label=f"{run_dir.name}, {kind}")
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, output)


def save_figure(figure: Any, output: Path) -> None:
    """Writes a picture, and the directory for it; DataError when it cannot be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=150)
    except OSError as error:
        raise DataError(f"--output {str(output)!r} cannot be written: {error}") from error


def _loss(line: dict[str, Any], run_dir: Path) -> float:
    """The task's loss, or the language model's where there is no task: the same quantity in both kinds of line."""
    loss = line.get("task_loss", line.get("lm_loss"))
    if not isinstance(loss, int | float):
        raise DataError(
            f"{str(run_dir)!r}: metrics.jsonl has no loss in its line of step {line['step']}: found {loss!r:.40}"
        )
    return loss
