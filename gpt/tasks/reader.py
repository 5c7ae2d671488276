"""Labelled examples from local files, or from the hub through `datasets`."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt.errors import DataError
from gpt.tasks.columns import our_rows
from gpt.tasks.files import Located, describe_files, read_files
from gpt.tasks.registry import Task
from gpt.tasks.targets import MAX_SCORE
from gpt.tasks.transforms import MULTIPLE_CHOICE, Segments


class Example(NamedTuple):
    """Text segments of each sequence of one example, and its label.

    The label is the index of the class or right candidate, or a number; None in a test split whose
    labels are kept secret.
    """

    sequences: list[Segments]
    label: int | float | None


class Split(NamedTuple):
    """The examples of a split in their order, and how many rows without a right answer were left out."""

    examples: list[Example]
    num_dropped: int

    @property
    def is_labelled(self) -> bool:
        """Whether the labels are known."""
        return self.examples[0].label is not None


def read_split(task: Task, data_dir: str | None, split: str) -> Split:
    """All examples of one of `task.splits`; labels may be missing in a test split, from all rows.

    Raises:
      DataError: no such file or hub, no rows, a column missing or not text, an unknown label;
        with the file and row.
    """
    if data_dir is None:
        source, located = _read_hub(task, split)
    else:
        source, located = str(Path(data_dir)), read_files(task.source, Path(data_dir), split)
    may_be_secret = split.startswith("test")
    examples, num_dropped = [], 0
    for where, published in located:
        for row in our_rows(published):
            if (not published and task.source.ragged) or str(row.get("label")) in task.source.undecided:
                num_dropped += 1
            else:
                examples.append(parse_row(task, row, published, where, may_be_secret))
    if not examples:
        raise DataError(
            f"{source}: no rows in the {split} split; expected columns {', '.join(task.transform.columns)} and label"
        )
    if len({example.label is None for example in examples}) > 1:
        raise DataError(f"{source}: some rows of the {split} split have labels and some have none: split them")
    return Split(examples, num_dropped)


def _read_hub(task: Task, split: str) -> tuple[str, Iterator[Located]]:
    from datasets import load_dataset

    columns = f"(columns {', '.join(task.transform.columns)}, label)"
    local = f"set TaskConfig.data_dir to a directory with train.jsonl and validation.jsonl {columns}"
    hub = task.source.hub
    if hub is None:
        raise DataError(f"TaskConfig.data_dir is not set, and this task is not on the hub: {local}")
    theirs = hub.splits.get(split, split)
    source = f"hub data set {'/'.join(filter(None, (hub.path, hub.name)))}, {theirs}"
    try:
        rows: Any = load_dataset(hub.path, hub.name, split=theirs)
    except Exception as error:  # whatever the hub client raises: no network, no such data set, bad cache
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error}); to use local files, {local}, "
            f"or to one with the published files: for {split}, one of {describe_files(task.source, split)}"
        ) from error
    located = ((f"{source}, line {number}", row) for number, row in enumerate(rows, 1))
    return source, iter(hub.divide(split, list(located))) if hub.divide else located


def parse_row(
    task: Task, row: Mapping[str, Any], published: Mapping[str, Any], where: str, may_be_secret: bool
) -> Example:
    """The example of a row with our columns, `published` as it came; DataError, that begins with `where`, if none."""
    is_secret = may_be_secret and row.get("label") in (None, -1, "-1")
    needed = task.transform.columns if is_secret else (*task.transform.columns, "label")
    missing = [column for column in needed if row.get(column) is None]
    if missing:
        raise DataError(
            f"{where}: no {' and no '.join(missing)}; "
            f"expected columns {', '.join(task.transform.columns)} and label, found {', '.join(published)}"
        )
    choices = row.get("choices")
    if task.transform is MULTIPLE_CHOICE and not (isinstance(choices, list) and len(choices) >= 2):
        raise DataError(f"{where}: choices is {choices!r:.80}, expected a list of two or more texts")
    sequences = task.transform.sequences(row)
    for segments in sequences:
        if not all(isinstance(segment, str) and segment.strip() for segment in segments):
            raise DataError(f"{where}: a text is empty or not a string: {segments!r:.300}; remove the row or fill it")
    if is_secret:
        return Example(sequences, None)
    if task.targets == "class":
        return Example(sequences, _class_index(task, row["label"], len(sequences), where))
    return Example(sequences, _number(row["label"], where))


def _class_index(task: Task, label: Any, num_sequences: int, where: str) -> int:
    num_classes = len(task.labels) or num_sequences
    text = task.source.aliases.get(str(label), str(label))
    if text in task.labels:
        return task.labels.index(text)
    if text.isdecimal() and len(text) < 10 and int(text) < num_classes:
        return int(text)
    words = f" or {', '.join(task.labels)}" if task.labels else ""
    raise DataError(f"{where}: label {label!r:.80} is not in the set: expected 0 to {num_classes - 1}{words}")


def _number(label: Any, where: str) -> float:
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= MAX_SCORE:
        raise DataError(f"{where}: label {label!r:.80} is not in the set: expected a number from 0 to {MAX_SCORE}")
    return value
