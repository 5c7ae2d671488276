"""Rows of the published data sets as rows with our columns, found by the names they come with.

Column names as published: GLUE's TSVs, the original releases, and the hub's data sets.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]

_PAIRS = (
    ("sentence1", "sentence2"),  # MRPC (hub), STS-B, RTE, WNLI; MNLI, SNLI, SciTail in jsonl; AX
    ("premise", "hypothesis"),  # MNLI, SNLI, SciTail, AX on the hub
    ("question1", "question2"),  # QQP
    ("#1 String", "#2 String"),  # MRPC
    ("question", "sentence"),  # QNLI
    ("Premise", "Hypothesis"),  # AX with its labels
)
_LABELS = ("gold_label", "Quality", "is_duplicate", "score", "Label")

# How COPA asks, Roemmele et al. 2011.
_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def our_rows(row: Row) -> Iterator[dict[str, Any]]:
    """The row with our columns added; a passage with many questions gives a row for each."""
    if "article" in row:
        yield from _race(row)
    elif "choice1" in row:
        yield _copa(row)
    elif "InputSentence1" in row or "input_sentence_1" in row:
        yield _story(row)
    else:
        yield _texts(row)


def _texts(row: Row) -> dict[str, Any]:
    ours = dict(row)
    if "sentence" in row:
        ours.setdefault("text", row["sentence"])
    for first, second in _PAIRS:
        if first in row and second in row:
            ours.setdefault("text_a", row[first])
            ours.setdefault("text_b", row[second])
    for name in _LABELS:
        if name in row:
            ours.setdefault("label", row[name])
    if "choices" in row and "question" in row:
        ours["question"] = _asked(row["question"])
    return ours


def _asked(question: Any) -> Any:
    return _COPA_QUESTIONS.get(question, question) if isinstance(question, str) else question


def _race(row: Row) -> Iterator[dict[str, Any]]:
    """RACE: a file of the release has lists of questions and answers, a row of the hub has one of each."""
    asked = [(row.get("question"), row.get("options"), row.get("answer"))]
    if "questions" in row:
        lists = [row["questions"], row.get("options"), row.get("answers")]
        if not all(isinstance(column, list) and len(column) == len(lists[0]) for column in lists):
            yield {}  # questions without options or answers: a row without columns is refused
            return
        asked = list(zip(*lists, strict=True))
    for question, options, answer in asked:
        label = "ABCD".find(answer) if isinstance(answer, str) and len(answer) == 1 else -1
        yield {
            "context": row["article"],
            "question": question,
            "choices": options,
            "label": label if label >= 0 else answer,
        }


def _copa(row: Row) -> dict[str, Any]:
    return {
        "context": row.get("premise"),
        "question": _asked(row.get("question")),
        "choices": [row["choice1"], row.get("choice2")],
        "label": row.get("label"),
    }


def _story(row: Row) -> dict[str, Any]:
    """Story Cloze: four sentences, two endings, and 1 or 2 for the right one."""
    if "InputSentence1" in row:
        sentences = [row.get(f"InputSentence{k}") for k in range(1, 5)]
        endings = [row.get(f"RandomFifthSentenceQuiz{k}") for k in (1, 2)]
        right = row.get("AnswerRightEnding")
    else:
        sentences = [row.get(f"input_sentence_{k}") for k in range(1, 5)]
        endings = [row.get(f"sentence_quiz{k}") for k in (1, 2)]
        right = row.get("answer_right_ending")
    if not all(isinstance(text, str) for text in (*sentences, *endings)):
        return {}
    label = {"1": 0, "2": 1}.get(str(right), right)
    return {"context": " ".join(map(str, sentences)), "choices": endings, "label": label}
