import math

import numpy as np
import pytest

from gpt.metrics import METRICS, accuracy, f1, glue_score, is_undefined, matthews, pearson, spearman

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


def test_f1_is_that_of_class_1_by_hand() -> None:
    assert f1(LABELS, PREDICTIONS) == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))


def test_pearson_is_the_covariance_over_both_deviations() -> None:
    labels, predictions = np.array([0.0, 1.0, 2.5, 5.0]), np.array([0.3, 0.1, 3.0, 4.0])
    expected = np.mean((labels - labels.mean()) * (predictions - predictions.mean())) / labels.std() / predictions.std()
    assert pearson(labels, predictions) == pytest.approx(expected)


def test_spearman_is_pearson_of_ranks_with_ties_at_their_mean_rank() -> None:
    labels, predictions = np.array([1.0, 2.0, 2.0, 9.0]), np.array([10.0, 40.0, 30.0, 20.0])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([1, 4, 3, 2])
    assert spearman(labels, predictions) == pytest.approx(pearson(*ranks))


@pytest.mark.parametrize(("name", "constant"), [("matthews", 1), ("pearson", 1), ("spearman", 1), ("f1", 0)])
def test_a_metric_without_a_value_is_zero_and_says_so(name: str, constant: int) -> None:
    constants = np.full_like(LABELS, constant)
    assert METRICS[name](constants, constants) == 0.0
    assert is_undefined(name, constants, constants)
    assert not is_undefined(name, LABELS, PREDICTIONS)


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman"])
def test_either_side_being_constant_leaves_a_correlation_undefined(name: str) -> None:
    constant = np.ones_like(LABELS)
    for pair in ((LABELS, constant), (constant, LABELS)):
        assert METRICS[name](*pair) == 0.0
        assert is_undefined(name, *pair)


def test_metrics_are_plain_floats() -> None:
    assert {type(metric(LABELS, PREDICTIONS)) for metric in METRICS.values()} == {float}


PUBLISHED = {
    "cola": {"matthews": 45.4}, "sst2": {"accuracy": 91.3}, "mrpc": {"f1": 82.3, "accuracy": 75.7},
    "stsb": {"pearson": 82.0, "spearman": 80.0}, "qqp": {"f1": 70.3, "accuracy": 88.5},
    "mnli": {"accuracy": 82.1, "accuracy_mismatched": 81.4}, "qnli": {"accuracy": 88.1},
    "rte": {"accuracy": 56.0}, "wnli": {"accuracy": 53.4},
}  # fmt: skip


def test_the_glue_score_of_the_published_results_is_the_published_one() -> None:
    assert glue_score(PUBLISHED) == pytest.approx(72.8, abs=0.05)


def test_without_one_of_its_nine_tasks_there_is_no_glue_score() -> None:
    assert glue_score({task: scores for task, scores in PUBLISHED.items() if task != "wnli"}) is None
