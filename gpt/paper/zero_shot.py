"""Zero-shot scores of models, also over the course of their pretraining (Radford et al. 2018, figure 2 right)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gpt.config import MeshConfig
from gpt.errors import DataError
from gpt.evaluation.curves import save_figure
from gpt.evaluation.zero_shot import zero_shot_score
from gpt.evaluation.zero_shot_questions import Questions, read_questions
from gpt.interop.weights import Model
from gpt.model.gpt import Params
from gpt.paper.published import zero_shot_scale
from gpt.sharding import make_mesh
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.checkpoint_dir import saved_steps
from gpt.training.model_dir import detect_format


class Data(NamedTuple):
    """What to ask: the file of each task, and one to choose CoLA's threshold on."""

    files: dict[str, Path]
    threshold: Path | None = None


def score_model(directory: Path, model: Model, data: Data, *, all_checkpoints: bool) -> Iterator[dict[str, Any]]:
    """One row a task and, with `all_checkpoints`, a step: what `zero_shot_score` gives, `model` and `step`.

    `normalised` is the score on the task's scale, and `best`, in percent, is where that has its 1. Models
    that are no runs have no `step`.

    Raises:
      DataError: no tokenizer, no checkpoint, or a row that cannot be asked.
    """
    if model.tokenizer is None:
        raise DataError(f"--model {str(directory)!r} has no tokenizer beside it: give one with --tokenizer DIR")
    is_run = detect_format(directory) == "run"
    if all_checkpoints and not is_run:
        raise DataError(f"--checkpoints: {str(directory)!r} is no run of train.py, it has one set of weights")
    questions = [read_questions(task, path, model.tokenizer) for task, path in data.files.items()]
    threshold = None if data.threshold is None else read_questions("cola", data.threshold, model.tokenizer)
    for step, params in _weights(directory, model, is_run, all_checkpoints):
        for asked in questions:
            yield {"model": str(directory), **step, **_row(model, params, asked, threshold)}


def _weights(
    directory: Path, model: Model, is_run: bool, all_checkpoints: bool
) -> Iterator[tuple[dict[str, int], Params]]:
    if not is_run:
        yield {}, model.params
    elif not all_checkpoints:
        yield {"step": int(find_checkpoint(directory).name)}, model.params
    else:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        for step in saved_steps(directory):
            yield {"step": step}, load_params(find_checkpoint(directory, step), mesh)


def _row(model: Model, params: Params, questions: Questions, threshold: Questions | None) -> dict[str, Any]:
    row = zero_shot_score(model.config, params, questions, threshold if questions.task == "cola" else None)
    scale = zero_shot_scale(row["task"])
    return {**row, "normalised": scale.normalise(100 * row["value"]), "best": scale.best, "best_is": scale.best_is}


def draw_zero_shot(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """Writes a PNG with a line for each task and model: normalised score against updates, on a log axis.

    A task has its colour and a model its style, as the paper draws the transformer solid and the LSTM dashed.

    Raises:
      DataError: no row has a step greater than 0, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row.get("step", 0) > 0]  # a log axis has no place for 0
    if not drawn:
        raise DataError("--output: no scores to draw against updates; give runs of train.py, best with --checkpoints")
    tasks = list(dict.fromkeys(row["task"] for row in drawn))
    models = list(dict.fromkeys(row["model"] for row in drawn))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="updates", ylabel="score from a random guess (0) to the best (1)", xscale="log")
    for color, task in enumerate(tasks):
        scale = zero_shot_scale(task)
        for index, model in enumerate(models):
            points = sorted((r["step"], r["normalised"]) for r in drawn if (r["task"], r["model"]) == (task, model))
            if points:
                label = f"{task} (1 is {scale.best:g})" + (f", {model}" if len(models) > 1 else "")
                style = ("-", "--", ":", "-.")[index % 4]
                axes.plot(*zip(*points, strict=True), style, marker="o", color=f"C{color}", markersize=3, label=label)
    for level in (0, 1):
        axes.axhline(level, color="gray", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save_figure(figure, output)
