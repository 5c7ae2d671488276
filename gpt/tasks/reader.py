"""Labelled examples from local files, or from the hub through `datasets`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt.data.rows import Row, read_rows
from gpt.errors import DataError
from gpt.tasks.registry import Task
from gpt.tasks.transforms import MULTIPLE_CHOICE, Segments

SUFFIXES = (".jsonl", ".csv", ".tsv")


class Example(NamedTuple):
    """Text segments of each sequence of one example, and the index of its class or right candidate."""

    sequences: list[Segments]
    label: int


def read_examples(task: Task, data_dir: str | None, split: str) -> list[Example]:
    """All examples of `split` ("train" or "validation"), in file order.

    Raises:
      DataError: no such file or hub, no rows, a column missing or not text, an unknown label;
        with the file and row.
    """
    if data_dir is None:
        source, rows = _read_hub(task, split)
    else:
        path = _find_file(Path(data_dir), split)
        source, rows = str(path), read_rows(path)
    examples = [_parse(task, row, f"{source}, line {number}") for number, row in rows]
    if not examples:
        raise DataError(f"{source}: no rows; expected columns {', '.join(task.transform.columns)} and label")
    return examples


def _find_file(directory: Path, split: str) -> Path:
    candidates = [directory / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [path for path in candidates if path.exists()]
    if len(found) != 1:
        what = "none of" if not found else "more than one of"
        raise DataError(
            f"TaskConfig.data_dir = {str(directory)!r} holds {what} {', '.join(path.name for path in candidates)}; "
            "expected exactly one"
        )
    return found[0]


def _read_hub(task: Task, split: str) -> tuple[str, Iterator[Row]]:
    from datasets import load_dataset

    local = "set TaskConfig.data_dir to a directory with train.jsonl and validation.jsonl"
    if task.hub is None:
        raise DataError(f"TaskConfig.data_dir is not set, and this task is not on the hub: {local}")
    source = f"hub data set {task.hub.path}/{task.hub.name}, {split}"
    try:
        rows: Any = load_dataset(task.hub.path, task.hub.name, split=split)
        rows = rows.rename_columns(task.hub.columns)
    except Exception as error:  # whatever the hub client raises: no network, no such data set, bad cache
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error}); to use local files, {local}"
        ) from error
    return source, enumerate(rows, 1)


def _parse(task: Task, row: Mapping[str, Any], where: str) -> Example:
    missing = [column for column in (*task.transform.columns, "label") if row.get(column) is None]
    if missing:
        raise DataError(
            f"{where}: no {' and no '.join(missing)}; "
            f"expected columns {', '.join(task.transform.columns)} and label, found {', '.join(row)}"
        )
    choices = row.get("choices")
    if task.transform is MULTIPLE_CHOICE and not (isinstance(choices, list) and len(choices) >= 2):
        raise DataError(f"{where}: choices is {choices!r:.80}, expected a list of two or more texts")
    sequences = task.transform.sequences(row)
    for segments in sequences:
        if not all(isinstance(segment, str) and segment.strip() for segment in segments):
            raise DataError(f"{where}: a text is empty or not a string: {segments!r}; remove the row or fill it")
    return Example(sequences, _label_index(task, row["label"], len(sequences), where))


def _label_index(task: Task, label: Any, num_sequences: int, where: str) -> int:
    num_classes = len(task.labels) or num_sequences
    text = str(label)
    if text in task.labels:
        return task.labels.index(text)
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    words = f" or {', '.join(task.labels)}" if task.labels else ""
    raise DataError(f"{where}: label {label!r} is not in the set: expected 0 to {num_classes - 1}{words}")
