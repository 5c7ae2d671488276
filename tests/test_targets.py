"""Labels as targets, scores as predictions, and STS-B learned in both ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import write_rows

from gpt.config import ModelConfig, RunConfig, TaskConfig, TokenizerConfig
from gpt.errors import ConfigError
from gpt.tasks.targets import encode_labels, predict
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe
from gpt.training.problem import Problem, load_problem

ROWS = [
    {"text_a": "a b", "text_b": "c", "label": 2.25},
    {"text_a": "d", "text_b": "e f", "label": 5},
    {"text_a": "b", "text_b": "h", "label": 0},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a b c d e f g h aa aa"], 19)


@pytest.fixture
def load(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Problem]:
    """The problem of fine-tuning on rows of a task, in batches of two."""

    def load(name: str, splits: dict[str, list[dict[str, Any]]], only_split: str | None = None, **task: Any) -> Problem:
        for split, rows in splits.items():
            write_rows(tmp_path / f"{split}.jsonl", rows)
        config = RunConfig(
            output_dir="unused",
            batch_size=2,
            num_epochs=1,
            tokenizer=TokenizerConfig(path="unused"),
            model=ModelConfig(vocab_size=tokenizer.vocab_size, num_special_tokens=3, context_length=12, embed_dim=12),
            task=TaskConfig(name=name, data_dir=str(tmp_path), **task),
        )
        return load_problem(config, tokenizer, only_split=only_split)

    return load


# Targets


def test_a_number_becomes_the_weights_of_its_two_neighbours() -> None:
    weights = encode_labels("soft_labels", [2.25, 5.0, 0.0, 3.0, 4.9])
    assert weights.dtype == np.float32
    expected = [
        [0, 0, 0.75, 0.25, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0.1, 0.9],
    ]
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_the_prediction_of_soft_labels_is_their_mean() -> None:
    weights = encode_labels("soft_labels", [2.25, 5.0, 0.0, 3.7])
    np.testing.assert_allclose(predict("soft_labels", np.log(weights + 1e-9)), [2.25, 5.0, 0.0, 3.7], atol=1e-4)
    assert predict("soft_labels", np.full((1, 6), 1e30, np.float32)) == [2.5]


def test_the_prediction_of_a_regression_stays_within_the_range() -> None:
    assert encode_labels("regression", [2.5, 0]).tolist() == [[2.5], [0.0]]
    assert predict("regression", np.array([[2.5], [-1.0], [7.0]])).tolist() == [2.5, 0.0, 5.0]


def test_the_prediction_of_classes_has_the_highest_score() -> None:
    assert encode_labels("class", [1, 0]).tolist() == [1, 0]
    assert predict("class", np.array([[0.1, 0.2], [3.0, -1.0]])).tolist() == [1, 0]


# Both orders


def test_a_pair_of_similar_texts_becomes_a_sequence_in_each_order(
    load: Callable[..., Problem], tokenizer: Tokenizer
) -> None:
    rows = [{"text_a": "a b", "text_b": "c", "label": 1}, {"text_a": "d", "text_b": "e", "label": 0}]
    first, second = load("mrpc", {"train": rows, "validation": rows}).held_out.batches()[0].tokens[1]
    a, b = tokenizer.encode("a b"), tokenizer.encode("c")
    for sequence, (x, y) in ((first, (a, b)), (second, (b, a))):
        ids = [tokenizer.start_id, *x, tokenizer.delimiter_id, *y, tokenizer.extract_id]
        assert sequence[: len(ids)].tolist() == ids


def test_batches_of_stsb_hold_weights_of_classes_and_its_metrics_see_the_numbers(load: Callable[..., Problem]) -> None:
    problem = load("stsb", {"train": ROWS, "validation": ROWS})
    first, last = problem.held_out.batches()
    assert (first.labels.shape, last.labels.shape, problem.num_outputs) == ((2, 6), (2, 6), 6)
    assert last.example_weights.tolist() == [1, 0]
    assert problem.held_out.labels is not None
    assert sorted(problem.held_out.labels.tolist()) == [0, 2.25, 5]


def test_stsb_as_a_regression_has_one_output_and_the_numbers_as_targets(load: Callable[..., Problem]) -> None:
    problem = load("stsb", {"train": ROWS, "validation": ROWS}, stsb_targets="regression")
    assert problem.num_outputs == 1
    targets = np.concatenate([batch.labels for batch in problem.held_out.batches()])[:3]
    assert problem.held_out.labels is not None
    assert targets[:, 0].tolist() == problem.held_out.labels.tolist()


def test_the_ways_of_stsb_are_refused_for_another_task() -> None:
    with pytest.raises(ConfigError, match=r"stsb_targets = 'regression' is for TaskConfig\.name = 'stsb'.*'mrpc'"):
        TaskConfig(name="mrpc", stsb_targets="regression")


# Splits

NLI_ROWS = [{"text_a": "a", "text_b": "b", "label": label} for label in ("neutral", "entailment")]


def test_multinli_is_judged_on_both_of_its_validation_splits(load: Callable[..., Problem]) -> None:
    splits = {"train": NLI_ROWS, "validation_matched": NLI_ROWS, "validation_mismatched": NLI_ROWS[:1]}
    problem = load("mnli", splits)
    assert {name: len(held_out.order) for name, held_out in problem.held_outs.items()} == {
        "validation_matched": 2,
        "validation_mismatched": 1,
    }


def test_to_evaluate_one_split_no_other_is_read(load: Callable[..., Problem]) -> None:
    problem = load("mnli", {"validation_mismatched": NLI_ROWS}, only_split="validation_mismatched")
    assert list(problem.held_outs) == ["validation_mismatched"]
    assert (problem.num_steps, len(problem.batches_of_seed(0))) == (0, 0)


def test_a_split_that_a_task_does_not_have_is_refused_with_those_it_has(load: Callable[..., Problem]) -> None:
    with pytest.raises(ConfigError, match=r"'cola' has no split 'dev', only train, validation, test$"):
        load("cola", {}, only_split="dev")


def test_the_diagnostic_set_cannot_be_trained_on_and_says_what_it_is_for(load: Callable[..., Problem]) -> None:
    with pytest.raises(ConfigError, match=r"'ax' has no split 'train', only test: it judges runs of mnli, by eval\.py"):
        load("ax", {"train": NLI_ROWS, "validation": NLI_ROWS})


def test_a_test_split_without_labels_has_no_labels_to_be_judged_by(load: Callable[..., Problem]) -> None:
    problem = load("cola", {"test": [{"text": "a b"}, {"text": "c"}, {"text": "d e f"}]}, only_split="test")
    assert problem.held_out.labels is None
    assert problem.held_out.order.tolist() == [1, 0, 2]


# Notes


def test_training_examples_of_a_single_class_are_worth_a_warning(load: Callable[..., Problem]) -> None:
    rows = [{"text": text, "label": 1} for text in ("a", "b")]
    assert load("cola", {"train": rows, "validation": rows}).notes == (
        "all 2 training examples of 'cola' have the same label",
    )
    assert load("stsb", {"train": ROWS, "validation": ROWS}).notes == ()


def test_rows_left_out_are_a_fact_of_the_run(load: Callable[..., Problem]) -> None:
    undecided = {"sentence1": "a", "sentence2": "b", "gold_label": "-"}
    facts = load("snli", {"train": [*NLI_ROWS, undecided], "validation": NLI_ROWS}).facts
    assert (facts["train_without_label_dropped"], facts["train_examples"]) == (1, 2)
    assert "validation_without_label_dropped" not in facts
