"""Task-aware input transforms (Radford et al. 2018, section 3.3 and figure 1): rows become token sequences.

Every sequence is `start segment [delimiter segment] extract`; an example has one sequence, or one
a candidate in multiple choice.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpt.text.tokenizer import Tokenizer

Segments = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How the columns of one row become the text segments of its sequences."""

    columns: tuple[str, ...]
    sequences: Callable[[Mapping[str, Any]], list[Segments]]


CLASSIFICATION = Transform(("text",), lambda row: [(row["text"],)])
ENTAILMENT = Transform(("text_a", "text_b"), lambda row: [(row["text_a"], row["text_b"])])
MULTIPLE_CHOICE = Transform(("context", "choices"), lambda row: [(row["context"], choice) for choice in row["choices"]])


class Layout(NamedTuple):
    """Token ids of one sequence, and whether segments had to be cut to fit."""

    ids: list[int]
    was_cut: bool


def lay_out(segments: list[list[int]], tokenizer: Tokenizer, max_length: int) -> Layout:
    """`start s1 delimiter s2 ... extract`, at most `max_length` ids.

    What is too long loses the ends of its longest segments, so that a short answer stays whole.
    """
    num_specials = len(segments) + 1
    lengths = _fit([len(segment) for segment in segments], max_length - num_specials)
    ids = [tokenizer.start_id]
    for segment, length in zip(segments, lengths, strict=True):
        ids += [*segment[:length], tokenizer.delimiter_id]
    ids[-1] = tokenizer.extract_id
    return Layout(ids, was_cut=sum(lengths) < sum(map(len, segments)))


def _fit(lengths: list[int], budget: int) -> list[int]:
    """The lengths with the longest lowered to a common ceiling, so that their sum is within the budget."""
    fitted = list(lengths)
    remaining = budget
    for rank, index in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        fitted[index] = min(lengths[index], remaining // (len(lengths) - rank))
        remaining -= fitted[index]
    return fitted
