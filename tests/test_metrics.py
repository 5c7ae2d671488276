import math

import numpy as np
import pytest

from gpt.metrics import METRICS, accuracy, matthews

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 1])
PREDICTIONS = np.array([1, 1, 0, 0, 1, 1, 0, 1])


def test_accuracy_is_the_share_of_hits() -> None:
    assert accuracy(LABELS, PREDICTIONS) == 6 / 8


def test_matthews_is_the_correlation_of_the_two_tables_by_hand() -> None:
    true_positives, true_negatives, false_positives, false_negatives = 4, 2, 1, 1
    expected = (true_positives * true_negatives - false_positives * false_negatives) / math.sqrt(5 * 5 * 3 * 3)
    assert matthews(LABELS, PREDICTIONS) == pytest.approx(expected)


@pytest.mark.parametrize(("predictions", "expected"), [(LABELS, 1.0), (1 - LABELS, -1.0)])
def test_matthews_runs_from_minus_one_to_one(predictions: np.ndarray, expected: float) -> None:
    assert matthews(LABELS, predictions) == pytest.approx(expected)


def test_matthews_of_a_single_class_is_zero() -> None:
    constant = np.ones_like(LABELS)
    assert matthews(LABELS, constant) == 0.0
    assert matthews(constant, PREDICTIONS) == 0.0


def test_metrics_are_found_by_name_and_are_plain_floats() -> None:
    assert {name: type(metric(LABELS, PREDICTIONS)) for name, metric in METRICS.items()} == {
        "accuracy": float,
        "matthews": float,
    }
