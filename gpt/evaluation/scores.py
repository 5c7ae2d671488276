"""Scores of a run's weights, by the config that the run saved, and its predictions for every example."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt import gin_io
from gpt.config import TokenizerConfig
from gpt.errors import DataError
from gpt.files import write_atomically
from gpt.model.attention import check_attention
from gpt.sharding import check_divisible, make_mesh
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.evaluate import join_scores, judge
from gpt.training.problem import load_problem
from gpt.training.processes import is_first, meet
from gpt.training.run_dir import load_config, load_tokenizer
from gpt.training.steps import make_eval_step


def score_run(
    run_dir: Path, step: int | None = None, overrides: Sequence[str] = (), split: str = "validation"
) -> list[dict[str, Any]]:
    """One row a metric over a whole split: `task`, `metric`, `value`, `n` and `step`.

    `step` names a checkpoint (None: the latest). `overrides` change the saved config, for
    instance to score another token store. The predictions of a task are kept in
    `predictions/SPLIT.jsonl` of the run directory, for another task than the run's own in
    `predictions/TASK-SPLIT.jsonl`; of a split without labels they are all there is.
    """
    saved = load_config(run_dir)  # says so when the directory is no run
    config = gin_io.load([run_dir / "config.gin"], overrides)
    config = dataclasses.replace(config, tokenizer=TokenizerConfig(path=str(run_dir / "tokenizer")))
    problem = load_problem(config, load_tokenizer(run_dir), only_split=split)
    checkpoint = find_checkpoint(run_dir, step)
    meet()  # What one process lacks ends all: the devices of one wait for those of the others.
    mesh = make_mesh(config.mesh)
    check_divisible(mesh, config.model, config.batch_size, 1)
    check_attention(mesh, config.model)
    params = load_params(checkpoint, mesh)
    head = params["head"]["bias"].shape[0] if "head" in params else None
    if problem.task is not None and head != problem.num_outputs:
        found = "no head" if head is None else f"a head of {head} outputs"
        raise DataError(
            f"{str(checkpoint)!r} has {found}, but TaskConfig.name = {config.task.name!r} takes one of "
            f"{problem.num_outputs}: score a run that was fine-tuned on this task"
        )
    eval_step = make_eval_step(config.model, problem.objective)
    scores = {}
    for name in problem.held_outs:
        scores[name], predictions = judge(eval_step, params, problem, name, mesh)
        if predictions and is_first():
            is_own = config.task.name == saved.task.name
            _keep(run_dir, name if is_own else f"{config.task.name}-{name}", predictions)
    task = config.task.name or "language_modeling"
    return [
        {"task": task, "metric": name, "value": value, "n": n, "step": int(checkpoint.name)}
        for name, (value, n) in join_scores(scores).items()
    ]


def predictions_path(run_dir: Path, name: str) -> Path:
    """Where the predictions of a split are kept."""
    return run_dir / "predictions" / f"{name}.jsonl"


def _keep(run_dir: Path, name: str, predictions: list[dict[str, Any]]) -> None:
    path = predictions_path(run_dir, name)
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in predictions))
    except OSError as error:
        raise DataError(f"predictions cannot be written to {str(path)!r}: {error}") from error
