import dataclasses
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gpt.data.stdlib import AREAS, Corpus, Document, read_corpus, write_corpus
from gpt.errors import DataError
from gpt.tasks.registry import TASKS

TASK_NAMES = ("stdlib_area", "stdlib_next")


@dataclasses.dataclass(frozen=True)
class Written:
    """The corpus of the Python that runs the tests, and the rows of its files by "directory/split"."""

    corpus: Corpus
    directory: Path
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    directory = tmp_path_factory.mktemp("stdlib")
    corpus = read_corpus()
    write_corpus(corpus, directory)
    rows = {
        f"{path.parent.name}/{path.stem}": [json.loads(line) for line in path.read_text().splitlines()]
        for path in directory.glob("*/*.jsonl")
    }
    return Written(corpus, directory, rows)


def texts_of(rows: list[dict[str, Any]]) -> set[str]:
    """Every text of task rows."""
    return {text for row in rows for text in (row.get("text"), row.get("context"), *row.get("choices", ())) if text}


def write_stdlib(directory: Path, sources: dict[str, str | bytes]) -> Path:
    for name, source in sources.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return directory


def paragraphs_by_unit(corpus: Corpus) -> dict[str, list[str]]:
    units: dict[str, list[str]] = {}
    for document in (*corpus.train, *corpus.validation):
        units.setdefault(document.unit, []).extend(document.paragraphs)
    return units


def test_the_same_python_gives_the_same_bytes(written: Written, tmp_path: Path) -> None:
    program = "import sys, pathlib, gpt.data.stdlib as s; s.write_corpus(s.read_corpus(), pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-W", "error", "-c", program, tmp_path], check=True)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*/*.jsonl"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / file).read_bytes() == (written.directory / file).read_bytes()


def test_reading_imports_nothing_of_what_it_reads() -> None:
    program = """
import pathlib, sys, sysconfig
from gpt.data.stdlib import read_corpus
stdlib = pathlib.Path(sysconfig.get_path("stdlib"))
before = set(sys.modules)
read_corpus(stdlib)
print(*(set(sys.modules) - before))
print(*({"antigravity", "idlelib", "pydoc_data", "this", "tkinter", "turtle"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    # A source in another encoding is decoded by a module of `encodings`.
    assert [name for name in done.stdout.split() if not name.startswith("encodings.")] == []


def test_a_unit_is_held_out_whole(written: Written) -> None:
    train, validation = ({document.unit for document in split} for split in written.corpus)
    assert train
    assert validation
    assert not train & validation


def test_between_15_and_20_percent_of_the_text_is_held_out(written: Written) -> None:
    train, validation = (sum(len(" ".join(d.paragraphs)) for d in split) for split in written.corpus)
    assert 0.15 < validation / (train + validation) < 0.20


def test_no_held_out_paragraph_is_in_the_text_to_pretrain_on(written: Written) -> None:
    train, validation = (
        {line.lower() for row in written.rows[f"text/{split}"] for line in row["text"].splitlines()}
        for split in ("train", "validation")
    )
    assert not train & validation


@pytest.mark.parametrize("task", TASK_NAMES)
def test_no_held_out_text_of_a_task_is_in_training(written: Written, task: str) -> None:
    held_out = texts_of(written.rows[f"{task}/validation"])
    assert not held_out & texts_of([row for name in TASK_NAMES for row in written.rows[f"{name}/train"]])
    first_words = {
        " ".join(line.split()[:40]) for row in written.rows["text/train"] for line in row["text"].splitlines()
    }
    assert not held_out & first_words


def test_every_area_is_in_both_splits_and_no_other_label_is(written: Written) -> None:
    train, validation = (
        Counter(row["label"] for row in written.rows[f"stdlib_area/{split}"]) for split in ("train", "validation")
    )
    assert set(train) == set(validation) == set(TASKS["stdlib_area"].labels) == set(AREAS)
    # Without tkinter and idlelib, as some Pythons come, the smallest area is "interface".
    assert min(train.values()) >= 100
    assert min(validation.values()) >= 20


def test_no_module_is_in_two_areas() -> None:
    modules = [module for names in AREAS.values() for module in names.split()]
    assert len(modules) == len(set(modules))


def test_there_are_enough_examples_to_learn_and_to_measure(written: Written) -> None:
    counts = {name: len(rows) for name, rows in written.rows.items()}
    assert counts["stdlib_area/train"] >= 2000
    assert counts["stdlib_area/validation"] >= 400
    assert counts["stdlib_next/train"] >= 1500
    assert counts["stdlib_next/validation"] >= 300


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_right_ending_is_as_often_first_as_second(written: Written, split: str) -> None:
    labels = Counter(row["label"] for row in written.rows[f"stdlib_next/{split}"])
    assert set(labels) == {0, 1}
    assert abs(labels[0] - labels[1]) <= 1


def test_the_right_ending_follows_and_the_wrong_one_is_from_another_unit(written: Written) -> None:
    def cut(text: str) -> str:
        return " ".join(text.split()[:40])

    follows, units = set(), {}
    for document in written.corpus.validation:
        paragraphs = [cut(text) for text in document.paragraphs if len(text.split()) >= 8]
        follows |= set(itertools.pairwise(paragraphs))
        for paragraph in paragraphs:
            units.setdefault(paragraph, set()).add(document.unit)
    for row in written.rows["stdlib_next/validation"]:
        right, wrong = row["choices"][row["label"]], row["choices"][1 - row["label"]]
        assert (row["context"], right) in follows
        assert right != wrong
        assert len(units[right] | units[wrong]) > 1


def test_the_length_of_an_ending_does_not_give_it_away(written: Written) -> None:
    rows = written.rows["stdlib_next/validation"]
    longer_is_right = sum(len(row["choices"][row["label"]]) > len(row["choices"][1 - row["label"]]) for row in rows)
    assert 0.44 < longer_is_right / len(rows) < 0.56


def test_texts_of_tasks_have_8_to_40_words(written: Written) -> None:
    for task in TASK_NAMES:
        lengths = {len(text.split()) for text in texts_of(written.rows[f"{task}/train"])}
        assert (min(lengths), max(lengths)) == (8, 40)


def test_prose_is_kept_in_source_order_and_examples_are_not(tmp_path: Path) -> None:
    source = '''
def outer():
    """Return the first thing.

    >>> outer()
    1

        indented = code(here)

    ==============
    Underlined title
    ==============

    It goes on
    over two lines.
    """
    class Inner:
        """Stands between the functions."""

async def last():
    """Wait for the last thing."""
'''
    stdlib = write_stdlib(tmp_path, {"queue.py": source})
    assert paragraphs_by_unit(read_corpus(stdlib))["queue"] == [
        "Return the first thing.",
        "It goes on over two lines.",
        "Stands between the functions.",
        "Wait for the last thing.",
    ]


def test_submodules_belong_to_their_package_and_topics_stand_alone(tmp_path: Path) -> None:
    sources: dict[str, str | bytes] = {
        "email/mime/text.py": '"""Text parts of messages."""',
        "pydoc_data/topics.py": "topics = {'if': 'The if statement\\n****\\n\\nIt is used for choices.\\n'}",
    }
    units = paragraphs_by_unit(read_corpus(write_stdlib(tmp_path, sources)))
    assert units == {"email": ["Text parts of messages."], "topic if": ["It is used for choices."]}


def test_what_is_not_documentation_or_not_python_is_passed_over(tmp_path: Path) -> None:
    docstring = '"""Never to be read at all."""'
    sources: dict[str, str | bytes] = {
        "queue.py": '# coding: latin-1\n"""The \xe9l\xe8ve waits in line."""'.encode("latin-1"),
        "json/test/test_it.py": docstring,
        "site-packages/other.py": docstring,
        "broken.py": docstring + "\ndef (",
        "bytes.py": docstring.encode() + b"\n\xff\x00",
        "unknown.py": "# coding: no-such-codec\n" + docstring,
        "pydoc_data/topics.py": "topics = {",
        "old.py": '"""Old sources escape what they need not."""\nx = "\\d"',
    }
    units = paragraphs_by_unit(read_corpus(write_stdlib(tmp_path, sources)))
    assert units == {
        "queue": ["The élève waits in line."],
        "old": ["Old sources escape what they need not."],
    }


def test_a_copy_of_a_held_out_paragraph_ends_the_training_document_before_it(tmp_path: Path) -> None:
    shared = "Shared by all of them."
    sources: dict[str, str | bytes] = {
        f"unit{number}.py": f'"""Before {"x" * number} comes this.\n\n{shared}\n\nAfter {"x" * number} comes that."""'
        for number in range(1, 20)
    }
    corpus = read_corpus(write_stdlib(tmp_path, sources))
    assert any(shared in document.paragraphs for document in corpus.validation)
    assert all(len(document.paragraphs) == 1 for document in corpus.train)
    assert not any(shared in document.paragraphs for document in corpus.train)


def test_a_directory_without_python_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"'{re.escape(str(tmp_path))}' holds no Python sources with docstrings"):
        read_corpus(tmp_path)


def test_a_small_corpus_is_written_as_rows(tmp_path: Path) -> None:
    first = "One two three four five six seven eight."
    second = "The next paragraph has more than eight words too."
    other = "Words of another unit that could follow as well."
    train = [Document("queue", (first, second)), Document("email", ("A short start to have eight words here.", other))]
    write_corpus(Corpus(train, []), tmp_path)

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    assert rows("text/train.jsonl")[0] == {"text": f"{first}\n{second}"}
    assert rows("stdlib_area/train.jsonl")[0] == {"text": f"{first} {second}", "label": "concurrency"}
    assert {"context": first, "choices": [second, other], "label": 0} in rows("stdlib_next/train.jsonl")
    assert rows("stdlib_next/validation.jsonl") == []
