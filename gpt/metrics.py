"""Task metrics, by the names of `Task.metric`."""

import numpy as np


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of examples whose predicted class is the label, 0 to 1."""
    return float(np.mean(labels == predictions))


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation coefficient, -1 to 1; 0 when all predictions or all labels are one class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


METRICS = {"accuracy": accuracy, "matthews": matthews}
