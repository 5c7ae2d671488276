"""The predictions that eval.py keeps, test splits without labels, and scores that are no numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import ROOT, Command, Run, Toy, write_rows

from gpt import gin_io
from gpt.config import MeshConfig, RunConfig
from gpt.data.batches import TaskBatch
from gpt.errors import DataError
from gpt.metrics import matthews
from gpt.model.gpt import init_params
from gpt.sharding import make_mesh
from gpt.text.tokenizer import Tokenizer
from gpt.training.evaluate import evaluate as evaluate_with
from gpt.training.evaluate import judge
from gpt.training.problem import Problem, load_problem
from gpt.training.steps import Evaluation, make_eval_step


@pytest.fixture
def run(finetuned: Run, tmp_path: Path) -> Path:
    """A run of the toy `cola` of one's own, not evaluated yet."""
    return shutil.copytree(finetuned.path, tmp_path / "run", ignore=shutil.ignore_patterns("predictions"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def config_of(toy: Toy, *overrides: str, batch_size: int = 2) -> RunConfig:
    basic = ("RunConfig.output_dir=unused", "RunConfig.init_from=None", f"RunConfig.batch_size={batch_size}")
    size = f"ModelConfig.vocab_size={Tokenizer.load(toy.tokenizer).vocab_size}"
    return gin_io.load(
        [ROOT / "configs" / "run" / "finetune.gin"],
        [*basic, size, f"TokenizerConfig.path={toy.tokenizer}", "ModelConfig.context_length=32", *overrides],
    )


def made_up(scores_of: Callable[[TaskBatch], np.ndarray]) -> Callable[..., Evaluation]:
    """An evaluation step of a model that gives these scores."""

    def eval_step(_: Any, batch: TaskBatch) -> Evaluation:
        count = {"task_loss": batch.example_weights.sum()}
        return Evaluation(count, count, jnp.asarray(scores_of(batch)))

    return eval_step


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


# Kept predictions


def test_every_example_has_its_prediction_in_the_order_of_the_file(
    toy: Toy, run: Path, evaluate: Callable[..., Command]
) -> None:
    done = evaluate(f"--run={run}", "--json")
    lines = lines_of(run / "predictions" / "validation.jsonl")
    gold = [row["label"] for row in lines_of(toy.cola / "validation.jsonl")]
    assert [line["row"] for line in lines] == list(range(len(gold)))
    assert [line["label"] for line in lines] == gold
    assert all(line["prediction"] == int(np.argmax(line["scores"])) for line in lines)
    scores = {row["metric"]: row["value"] for row in done.rows}
    predictions = np.array([line["prediction"] for line in lines])
    assert scores["matthews"] == pytest.approx(matthews(np.array(gold), predictions))


def test_a_test_split_without_labels_gives_predictions_and_no_metric(
    toy: Toy, run: Path, tmp_path: Path, evaluate: Callable[..., Command]
) -> None:
    rows = [{"text": row["text"]} for row in lines_of(toy.cola / "validation.jsonl")[:11]]
    write_rows(tmp_path / "data" / "test.jsonl", rows)
    done = evaluate(f"--run={run}", "--split=test", "--json", f"--gin.TaskConfig.data_dir={tmp_path / 'data'}")
    assert [(row["metric"], row["n"]) for row in done.rows] == [("lm_loss", 11)]
    lines = lines_of(run / "predictions" / "test.jsonl")
    assert [(line["row"], line["label"]) for line in lines] == [(row, None) for row in range(11)]


def test_another_task_has_a_file_of_its_own(toy: Toy, run: Path, evaluate: Callable[..., Command]) -> None:
    data = f"--gin.TaskConfig.data_dir={toy.cola}"
    assert evaluate(f"--run={run}", "--gin.TaskConfig.name=sst2", data).code == 0
    assert [path.name for path in (run / "predictions").iterdir()] == ["sst2-validation.jsonl"]


def test_a_split_that_is_not_there_is_refused(run: Path, pretrained: Run, evaluate: Callable[..., Command]) -> None:
    done = evaluate(f"--run={run}", "--split=dev")
    assert (done.code, done.out) == (2, "")
    assert "has no split 'dev', only train, validation, test" in done.err
    assert "split 'test': text is scored on validation" in evaluate(f"--run={pretrained.path}", "--split=test").err


def test_predictions_that_cannot_be_written_are_a_clear_error(run: Path, evaluate: Callable[..., Command]) -> None:
    (run / "predictions").write_text("mine")
    done = evaluate(f"--run={run}")
    assert done.code == 2
    assert "predictions cannot be written to" in done.err


# Metrics


@pytest.fixture
def mnli(toy: Toy, tmp_path: Path) -> Problem:
    """Five matched and three mismatched pairs, all neutral, in batches of two."""
    rows = [{"text_a": "the cat", "text_b": "sleeps", "label": "neutral"}] * 5
    for split, count in (("validation_matched", 5), ("validation_mismatched", 3)):
        write_rows(tmp_path / "mnli" / f"{split}.jsonl", rows[:count])
    config = config_of(toy, "TaskConfig.name=mnli", f"TaskConfig.data_dir={tmp_path / 'mnli'}")
    return load_problem(config, Tokenizer.load(toy.tokenizer), only_split="validation")


def test_the_scores_of_the_second_split_end_in_its_name(mnli: Problem) -> None:
    scores = evaluate_with(made_up(lambda batch: np.eye(3)[batch.labels]), {}, mnli, one_device())
    assert {name: score for name, score in scores.items() if "accuracy" in name} == {
        "accuracy": (1.0, 5),
        "accuracy_mismatched": (1.0, 3),
    }


def test_scores_that_are_no_numbers_are_an_error_that_counts_them(mnli: Problem) -> None:
    def diverged(_: TaskBatch) -> np.ndarray:
        return np.where(np.arange(2)[:, None] == 1, np.nan, np.zeros((2, 3)))  # in padding of the last batch as well

    with pytest.raises(DataError, match=r"2 of 5 examples of the validation_matched split have scores that are not"):
        judge(made_up(diverged), {}, mnli, "validation_matched", one_device())


def test_constant_predictions_of_numbers_score_zero_and_are_counted(toy: Toy, tmp_path: Path) -> None:
    rows = [{"text_a": "the cat", "text_b": text, "label": label} for text, label in (("runs", 1), ("jumps", 4.5))]
    write_rows(tmp_path / "stsb" / "validation.jsonl", rows)
    config = config_of(toy, "TaskConfig.name=stsb", f"TaskConfig.data_dir={tmp_path / 'stsb'}")
    problem = load_problem(config, Tokenizer.load(toy.tokenizer), only_split="validation")
    scores = evaluate_with(made_up(lambda _: np.zeros((2, 6))), {}, problem, one_device())
    assert {name: tuple(scores[name]) for name in ("pearson", "spearman", "undefined_metrics")} == {
        "pearson": (0.0, 2),
        "spearman": (0.0, 2),
        "undefined_metrics": (2, 2),
    }
    perfect = evaluate_with(made_up(lambda batch: np.log(batch.labels + 1e-9)), {}, problem, one_device())
    assert perfect["pearson"].value == pytest.approx(1.0)
    assert "undefined_metrics" not in perfect


def test_both_orders_score_the_same_on_four_devices_as_on_one_with_the_last_batch_cut_short(
    toy: Toy, tmp_path: Path
) -> None:
    animals = ("cat", "dog", "frog", "horse", "river")
    rows = [{"text_a": f"the {name}", "text_b": "sleeps near", "label": n % 2} for n, name in enumerate(animals)]
    write_rows(tmp_path / "mrpc" / "validation.jsonl", rows)
    small = ("num_layers=1", "num_heads=2", "embed_dim=16", "mlp_dim=32", "init_std=0.5")
    overrides = ("TaskConfig.name=mrpc", *(f"ModelConfig.{field}" for field in small))
    config = config_of(toy, *overrides, f"TaskConfig.data_dir={tmp_path / 'mrpc'}", batch_size=4)
    problem = load_problem(config, Tokenizer.load(toy.tokenizer), only_split="validation")
    params = init_params(config.model, jax.random.key(0), problem.num_outputs)
    eval_step = make_eval_step(config.model, problem.objective)
    one, four = (
        judge(eval_step, params, problem, "validation", mesh) for mesh in (one_device(), make_mesh(MeshConfig()))
    )
    assert {name: score.n for name, score in four.scores.items()} == {
        "task_loss": 5, "lm_loss": 10, "f1": 5, "accuracy": 5,
    }  # fmt: skip
    assert {name: score.value for name, score in four.scores.items()} == pytest.approx(
        {name: score.value for name, score in one.scores.items()}, rel=1e-5
    )
    assert [line["prediction"] for line in four.predictions] == [line["prediction"] for line in one.predictions]


def test_a_candidate_that_an_example_does_not_have_has_no_score(toy: Toy) -> None:
    config = config_of(toy, "TaskConfig.name=stdlib_next", f"TaskConfig.data_dir={toy.choices}")
    problem = load_problem(config, Tokenizer.load(toy.tokenizer), only_split="validation")
    judged = judge(made_up(lambda batch: np.zeros(batch.tokens.shape[:2])), {}, problem, "validation", one_device())
    choices = [len(row["choices"]) for row in lines_of(toy.choices / "validation.jsonl")]
    assert [len(line["scores"]) for line in judged.predictions] == choices
