"""The files of each data set as they were published, with their quirks, and the hub's columns."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from gpt.errors import DataError
from gpt.tasks.reader import Example, Split, read_split
from gpt.tasks.registry import TASKS


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def table(*rows: str) -> list[str]:
    """Lines of a TSV, written with | for the tab."""
    return [row.replace("|", "\t") for row in rows]


def read(name: str, directory: Path, split: str = "train") -> Split:
    return read_split(TASKS[name], str(directory), split)


def pair(first: str, second: str, label: int | float | None) -> Example:
    return Example([(first, second)], label)


def both(first: str, second: str, label: int | float | None) -> Example:
    return Example([(first, second), (second, first)], label)


# GLUE's tables


@pytest.mark.parametrize(
    ("name", "split", "file", "rows", "expected"),
    [
        (
            "cola",
            "train",
            "train.tsv",
            ['gj04|1||A "b.', "bc01|0|*|C d."],
            [Example([('A "b.',)], 1), Example([("C d.",)], 0)],
        ),
        ("cola", "validation", "dev.tsv", ["gj04|1||A b."], [Example([("A b.",)], 1)]),
        ("cola", "test", "test.tsv", ["index|sentence", "0|A b."], [Example([("A b.",)], None)]),
        ("sst2", "train", "train.tsv", ["sentence|label", "a film |1"], [Example([("a film ",)], 1)]),
        ("sst2", "test", "test.tsv", ["index|sentence", "0|a film"], [Example([("a film",)], None)]),
        (
            "mrpc",
            "train",
            "train.tsv",
            ["Quality|#1 ID|#2 ID|#1 String|#2 String", '1|5|6|A.|"B.'],
            [both("A.", '"B.', 1)],
        ),
        (
            "mrpc",
            "test",
            "test.tsv",
            ["index|#1 ID|#2 ID|#1 String|#2 String", "0|5|6|A.|B."],
            [both("A.", "B.", None)],
        ),
        (
            "mrpc",
            "test",
            "msr_paraphrase_test.txt",
            ["Quality|#1 ID|#2 ID|#1 String|#2 String", "0|5|6|A.|B."],
            [both("A.", "B.", 0)],
        ),
        (
            "qqp",
            "train",
            "train.tsv",
            ["id|qid1|qid2|question1|question2|is_duplicate", "9|1|2|A?|B?|1"],
            [both("A?", "B?", 1)],
        ),
        ("qqp", "test", "test.tsv", ["id|question1|question2", "0|A?|B?"], [both("A?", "B?", None)]),
        (
            "stsb",
            "train",
            "train.tsv",
            [
                "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
                "0|g|f|y|1|none|none|A.|B.|3.800",
            ],
            [both("A.", "B.", 3.8)],
        ),
        (
            "stsb",
            "train",
            "sts-train.csv",
            ["g|f|y|1|5.000|A.|B.", "g|f|y|2|0.25|C, d.|E.|a source|another"],
            [both("A.", "B.", 5.0), both("C, d.", "E.", 0.25)],
        ),
        (
            "rte",
            "train",
            "train.tsv",
            ["index|sentence1|sentence2|label", "0|A.|B.|not_entailment"],
            [pair("A.", "B.", 1)],
        ),
        ("qnli", "train", "train.tsv", ["index|question|sentence|label", "0|A?|B.|entailment"], [pair("A?", "B.", 0)]),
        ("wnli", "train", "train.tsv", ["index|sentence1|sentence2|label", "0|A.|B.|1"], [pair("A.", "B.", 1)]),
        (
            "mnli",
            "validation_mismatched",
            "dev_mismatched.tsv",
            ["index|genre|sentence1|sentence2|label1|gold_label", "0|g|A.|B.|neutral|contradiction"],
            [pair("A.", "B.", 2)],
        ),
        (
            "mnli",
            "test_matched",
            "test_matched.tsv",
            ["index|sentence1|sentence2", "0|A.|B."],
            [pair("A.", "B.", None)],
        ),
        ("ax", "test", "diagnostic.tsv", ["index|sentence1|sentence2", "0|A.|B."], [pair("A.", "B.", None)]),
        (
            "ax",
            "test",
            "diagnostic-full.tsv",
            ["Logic|Domain|Premise|Hypothesis|Label", "x|News|A.|B.|neutral"],
            [pair("A.", "B.", 1)],
        ),
        (
            "scitail",
            "validation",
            "scitail_1.0_dev.tsv",
            ["A.|B.|entails", "C.|D.|neutral"],
            [pair("A.", "B.", 0), pair("C.", "D.", 1)],
        ),
    ],
)
def test_a_table_is_read_as_it_was_published(
    tmp_path: Path, name: str, split: str, file: str, rows: list[str], expected: list[Example]
) -> None:
    write(tmp_path / file, *table(*rows))
    assert read(name, tmp_path, split) == (expected, 0)


def test_the_two_halves_of_colas_own_validation_are_one_split_in_domain_first(tmp_path: Path) -> None:
    write(tmp_path / "in_domain_dev.tsv", *table("gj04|1||In."))
    with pytest.raises(DataError, match=r"none of validation\.jsonl, .*in_domain_dev\.tsv with out_of_domain_dev\.tsv"):
        read("cola", tmp_path, "validation")
    write(tmp_path / "out_of_domain_dev.tsv", *table("clc95|0|*|Out."))
    assert read("cola", tmp_path, "validation").examples == [Example([("In.",)], 1), Example([("Out.",)], 0)]


def test_rows_of_qqp_that_were_published_broken_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", *table("id|qid1|qid2|question1|question2|is_duplicate", "1|2|3|A", "4|5|6|C?|D?|0"))
    assert read("qqp", tmp_path) == ([both("C?", "D?", 0)], 1)


def test_a_row_of_too_few_cells_in_another_task_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", *table("index|sentence1|sentence2|label", "0|A."))
    with pytest.raises(DataError, match=r"train\.tsv, line 2: 2 columns, expected 4"):
        read("rte", tmp_path)


def test_two_forms_of_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", *table("gj04|1||A."))
    write(tmp_path / "in_domain_train.tsv", *table("gj04|1||A."))
    with pytest.raises(DataError, match=r"holds more than one of .*train\.tsv, in_domain_train\.tsv; expected exactly"):
        read("cola", tmp_path)


# Inference, official releases


@pytest.mark.parametrize(
    ("name", "file", "split"),
    [
        ("snli", "snli_1.0_dev.jsonl", "validation"),
        ("mnli", "multinli_1.0_dev_matched.jsonl", "validation_matched"),
        ("mnli", "multinli_1.0_train.jsonl", "train"),
    ],
)
def test_pairs_without_an_agreed_label_are_left_out_and_counted(
    tmp_path: Path, name: str, file: str, split: str
) -> None:
    rows = [("neutral", "A.", "B."), ("-", "C.", "D."), ("entailment", "E.", "F.")]
    lines = [json.dumps({"gold_label": label, "sentence1": a, "sentence2": b}) for label, a, b in rows]
    write(tmp_path / file, *lines)
    assert read(name, tmp_path, split) == ([pair("A.", "B.", 1), pair("E.", "F.", 0)], 1)


def test_the_jsonl_of_scitail_is_called_txt(tmp_path: Path) -> None:
    line = json.dumps({"sentence1": "A.", "sentence2": "B.", "gold_label": "entailment", "annotator_labels": []})
    write(tmp_path / "scitail_1.0_train.txt", line)
    assert read("scitail", tmp_path).examples == [pair("A.", "B.", 0)]


# Questions and stories

PASSAGE: dict[str, Any] = {
    "id": "middle1.txt",
    "article": "A text.",
    "questions": ["Who?", "It is _ ."],
    "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
    "answers": ["D", "A"],
}
QUESTIONS = [
    Example([("A text.", "Who?", option) for option in "abcd"], 3),
    Example([("A text.", "It is _ .", option) for option in "efgh"], 0),
]


def test_each_question_of_a_passage_of_race_is_an_example(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", json.dumps(PASSAGE))
    assert read("race_middle", tmp_path).examples == QUESTIONS


def test_the_folders_of_race_are_read_in_order_of_their_numbers(tmp_path: Path) -> None:
    for name, number in (("middle/10", 10), ("middle/9", 9), ("high/1", 1)):
        write(tmp_path / "dev" / f"{name}.txt", json.dumps({**PASSAGE, "article": f"Text {number}."}))
    for name, numbers in (("race_middle", [9, 10]), ("race_high", [1]), ("race", [9, 10, 1])):
        contexts = [example.sequences[0][0] for example in read(name, tmp_path, "validation").examples[::2]]
        assert contexts == [f"Text {number}." for number in numbers]


@pytest.mark.parametrize("change", [{"answers": ["D"]}, {"options": None}, {"answers": ["D", "X"]}])
def test_a_passage_whose_questions_and_answers_do_not_match_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / "train.jsonl", json.dumps({**PASSAGE, **change}))
    with pytest.raises(DataError, match=r"line 1: (no context and no choices|label 'X' is not in the set)"):
        read("race_middle", tmp_path)


def test_a_passage_that_is_no_json_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train" / "high" / "7.txt", "A text.")
    with pytest.raises(DataError, match=r"7\.txt: not JSON"):
        read("race_high", tmp_path)


STORY_HEADER = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
)


def test_a_story_is_four_sentences_and_two_endings(tmp_path: Path) -> None:
    write(
        tmp_path / "cloze_test_test__spring2016 - cloze_test_ALL_test.csv", STORY_HEADER, 'x,A.,"B, b.",C.,D.,E.,F.,2'
    )
    assert read("story_cloze", tmp_path, "test").examples == [
        Example([("A. B, b. C. D.", "E."), ("A. B, b. C. D.", "F.")], 1)
    ]


def test_the_stories_for_validation_are_divided_as_openai_divides_them(tmp_path: Path) -> None:
    rows = [f"{number},A.,B.,C.,D {number}.,E.,F.,{number % 2 + 1}" for number in range(1871)]
    write(tmp_path / "cloze_test_val__spring2016 - cloze_test_ALL_val.csv", STORY_HEADER, *rows)
    train, validation = (read("story_cloze", tmp_path, split).examples for split in ("train", "validation"))
    order = np.random.RandomState(3535999445).permutation(1871)
    for examples, numbers in ((validation, order[:374]), (train, order[374:])):
        assert [example.sequences[0][0] for example in examples] == [f"A. B. C. D {number}." for number in numbers]


def test_copa_asks_for_a_cause_or_an_effect_behind_the_premise(tmp_path: Path) -> None:
    item = '<item id="{}" asks-for="{}" most-plausible-alternative="{}"><p>P.</p><a1>A.</a1><a2>B.</a2></item>'
    items = [item.format(1, "cause", 1), item.format(2, "effect", 2)]
    write(tmp_path / "copa-test.xml", "<?xml version='1.0'?>", "<copa-corpus version='1.0'>", *items, "</copa-corpus>")
    cause, effect = read("copa", tmp_path, "test").examples
    assert cause == Example([("P.", "What was the cause of this?", choice) for choice in ("A.", "B.")], 0)
    assert effect == Example([("P.", "What happened as a result?", choice) for choice in ("A.", "B.")], 1)


def test_the_first_400_items_of_copas_development_set_are_trained_on(tmp_path: Path) -> None:
    items = [
        f'<item id="{n}" asks-for="cause" most-plausible-alternative="1"><p>{n}</p><a1>A.</a1><a2>B.</a2></item>'
        for n in range(500)
    ]
    write(tmp_path / "copa-dev.xml", "<copa-corpus>", *items, "</copa-corpus>")
    premises = {
        split: [int(example.sequences[0][0]) for example in read("copa", tmp_path, split).examples]
        for split in ("train", "validation")
    }
    assert premises == {"train": list(range(400)), "validation": list(range(400, 500))}


def test_superglues_jsonl_of_copa_is_read(tmp_path: Path) -> None:
    row = {"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 1, "idx": 0}
    write(tmp_path / "val.jsonl", json.dumps(row))
    segments = [("P.", "What was the cause of this?", choice) for choice in ("A.", "B.")]
    assert read("copa", tmp_path, "validation").examples == [Example(segments, 1)]


def test_a_file_that_is_no_xml_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "copa-test.xml", "<copa-corpus>")
    with pytest.raises(DataError, match=r"copa-test\.xml: is not XML"):
        read("copa", tmp_path, "test")


# Labels that are secret


def test_labels_may_be_missing_from_a_test_split_but_not_from_some_of_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", json.dumps({"text": "a", "label": 1}), json.dumps({"text": "b"}))
    with pytest.raises(DataError, match="some rows of the test split have labels and some have none"):
        read("cola", tmp_path, "test")


def test_a_validation_split_without_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "validation.jsonl", json.dumps({"text": "b"}))
    with pytest.raises(DataError, match=r"line 1: no label; expected columns text and label, found text"):
        read("cola", tmp_path, "validation")


@pytest.mark.parametrize("label", [-0.1, 5.1, "high", True, "nan", [1]])
def test_a_similarity_outside_of_0_to_5_is_refused(tmp_path: Path, label: Any) -> None:
    write(tmp_path / "train.jsonl", json.dumps({"text_a": "a", "text_b": "b", "label": label}))
    with pytest.raises(DataError, match=r"line 1: label .* is not in the set: expected a number from 0 to 5"):
        read("stsb", tmp_path)


# Hub

HUB_ROWS: dict[str, tuple[dict[str, Any], Example]] = {
    "mrpc": ({"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0}, both("A.", "B.", 1)),
    "qqp": ({"question1": "A?", "question2": "B?", "label": 0, "idx": 0}, both("A?", "B?", 0)),
    "stsb": ({"sentence1": "A.", "sentence2": "B.", "label": 2.5, "idx": 0}, both("A.", "B.", 2.5)),
    "snli": ({"premise": "A.", "hypothesis": "B.", "label": 2}, pair("A.", "B.", 2)),
    "scitail": ({"premise": "A.", "hypothesis": "B.", "label": "entails"}, pair("A.", "B.", 0)),
    "qnli": ({"question": "A?", "sentence": "B.", "label": 1, "idx": 0}, pair("A?", "B.", 1)),
    "wnli": ({"sentence1": "A.", "sentence2": "B.", "label": 0, "idx": 0}, pair("A.", "B.", 0)),
    "race_high": (
        {"example_id": "high1.txt", "article": "T.", "question": "Q?", "options": ["a", "b"], "answer": "B"},
        Example([("T.", "Q?", "a"), ("T.", "Q?", "b")], 1),
    ),
    "copa": (
        {"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "effect", "idx": 0, "label": 0},
        Example([("P.", "What happened as a result?", "A."), ("P.", "What happened as a result?", "B.")], 0),
    ),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_row_of_the_hub_is_read_by_its_published_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, example = HUB_ROWS[name]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row]))
    assert read_split(TASKS[name], None, "train") == ([example], 0)


def test_the_stories_of_the_hub_are_divided_like_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = {f"input_sentence_{k}": "A." for k in range(1, 5)}
    rows = [
        {**sentences, "sentence_quiz1": "E.", "sentence_quiz2": str(n), "answer_right_ending": 2} for n in range(10)
    ]
    asked = []

    def load_dataset(_path: str, _name: None, *, split: str) -> datasets.Dataset:
        asked.append(split)
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = [read_split(TASKS["story_cloze"], None, split).examples for split in ("train", "validation", "test")]
    assert asked == ["validation", "validation", "test"]
    assert [len(examples) for examples in splits] == [8, 2, 10]
    assert splits[0][0] in splits[2]
    assert splits[0][0].label == 1


def test_pairs_of_snli_without_an_agreed_label_are_minus_one_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"premise": "A.", "hypothesis": "B.", "label": label} for label in (-1, 0)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    for split in ("train", "test"):
        assert read_split(TASKS["snli"], None, split) == ([pair("A.", "B.", 0)], 1)


def test_the_secret_labels_of_glues_test_splits_are_minus_one_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"sentence": "A.", "label": -1, "idx": 0}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert read_split(TASKS["cola"], None, "test").is_labelled is False


# Real data

# Rows and labels of data/README.md in the directory of GPT_TEST_ASSETS.
REAL = [
    ("cola", "cola", "train", {0: 2528, 1: 6023}),
    ("cola", "cola", "validation", {0: 324, 1: 719}),
    ("sst-2", "sst2", "train", {0: 29780, 1: 37569}),
    ("sst-2", "sst2", "validation", {0: 428, 1: 444}),
    ("mrpc", "mrpc", "train", {0: 1194, 1: 2474}),
    ("mrpc", "mrpc", "validation", {0: 129, 1: 279}),
    ("mrpc", "mrpc", "test", {0: 578, 1: 1147}),
    ("rte", "rte", "train", {0: 1249, 1: 1241}),
    ("rte", "rte", "validation", {0: 146, 1: 131}),
    ("qnli", "qnli", "train", {0: 5027, 1: 4972}),
    ("qnli", "qnli", "validation", {0: 2866, 1: 2866}),
    ("multinli", "mnli", "train", {0: 3408, 1: 3313, 2: 3278}),
    ("multinli", "mnli", "validation_matched", {0: 3506, 1: 3042, 2: 3267}),
    ("multinli", "mnli", "validation_mismatched", {0: 3492, 1: 3075, 2: 3265}),
    ("qqp", "qqp", "train", {0: 14749, 1: 8747}),
    ("qqp", "qqp", "validation", {0: 5981, 1: 3391}),
    ("race-middle", "race_middle", "train", {0: 5445, 1: 6705, 2: 7006, 3: 6265}),
    ("race-middle", "race_middle", "validation", {0: 311, 1: 384, 2: 386, 3: 355}),
    ("race-high", "race_high", "train", {0: 11175, 1: 13067, 2: 13727, 3: 12913}),
    ("race-high", "race_high", "validation", {0: 756, 1: 907, 2: 917, 3: 871}),
    ("copa", "copa", "train", {0: 243, 1: 257}),
    ("copa", "copa", "test", {0: 250, 1: 250}),
]


@pytest.fixture(scope="module")
def real_data(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("real")
    sets = sorted({folder for folder, *_ in REAL} | {"sts-b"})
    subprocess.run([assets / "data" / "unpack", directory, *sets], check=True)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "name", "split", "counts"), REAL)
def test_a_real_set_has_the_rows_and_labels_that_its_collector_counted(
    real_data: Path, folder: str, name: str, split: str, counts: dict[int, int]
) -> None:
    assert Counter(example.label for example in read(name, real_data / folder, split).examples) == counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "count", "mean"), [("train", 5749, 2.70), ("validation", 1500, 2.36), ("test", 1379, 2.61)]
)
def test_real_similarities_have_their_mean(real_data: Path, split: str, count: int, mean: float) -> None:
    labels = [example.label or 0.0 for example in read("stsb", real_data / "sts-b", split).examples]
    assert (len(labels), round(sum(labels) / count, 2)) == (count, mean)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "name", "split"),
    [("cola", "cola", "train"), ("cola", "cola", "validation"), ("sst-2", "sst2", "validation"),
     ("mrpc", "mrpc", "train"), ("mrpc", "mrpc", "validation"), ("mrpc", "mrpc", "test"),
     ("rte", "rte", "train"), ("rte", "rte", "validation"),
     ("sts-b", "stsb", "train"), ("sts-b", "stsb", "validation"), ("sts-b", "stsb", "test")],
)  # fmt: skip
def test_real_published_files_hold_what_the_plain_ones_hold(
    real_data: Path, folder: str, name: str, split: str
) -> None:
    published, plain = (read(name, real_data / path, split) for path in (f"{folder}/raw", folder))
    assert published == plain
