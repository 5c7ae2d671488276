"""Held-out loss, perplexity and task metric of a set of parameters."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gpt.metrics import METRICS
from gpt.model.gpt import Params
from gpt.sharding import shard_batch
from gpt.training.problem import Problem
from gpt.training.steps import Evaluation


class Score(NamedTuple):
    """A value and the number of tokens, sequences or examples it is a mean over."""

    value: float
    n: int


def evaluate(eval_step: Callable[..., Evaluation], params: Params, problem: Problem, mesh: Mesh) -> dict[str, Score]:
    """Scores by name over all held-out data, exact for any batch size.

    `lm_loss` in nats; for text `perplexity`; for a task `task_loss` and the task's metric.
    """
    results = [jax.device_get(eval_step(params, shard_batch(mesh, batch))) for batch in problem.held_out.batches]
    scores = {}
    for name in results[0].totals:
        total = math.fsum(float(result.totals[name]) for result in results)
        count = math.fsum(float(result.counts[name]) for result in results)
        scores[name] = Score(total / count, round(count))
    if problem.task is None:
        loss, n = scores["lm_loss"]
        scores["perplexity"] = Score(math.exp(min(loss, 700.0)), n)  # exp(710) is not a float
    else:
        labels = problem.held_out.labels
        # Of each batch by itself: one may have more candidates than another.
        predictions = np.concatenate([result.scores.argmax(axis=-1) for result in results])[: len(labels)]
        metric = problem.task.metric
        scores[metric] = Score(METRICS[metric](labels, predictions), len(labels))
    return scores
