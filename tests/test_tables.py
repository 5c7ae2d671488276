"""`gpt tables`: the published numbers, which run belongs to which cell, and every way to show it."""

import csv
import dataclasses
import io
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import Command, Run

from gpt import gin_io
from gpt.config import ModelConfig, OptimizerConfig, RunConfig, TaskConfig, TokenizerConfig
from gpt.paper.published import TABLES, load_published, published_table, zero_shot_scale
from gpt.paper.render import NOTE
from gpt.paper.runs import collect_runs, kind_of
from gpt.paper.tables import COLUMNS

MODEL = ModelConfig(num_special_tokens=3)


def make_config(**settings: Any) -> RunConfig:
    """A config of fine-tuning; `task`, `lm_coef` and `learning_rate` go where they belong."""
    task = TaskConfig(name=settings.pop("task", "cola"), lm_coef=settings.pop("lm_coef", 0.5))
    optimizer = OptimizerConfig(learning_rate=settings.pop("learning_rate", 6.25e-5))
    defaults = {"output_dir": "run", "init_from": "pretrained", "tokenizer": TokenizerConfig(path="tokenizer")}
    return RunConfig(**{**defaults, "model": MODEL, "task": task, "optimizer": optimizer, **settings})


def write_run(path: Path, scores: dict[str, Any] | None, **settings: Any) -> Path:
    """A run directory as train.py leaves it behind; scores None: not finished."""
    path.mkdir(parents=True)
    (path / "config.gin").write_text(gin_io.format_config(make_config(output_dir=str(path), **settings)))
    if scores is not None:
        validation = {"step": 3, "kind": "validation", "task_loss": 0.5, "lm_loss": 4.0, **scores}
        (path / "result.json").write_text(json.dumps({"run": str(path), "step": 3, "validation": validation}))
    return path


@pytest.fixture
def tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Command]:
    """Runs `gpt tables` here on the runs in `tmp_path / "runs"`."""
    from gpt.cli.main import main

    def tables(*flags: str, runs: Path = tmp_path / "runs") -> Command:
        monkeypatch.setattr(sys, "argv", ["gpt", "tables", f"--runs={runs}", *flags])
        code = main()
        captured = capsys.readouterr()
        return Command(code, captured.out, captured.err)

    return tables


def cell_of(command: Command, table: int, column: str, row: str = "full") -> dict[str, Any]:
    assert command.code == 0, command.err
    (cell,) = [c for c in command.rows if (c["table"], c["column"], c["row"]) == (table, column, row)]
    return cell


# The published numbers


def test_the_average_of_table_5_is_the_mean_of_the_columns_it_prints() -> None:
    for row in published_table(5).rows:
        average, *scores = (value for value in row.values if value is not None)
        assert average == pytest.approx(statistics.fmean(scores), abs=0.07), row.method


def test_the_glue_score_follows_from_the_leaderboard_and_table_2() -> None:
    row = load_published()["glue_leaderboard"]
    tasks = [*row["cola"].values(), *row["sst2"].values(), *row["rte"].values(), *row["wnli"].values()]
    tasks += [statistics.fmean(row[name].values()) for name in ("mrpc", "stsb", "qqp", "mnli")]
    tasks.append(published_table(2).rows[-1].values[4])
    assert row["score"] == pytest.approx(statistics.fmean(tasks), abs=0.05)
    assert row["score"] == published_table(4).rows[-1].values[-1]


def test_tables_that_print_the_same_score_agree() -> None:
    def full(number: int) -> dict[str, float | None]:
        table = published_table(number)
        (row,) = [row for row in table.rows if row.kind == "full"]
        return dict(zip(table.columns, row.values, strict=True))

    by_task = {**full(2), **full(4)}
    for column, value in full(5).items():
        assert column in ("average", "mnli") or value == by_task[column]
    (m, mm), mnli = (by_task["mnli_m"], by_task["mnli_mm"]), full(5)["mnli"]
    assert m is not None
    assert mm is not None
    assert mnli == pytest.approx((m + mm) / 2, abs=0.06)


def test_gains_and_losses_in_the_text_follow_from_the_tables() -> None:
    claims = load_published()["text_claims"]
    best, ours = {}, {}
    for number in (2, 3, 4):
        table = published_table(number)
        for column, *values in zip(table.columns, *(row.values for row in table.rows), strict=True):
            *others, ours[column] = values
            best[column] = max(value for value in others if value is not None)
    gains = {**claims["gains"]}
    assert ours["mnli_m"] - best["mnli_m"] == pytest.approx(gains.pop("mnli"))
    for column, gain in gains.items():
        assert ours[column] - best[column] == pytest.approx(gain, abs=1e-6), column
    averages: dict[Any, Any] = {row.kind: row.values[0] for row in published_table(5).rows}
    assert averages["full"] - averages["no_pretraining"] == pytest.approx(claims["loss_without_pretraining"])
    assert averages["full"] - averages["lstm"] == pytest.approx(claims["loss_with_lstm"])


def test_every_row_fits_its_columns_and_every_table_names_its_source() -> None:
    for number in TABLES:
        table = published_table(number)
        assert table.source
        assert all(len(row.values) == len(table.columns) for row in table.rows)
        assert set(table.columns) <= COLUMNS.keys()


@pytest.mark.parametrize(
    ("task", "guess", "best", "half"),
    [
        ("cola", 0.0, 35.0, 17.5),
        ("sst2", 50.0, 93.2, 71.6),
        ("race", 25.0, 53.3, 39.15),
        ("winograd", 50.0, 100.0, 75.0),
    ],
)
def test_a_zero_shot_score_is_0_for_a_guess_and_1_for_the_best_of_the_time(
    task: str, guess: float, best: float, half: float
) -> None:
    scale = zero_shot_scale(task)
    assert [scale.normalise(percent) for percent in (guess, half, best)] == pytest.approx([0, 0.5, 1])
    assert scale.best_is == ("all answers right" if task == "winograd" else "the best earlier result")


def test_the_best_of_the_time_are_those_of_the_tables() -> None:
    for task, best in load_published()["zero_shot"]["state_of_the_art"].items():
        table = published_table(3 if task == "race" else 4)
        column = table.columns.index(task)
        assert best == max(row.values[column] or 0 for row in table.rows if row.kind is None)


# Which run belongs where


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "full"),
        ({"init_from": None}, "no_pretraining"),
        ({"lm_coef": 0.0}, "no_aux_lm"),
        ({"init_from": None, "lm_coef": 0.0}, None),
        ({"num_transferred_layers": 11}, None),
        ({"num_transferred_layers": 0}, None),
        ({"num_transferred_layers": 12}, "full"),
        ({"num_transferred_layers": 12, "lm_coef": 0.0}, "no_aux_lm"),
    ],
)
def test_the_config_of_a_run_tells_its_row(settings: dict[str, Any], kind: str | None) -> None:
    assert kind_of(make_config(**settings)) == kind


def test_a_cell_has_the_statistics_of_its_seeds(tmp_path: Path, tables: Callable[..., Command]) -> None:
    for seed, value in ((3, 0.30), (1, 0.20), (2, 0.40), (7, 0.36)):
        write_run(tmp_path / "runs" / f"cola-{seed}", {"matthews": value}, seed=seed)
    cell = cell_of(tables("--json"), 5, "cola")
    assert cell == {
        **{"table": 5, "row": "full", "column": "cola", "task": "cola", "metric": "matthews", "n": 4},
        **{"published": 45.4, "published_split": "test", "split": "validation", "seeds": [1, 2, 3, 7]},
        **{"median": pytest.approx(33.0), "mean": pytest.approx(31.5), "max": pytest.approx(40.0)},
        **{"std": pytest.approx(8.698659, rel=1e-5), "difference": pytest.approx(33.0 - 45.4)},
    }


def test_one_run_has_no_deviation_and_no_run_has_nothing(tmp_path: Path, tables: Callable[..., Command]) -> None:
    write_run(tmp_path / "runs" / "rte", {"accuracy": 0.5}, task="rte")
    command = tables("--json")
    assert {name: cell_of(command, 2, "rte")[name] for name in ("n", "std", "median")} == {
        "n": 1, "std": None, "median": 50.0,
    }  # fmt: skip
    empty = cell_of(command, 2, "qnli")
    assert (empty["n"], empty["seeds"], empty["published"]) == (0, [], 88.1)
    assert [empty[name] for name in ("median", "mean", "std", "max", "difference")] == [None] * 5


def test_json_has_every_cell_that_could_be_ours(tmp_path: Path, tables: Callable[..., Command]) -> None:
    write_run(tmp_path / "runs" / "rte", {"accuracy": 0.5}, task="rte")
    assert len(tables("--json").rows) == 6 + 4 + 6 + 4 * 9
    assert {cell["table"] for cell in tables("--json", "--table=4").rows} == {4}


def test_both_accuracies_of_mnli_are_columns_and_their_mean_is_the_one_of_table_5(
    tmp_path: Path, tables: Callable[..., Command]
) -> None:
    write_run(tmp_path / "runs" / "both", {"accuracy": 0.6, "accuracy_mismatched": 0.7}, task="mnli")
    command = tables("--json")
    medians = [cell_of(command, *cell)["median"] for cell in ((2, "mnli_m"), (2, "mnli_mm"), (5, "mnli"))]
    assert medians == pytest.approx([60, 70, 65])


def test_one_accuracy_of_mnli_is_that_of_the_matched_set(tmp_path: Path, tables: Callable[..., Command]) -> None:
    write_run(tmp_path / "runs" / "one", {"accuracy": 0.6}, task="mnli")
    command = tables("--json")
    cells = [cell_of(command, *cell)["median"] for cell in ((2, "mnli_m"), (2, "mnli_mm"), (5, "mnli"))]
    assert cells == [60, None, 60]


def test_averages_take_the_seeds_that_every_task_has(tmp_path: Path, tables: Callable[..., Command]) -> None:
    metrics = {"f1": 0.1, "accuracy": 0.3, "matthews": 0.5, "pearson": 0.7, "spearman": 0.9}
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    for task in tasks:
        for seed in (1, 2) if task == "cola" else (2, 3):
            write_run(tmp_path / "runs" / task / str(seed), metrics, task=task, seed=seed)
    command = tables("--json")
    average = cell_of(command, 5, "average")
    assert average["seeds"] == [2]
    # cola; sst2, mnli, qnli, rte; mrpc, qqp; stsb
    assert average["median"] == pytest.approx((50 + 4 * 30 + 2 * 10 + 70) / 8)
    assert cell_of(command, 4, "glue")["n"] == 0
    write_run(tmp_path / "runs" / "wnli", metrics, task="wnli", seed=2)
    assert cell_of(tables("--json"), 4, "glue")["median"] == pytest.approx((50 + 5 * 30 + 2 * 20 + 80) / 9)


def test_runs_of_other_settings_are_not_mixed_and_a_note_says_what_differs(
    tmp_path: Path, tables: Callable[..., Command]
) -> None:
    for seed in (1, 2):
        write_run(tmp_path / "runs" / f"a{seed}", {"matthews": 0.2}, seed=seed, log_every_steps=seed)
    write_run(tmp_path / "runs" / "0", {"matthews": 0.9}, seed=3, learning_rate=1e-3)
    command = tables("--json")
    assert cell_of(command, 5, "cola")["seeds"] == [1, 2]
    assert (
        "1 runs of other settings left out (OptimizerConfig.learning_rate: 0.001 there, 6.25e-05 here)" in command.err
    )


@pytest.mark.parametrize(("architecture", "name"), [("transformer", "lstm_dim"), ("lstm", "num_heads")])
def test_settings_that_an_architecture_does_not_have_do_not_set_runs_apart(
    tmp_path: Path, architecture: Any, name: str
) -> None:
    for seed, value in ((1, 5), (2, 2048)):
        model = dataclasses.replace(MODEL, architecture=architecture, **{name: value})
        write_run(tmp_path / "runs" / f"a{seed}", {"matthews": 0.2}, seed=seed, model=model)
    (scores,) = collect_runs(tmp_path / "runs").scores.values()
    assert list(scores) == [1, 2]


def test_runs_with_some_layers_only_are_left_out_and_all_layers_by_number_are_the_full_model(
    tmp_path: Path, tables: Callable[..., Command]
) -> None:
    for number in (None, 0, 6, 12):
        seed = {None: 1, 12: 2}.get(number, 3)
        path = tmp_path / "runs" / str(number)
        write_run(path, {"matthews": 0.3}, seed=seed, num_transferred_layers=number)
    command = tables("--json")
    assert cell_of(command, 5, "cola")["seeds"] == [1, 2]
    assert command.err == (
        "note: 2 runs take over some of the pretrained blocks only (RunConfig.num_transferred_layers), and are left "
        "out: `gpt transfer` shows them\n"
    )


def test_a_copy_of_a_run_is_counted_once(tmp_path: Path, tables: Callable[..., Command]) -> None:
    for name in ("a", "copy"):
        write_run(tmp_path / "runs" / name, {"matthews": 0.2})
    command = tables("--json")
    assert cell_of(command, 5, "cola")["n"] == 1
    assert f"{tmp_path / 'runs' / 'copy'}: left out, a run of the same settings and seed" in command.err


def test_what_cannot_be_used_is_left_out_with_a_note(tmp_path: Path, tables: Callable[..., Command]) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "unfinished", None)
    write_run(runs / "nan", {"matthews": math.nan})
    write_run(runs / "cut", {}).joinpath("result.json").write_text("{")
    write_run(runs / "old", {}).joinpath("config.gin").write_text("RunConfig.no_such = 1\n")
    write_run(runs / "list", {}).joinpath("result.json").write_text('{"validation": []}')
    write_run(runs / "two", {"matthews": 0.1}, init_from=None, lm_coef=0.0)
    command = tables("--json")
    assert all(cell["n"] == 0 for cell in command.rows)
    for note in (
        "1 runs of a task are not finished",
        f"{runs / 'nan'}: left out, result.json has matthews is no finite number",
        f"{runs / 'cut'}: left out, cannot be read",
        f"{runs / 'old'}: left out, cannot be read",
        f"{runs / 'list'}: left out, cannot be read: {runs / 'list' / 'result.json'}: is no summary of a run",
        f"{runs / 'two'}: left out, differs from the full model in more than one",
    ):
        assert note in command.err


def test_a_run_of_train_py_is_found(finetuned: Run, pretrained: Run, tables: Callable[..., Command]) -> None:
    assert finetuned.path.parent.parent == pretrained.path.parent.parent
    cell = cell_of(tables("--json", runs=finetuned.path), 5, "cola")
    result = json.loads((finetuned.path / "result.json").read_text())
    assert (cell["n"], cell["seeds"], cell["median"]) == (1, [42], 100 * result["validation"]["matthews"])


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_directory_without_runs_is_refused(name: str, tmp_path: Path, tables: Callable[..., Command]) -> None:
    (tmp_path / "empty").mkdir()
    command = tables(runs=tmp_path / name)
    assert (command.code, command.out) == (2, "")
    assert command.err.startswith(f"error: --runs {str(tmp_path / name)!r} ")


# Every way to show it


@pytest.fixture
def two_seeds(tmp_path: Path) -> None:
    """CoLA with 20 and 30, and nothing else."""
    for seed, value in ((1, 0.2), (2, 0.3)):
        write_run(tmp_path / "runs" / f"cola-{seed}", {"matthews": value}, seed=seed)


def cells_of_line(text: str, label: str, separator: str) -> list[str]:
    """The cells of the first line of ours called `label`."""
    line = next(line for line in text.splitlines() if f"ours (validation): {label}" in line)
    return [cell.strip(" \\") for cell in line.split(separator)]


@pytest.mark.usefixtures("two_seeds")
@pytest.mark.parametrize(("name", "separator"), [("terminal", "│"), ("markdown", "|"), ("latex", "&")])
def test_a_table_has_the_shape_of_the_papers_with_our_rows_below(
    name: str, separator: str, tables: Callable[..., Command]
) -> None:
    command = tables(f"--format={name}", "--table=4")
    assert (command.code, command.err) == (0, "")
    assert NOTE in " ".join(command.out.split())
    assert re.search(r"Sparse byte mLSTM \(published, test\)\W+93\.2", command.out)
    assert re.search(r"Finetuned Transformer LM \(published, test\)\W+45\.4", command.out)
    expected = {"median": "25.0", "difference": "-20.4", "mean": "25.0", "std": "7.1", "max": "30.0", "n": "2"}
    for label, text in {**expected, "seeds": "1 2"}.items():
        assert text in cells_of_line(command.out, label, separator)
    assert cells_of_line(command.out, "median", separator).count("no runs") == 5


@pytest.mark.usefixtures("two_seeds")
def test_a_row_without_any_run_is_one_line(tables: Callable[..., Command]) -> None:
    lines = tables("--format=markdown", "--table=2").out.splitlines()
    assert [line.count("no runs") for line in lines if "ours" in line and line.startswith("|")] == [6]


@pytest.mark.usefixtures("two_seeds")
def test_csv_is_read_back_to_the_same_cells(tables: Callable[..., Command]) -> None:
    rows = list(csv.reader(io.StringIO(tables("--format=csv").out)))
    assert rows[-1] == [NOTE]
    headers = [row for row in rows if re.fullmatch(r"table \d", row[0])]
    assert [row[0] for row in headers] == [f"table {number}" for number in TABLES]
    start = rows.index(headers[-1])
    assert headers[-1][:3] == ["table 5", "Avg.", "CoLA"]
    assert rows[start + 1][:3] == ["Transformer w/ aux LM (full) (published, test)", "74.7", "45.4"]
    assert rows[start + 2][:3] == ["ours (validation): median", "no runs", "25.0"]


@pytest.mark.usefixtures("two_seeds")
def test_latex_leaves_no_special_character_alone(tables: Callable[..., Command]) -> None:
    body = [line for line in tables("--format=latex").out.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[%_#$]", "\n".join(body))
    assert sum(line.startswith(r"\begin{table}") for line in body) == 4
    for line in body:
        if line.startswith("ours"):
            assert line.count("&") in (4, 6, 9)
            assert line.endswith(r" \\")


@pytest.mark.usefixtures("two_seeds")
def test_all_tables_become_a_png(tmp_path: Path, tables: Callable[..., Command]) -> None:
    picture = tmp_path / "new" / "tables.png"
    assert tables("--format=png", f"--output={picture}").code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert tables("--format=png", "--table=2", f"--output={tmp_path / 'one.png'}").code == 0
    assert (tmp_path / "one.png").stat().st_size < picture.stat().st_size


@pytest.mark.usefixtures("two_seeds")
def test_a_picture_needs_a_file(tables: Callable[..., Command]) -> None:
    command = tables("--format=png")
    assert (command.code, command.out) == (2, "")
    assert "name its file with --output FILE.png" in command.err


@pytest.mark.usefixtures("two_seeds")
def test_output_takes_the_text_and_leaves_json_on_standard_output(
    tmp_path: Path, tables: Callable[..., Command]
) -> None:
    command = tables("--format=markdown", f"--output={tmp_path / 'new' / 'tables.md'}", "--json")
    assert len(command.rows) == 52
    assert (tmp_path / "new" / "tables.md").read_text() == tables("--format=markdown").out


@pytest.mark.usefixtures("two_seeds")
def test_an_output_that_cannot_be_written_is_a_clear_error(tmp_path: Path, tables: Callable[..., Command]) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("markdown", "png"):
        command = tables(f"--format={name}", f"--output={tmp_path / 'file' / 'x'}")
        assert command.code == 2
        assert "cannot be written" in command.err
