"""Scores of a run's weights, by the config that the run saved."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt import gin_io
from gpt.config import TokenizerConfig
from gpt.errors import DataError
from gpt.sharding import make_mesh
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.evaluate import evaluate
from gpt.training.problem import load_problem
from gpt.training.run_dir import load_config, load_tokenizer
from gpt.training.steps import make_eval_step


def score_run(run_dir: Path, step: int | None = None, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row a metric over the whole validation split: `task`, `metric`, `value`, `n` and `step`.

    `step` names a checkpoint (None: the latest). `overrides` change the saved config, for
    instance to score another token store.
    """
    load_config(run_dir)  # says so when the directory is no run
    config = gin_io.load([run_dir / "config.gin"], overrides)
    config = dataclasses.replace(config, tokenizer=TokenizerConfig(path=str(run_dir / "tokenizer")))
    problem = load_problem(config, load_tokenizer(run_dir), whole_validation=True)
    mesh = make_mesh(config.mesh)
    checkpoint = find_checkpoint(run_dir, step)
    params = load_params(checkpoint, mesh)
    head = params["head"]["bias"].shape[0] if "head" in params else None
    if problem.task is not None and head != problem.num_outputs:
        found = "no head" if head is None else f"a head of {head} outputs"
        raise DataError(
            f"{str(checkpoint)!r} has {found}, but TaskConfig.name = {config.task.name!r} takes one of "
            f"{problem.num_outputs}: score a run that was fine-tuned on this task"
        )
    scores = evaluate(make_eval_step(config.model, problem.objective), params, problem, mesh)
    task = config.task.name or "language_modeling"
    return [
        {"task": task, "metric": name, "value": value, "n": n, "step": int(checkpoint.name)}
        for name, (value, n) in scores.items()
    ]
