"""Scores of a language model on tasks it was never trained on (Radford et al. 2018, section 5, figure 2 right)."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.errors import DataError
from gpt.evaluation.token_scores import token_log_probs
from gpt.evaluation.zero_shot_questions import Candidate, Questions
from gpt.metrics import accuracy, matthews
from gpt.model.gpt import Params


def zero_shot_score(
    config: ModelConfig, params: Params, questions: Questions, threshold_questions: Questions | None = None
) -> dict[str, Any]:
    """One row: `task`, `metric`, `value`, `n`, how many texts were cut (`num_cut`), and how the answers came about.

    A text longer than the context loses its beginning. A candidate's score is the mean log-probability
    of its tokens (SST-2: the sum); of equal ones, which `num_ties` counts, the first is chosen.

    CoLA has a threshold instead of candidates, and the paper does not say which: here it is the one
    of the best Matthews correlation on `threshold_questions`, or the median of the scores themselves.
    """
    labels = np.array([question.label for question in questions.items])
    row: dict[str, Any] = {"task": questions.task}
    scores, num_cut = _scores(config, params, questions)
    notes = list(questions.notes)
    if questions.task == "cola":
        own = np.array([first for first, *_ in scores])
        if threshold_questions is None:
            threshold, source = float(np.median(own)), "median of the scores"
        else:
            trained, _ = _scores(config, params, threshold_questions)
            threshold = best_threshold(
                np.array([first for first, *_ in trained]), np.array([item.label for item in threshold_questions.items])
            )
            source = "best Matthews correlation on --threshold_data"
        row |= {"metric": "matthews", "value": matthews(labels, (own > threshold).astype(labels.dtype))}
        row |= {"n": len(labels), "threshold": threshold, "threshold_from": source}
        if len(set(labels.tolist())) == 1:
            notes.append("all labels are the same: the correlation is 0 by definition")
    else:
        answers = np.array([int(np.argmax(candidates)) for candidates in scores])
        num_ties = sum(candidates.count(max(candidates)) > 1 for candidates in scores)
        row |= {"metric": "accuracy", "value": accuracy(labels, answers), "n": len(labels), "num_ties": num_ties}
    return {**row, "num_cut": num_cut, **({"notes": notes} if notes else {})}


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold above which a score means label 1, with the greatest Matthews correlation.

    Of equal ones it is the lowest.

    Raises:
      DataError: all labels are the same.
    """
    num_positive, n = int(labels.sum()), len(labels)
    if num_positive in (0, n):
        raise DataError(f"--threshold_data: all labels are {labels[0]}; a threshold needs sentences of both kinds")
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    # Between rank k - 1 and rank k, for k = 1 to n - 1: those below are answered 0.
    below = np.arange(1, n)
    missed = np.cumsum(labels[order])[:-1].astype(float)
    hits = num_positive - missed
    false_alarms = n - below - hits
    rejected = below - missed
    product = (hits + false_alarms) * (hits + missed) * (rejected + false_alarms) * (rejected + missed)
    correlation = (hits * rejected - false_alarms * missed) / np.sqrt(product)
    can_be_split = ranked[1:] > ranked[:-1]
    best = int(np.argmax(np.where(can_be_split, correlation, -np.inf)))
    if not can_be_split[best] or correlation[best] < 0:
        return float(np.nextafter(ranked[0], -np.inf))  # no split is better than calling all of them acceptable
    return float((ranked[best] + ranked[best + 1]) / 2)


def _scores(config: ModelConfig, params: Params, questions: Questions) -> tuple[list[list[float]], int]:
    """The score of each candidate of each question, and how many had to be cut."""
    candidates = [candidate for question in questions.items for candidate in question.candidates]
    length = config.context_length
    num_cut = sum(len(context) + len(continuation) > length for context, continuation in candidates)
    sequences = ((context + continuation)[-length:] for context, continuation in candidates)
    scored = iter(_summaries(candidates, token_log_probs(config, params, sequences), is_sum=questions.task == "sst2"))
    return [[next(scored) for _ in question.candidates] for question in questions.items], num_cut


def _summaries(
    candidates: list[Candidate], log_probs: Iterator[list[float | None]], *, is_sum: bool
) -> Iterator[float]:
    for candidate, values in zip(candidates, log_probs, strict=True):
        continuation = [value for value in values[-len(candidate.continuation) :] if value is not None]
        # Nothing comes after a pronoun that ends its sentence: no candidate is better then.
        empty = not candidate.continuation or not continuation
        yield 0.0 if empty else math.fsum(continuation) / (1 if is_sum else len(continuation))
