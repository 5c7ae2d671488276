"""GLUE's zip file: what is written from runs, and every mistake that its check finds."""

import errno
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import Command, write_rows

from gpt import files, gin_io
from gpt.config import ModelConfig, RunConfig, TaskConfig, TokenizerConfig
from gpt.errors import ConfigError, DataError
from gpt.evaluation import submission
from gpt.evaluation.submission import HEADER, SHEETS, Sheet, check_submission, write_submission

SMALL = {name: sheet._replace(num_rows=3) for name, sheet in SHEETS.items()}


@pytest.fixture
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test sets of three rows."""
    monkeypatch.setattr(submission, "SHEETS", SMALL)


def make_run(run_dir: Path, task: str, result: dict[str, Any] | None = None) -> Path:
    config = RunConfig(
        output_dir=str(run_dir),
        tokenizer=TokenizerConfig(path="unused"),
        model=ModelConfig(num_special_tokens=3),
        task=TaskConfig(name=task),
    )
    run_dir.mkdir(parents=True)
    (run_dir / "config.gin").write_text(gin_io.format_config(config))
    if result:
        (run_dir / "result.json").write_text(json.dumps({"validation": result}))
    return run_dir


def predict(run_dir: Path, name: str, predictions: list[float]) -> None:
    rows = [{"row": row, "label": None, "prediction": value, "scores": []} for row, value in enumerate(predictions)]
    write_rows(run_dir / "predictions" / f"{name}.jsonl", rows)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run of each task with predictions for every test set, and validation scores of 0.5."""
    root = tmp_path / "runs"
    names = ("matthews", "accuracy", "f1", "pearson", "spearman", "accuracy_mismatched")
    scores = {name: 0.5 for name in names}  # noqa: C420 - fromkeys would type the keys
    for sheet in SMALL.values():
        run_dir = root / "deep" / sheet.task
        if not run_dir.exists():
            make_run(run_dir, sheet.task, scores)
        predict(run_dir, sheet.predictions, [1, 0, 1] if sheet.labels else [0.0, 4.99961, 2.5])
    return root


def sheets_of(path: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode().splitlines() for name in archive.namelist()}


def write_zip(path: Path, changes: dict[str, str | None]) -> Path:
    """A right submission with some of its files changed, or left out."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**{name: right_text(sheet) for name, sheet in SMALL.items()}, **changes}.items():
            if text is not None:
                archive.writestr(name, text)
    return path


def right_text(sheet: Sheet) -> str:
    word = sheet.labels[0] if sheet.labels else "2.500"
    return "".join(f"{line}\n" for line in (HEADER, *(f"{row}\t{word}" for row in range(sheet.num_rows))))


# Writing


def test_the_files_have_the_sizes_of_glues_test_sets() -> None:
    assert {name: sheet.num_rows for name, sheet in SHEETS.items()} == {
        "CoLA.tsv": 1063, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 1379, "QQP.tsv": 390965, "MNLI-m.tsv": 9796,
        "MNLI-mm.tsv": 9847, "QNLI.tsv": 5463, "RTE.tsv": 3000, "WNLI.tsv": 146, "AX.tsv": 1104,
    }  # fmt: skip


@pytest.mark.usefixtures("small_sheets")
def test_predictions_become_the_words_that_glue_wants(runs: Path, tmp_path: Path) -> None:
    report = write_submission(runs, tmp_path / "new" / "glue.zip")
    sheets = sheets_of(tmp_path / "new" / "glue.zip")
    assert set(sheets) == set(SHEETS)
    assert {lines[0] for lines in sheets.values()} == {"index\tprediction"}
    assert sheets["CoLA.tsv"][1:] == sheets["WNLI.tsv"][1:] == ["0\t1", "1\t0", "2\t1"]
    assert (
        sheets["RTE.tsv"][1:] == sheets["QNLI.tsv"][1:] == ["0\tnot_entailment", "1\tentailment", "2\tnot_entailment"]
    )
    assert sheets["MNLI-mm.tsv"][1:] == sheets["AX.tsv"][1:] == ["0\tneutral", "1\tentailment", "2\tneutral"]
    assert sheets["STS-B.tsv"][1:] == ["0\t0.000", "1\t5.000", "2\t2.500"]
    assert (report["missing"], report["validation_glue_score"]) == ([], 0.5)
    assert check_submission(tmp_path / "new" / "glue.zip") == dict.fromkeys(SHEETS, 3)


@pytest.mark.usefixtures("small_sheets")
def test_the_newest_predictions_of_a_task_are_taken(runs: Path, tmp_path: Path) -> None:
    old = make_run(runs / "old", "rte")
    predict(old, "test", [0, 0, 0])
    os.utime(old / "predictions" / "test.jsonl", (1, 1))
    write_submission(runs, tmp_path / "glue.zip")
    assert sheets_of(tmp_path / "glue.zip")["RTE.tsv"][1] == "0\tnot_entailment"
    os.utime(old / "predictions" / "test.jsonl", (2**33, 2**33))
    assert write_submission(runs, tmp_path / "glue.zip")["files"]["RTE.tsv"]["run"] == str(old)
    assert sheets_of(tmp_path / "glue.zip")["RTE.tsv"][1] == "0\tentailment"


@pytest.mark.usefixtures("small_sheets")
def test_the_same_predictions_make_the_same_file(runs: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        write_submission(runs, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:  # both may have been made in the same second
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.usefixtures("small_sheets")
def test_a_submission_that_cannot_be_written_leaves_the_earlier_one(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = tmp_path / "glue.zip"
    output.write_bytes(b"earlier")
    monkeypatch.setattr(files, "sync", fill)
    with pytest.raises(DataError, match=r"--output .*glue\.zip' cannot be written: .*No space left"):
        write_submission(runs, output)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["glue.zip"]
    assert output.read_bytes() == b"earlier"


@pytest.mark.usefixtures("small_sheets")
def test_a_test_set_without_predictions_is_refused_with_the_command_that_makes_them(runs: Path, tmp_path: Path) -> None:
    (runs / "deep" / "mnli" / "predictions" / "ax-test.jsonl").unlink()
    (runs / "deep" / "wnli" / "predictions" / "test.jsonl").unlink()
    message = (
        r"no test predictions for WNLI\.tsv: run eval\.py --run=RUN_OF_WNLI --split=test; AX\.tsv: run eval\.py "
        r"--run=RUN_OF_MNLI --split=test --gin\.TaskConfig\.name=ax\. --allow_partial leaves them out"
    )
    with pytest.raises(ConfigError, match=message):
        write_submission(runs, tmp_path / "glue.zip")
    assert not (tmp_path / "glue.zip").exists()
    report = write_submission(runs, tmp_path / "glue.zip", allow_partial=True)
    assert (report["missing"], report["validation_glue_score"]) == (["WNLI.tsv", "AX.tsv"], None)
    assert set(sheets_of(tmp_path / "glue.zip")) == set(SHEETS) - {"WNLI.tsv", "AX.tsv"}


@pytest.mark.usefixtures("small_sheets")
def test_predictions_of_another_test_set_are_refused(runs: Path, tmp_path: Path) -> None:
    predict(runs / "deep" / "cola", "test", [1, 0])
    with pytest.raises(DataError, match=r"CoLA\.tsv has 2 rows, expected 3\. Predictions must be of the official"):
        write_submission(runs, tmp_path / "glue.zip")


@pytest.mark.usefixtures("small_sheets")
@pytest.mark.parametrize(
    "line",
    [
        '{"row": 0}',
        '{"row": 0, "prediction": 2}',
        '{"row": 0, "prediction": -1}',
        '{"row": 0, "prediction": true}',
        '{"row": 0, "prediction": null}',
        '{"row": "0\\t1", "prediction": 0}',
    ],
)
def test_damaged_predictions_are_refused_with_their_line(runs: Path, tmp_path: Path, line: str) -> None:
    path = runs / "deep" / "rte" / "predictions" / "test.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"test\.jsonl, line 1: .* is no prediction: run eval\.py anew"):
        write_submission(runs, tmp_path / "glue.zip")


def test_a_directory_without_any_run_is_refused(tmp_path: Path) -> None:
    for allow_partial in (False, True):
        with pytest.raises(ConfigError, match=r"has no test predictions for CoLA\.tsv: run eval\.py"):
            write_submission(tmp_path, tmp_path / "glue.zip", allow_partial=allow_partial)
    with pytest.raises(DataError, match=r"--runs '.*none' is not a directory"):
        write_submission(tmp_path / "none", tmp_path / "glue.zip")


# Checking


@pytest.mark.usefixtures("small_sheets")
@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("CoLA.tsv", None, "CoLA.tsv is missing"),
        ("cola.tsv", "", "cola.tsv is none of GLUE's files"),
        ("RTE.tsv", "0\tentailment\n", "RTE.tsv starts with '0\\tentailment', expected 'index\\tprediction'"),
        ("RTE.tsv", "index\tprediction\n0\tentailment\n", "RTE.tsv has 1 rows, expected 3"),
        (
            "RTE.tsv",
            f"{HEADER}\n0\tentailment\n2\tentailment\n1\tentailment\n",
            "RTE.tsv, line 3: index '2', expected 1",
        ),
        (
            "RTE.tsv",
            f"{HEADER}\n0\tentailment\n1\t0\n2\t1\n",
            "RTE.tsv, line 3: prediction '0', expected entailment, not_entailment",
        ),
        (
            "CoLA.tsv",
            f"{HEADER}\n0\t1\n1\tacceptable\n2\t0\n",
            "CoLA.tsv, line 3: prediction 'acceptable', expected 0, 1",
        ),
        (
            "AX.tsv",
            f"{HEADER}\n0\tneutral\n1\tnot_entailment\n2\tneutral\n",
            "AX.tsv, line 3: prediction 'not_entailment', expected entailment, neutral",
        ),
        (
            "STS-B.tsv",
            f"{HEADER}\n0\t0.0\n1\tnan\n2\t5\n",
            "STS-B.tsv, line 3: prediction 'nan', expected a number from 0 to 5",
        ),
        ("STS-B.tsv", f"{HEADER}\n0\t0.0\n1\t5.001\n2\t5\n", "STS-B.tsv, line 3: prediction '5.001'"),
        ("QQP.tsv", f"{HEADER}\n0\t1\n1 1\n2\t0\n", "QQP.tsv, line 3: 1 columns, expected 2"),
    ],
)
def test_a_mistake_is_found(tmp_path: Path, name: str, text: str | None, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        check_submission(write_zip(tmp_path / "glue.zip", {name: text}))
    assert problem in str(caught.value)


@pytest.mark.usefixtures("small_sheets")
def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    changes = {"CoLA.tsv": None, "RTE.tsv": f"{HEADER}\n0\tyes\n", "notes.txt": "mine"}
    with pytest.raises(DataError) as caught:
        check_submission(write_zip(tmp_path / "glue.zip", changes))
    assert len(str(caught.value).splitlines()) == 1 + 4


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "glue.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as a zip file"):
        check_submission(tmp_path / "glue.zip")


# The command


@pytest.mark.usefixtures("small_sheets")
def test_the_command_writes_a_zip_that_it_then_finds_right(
    runs: Path, tmp_path: Path, gpt: Callable[..., Command]
) -> None:
    written = gpt("submit", "--runs", runs, "--output", tmp_path / "glue.zip", "--json")
    assert (written.code, set(written.rows[0]["files"])) == (0, set(SHEETS))
    assert "GLUE average of these runs on validation: 0.5000" in written.err
    checked = gpt("submit", "--check", tmp_path / "glue.zip", "--json")
    assert (checked.code, checked.rows[0]["files"]) == (0, dict.fromkeys(SHEETS, 3))


def test_the_command_exits_with_2_on_a_zip_that_is_wrong(tmp_path: Path, gpt: Callable[..., Command]) -> None:
    done = gpt("submit", "--check", write_zip(tmp_path / "glue.zip", {}))
    assert (done.code, done.out) == (2, "")
    assert done.err.count("rows, expected") == len(SHEETS)


@pytest.mark.parametrize("flags", [("--runs", "."), ("--check", "a.zip", "--output", "b.zip")])
def test_flags_that_do_not_go_together_are_refused(flags: tuple[str, ...], gpt: Callable[..., Command]) -> None:
    assert gpt("submit", *flags).code == 2
