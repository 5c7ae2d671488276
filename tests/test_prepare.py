import json
import os
import random
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt.cli import prepare as command
from gpt.data import parts as parts_module
from gpt.data import prepare as prepare_module
from gpt.data.parts import Part, _encode_part, cut
from gpt.data.place import Place
from gpt.data.prepare import Preparation, prepare
from gpt.data.sources import Document, read_documents, split_documents
from gpt.data.store import TokenStore
from gpt.errors import ConfigError, DataError
from gpt.text.pieces import Piece
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "one",
    "dog",
    "saw",
    "two",
    "frogs",
    "near",
    "that",
    "old",
    "log",
]


def sentence(seed: int, length: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([sentence(seed) for seed in range(20)], 60)


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Thirty files of different text."""
    return [write(tmp_path / f"{seed:02d}.txt", sentence(seed)) for seed in range(30)]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_rows(path: Path, rows: list[Any]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def documents_of(store: TokenStore, split: str, tokenizer: Tokenizer) -> list[str]:
    tokens = store.split(split)
    ends = np.flatnonzero(tokens == tokenizer.newline_id)
    assert ends[-1] == len(tokens) - 1
    return [tokenizer.decode(ids[:-1].tolist()) for ids in np.split(tokens, ends[:-1] + 1)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Documents


def test_a_text_file_is_one_document_without_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    item = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(read_documents([item])) == ["one\ntwo\n"]


def test_rows_of_jsonl_and_parquet_are_documents_and_blank_ones_are_passed_over(tmp_path: Path) -> None:
    rows = [{"body": "one"}, {"body": " \n"}, {"body": "two \u00e9"}]
    jsonl = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"\r\n\n".join(json.dumps(row).encode() for row in rows))
    parquet = str(tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    assert list(read_documents([jsonl, parquet], "body")) == ["one", "two \u00e9"] * 2


@pytest.mark.parametrize(
    ("item", "arguments"),
    [
        ("hub:owner/name:train", ("owner/name", None, "train")),
        ("hub:name:train", ("name", None, "train")),
        ("hub:owner/name/config:test", ("owner/name", "config", "test")),
    ],
)
def test_a_hub_data_set_is_streamed(
    monkeypatch: pytest.MonkeyPatch, item: str, arguments: tuple[str, str | None, str]
) -> None:
    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Iterator[dict[str, str]]:
        assert streaming
        assert (name, config, split) == arguments
        return iter([{"text": "one"}, {"text": ""}, {"text": "two"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_documents([item])) == ["one", "two"]


def test_an_unreachable_hub_names_the_local_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"ConnectionError: offline.*without the hub, .*--input DIR/\*\.parquet"):
        list(read_documents(["hub:owner/name:train"]))


@pytest.mark.parametrize("item", ["hub:name", "hub:a/b/c/d:train", "hub:a//b:train", "hub::train", "hub:a/b:"])
def test_a_malformed_hub_name_shows_the_form(item: str) -> None:
    with pytest.raises(DataError, match=r"expected hub:OWNER/NAME\[/CONFIG\]:SPLIT"):
        read_documents([item])


def test_a_missing_file_is_found_before_anything_is_read_and_a_sibling_suggested(tmp_path: Path) -> None:
    good = write(tmp_path / "books.txt", "text")
    with pytest.raises(DataError, match=r"book\.txt: no such file; did you mean `books\.txt`\?"):
        read_documents([good, str(tmp_path / "book.txt")])
    with pytest.raises(DataError, match=r"nowhere/b\.txt: no such file$"):
        read_documents([good, str(tmp_path / "nowhere" / "b.txt")])


def test_a_directory_is_refused_with_the_way_to_pass_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a directory; pass its files, for example .*/\*\.txt"):
        read_documents([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n\r\n", "holds no text"),
        ("a.txt", b"ab\0c", "line 1: is not text: it holds a NUL byte"),
        ("a.txt", b"a\nb\nc \xe9t\xe9", "line 3: is not UTF-8: byte 0xe9"),
        ("a.csv", b'text\n"a, b"\n', r"\.csv is not read; convert it to \.jsonl"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n"b"\n', "line 3: expected a JSON object, found"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "line 2: no field 'text'; there are 'body': .*--text_field"),
        ("a.jsonl", b'{"text": 3}', "line 1: field 'text' is a number, expected a string"),
        ("a.jsonl", b'{"text": null}', "line 1: field 'text' is null"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1: a text holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "line 2: is not UTF-8: byte 0xff"),
        ("a.jsonl", b'{"text": ""}', "holds no text"),
        ("a.parquet", b"PAR1 and then nothing", "is not a parquet file"),
    ],
)
def test_a_file_that_holds_no_usable_text_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        list(read_documents([write(tmp_path / name, content)]))


def test_a_parquet_file_without_the_field_or_with_nulls_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["a", None]}), path)
    with pytest.raises(DataError, match=r"a\.parquet: no field 'text'; there are 'body'"):
        list(read_documents([path]))
    with pytest.raises(DataError, match=r"a\.parquet, row 2: field 'body' is null"):
        list(read_documents([path], "body"))


# Splits


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0), (0.3, 600)])
def test_the_fraction_of_documents_is_held_out(tmp_path: Path, fraction: float, share: int) -> None:
    item = write_rows(tmp_path / "a.jsonl", [{"text": str(number)} for number in range(2000)])
    documents = list(split_documents([item], (), fraction, "text"))
    assert [int(document.text) for document in documents] == list(range(2000))
    assert sum(document.split == "validation" for document in documents) == pytest.approx(share, rel=0.1)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("fraction", [0.3, 1e-9])
def test_which_documents_are_held_out_does_not_depend_on_their_order_and_the_others_keep_theirs(
    tokenizer: Tokenizer, tmp_path: Path, fraction: float
) -> None:
    texts = [sentence(seed) for seed in range(40)]
    held_out = []
    for name, order in (("a", texts), ("b", texts[::-1])):
        item = write_rows(tmp_path / f"{name}.jsonl", [{"text": text} for text in order])
        prepare([item], tokenizer, tmp_path / name, validation_fraction=fraction)
        store = TokenStore.open(tmp_path / name)
        held_out.append(set(documents_of(store, "validation", tokenizer)))
        assert documents_of(store, "train", tokenizer) == [text for text in order if text not in held_out[-1]]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 1 if fraction == 1e-9 else len(held_out[0]) > 4


@pytest.mark.usefixtures("in_process")
def test_a_single_document_cannot_be_split_and_the_way_out_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    item = write(tmp_path / "a.txt", "one")
    with pytest.raises(DataError, match=r"nothing is left to train on of 1 document.*--validation, or set .* 0"):
        prepare([item], tokenizer, tmp_path / "store")
    assert not (tmp_path / "store").exists()


# Parts


@pytest.mark.usefixtures("small_parts")
def test_parts_hold_all_text_in_order_and_mark_a_document_that_goes_on(tokenizer: Tokenizer) -> None:
    documents = [
        Document("train", "a" * 300),
        Document("validation", "v"),
        Document("train", "b " * 600),
        Document("train", "c"),
        Document("train", "d" * 900),
    ]
    parts = list(cut(documents, tokenizer))
    assert [(part.split, sum(len(piece.text) for piece in part.pieces), part.continued) for part in parts] == [
        ("train", 801, True),
        ("train", 500, True),
        ("train", 1100, False),
        ("validation", 1, False),
    ]
    assert "".join(piece.text for part in parts[:-1] for piece in part.pieces) == "".join(
        document.text for document in documents if document.split == "train"
    )
    assert sum(part.documents for part in parts) == len(documents)


def test_the_separator_follows_each_document_but_not_a_piece_of_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for continued in (False, True):
        path = tmp_path / str(continued)
        _encode_part(tokenizer.to_json(), Part("train", (Piece("the cat"), Piece("sat")), continued), Place(path))
        expected = [*tokenizer.encode("the cat"), tokenizer.newline_id, *tokenizer.encode("sat")]
        expected += [] if continued else [tokenizer.newline_id]
        assert np.fromfile(path, "<u2").tolist() == expected


# The whole


def test_a_prepared_store_holds_every_document_once(tokenizer: Tokenizer, corpus: list[str], tmp_path: Path) -> None:
    done = prepare(corpus, tokenizer, tmp_path / "store", validation_fraction=0.2)
    store = TokenStore.open(tmp_path / "store", tokenizer)
    store.verify()
    texts = {split: documents_of(store, split, tokenizer) for split in ("train", "validation")}
    assert sorted(texts["train"] + texts["validation"]) == sorted(sentence(seed) for seed in range(30))
    assert {split: index.documents for split, index in done.splits.items()} == {s: len(t) for s, t in texts.items()}
    assert store.index.separator_id == tokenizer.newline_id
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.usefixtures("small_parts")
def test_two_workers_write_what_one_writes(tokenizer: Tokenizer, corpus: list[str], tmp_path: Path) -> None:
    prepare(corpus, tokenizer, tmp_path / "one", workers=1)
    prepare(corpus, tokenizer, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.usefixtures("in_process")
class TestInOneProcess:
    def test_the_size_of_parts_changes_nothing(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepare(corpus, tokenizer, tmp_path / "large")
        monkeypatch.setattr(parts_module, "_PART_LENGTH", 50)  # cuts documents, too
        prepare(corpus, tokenizer, tmp_path / "small")
        assert contents(tmp_path / "large") == contents(tmp_path / "small")

    def test_held_out_files_become_the_validation_split(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
    ) -> None:
        prepare(corpus[:2], tokenizer, tmp_path / "store", validation=corpus[2:3])
        store = TokenStore.open(tmp_path / "store")
        assert documents_of(store, "train", tokenizer) == [sentence(0), sentence(1)]
        assert documents_of(store, "validation", tokenizer) == [sentence(2)]

    def test_a_fraction_of_zero_gives_no_validation_split(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
    ) -> None:
        assert prepare(corpus, tokenizer, tmp_path / "store", validation_fraction=0.0).splits.keys() == {"train"}

    def test_a_large_vocabulary_is_stored_in_32_bits(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
    ) -> None:
        tree = json.loads(tokenizer.to_json())
        vocab = tree["model"]["vocab"]
        del vocab["\n</w>"]
        vocab |= {f"unused{number}": len(vocab) + number for number in range(70_000)}
        vocab["\n</w>"] = len(vocab)
        large = Tokenizer.from_json(json.dumps(tree))
        prepare(corpus, large, tmp_path / "store", validation_fraction=0.0)
        store = TokenStore.open(tmp_path / "store", large)
        assert store.split("train").dtype == np.dtype("<u4")
        assert documents_of(store, "train", large) == [sentence(seed) for seed in range(30)]
        assert store.split("train").max() == large.newline_id > 65_535

    def test_repeating_the_command_finds_the_store_prepared(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
    ) -> None:
        first = prepare(corpus, tokenizer, tmp_path / "store")
        before = contents(tmp_path / "store")
        again = prepare(corpus, tokenizer, tmp_path / "store")
        assert (first.already_prepared, again.already_prepared) == (False, True)
        assert again.splits == first.splits
        assert contents(tmp_path / "store") == before

    @pytest.mark.parametrize("change", ["input", "fraction", "validation", "tokenizer", "content"])
    def test_another_command_never_replaces_a_store(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path, change: str
    ) -> None:
        prepare(corpus, tokenizer, tmp_path / "store")
        before = contents(tmp_path / "store")
        changed: dict[str, Any] = {}
        if change == "content":
            write(Path(corpus[0]), "changed")
        if change == "fraction":
            changed["validation_fraction"] = 0.5
        if change == "validation":
            changed["validation"] = corpus[-1:]
        if change == "tokenizer":
            tokenizer = train_bpe([sentence(0)], 45)
        inputs = corpus[:-1] if change in ("input", "validation") else corpus
        with pytest.raises(DataError, match="exists already, prepared from other text, settings or tokenizer"):
            prepare(inputs, tokenizer, tmp_path / "store", **changed)
        assert contents(tmp_path / "store") == before

    def test_a_directory_that_is_no_store_is_left_alone(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "mine").mkdir()
        with pytest.raises(DataError, match=r"exists already, and cannot be used .*choose another --output"):
            prepare(corpus, tokenizer, tmp_path / "mine")
        assert contents(tmp_path / "mine") == {}

    @pytest.mark.usefixtures("small_parts")
    def test_finished_parts_are_not_encoded_again(
        self,
        tokenizer: Tokenizer,
        corpus: list[str],
        tmp_path: Path,
    ) -> None:
        whole = prepare(corpus, tokenizer, tmp_path / "whole")
        broken = write(tmp_path / "20.txt", b"\xff")
        with pytest.raises(DataError, match="is not UTF-8"):
            prepare(corpus, tokenizer, tmp_path / "store")
        assert not (tmp_path / "store").exists()
        assert len(list((tmp_path / "store.partial").glob("train-*.bin"))) > 3
        write(Path(broken), sentence(20))
        continued = prepare(corpus, tokenizer, tmp_path / "store")
        assert 0 < continued.megabytes < 0.6 * whole.megabytes
        assert contents(tmp_path / "store") == contents(tmp_path / "whole")

    @pytest.mark.usefixtures("small_parts")
    def test_parts_of_another_tokenizer_are_not_taken_over(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
    ) -> None:
        write(tmp_path / "29.txt", b"\xff")
        with pytest.raises(DataError, match="is not UTF-8"):
            prepare(corpus, tokenizer, tmp_path / "store")
        write(tmp_path / "29.txt", sentence(29))
        other = train_bpe([sentence(0)], 45)
        prepare(corpus, other, tmp_path / "store")
        prepare(corpus, other, tmp_path / "undisturbed")
        assert contents(tmp_path / "store") == contents(tmp_path / "undisturbed")

    def test_bad_input_leaves_nothing_behind(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        item = write(tmp_path / "a.txt", b"\0")
        with pytest.raises(DataError, match="NUL byte"):
            prepare([item], tokenizer, tmp_path / "store")
        assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208

    def test_an_output_below_a_file_is_a_clear_error(self, tokenizer: Tokenizer, corpus: list[str]) -> None:
        with pytest.raises(DataError, match=r"--output .*00\.txt/store: cannot be written: Not a directory"):
            prepare(corpus, tokenizer, Path(corpus[0]) / "store")

    def test_a_full_disk_is_a_clear_error_and_keeps_the_parts(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def assemble(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(prepare_module, "assemble", assemble)
        with pytest.raises(DataError, match=r"--output .*store: cannot be written: No space left on device"):
            prepare(corpus, tokenizer, tmp_path / "store")
        assert list((tmp_path / "store.partial").iterdir())
        assert not (tmp_path / "store").exists()

    def test_text_that_is_trained_on_cannot_be_held_out(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match="is in both --input and --validation"):
            prepare(corpus, tokenizer, tmp_path / "store", validation=corpus[:1])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"validation_fraction": 1.0}, "--validation_fraction 1.0: must be at least 0 and below 1"),
            ({"validation_fraction": float("nan")}, "--validation_fraction nan"),
            ({"workers": 0}, "--workers 0: must be at least 1"),
            ({"inputs": []}, "--input: give at least one file"),
        ],
    )
    def test_a_setting_out_of_range_is_refused(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            prepare(**{"inputs": corpus, "tokenizer": tokenizer, "output": tmp_path / "store", **settings})

    def test_the_command_reports_in_json_on_standard_output_alone(
        self, tokenizer: Tokenizer, corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tokenizer.save(tmp_path / "vocab")
        parser = ArgumentParser()
        command.add_arguments(parser)
        words = ["--input", *corpus, "--tokenizer", str(tmp_path / "vocab"), "--output", str(tmp_path / "store")]
        assert command.run(parser.parse_args([*words, "--json"])) == 0
        captured = capsys.readouterr()
        report = json.loads(captured.out)
        assert report["splits"]["train"]["documents"] == 29
        assert report.keys() >= {"seconds", "megabytes_per_second", "already_prepared"}
        assert "train: " in captured.err
        command.run(parser.parse_args(words))
        assert "already prepared" in capsys.readouterr().err


# Interruption

SCRIPT = """
import signal, sys, time
from argparse import ArgumentParser
from gpt.cli import prepare as command
from gpt.data import parts
from gpt.errors import Preempted

parts._PART_LENGTH = 500
finish = parts._finish
count = 0

def stall_after_five(job, advance):
    global count
    encoded = finish(job, advance)
    count += 1
    if count == 5:
        print("five", flush=True)
        time.sleep(60)
    return encoded

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    parts._finish = stall_after_five
    parser = ArgumentParser()
    command.add_arguments(parser)
    try:
        sys.exit(command.run(parser.parse_args()))
    except Preempted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_store_and_no_process_and_is_continued(
    tokenizer: Tokenizer, corpus: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    tokenizer.save(tmp_path / "vocab")
    script = write(tmp_path / "script.py", SCRIPT)
    words = ["--input", *corpus, "--tokenizer", str(tmp_path / "vocab"), "--output", str(tmp_path / "store")]
    with subprocess.Popen(
        [sys.executable, script, *words, "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "five\n"
        (process.send_signal if number == signal.SIGKILL else lambda n: os.killpg(process.pid, n))(number)
        _, errors = process.communicate(timeout=60)  # a worker that lives on would hold the pipes open
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 75
        assert errors.endswith("the same command continues\n")
        assert "Traceback" not in errors
    wait_until_gone(process.pid)
    assert not (tmp_path / "store").exists()

    continued: Preparation = prepare(corpus, tokenizer, tmp_path / "store")
    undisturbed = prepare(corpus, tokenizer, tmp_path / "undisturbed")
    assert continued.megabytes < undisturbed.megabytes
    assert contents(tmp_path / "store") == contents(tmp_path / "undisturbed")
    assert not (tmp_path / "store.partial").exists()


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("worker processes outlived the command")
