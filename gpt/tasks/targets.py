"""What the scores of a task are fitted to, and the prediction that they then are.

class         the index of a class or of the right candidate; the prediction has the highest score
soft_labels   a number from 0 to 5 as probabilities of its two whole neighbours (Tai et al. 2015,
              section 4.2; the encoding is in OpenAI's released code, unused); the prediction is the mean
regression    the number itself, by its squared error
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

Targets = Literal["class", "soft_labels", "regression"]

MAX_SCORE = 5
"""Similarity runs from 0 to this (STS-B)."""


def num_outputs(targets: Targets, num_classes: int) -> int:
    """Scores that the head gives for one sequence."""
    return {"class": num_classes or 1, "soft_labels": MAX_SCORE + 1, "regression": 1}[targets]


def encode_labels(targets: Targets, labels: Sequence[int | float]) -> Num[np.ndarray, "N *outputs"]:
    """Int32 [N] for classes; float32 [N, 6] for soft labels, [N, 1] for regression."""
    if targets == "class":
        return np.array(labels, np.int32)
    values = np.array(labels, np.float32)[:, None]
    if targets == "regression":
        return values
    # The weight of a whole number falls off linearly to 0 at its neighbours.
    return np.maximum(0, 1 - abs(values - np.arange(MAX_SCORE + 1, dtype=np.float32)))


def predict(targets: Targets, scores: Float[np.ndarray, "B N"]) -> Num[np.ndarray, "B"]:
    """The class with the highest score, or the number that the scores stand for, within its range."""
    if targets == "class":
        return scores.argmax(axis=-1)
    if targets == "regression":
        return scores[:, 0].clip(0, MAX_SCORE)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True), dtype=np.float64)
    return weights @ np.arange(MAX_SCORE + 1) / weights.sum(axis=-1)
