"""Preparation in shards, joined, and with text and store behind URLs: the store of one local command, byte by byte."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from toy import ROOT, Command, Toy, toy_sentences, write, write_rows

from gpt.data import assemble as assemble_module
from gpt.data.place import Place
from gpt.data.prepare import join, prepare
from gpt.data.shards import Shard
from gpt.data.store import TokenStore
from gpt.errors import ConfigError, DataError
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def tokenizer(toy: Toy) -> Tokenizer:
    return Tokenizer.load(toy.tokenizer)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Seven files: of one document and of several."""
    rows = [{"text": text} for text in toy_sentences(7, 12)]
    write_rows(tmp_path / "text" / "3.jsonl", rows)
    texts = toy_sentences(8, 6)
    names = [tmp_path / "text" / f"{number}.txt" for number in (0, 1, 2, 4, 5, 6)]
    return sorted(
        [write(str(name), text) for name, text in zip(names, texts, strict=True)] + [f"{tmp_path}/text/3.jsonl"]
    )


@pytest.fixture
def bucket() -> Iterator[str]:
    """The URL of an empty directory in memory."""
    yield "memory://bucket"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def contents(where: object) -> dict[str, bytes]:
    place = Place(str(where))
    return {name: (place / name).read() for name in place.sizes()}


def prepare_shards(count: int, files: list[str], tokenizer: Tokenizer, output: Any, **settings: Any) -> None:
    for number in range(count, 0, -1):  # in any order
        prepare(files, tokenizer, output, shard=Shard(number, count), **settings)


# Shards


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1e-9])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_joined_shards_are_the_store_of_one_command(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path, count: int, fraction: float
) -> None:
    whole = prepare(files, tokenizer, tmp_path / "whole", validation_fraction=fraction)
    prepare_shards(count, files, tokenizer, tmp_path / "store", validation_fraction=fraction)
    joined = join(tmp_path / "store", count)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert joined.splits == whole.splits
    assert whole.splits.keys() == ({"train", "validation"} if fraction else {"train"})
    assert whole.splits["train"].documents > 10
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.usefixtures("small_parts")
def test_a_long_document_that_is_held_out_for_want_of_another_moves_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = [" ".join(toy_sentences(seed, 40)) for seed in range(6)]  # several parts each
    files = [write(str(tmp_path / f"{number}.txt"), text) for number, text in enumerate(long)]
    prepare(files, tokenizer, tmp_path / "whole", validation_fraction=1e-9)
    prepare_shards(3, files, tokenizer, tmp_path / "store", validation_fraction=1e-9)
    join(tmp_path / "store", 3)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    tokens = TokenStore.open(tmp_path / "store").split("validation").tolist()
    assert tokens in [[*tokenizer.encode(text), tokenizer.newline_id] for text in long]


def test_held_out_files_are_divided_as_well(files: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings: Any = {"validation": files[:2], "validation_fraction": 0.9}  # which then means nothing
    prepare(files[2:], tokenizer, tmp_path / "whole", **settings)
    prepare_shards(4, files[2:], tokenizer, tmp_path / "store", **settings)  # two shards have no held-out file
    join(tmp_path / "store", 4)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_finished_shard_is_not_made_again_and_an_unfinished_one_goes_on(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings: Any = {"tokenizer": tokenizer, "output": tmp_path / "store", "shard": Shard(1, 2)}
    first = prepare(files, **settings)
    again = prepare(files, **settings)
    assert (first.already_prepared, again.already_prepared, again.megabytes) == (False, True, 0)
    assert first.splits == again.splits
    (tmp_path / "store.partial" / "shard-1-of-2" / "shard.json").unlink()
    with pytest.raises(DataError, match=r"--join 2: not finished: shard 1/2, 2/2; run it with --shard 1/2, which"):
        join(tmp_path / "store", 2)
    continued = prepare(files, **settings)
    assert (continued.already_prepared, continued.megabytes, continued.splits) == (False, 0, first.splits)


def test_a_join_that_is_repeated_or_was_interrupted_at_its_end_finds_its_store(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_shards(2, files, tokenizer, tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(Place, "remove", lambda _: None)  # killed before the parts were removed
        first = join(tmp_path / "store", 2)
    assert (tmp_path / "store.partial").exists()
    for _ in range(2):
        again = join(tmp_path / "store", 2)
        assert (again.already_prepared, again.splits) == (True, first.splits)
        assert not (tmp_path / "store.partial").exists()
    assert prepare(files, tokenizer, tmp_path / "store").already_prepared
    with pytest.raises(DataError, match=r"--output .*store: exists already, and a shard adds nothing to it"):
        prepare(files, tokenizer, tmp_path / "store", shard=Shard(1, 2))


def test_shards_of_another_number_are_named_when_some_are_missing(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare_shards(2, files, tokenizer, tmp_path / "store")
    with pytest.raises(DataError, match=r"--join 3: not finished: shard 1/3, 2/3, 3/3; .*\(there are shards of 2\)"):
        join(tmp_path / "store", 3)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("flag", ["--input", "--validation", "--validation_fraction", "--text_field", "--tokenizer"])
def test_shards_that_differ_are_not_joined_and_the_error_names_in_what(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path, flag: str
) -> None:
    prepare(files, tokenizer, tmp_path / "store", shard=Shard(1, 2))
    changed: dict[str, Any] = {
        "--input": {"inputs": files[:-1]},
        "--validation": {"inputs": files[:-1], "validation": files[-1:]},
        "--validation_fraction": {"validation_fraction": 0.5},
        "--text_field": {"text_field": "body"},
        "--tokenizer": {"tokenizer": train_bpe(toy_sentences(3, 20), 60)},
    }[flag]
    if flag == "--text_field":
        write_rows(Path(files[3]), [{"body": "a cat"}])
    prepare(**{"inputs": files, "tokenizer": tokenizer, "output": tmp_path / "store", "shard": Shard(2, 2)} | changed)
    with pytest.raises(
        DataError, match=rf"--join 2: shard 2/2 differs from shard 1/2 in .*{flag}\b.*: remove .*2-of-2"
    ):
        join(tmp_path / "store", 2)
    assert not (tmp_path / "store").exists()


def test_a_finished_shard_of_other_text_is_never_replaced(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare(files, tokenizer, tmp_path / "store", shard=Shard(1, 2))
    directory = tmp_path / "store.partial" / "shard-1-of-2"
    before = contents(directory)
    write(files[0], "changed")
    with pytest.raises(DataError, match=r"shard-1-of-2: is finished already, of other text, settings or tokenizer"):
        prepare(files, tokenizer, tmp_path / "store", shard=Shard(1, 2))
    assert contents(directory) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file, _: file.unlink(), r"\.bin: is missing; remove .*shard-2-of-2 and run its shard again"),
        (lambda file, _: file.write_bytes(b"12"), r"\.bin: has 2 bytes, not \d+; remove .*shard-2-of-2"),
        (lambda _, record: record.write_text('{"inputs":'), r"shard\.json: is damaged .*remove .*shard-2-of-2"),
        (lambda _, record: record.write_text('{"inputs": []}'), r"shard\.json: is damaged .*remove .*shard-2-of-2"),
    ],
)
def test_a_damaged_shard_is_not_joined(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path, damage: Callable[[Path, Path], None], message: str
) -> None:
    prepare_shards(2, files, tokenizer, tmp_path / "store")
    directory = tmp_path / "store.partial" / "shard-2-of-2"
    damage(next(directory.glob("*.bin")), directory / "shard.json")
    with pytest.raises(DataError, match=message):
        join(tmp_path / "store", 2)
    assert not (tmp_path / "store").exists()


def test_more_shards_than_files_are_refused(files: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--shard 8/8: --input has only 7 files, .*: take at most 7 shards"):
        prepare(files, tokenizer, tmp_path / "store", shard=Shard(8, 8))


def test_text_that_no_document_of_all_shards_leaves_to_train_on_is_refused_at_the_join(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = [write(str(tmp_path / f"{number}.txt"), f"the cat {number}") for number in range(2)]
    prepare_shards(2, files, tokenizer, tmp_path / "store", validation_fraction=0.9999)
    with pytest.raises(DataError, match=r"--validation_fraction 0\.9999: nothing is left to train on of 2 document"):
        join(tmp_path / "store", 2)


# The command


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "1/2/3", "a/b"])
def test_a_malformed_shard_is_refused(text: str, tmp_path: Path, gpt: Callable[..., Command]) -> None:
    code, out, error = gpt("prepare", "--input", "a", "--tokenizer", "b", "--output", tmp_path, f"--shard={text}")
    assert (code, out) == (2, "")
    assert error == f"error: --shard {text}: expected i/n with i from 1 to n, for example 1/8\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--join", "2", "--input", "a"], "--input: --join takes --output alone; the shards know the rest"),
        (["--join", "2", "--workers", "3"], "--workers: --join takes --output alone; the shards know the rest"),
        (["--join", "0"], "--join 0: must be at least 1, the n of --shard i/n"),
        (["--tokenizer", "a"], "--input: is needed to prepare text"),
        (["--input", "a"], "--tokenizer: is needed to prepare text"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], message: str, tmp_path: Path, gpt: Callable[..., Command]
) -> None:
    code, out, error = gpt("prepare", "--output", tmp_path / "store", *flags)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {message}")


def test_the_page_on_pods_shows_shards_that_are_joined(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path, gpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "pods.md").read_text()
    (block,) = [block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "gpt prepare" in block]
    Path(files[0]).parent.rename(tmp_path / "books")
    tokenizer.save(tmp_path / "runs" / "tokenizer")
    monkeypatch.chdir(tmp_path)
    books = sorted(map(str, Path("books").glob("*.txt")))
    lines = [line.removeprefix("gpt ").replace("books/*.txt", " ".join(books)) for line in block.splitlines()]
    commands = [gpt(*line.split(), "--json") for line in lines]
    assert [command.code for command in commands] == [0, 0, 0], commands
    assert commands[-1].rows[0]["splits"]["train"]["documents"] == len(books) - 1
    assert "runs/store: joined 2 shards in " in commands[-1].err
    prepare(books, tokenizer, tmp_path / "whole")
    assert contents(tmp_path / "runs" / "store") == contents(tmp_path / "whole")


# Behind URLs


def test_text_and_store_may_be_behind_urls(files: list[str], tokenizer: Tokenizer, tmp_path: Path, bucket: str) -> None:
    table = tmp_path / "text" / "7.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": text} for text in toy_sentences(9, 5)]), table)
    files = [*files, str(table)]
    for file in files:
        (Place(bucket) / f"text/{Path(file).name}").write(Path(file).read_bytes())
    whole = prepare(files, tokenizer, tmp_path / "store")
    remote = prepare([f"{bucket}/text/*"], tokenizer, f"{bucket}/store")
    assert contents(f"{bucket}/store") == contents(tmp_path / "store")
    assert (remote.splits, remote.already_prepared) == (whole.splits, False)
    assert not Place(f"{bucket}/store.partial").exists()
    assert prepare([f"{bucket}/text/*"], tokenizer, f"{bucket}/store").already_prepared
    TokenStore.open(f"{bucket}/store", tokenizer).verify()
    prepare([f"file://{tmp_path}/text/*"], tokenizer, f"file://{tmp_path}/other")
    assert contents(tmp_path / "other") == contents(tmp_path / "store")


def test_shards_behind_a_url_are_joined(files: list[str], tokenizer: Tokenizer, tmp_path: Path, bucket: str) -> None:
    prepare(files, tokenizer, tmp_path / "store")
    prepare_shards(3, files, tokenizer, f"{bucket}/store")
    join(f"{bucket}/store", 3)
    assert contents(f"{bucket}/store") == contents(tmp_path / "store")
    assert list(Place(bucket).sizes()) == ["store"]


def test_what_an_interrupted_join_left_behind_a_url_is_no_store_and_is_continued(
    files: list[str], tokenizer: Tokenizer, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the connection is gone")

    with monkeypatch.context() as patch:
        patch.setattr(assemble_module, "StoreIndex", fail)
        with pytest.raises(
            DataError, match=r"--output memory://bucket/store: cannot be written: the connection is gone"
        ):
            prepare(files, tokenizer, f"{bucket}/store")
    assert "train.bin" in Place(f"{bucket}/store").sizes()
    with pytest.raises(DataError, match=r"there is no index\.json in it"):
        TokenStore.open(f"{bucket}/store")
    continued = prepare(files, tokenizer, f"{bucket}/store")
    assert continued.megabytes == 0
    prepare(files, tokenizer, tmp_path / "store")
    assert contents(f"{bucket}/store") == contents(tmp_path / "store")


def test_a_vocabulary_is_trained_on_text_behind_a_url(
    files: list[str], tmp_path: Path, bucket: str, gpt: Callable[..., Command]
) -> None:
    texts = [file for file in files if file.endswith(".txt")]
    for file in texts:
        (Place(bucket) / Path(file).name).write(Path(file).read_bytes())
    for name, inputs in (("here", texts), ("there", [f"{bucket}/*.txt"])):
        done = gpt("tokenizer", "train", "--input", *inputs, "--vocab_size", "60", "--output", tmp_path / name)
        assert done.code == 0, done.err
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.parametrize(("name", "beside"), [("notes.txt", True), ("train.bin", False)])
def test_what_is_no_store_behind_a_url_is_left_alone(
    files: list[str], tokenizer: Tokenizer, bucket: str, name: str, beside: bool
) -> None:
    (Place(bucket) / f"mine/{name}").write(b"mine")
    if beside:
        (Place(bucket) / "mine.partial/part").write(b"")
    with pytest.raises(DataError, match="--output memory://bucket/mine: exists already, and cannot be used"):
        prepare(files, tokenizer, f"{bucket}/mine")
    assert contents(f"{bucket}/mine") == {name: b"mine"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("memory://bucket/none.txt", r"memory://bucket/none\.txt: no such file$"),
        ("memory://bucket/*.jsonl", r"memory://bucket/\*\.jsonl: no file matches"),
        (
            "memory://bucket/folder",
            r"memory://bucket/folder: is a directory; pass its files, for example .*folder/\*\.txt",
        ),
        ("memory://bucket/a.csv", r"memory://bucket/a\.csv: \.csv is not read"),
        ("memory://bucket/folder/a.txt", r"memory://bucket/folder/a\.txt, line 2: is not UTF-8"),
    ],
)
def test_text_behind_a_url_that_cannot_be_used_is_named(
    item: str, message: str, tokenizer: Tokenizer, bucket: str
) -> None:
    (Place(bucket) / "folder/a.txt").write(b"a\nb \xff")
    (Place(bucket) / "a.csv").write(b"a")
    with pytest.raises(DataError, match=message):
        prepare([item], tokenizer, f"{bucket}/store")


def test_the_same_url_cannot_be_trained_on_and_held_out(tokenizer: Tokenizer, bucket: str) -> None:
    (Place(bucket) / "a.txt").write(b"the cat")
    with pytest.raises(ConfigError, match=r"memory:///bucket/a\.txt: is in both --input and --validation"):
        prepare([f"{bucket}/*.txt"], tokenizer, f"{bucket}/store", validation=[f"{bucket}/a.txt"])
