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
from gpt.paper.published import load_published, normalised_zero_shot
from gpt.sharding import make_mesh
from gpt.training.checkpoint import find_checkpoint, load_params, saved_steps
from gpt.training.model_dir import detect_format


class Data(NamedTuple):
    """What to ask: the file of each task, and one to choose CoLA's threshold on."""

    files: dict[str, Path]
    threshold: Path | None = None


def score_model(directory: Path, model: Model, data: Data, *, all_checkpoints: bool) -> Iterator[dict[str, Any]]:
    """One row a task and, with `all_checkpoints`, a step: what `zero_shot_score` gives, `model` and `step`.

    `normalised` is 0 for a random guess and 1 for the best single model that the paper compares with,
    where it prints one. Models that are no runs have no `step`.

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
    normalised = normalised_zero_shot(row["task"], 100 * row["value"])
    return row if normalised is None else {**row, "normalised": normalised}


def draw_zero_shot(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """Writes a PNG with a panel a task: each model's score against its updates, on a log axis.

    Lines mark a random guess and, where the paper prints one, the best single model of the time.

    Raises:
      DataError: no row has a step greater than 0, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row.get("step", 0) > 0]  # a log axis has no place for 0
    if not drawn:
        raise DataError("--output: no scores to draw against updates; give runs of train.py, best with --checkpoints")
    tasks = list(dict.fromkeys(row["task"] for row in drawn))
    models = list(dict.fromkeys(row["model"] for row in drawn))
    constants = load_published()["zero_shot"]
    figure = Figure(figsize=(4 * len(tasks), 3.6), layout="constrained")
    for index, task in enumerate(tasks):
        metric = next(row["metric"] for row in drawn if row["task"] == task)
        axes = figure.add_subplot(1, len(tasks), index + 1, title=task, xlabel="updates", ylabel=f"{metric} x 100")
        axes.set_xscale("log")
        for color, model in enumerate(models):
            points = sorted((r["step"], 100 * r["value"]) for r in drawn if (r["task"], r["model"]) == (task, model))
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, "o-", color=f"C{color}", markersize=3, label=Path(model).name)
        axes.axhline(constants["random"][task], color="gray", linestyle=":", label="random guess")
        if task in constants["state_of_the_art"]:
            axes.axhline(constants["state_of_the_art"][task], color="gray", linestyle="--", label="best earlier model")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save_figure(figure, output)
