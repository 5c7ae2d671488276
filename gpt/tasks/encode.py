"""The splits of a task as token ids."""

from typing import NamedTuple

import numpy as np

from gpt.data.batches import TaskExamples
from gpt.errors import DataError
from gpt.tasks.reader import Split
from gpt.tasks.registry import Task
from gpt.tasks.targets import encode_labels
from gpt.tasks.transforms import lay_out
from gpt.text.tokenizer import Tokenizer


class EncodedSplit(NamedTuple):
    """A split as its batches take it, its labels as the metrics take them, and how many examples were cut."""

    examples: TaskExamples
    labels: np.ndarray | None  # int64 or float64 [N]; None where they are secret
    num_cut: int


def encode_split(
    task: Task, split: Split, tokenizer: Tokenizer, context_length: int, *, truncate: bool, name: str
) -> EncodedSplit:
    """The split as token ids; `name` says in errors which it is.

    Raises:
      DataError: a text without tokens; an example longer than the context, unless `truncate`.
    """
    # Each text once: a passage of RACE is in every candidate of all of its questions.
    texts = list(
        dict.fromkeys(text for example in split.examples for segments in example.sequences for text in segments)
    )
    ids_of = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    sequences, num_cut = [], 0
    for number, example in enumerate(split.examples, 1):
        where = f"{name}, row {number}"
        layouts = []
        for texts_of_sequence in example.sequences:
            segments = [ids_of[text] for text in texts_of_sequence]
            if not all(segments):
                raise DataError(f"{where}: a text has no tokens: {texts_of_sequence!r}; remove the row")
            try:
                layouts.append(lay_out(segments, tokenizer, context_length))
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
        if any(layout.was_cut for layout in layouts):
            num_cut += 1
            if not truncate:
                raise DataError(
                    f"{where}: longer than ModelConfig.context_length = {context_length} tokens with its "
                    "special tokens: set TaskConfig.truncate = True to cut such examples, or a longer context"
                )
        sequences.append([np.array(layout.ids, np.int32) for layout in layouts])  # a quarter of the memory of lists
    # Batches hold a label in any case; where it is secret nothing reads it.
    labels = [example.label or 0 for example in split.examples]
    examples = TaskExamples(sequences, encode_labels(task.targets, labels))
    return EncodedSplit(examples, np.array(labels) if split.is_labelled else None, num_cut)
