"""Task-aware input transforms (Radford et al. 2018, section 3.3 and figure 1): rows become token sequences.

classification    start text extract
entailment        start premise delimiter hypothesis extract
similarity        start a delimiter b extract, and start b delimiter a extract
multiple choice   start context delimiter choice extract, one a choice
with a question   start document question delimiter choice extract: no delimiter before the question
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpt.errors import DataError
from gpt.text.tokenizer import Tokenizer

Segments = tuple[str, ...]
"""The texts of one sequence: one, two, or document, question and answer."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """How the columns of one row become the text segments of its sequences.

    With `both_orders` the two sequences of an example are one input, whose hidden states are added.
    """

    columns: tuple[str, ...]
    sequences: Callable[[Mapping[str, Any]], list[Segments]]
    both_orders: bool = False


def _choices(row: Mapping[str, Any]) -> list[tuple[Any, ...]]:  # the reader looks whether they are texts
    question = (row["question"],) if row.get("question") else ()
    return [(row["context"], *question, choice) for choice in row["choices"]]


CLASSIFICATION = Transform(("text",), lambda row: [(row["text"],)])
ENTAILMENT = Transform(("text_a", "text_b"), lambda row: [(row["text_a"], row["text_b"])])
SIMILARITY = Transform(
    ("text_a", "text_b"),
    lambda row: [(row["text_a"], row["text_b"]), (row["text_b"], row["text_a"])],
    both_orders=True,
)
MULTIPLE_CHOICE = Transform(("context", "choices"), _choices)


class Layout(NamedTuple):
    """Token ids of one sequence, and whether segments had to be cut to fit."""

    ids: list[int]
    was_cut: bool


def lay_out(segments: list[list[int]], tokenizer: Tokenizer, max_length: int) -> Layout:
    """`start s1 delimiter s2 extract`, at most `max_length` ids; with three segments the first two are one.

    What is too long loses the ends of its longest segments, so that a short answer stays whole. Of
    document, question and answer, only the document loses its end. Special tokens always stay.

    Raises:
      DataError: question and answer alone leave no room for the document.
    """
    whole = sum(map(len, segments))
    if len(segments) == 3:
        document, question, answer = segments
        room = max_length - 3 - len(question) - len(answer)
        if room < 1:
            raise DataError(
                f"question and answer alone take {len(question) + len(answer)} tokens, which leaves no room for the "
                f"document: set ModelConfig.context_length, now {max_length}, higher, or remove the row"
            )
        segments = [document[:room] + question, answer]
    lengths = _fit([len(segment) for segment in segments], max_length - len(segments) - 1)
    ids = [tokenizer.start_id]
    for segment, length in zip(segments, lengths, strict=True):
        ids += [*segment[:length], tokenizer.delimiter_id]
    ids[-1] = tokenizer.extract_id
    return Layout(ids, was_cut=sum(lengths) < whole)


def _fit(lengths: list[int], budget: int) -> list[int]:
    """The lengths with the longest lowered to a common ceiling, so that their sum is within the budget."""
    fitted = list(lengths)
    remaining = budget
    for rank, index in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        fitted[index] = min(lengths[index], remaining // (len(lengths) - rank))
        remaining -= fitted[index]
    return fitted
