"""What the zero-shot heuristics ask of a language model (Radford et al. 2018, section 5): which text is likelier.

cola       the sentence itself: is it likely enough?
sst2       the review and `very`: is `positive` or `negative` likelier to come next?
race       the passage and the question: which answer is likeliest to come next?
winograd   each candidate in place of the pronoun: after which is the rest of the sentence likelier?
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt.data.rows import read_rows
from gpt.errors import DataError
from gpt.text.tokenizer import Tokenizer

_VERY, _ANSWERS = "very", ("negative", "positive")  # in the order of SST-2's labels


class Candidate(NamedTuple):
    """Tokens to be scored, and those before them."""

    context: list[int]
    continuation: list[int]


class Question(NamedTuple):
    """Candidates to choose from, and the index of the right one; CoLA has one candidate and a label of its own."""

    candidates: list[Candidate]
    label: int


class Questions(NamedTuple):
    """A data set as one task's heuristic sees it, and what a reader of its scores should know."""

    task: str
    items: list[Question]
    notes: tuple[str, ...] = ()


def read_questions(task: str, path: Path, tokenizer: Tokenizer) -> Questions:
    """The questions in a file of rows, with the columns of the task (`COLUMNS`).

    Raises:
      DataError: the file is missing or empty; a row lacks a column, has an empty text or an
        unknown label; with the line.
    """
    items = []
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        missing = [column for column in COLUMNS[task] if row.get(column) is None]
        if missing:
            raise DataError(
                f"{where}: no {' and no '.join(missing)}; --task {task} takes columns {', '.join(COLUMNS[task])}, "
                f"found {', '.join(row)}"
            )
        items += _READERS[task](row, tokenizer, where)
    if not items:
        raise DataError(f"{path}: no rows; expected columns {', '.join(COLUMNS[task])}")
    return Questions(task, items, _notes(task, tokenizer))


def _notes(task: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    if task != "sst2":
        return ()
    sizes = {word: len(tokenizer.encode(word)) for word in (_VERY, *_ANSWERS)}
    if set(sizes.values()) == {1}:
        return ()
    counts = ", ".join(f"{word}: {size}" for word, size in sizes.items())
    return (f"not every word is one token here ({counts}); the probabilities of all of its tokens are multiplied",)


def _cola(row: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Iterator[Question]:
    ids = _encode(row["text"], tokenizer, f"{where}: text")
    if len(ids) == 1:
        raise DataError(f"{where}: {row['text']!r} is one token, and the first is never predicted; remove the row")
    yield Question([Candidate(ids[:1], ids[1:])], _label(row["label"], 2, where))


def _sst2(row: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Iterator[Question]:
    context = _encode(row["text"], tokenizer, f"{where}: text") + tokenizer.encode(_VERY)
    answers = tokenizer.encode_batch(_ANSWERS)
    yield Question([Candidate(context, answer) for answer in answers], _label(row["label"], 2, where))


def _race(row: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Iterator[Question]:
    questions, options, answers = row["questions"], row["options"], row["answers"]
    columns = (questions, options, answers)
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        raise DataError(f"{where}: questions, options and answers must be lists of the same length")
    article = _encode(row["article"], tokenizer, f"{where}: article")
    for number, (question, choices, answer) in enumerate(zip(*columns, strict=True), 1):
        here = f"{where}, question {number}"
        candidates = _choices(choices, here)
        letters = "ABCDEFGHIJ"[: len(candidates)]
        if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
            raise DataError(f"{here}: answer {answer!r} is not in the set: expected one of {', '.join(letters)}")
        # A question that is all blank is one: "_".
        context = article + _encode(question, tokenizer, f"{here}: question")
        yield Question(
            [Candidate(context, _encode(choice, tokenizer, f"{here}: option")) for choice in candidates],
            letters.index(answer),
        )


def _winograd(row: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Iterator[Question]:
    choices = _choices(row["choices"], where)
    before, after = _around_pronoun(row["text"], row["pronoun"], choices, where)
    # By itself, so that all candidates are judged by the same tokens.
    rest = tokenizer.encode(after)
    contexts = [_encode(before + choice, tokenizer, f"{where}: text") for choice in choices]
    yield Question([Candidate(context, rest) for context in contexts], _label(row["label"], len(choices), where))


def _around_pronoun(text: Any, pronoun: Any, choices: list[str], where: str) -> tuple[str, str]:
    """The text before and after the definite pronoun.

    A sentence may hold the word several times ("A chicken pecked at a bug and it ate it"). The one in
    question is the first behind the place where all candidates have been named, or the last one of all.
    """
    if not isinstance(text, str) or not isinstance(pronoun, str) or not pronoun.strip():
        raise DataError(f"{where}: text and pronoun must be strings that are not empty")
    places = _mentions(pronoun, text)
    if not places:
        raise DataError(f"{where}: the pronoun {pronoun!r} is not a word of the text {text!r:.80}")
    named = max((found[0].end() for choice in choices if (found := _mentions(choice, text))), default=0)
    behind = [place for place in places if place.start() >= named]
    place = behind[0] if behind else places[-1]
    return text[: place.start()], text[place.end() :]


def _mentions(words: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE))


def _choices(choices: Any, where: str) -> list[str]:
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError(f"{where}: {choices!r:.80}: expected a list of two or more texts to choose from")
    return choices


def _encode(text: Any, tokenizer: Tokenizer, what: str) -> list[int]:
    ids = tokenizer.encode(text) if isinstance(text, str) else []
    if not ids:
        raise DataError(f"{what} is {text!r:.80}: expected a string with at least one token")
    return ids


def _label(label: Any, num_classes: int, where: str) -> int:
    text = str(label)
    if not text.isdecimal() or int(text) >= num_classes:
        raise DataError(f"{where}: label {label!r} is not in the set: expected 0 to {num_classes - 1}")
    return int(text)


COLUMNS: dict[str, tuple[str, ...]] = {
    "winograd": ("text", "pronoun", "choices", "label"),
    "cola": ("text", "label"),
    "sst2": ("text", "label"),
    "race": ("article", "questions", "options", "answers"),
}
"""The columns of each task; labels count from 0, RACE's answers are letters."""

_READERS: dict[str, Callable[[Mapping[str, Any], Tokenizer, str], Iterator[Question]]] = {
    "winograd": _winograd,
    "cola": _cola,
    "sst2": _sst2,
    "race": _race,
}
