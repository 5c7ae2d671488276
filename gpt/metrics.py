"""Task metrics, by the names of `Task.metrics`, and GLUE's average of them.

A metric that its data leave undefined, such as the correlation of numbers that are all equal, is 0;
`is_undefined` tells.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of examples whose predicted class is the label, 0 to 1."""
    return float(np.mean(labels == predictions))


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation coefficient, -1 to 1."""
    from sklearn.metrics import matthews_corrcoef

    if is_undefined("matthews", labels, predictions):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1, 0 to 1."""
    from sklearn.metrics import f1_score

    undefined: Any = 0.0  # its annotation allows words alone
    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=undefined))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Linear correlation, -1 to 1."""
    from scipy.stats import pearsonr

    if is_undefined("pearson", labels, predictions):
        return 0.0
    result: Any = pearsonr(labels, predictions)
    return float(result.statistic)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Correlation of ranks, ties at their mean rank, -1 to 1."""
    from scipy.stats import spearmanr

    if is_undefined("spearman", labels, predictions):
        return 0.0
    result: Any = spearmanr(labels, predictions)
    return float(result.statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
}


def is_undefined(metric: str, labels: np.ndarray, predictions: np.ndarray) -> bool:
    """Whether the metric has no value on these data, and 0 stands for it."""
    if metric == "accuracy":
        return False
    if metric == "f1":
        return not (labels == 1).any() and not (predictions == 1).any()
    return bool(np.ptp(labels) == 0 or np.ptp(predictions) == 0)


GLUE: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("f1", "accuracy"),
    "mnli": ("accuracy", "accuracy_mismatched"),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
"""The nine tasks of the GLUE score and the metrics that make each task's score, Wang et al. 2018."""


def glue_score(scores: Mapping[str, Mapping[str, float]]) -> float | None:
    """Mean over the nine tasks, each the mean of its metrics; None unless all are there."""
    try:
        return float(np.mean([np.mean([scores[task][name] for name in names]) for task, names in GLUE.items()]))
    except KeyError:
        return None
