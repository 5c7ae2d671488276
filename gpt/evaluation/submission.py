"""The zip file that GLUE's server takes: built from the test predictions of runs, and checked.

It holds a TSV for each test set, with the header `index<TAB>prediction` and a row for each example
from 0. File names, label words and test sizes are GLUE's (Wang et al. 2018, and the hub's data card).
"""

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from gpt.data.rows import read_rows
from gpt.errors import ConfigError, DataError
from gpt.evaluation.scores import predictions_path
from gpt.files import replacing
from gpt.metrics import glue_score
from gpt.reading import MAX_BYTES
from gpt.tasks.registry import TASKS
from gpt.tasks.targets import MAX_SCORE
from gpt.training.run_dir import load_config, read_result, validation_scores

HEADER = "index\tprediction"


class Sheet(NamedTuple):
    """One file of the zip: the task whose runs fill it, their predictions file, and how predictions are written.

    `labels` are the words in class order; () for numbers.
    """

    task: str
    predictions: str
    num_rows: int
    labels: tuple[str, ...] = ("0", "1")


_NLI, _ENTAILS_OR_NOT = TASKS["mnli"].labels, TASKS["rte"].labels

SHEETS: dict[str, Sheet] = {
    "CoLA.tsv": Sheet("cola", "test", 1063),
    "SST-2.tsv": Sheet("sst2", "test", 1821),
    "MRPC.tsv": Sheet("mrpc", "test", 1725),
    "STS-B.tsv": Sheet("stsb", "test", 1379, ()),
    "QQP.tsv": Sheet("qqp", "test", 390965),
    "MNLI-m.tsv": Sheet("mnli", "test_matched", 9796, _NLI),
    "MNLI-mm.tsv": Sheet("mnli", "test_mismatched", 9847, _NLI),
    "QNLI.tsv": Sheet("qnli", "test", 5463, _ENTAILS_OR_NOT),
    "RTE.tsv": Sheet("rte", "test", 3000, _ENTAILS_OR_NOT),
    "WNLI.tsv": Sheet("wnli", "test", 146),
    "AX.tsv": Sheet("mnli", "ax-test", 1104, _NLI),
}


def write_submission(runs: Path, output: Path, *, allow_partial: bool = False) -> dict[str, Any]:
    """Writes the zip from the newest test predictions of each task below `runs`, and reports what is in it.

    The report has the run and the rows of each file, the files that are missing, and GLUE's average
    of the same runs on their validation splits (None unless all nine tasks are there).

    Raises:
      ConfigError: a test set has no predictions, unless `allow_partial`.
      DataError: predictions are damaged, or not those of the whole official test set.
    """
    if not runs.is_dir():
        raise DataError(f"--runs {str(runs)!r} is not a directory: give the one that the run directories are in")
    by_task = _runs_by_task(runs)
    chosen = {}
    for name, sheet in SHEETS.items():
        paths = [predictions_path(run, sheet.predictions) for run in by_task.get(sheet.task, ())]
        newest = max((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime, default=None)
        if newest is not None:
            chosen[name] = newest
    missing = [name for name in SHEETS if name not in chosen]
    if not chosen or (missing and not allow_partial):
        raise ConfigError(f"--runs {str(runs)!r} has no test predictions for {_commands(missing)}{_PARTIAL}")

    texts = {name: _sheet_text(SHEETS[name], path) for name, path in chosen.items()}
    problems = [problem for name, text in texts.items() for problem in _problems_of_sheet(name, text)]
    if problems:
        raise DataError("; ".join(problems) + ". Predictions must be of the official test set: run eval.py anew on it")
    _write_zip(output, texts)
    return {
        "output": str(output),
        "files": {name: {"run": str(path.parents[1]), "rows": SHEETS[name].num_rows} for name, path in chosen.items()},
        "missing": missing,
        "validation_glue_score": _validation_score(chosen),
    }


_PARTIAL = ". --allow_partial leaves them out, which GLUE's server scores as 0"


def _commands(missing: list[str]) -> str:
    commands = {}
    for name in missing:
        sheet = SHEETS[name]
        more = " --gin.TaskConfig.name=ax" if name == "AX.tsv" else ""
        commands.setdefault(f"eval.py --run=RUN_OF_{sheet.task.upper()} --split=test{more}", []).append(name)
    return "; ".join(f"{' and '.join(names)}: run {command}" for command, names in commands.items())


def _runs_by_task(runs: Path) -> dict[str, list[Path]]:
    by_task: dict[str, list[Path]] = {}
    for config in sorted(runs.rglob("config.gin")):
        if (config.parent / "predictions").is_dir():
            by_task.setdefault(load_config(config.parent).task.name or "", []).append(config.parent)
    return by_task


def _sheet_text(sheet: Sheet, path: Path) -> str:
    """The TSV of one predictions file."""
    lines = [HEADER]
    for number, row in read_rows(path, "jsonl"):
        index: Any = row.get("row")
        prediction: Any = row.get("prediction")
        is_number = type(prediction) in ((int,) if sheet.labels else (int, float))
        if type(index) is not int or not is_number or (sheet.labels and not 0 <= prediction < len(sheet.labels)):
            raise DataError(f"{path}, line {number}: {row!r:.60} is no prediction: run eval.py anew")
        lines.append(f"{index}\t{sheet.labels[prediction] if sheet.labels else f'{prediction:.3f}'}")
    return "\n".join(lines) + "\n"


def _validation_score(chosen: dict[str, Path]) -> float | None:
    return glue_score(
        {SHEETS[name].task: validation_scores(read_result(path.parents[1]) or {}) for name, path in chosen.items()}
    )


def _write_zip(output: Path, texts: dict[str, str]) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in texts.items():
                # Without the time of day, so that the same predictions make the same file.
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, text)
    except OSError as error:
        raise DataError(f"--output {str(output)!r} cannot be written: {error}") from error


def check_submission(path: Path) -> dict[str, int]:
    """Rows of each file of a zip that GLUE's server would take.

    Raises:
      DataError: everything that is wrong with it: names, headers, indices, label words, row counts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # Of other files the name is enough; those of GLUE have less than 8 MB.
            contents = {name: _unzipped(archive, name) if name in SHEETS else b"" for name in archive.namelist()}
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from None
    except Exception as error:  # whatever a damaged archive makes the decompressors raise
        raise DataError(f"{str(path)!r} cannot be read as a zip file: {error}") from error
    problems = [f"{name} is missing" for name in SHEETS if name not in contents]
    problems += [f"{name} is none of GLUE's files" for name in contents if name not in SHEETS]
    for name in SHEETS.keys() & contents.keys():
        try:
            problems += _problems_of_sheet(name, contents[name].decode("utf-8"))
        except UnicodeDecodeError:
            problems.append(f"{name} is not UTF-8 text")
    if problems:
        raise DataError(f"{str(path)!r} is no GLUE submission:\n  " + "\n  ".join(sorted(problems)))
    return {name: SHEETS[name].num_rows for name in SHEETS}


def _unzipped(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"{name} is larger than {MAX_BYTES:,} bytes when it is unpacked")
    return content


def _problems_of_sheet(name: str, text: str) -> list[str]:
    """What is wrong with one TSV, each kind of mistake told once, at its first line."""
    sheet = SHEETS[name]
    header, *lines = text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    problems: dict[str, str] = {}
    if header != HEADER:
        problems["header"] = f"{name} starts with {header[:40]!r}, expected {HEADER!r}"
    if len(lines) != sheet.num_rows:
        problems["rows"] = f"{name} has {len(lines)} rows, expected {sheet.num_rows}"
    for index, line in enumerate(lines):
        cells = line.split("\t")
        where = f"{name}, line {index + 2}"
        if len(cells) != 2:
            problems.setdefault("cells", f"{where}: {len(cells)} columns, expected 2")
            continue
        if cells[0] != str(index):
            problems.setdefault("index", f"{where}: index {cells[0]!r}, expected {index}")
        if not _is_prediction(cells[1], sheet):
            words = ", ".join(sheet.labels) or f"a number from 0 to {MAX_SCORE}"
            problems.setdefault("word", f"{where}: prediction {cells[1]!r}, expected {words}")
    return list(problems.values())


def _is_prediction(word: str, sheet: Sheet) -> bool:
    if sheet.labels:
        return word in sheet.labels
    try:
        value = float(word)
    except ValueError:
        return False
    return math.isfinite(value) and 0 <= value <= MAX_SCORE
