"""The labelled tasks: rows to examples, examples to token sequences, and every way in which a data set can be wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from toy import write_rows

from gpt.config import DataConfig, ModelConfig, RunConfig, TaskConfig, TokenizerConfig
from gpt.errors import ConfigError, DataError
from gpt.metrics import METRICS
from gpt.tasks.reader import Example, read_split
from gpt.tasks.registry import TASKS, Task, find_task
from gpt.tasks.transforms import lay_out
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe
from gpt.training.problem import Problem, load_problem

ROOT = Path(__file__).parents[1]
CONTEXT_LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every letter is a token of its own."""
    return train_bpe(["a b c d e f g h aa aa"], 19)


@pytest.fixture
def load(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Problem]:
    """Writes both splits and returns the problem of fine-tuning on them."""

    def load(name: str, train: list[dict[str, Any]], seed: int = 42, **task: Any) -> Problem:
        for split in ("train", "validation"):
            write_rows(tmp_path / f"{split}.jsonl", train)
        config = RunConfig(
            output_dir="unused",
            seed=seed,
            batch_size=1,
            num_epochs=1,
            tokenizer=TokenizerConfig(path="unused"),
            data=DataConfig(),
            model=ModelConfig(
                vocab_size=tokenizer.vocab_size, num_special_tokens=3, context_length=CONTEXT_LENGTH, embed_dim=12
            ),
            task=TaskConfig(name=name, data_dir=str(tmp_path), **task),
        )
        return load_problem(config, tokenizer)

    return load


def read_examples(task: Task, data_dir: Path | str | None, split: str) -> list[Example]:
    return read_split(task, None if data_dir is None else str(data_dir), split).examples


def only_batch(problem: Problem) -> Any:
    (batch,) = problem.held_out.batches()
    return batch


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


# Registry


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_has_a_config_file_and_known_metrics(name: str) -> None:
    assert f"TaskConfig.name = '{name}'" in (ROOT / "configs" / "task" / f"{name}.gin").read_text()
    assert set(TASKS[name].metrics) <= METRICS.keys()


def test_the_classifier_has_a_score_a_label_or_one_a_candidate() -> None:
    assert {name: task.num_outputs for name, task in TASKS.items()} == {
        "cola": 2, "sst2": 2, "mrpc": 2, "qqp": 2, "stsb": 6, "mnli": 3, "ax": 3, "snli": 3, "scitail": 2,
        "qnli": 2, "rte": 2, "wnli": 2, "race_middle": 1, "race_high": 1, "race": 1, "story_cloze": 1, "copa": 1,
        "stdlib_area": 6, "stdlib_next": 1,
    }  # fmt: skip


def test_an_unknown_task_is_refused_with_the_nearest_name_and_all_names() -> None:
    with pytest.raises(ConfigError, match=r"TaskConfig\.name = 'sst-2' is no task; did you mean `sst2`\?") as caught:
        find_task("sst-2")
    assert all(name in str(caught.value) for name in TASKS)


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"'zzzz' is no task\. There are: ax, cola, "):
        find_task("zzzz")


# Layout


def test_one_text_lies_between_start_and_extract(tokenizer: Tokenizer) -> None:
    start, extract = tokenizer.start_id, tokenizer.extract_id
    assert lay_out([[5, 6]], tokenizer, 12) == ([start, 5, 6, extract], False)


def test_two_texts_are_parted_by_the_delimiter(tokenizer: Tokenizer) -> None:
    start, delimiter, extract = tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id
    assert lay_out([[5, 6], [7]], tokenizer, 12) == ([start, 5, 6, delimiter, 7, extract], False)


def test_the_special_tokens_follow_the_vocabulary_in_the_order_of_the_original(tokenizer: Tokenizer) -> None:
    ids = (tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id)
    assert ids == (tokenizer.vocab_size, tokenizer.vocab_size + 1, tokenizer.vocab_size + 2)


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [((9, 3), (6, 3)), ((3, 9), (3, 6)), ((9, 9), (4, 5)), ((5, 4), (5, 4)), ((20, 1), (8, 1)), ((7, 6), (5, 4))],
)
def test_what_is_too_long_loses_the_end_of_its_longest_text(
    tokenizer: Tokenizer, lengths: tuple[int, int], kept: tuple[int, int]
) -> None:
    first, second = (list(range(length)) for length in lengths)
    ids, was_cut = lay_out([first, second], tokenizer, CONTEXT_LENGTH)
    assert ids[0] == tokenizer.start_id
    assert ids[-1] == tokenizer.extract_id
    delimiter = ids.index(tokenizer.delimiter_id)
    segments = ids[1:delimiter], ids[delimiter + 1 : -1]
    assert sorted(map(len, segments)) == sorted(kept)
    assert len(ids) <= CONTEXT_LENGTH
    for whole, segment, other in zip((first, second), segments, segments[::-1], strict=True):
        assert segment == whole[: len(segment)]
        assert len(segment) == len(whole) or len(segment) >= len(other) - 1
    assert was_cut == (lengths != kept)


@pytest.mark.parametrize("length", [10, 11])
def test_a_text_is_cut_at_the_context_and_not_before(tokenizer: Tokenizer, length: int) -> None:
    ids, was_cut = lay_out([[7] * length], tokenizer, CONTEXT_LENGTH)
    assert len(ids) == CONTEXT_LENGTH
    assert was_cut == (length > 10)


def test_no_delimiter_parts_a_document_from_its_question(tokenizer: Tokenizer) -> None:
    start, delimiter, extract = tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id
    assert lay_out([[5, 6], [7], [8]], tokenizer, 12) == ([start, 5, 6, 7, delimiter, 8, extract], False)


def test_a_document_loses_its_end_and_question_and_answer_nothing(tokenizer: Tokenizer) -> None:
    start, delimiter, extract = tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id
    ids, was_cut = lay_out([[1, 2, 3], [7] * 4, [8] * 4], tokenizer, CONTEXT_LENGTH)
    assert (ids, was_cut) == ([start, 1, *[7] * 4, delimiter, *[8] * 4, extract], True)


def test_question_and_answer_that_leave_no_room_for_the_document_are_refused(load: Callable[..., Problem]) -> None:
    row = {"context": "a", "question": "b " * 5, "choices": ["c " * 4, "d"], "label": 0}
    message = r"train split of task 'race', row 1: question and answer alone take 9 tokens.*context_length, now 12"
    with pytest.raises(DataError, match=message):
        load("race", [row], truncate=True)


# Encoding of whole splits


def test_a_pair_of_texts_becomes_one_sequence_of_both(load: Callable[..., Problem], tokenizer: Tokenizer) -> None:
    batch = only_batch(load("rte", [{"text_a": "a b", "text_b": "c", "label": "not_entailment"}]))
    ids = [tokenizer.start_id, *tokenizer.encode("a b"), tokenizer.delimiter_id, *tokenizer.encode("c")]
    ids.append(tokenizer.extract_id)
    assert batch.tokens[0, 0].tolist() == ids + [0] * (CONTEXT_LENGTH - len(ids))
    assert batch.weights.sum() == len(ids)
    assert (batch.extract.tolist(), batch.labels.tolist()) == ([[5]], [1])


def test_each_candidate_becomes_a_sequence_behind_the_context(
    load: Callable[..., Problem], tokenizer: Tokenizer
) -> None:
    batch = only_batch(load("stdlib_next", [{"context": "a", "choices": ["b c", "d", "e"], "label": 2}]))
    for row, choice in zip(batch.tokens[0], ("b c", "d", "e"), strict=True):
        ids = [tokenizer.start_id, *tokenizer.encode("a"), tokenizer.delimiter_id, *tokenizer.encode(choice)]
        assert row[: len(ids) + 1].tolist() == [*ids, tokenizer.extract_id]
    assert batch.labels.tolist() == [2]


def test_cut_examples_are_counted_for_each_split(load: Callable[..., Problem]) -> None:
    rows = [{"text": text, "label": 0} for text in ("a " * 11, "b", "c " * 30, "d " * 10)]
    facts = load("cola", rows, truncate=True).facts
    assert (facts["train_cut"], facts["validation_cut"], facts["train_examples"]) == (2, 2, 4)


def test_an_example_longer_than_the_context_is_refused_with_its_row_and_the_way_out(
    load: Callable[..., Problem],
) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "a " * 11, "label": 0}]
    message = r"train split of task 'cola', row 2: longer than .*context_length = 12 .*TaskConfig\.truncate = True"
    with pytest.raises(DataError, match=message):
        load("cola", rows)


def test_a_text_without_any_token_is_refused(load: Callable[..., Problem]) -> None:
    with pytest.raises(DataError, match=r"row 1: a text has no tokens: \('\\u200b',\); remove the row"):
        load("cola", [{"text": "\u200b", "label": 0}])


def test_max_train_examples_leaves_validation_whole(load: Callable[..., Problem]) -> None:
    rows = [{"text": "a", "label": 0}] * 6
    problem = load("cola", rows, max_train_examples=4)
    assert (problem.facts["train_examples_used"], problem.num_steps, len(problem.held_out.order)) == (4, 4, 6)


@pytest.mark.parametrize("seed", [1, 2])
def test_max_train_examples_are_the_same_for_every_seed(load: Callable[..., Problem], seed: int) -> None:
    rows = [{"text": "a " * count, "label": 0} for count in range(1, 9)]
    drawn = []
    for used in (42, seed):
        batches: Any = load("cola", rows, max_train_examples=4, seed=used).batches_of_seed(used)
        drawn.append(sorted(int(batches[step].weights.sum()) for step in range(4)))
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_the_numbers_of_a_batch_are_those_of_its_examples_in_the_split(load: Callable[..., Problem]) -> None:
    problem = load("cola", [{"text": "a " * count, "label": 0} for count in range(1, 8)], max_train_examples=4)
    batches: Any = problem.batches_of_seed(7)
    lengths = [int(batches[step].weights.sum()) for step in range(4)]
    assert [problem.numbers_of(7, step) for step in range(4)] == [{"train": [length - 3]} for length in lengths]


# Labels


@pytest.mark.parametrize(("label", "index"), [(0, 0), (1, 1), ("1", 1), ("unacceptable", 0), ("acceptable", 1)])
def test_a_label_is_a_number_or_a_word_of_the_task(tmp_path: Path, label: int | str, index: int) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "a", "label": label}])
    assert read_examples(TASKS["cola"], str(tmp_path), "train") == [Example([("a",)], index)]


@pytest.mark.parametrize("label", [2, -1, 1.0, "good", "", True, "1.5"])
def test_a_label_outside_of_the_set_is_refused_with_file_line_and_set(tmp_path: Path, label: Any) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": label}])
    message = rf"train\.jsonl, line 2: label {label!r} is not in the set: expected 0 to 1 or unacceptable, acceptable"
    with pytest.raises(DataError, match=message):
        read_examples(TASKS["cola"], str(tmp_path), "train")


def test_the_label_of_a_choice_must_be_one_of_its_candidates(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"context": "a", "choices": ["b", "c"], "label": 2}])
    with pytest.raises(DataError, match=r"line 1: label 2 is not in the set: expected 0 to 1$"):
        read_examples(TASKS["stdlib_next"], str(tmp_path), "train")


# Rows


@pytest.mark.parametrize("text", ["", "  \n", 3, ["a"]])
def test_an_empty_or_non_text_is_refused_with_file_and_line(tmp_path: Path, text: Any) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "a", "label": 0}, {"text": text, "label": 0}])
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: a text is empty or not a string: .*remove the row"):
        read_examples(TASKS["cola"], str(tmp_path), "train")


@pytest.mark.parametrize("choices", ["bc", 3, ["b"], [], {"a": "b", "c": "d"}])
def test_choices_that_are_no_list_of_two_or_more_are_refused(tmp_path: Path, choices: Any) -> None:
    write_rows(tmp_path / "train.jsonl", [{"context": "a", "choices": choices, "label": 0}])
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: choices is .*, expected a list of two or more texts"):
        read_examples(TASKS["stdlib_next"], str(tmp_path), "train")


def test_a_missing_column_is_refused_with_the_expected_and_the_found_ones(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text_a": "a", "label": 0}, {"text_a": "a", "sentence": "b"}])
    message = r"line 1: no text_b; expected columns text_a, text_b and label, found text_a, label"
    with pytest.raises(DataError, match=message):
        read_examples(TASKS["rte"], str(tmp_path), "train")


def test_csv_and_tsv_and_jsonl_give_the_same_examples(tmp_path: Path) -> None:
    rows = [{"text": "one, two", "label": 1}, {"text": "three", "label": 0}]
    for name in ("csv", "tsv", "jsonl"):
        (tmp_path / name).mkdir()
    write_rows(tmp_path / "jsonl" / "train.jsonl", rows)
    write(tmp_path / "csv" / "train.csv", 'text,label\r\n"one, two",1\r\nthree,0\r\n')
    write(tmp_path / "tsv" / "train.tsv", "label\ttext\n1\tone, two\n0\tthree\n")
    expected = read_examples(TASKS["cola"], str(tmp_path / "jsonl"), "train")
    assert expected == [Example([("one, two",)], 1), Example([("three",)], 0)]
    for name in ("csv", "tsv"):
        assert read_examples(TASKS["cola"], str(tmp_path / name), "train") == expected


def test_no_file_of_the_split_names_what_may_be_there(tmp_path: Path) -> None:
    message = (
        r"data_dir = '.*' holds none of train\.jsonl, train\.csv, train\.tsv, in_domain_train\.tsv; expected exactly"
    )
    with pytest.raises(DataError, match=message):
        read_examples(TASKS["cola"], str(tmp_path), "train")


def test_two_files_of_one_split_are_refused_and_not_chosen_from(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,0\n")
    write(tmp_path / "train.tsv", "text\tlabel\na\t0\n")
    with pytest.raises(DataError, match=r"holds more than one of train\.jsonl, train\.csv, train\.tsv"):
        read_examples(TASKS["cola"], str(tmp_path), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.csv: the file is empty"),
        (b"text,label\n", r": no rows in the train split; expected columns text and label"),
        (b"text,label\na,0\n\xe9,1\n", r"train\.csv, line 3: is not UTF-8: byte 0xe9"),
        (b"text,label\na\0b,0\n", r"train\.csv, line 2: is not text: it holds a NUL byte"),
    ],
)
def test_a_file_without_usable_rows_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path / "train.csv", content)
    with pytest.raises(DataError, match=message):
        read_examples(TASKS["cola"], str(tmp_path), "train")


# Hub


def test_hub_columns_get_our_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, name: str, *, split: str) -> datasets.Dataset:
        assert (path, name, split) == ("nyu-mll/glue", "rte", "validation")
        return datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [1], "idx": [0]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_examples(TASKS["rte"], None, "validation") == [Example([("a", "b")], 1)]


def test_a_row_of_the_hub_without_a_label_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, -1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(DataError, match=r"hub data set nyu-mll/glue/cola, train, line 2: label -1 is not in the set"):
        read_examples(TASKS["cola"], None, "train")


def test_an_unreachable_hub_names_the_local_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = (
        r"ConnectionError: offline.*set TaskConfig\.data_dir to a directory with train\.jsonl and validation\.jsonl "
        r"\(columns text, label\), or to one with the published files: for train, one of .*train\.tsv, in_domain_train"
    )
    with pytest.raises(DataError, match=message):
        read_examples(TASKS["cola"], None, "train")


def test_a_task_that_is_not_on_the_hub_asks_for_a_directory() -> None:
    with pytest.raises(DataError, match=r"data_dir is not set, and this task is not on the hub: set TaskConfig\.data_"):
        read_examples(TASKS["stdlib_next"], None, "train")


def test_the_problem_keeps_the_labels_of_held_out_rows_in_the_order_of_its_batches(
    load: Callable[..., Problem],
) -> None:
    problem = load("cola", [{"text": text, "label": len(text) // 2 % 2} for text in ("a b c", "a", "a b")])
    labels = np.concatenate([batch.labels for batch in problem.held_out.batches()])
    assert problem.held_out.labels is not None
    assert problem.held_out.labels.tolist() == labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["stsb", "qqp", "cola", "scitail"])
def test_a_plain_csv_has_its_own_header_whatever_the_published_tables_lack(name: str, tmp_path: Path) -> None:
    task = find_task(name)
    texts = ",".join(f"some {column}" for column in task.transform.columns)
    label = task.labels[0] if task.labels else "3.0"
    write(tmp_path / "train.csv", f"{','.join(task.transform.columns)},label\n{texts},{label}\n")
    (example,) = read_examples(task, tmp_path, "train")
    assert example.label is not None
