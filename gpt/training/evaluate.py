"""Held-out loss, perplexity and task metrics of a set of parameters, and its prediction for every example."""

import math
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gpt.errors import DataError
from gpt.metrics import METRICS, is_undefined
from gpt.model.gpt import Params
from gpt.sharding import local_rows, shard_batch, splitting_activations
from gpt.tasks.registry import Task
from gpt.tasks.targets import predict
from gpt.tasks.transforms import MULTIPLE_CHOICE
from gpt.training.problem import HeldOut, Problem
from gpt.training.processes import fetch
from gpt.training.steps import EvalStep


class Score(NamedTuple):
    """A value and the number of tokens, sequences or examples it is a mean over."""

    value: float
    n: int


class Judged(NamedTuple):
    """Scores of one held-out split by name and, for a task, one line an example in the order of the split."""

    scores: dict[str, Score]
    predictions: list[dict[str, Any]]


def evaluate(eval_step: EvalStep, params: Params, problem: Problem, mesh: Mesh) -> dict[str, Score]:
    """Scores by name over all held-out data, exact for any batch size.

    `lm_loss` in nats; for text `perplexity`; for a task `task_loss` and the task's metrics. Those of a
    second held-out split end in what sets it apart, such as `accuracy_mismatched`. Of several token stores
    each has its own, such as `perplexity_books`; without ending are those over the tokens of all.
    """
    return join_scores({split: judge(eval_step, params, problem, split, mesh).scores for split in problem.held_outs})


def join_scores(scores_by_split: dict[str, dict[str, Score]]) -> dict[str, Score]:
    """All scores in one dict, those of the first split, or of all text together, under their own names."""
    splits = list(scores_by_split.items())
    if len(splits) > 1 and all("perplexity" in scores for _, scores in splits):
        losses = [scores["lm_loss"] for _, scores in splits]
        count = sum(n for _, n in losses)
        splits.insert(0, ("validation", _text_scores(Score(math.fsum(loss * n for loss, n in losses) / count, count))))
    joined = {}
    for rank, (split, scores) in enumerate(splits):
        suffix = f"_{split.partition('_')[2]}" if rank else ""
        joined.update({f"{name}{suffix}": score for name, score in scores.items()})
    return joined


def _text_scores(loss: Score) -> dict[str, Score]:
    perplexity = math.exp(min(loss.value, 700.0))  # exp(710) is not a float
    return {"lm_loss": loss, "perplexity": Score(perplexity, loss.n)}


def judge(eval_step: EvalStep, params: Params, problem: Problem, split: str, mesh: Mesh) -> Judged:
    """Scores and predictions of one split of the problem.

    Raises:
      DataError: the model gives scores that are not numbers.
    """
    held_out = problem.held_outs[split]
    batches = held_out.batches(rows=local_rows(mesh, held_out.batch_size).tolist())
    with splitting_activations(mesh):
        results = [fetch(eval_step(params, shard_batch(mesh, batch, held_out.batch_size))) for batch in batches]
    return judge_results(results, problem, split)


def judge_results(results: list[Any], problem: Problem, split: str) -> Judged:
    """Scores and predictions from the `Evaluation` of each batch of the split, on the host; raises as `judge` does."""
    held_out = problem.held_outs[split]
    scores = {}
    for name in results[0].totals:
        total = math.fsum(float(result.totals[name]) for result in results)
        count = math.fsum(float(result.counts[name]) for result in results)
        scores[name] = Score(total / count, round(count))
    if problem.task is None:
        return Judged(_text_scores(scores["lm_loss"]), [])

    scores_by_row = np.concatenate([result.scores for result in results])[: len(held_out.order)]
    by_example = _scores_by_example(held_out, scores_by_row, split, problem.task)
    predictions = predict(problem.task.targets, scores_by_row)
    if held_out.labels is None:
        scores.pop("task_loss", None)
    else:
        scores.update(_metrics(problem.task, held_out.labels, predictions))
    return Judged(scores, _lines(held_out, predictions, by_example))


def _scores_by_example(held_out: HeldOut, scores: np.ndarray, split: str, task: Task) -> list[np.ndarray]:
    """Scores of each example, without those of candidates that it does not have."""
    by_example = list(scores)
    if task.transform is MULTIPLE_CHOICE:
        by_example = [row[:count] for row, count in zip(scores, held_out.num_sequences, strict=True)]
    num_bad = sum(not np.isfinite(example).all() for example in by_example)
    if num_bad:
        raise DataError(
            f"{num_bad} of {len(by_example)} examples of the {split} split have scores that are not finite numbers: "
            "the weights have diverged; train with a lower OptimizerConfig.learning_rate, or score an earlier "
            "checkpoint with --step"
        )
    return by_example


def _metrics(task: Task, labels: np.ndarray, predictions: np.ndarray) -> dict[str, Score]:
    scores = {name: Score(METRICS[name](labels, predictions), len(labels)) for name in task.metrics}
    num_undefined = sum(is_undefined(name, labels, predictions) for name in task.metrics)
    if num_undefined:
        scores["undefined_metrics"] = Score(num_undefined, len(labels))
    return scores


def _lines(held_out: HeldOut, predictions: np.ndarray, by_example: list[np.ndarray]) -> list[dict[str, Any]]:
    lines = [
        {
            "row": int(row),
            "label": None if held_out.labels is None else held_out.labels[place].item(),
            "prediction": predictions[place].item(),
            "scores": [round(float(score), 6) for score in by_example[place]],
        }
        for place, row in enumerate(held_out.order)
    ]
    return sorted(lines, key=lambda line: line["row"])
