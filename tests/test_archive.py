import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy import Command

from gpt.data import archive, archive_format
from gpt.data.archive import pack, unpack
from gpt.data.archive_format import Coding, Damaged
from gpt.data.store import SplitIndex, StoreIndex, TokenStore, token_dtype
from gpt.errors import ConfigError, DataError

LINES: list[str] = []


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    LINES.clear()
    monkeypatch.setattr(archive_format, "FRAME_TOKENS", 1000)
    monkeypatch.setattr(archive_format, "_BLOCK", 333)


def write_store(directory: Path, documents: dict[str, list[int]], vocab_size: int = 40_478) -> Path:
    """A store of random documents of these lengths, their ends included, drawn as words are."""
    directory.mkdir()
    random = np.random.default_rng(0)
    splits = {}
    for name, lengths in documents.items():
        tokens = (random.zipf(1.3, sum(lengths)) % (vocab_size - 1)).astype(token_dtype(vocab_size))
        tokens[np.cumsum(lengths) - 1] = vocab_size - 1
        tokens.tofile(directory / f"{name}.bin")
        digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        splits[name] = SplitIndex(f"{name}.bin", len(tokens), len(lengths), digest)
    index = StoreIndex("0" * 64, vocab_size, vocab_size - 1, "1" * 64, splits)
    (directory / "index.json").write_text(index.to_json())
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", {"train": [700, 1, 1299, 900, 450, 150], "validation": [600, 900]})


def packed_and_unpacked(store: Path, max_mib: float | None = None) -> Path:
    """The store that comes out of a file made of `store`."""
    file, result = store.with_name("file"), store.with_name("result")
    done = pack(str(store), str(file), LINES.append, max_mib)
    assert done.bytes == file.stat().st_size
    assert unpack(str(file), str(result), LINES.append).index == done.index
    TokenStore.open(result).verify()
    assert {path.name for path in store.parent.iterdir()} == {"store", "file", "result"}
    return result


def test_a_store_comes_out_byte_by_byte_as_it_went_in(store: Path) -> None:
    assert contents(packed_and_unpacked(store)) == contents(store)
    assert re.fullmatch(r"0\.0 of 0\.0 MB unpacked", LINES[-1])


@pytest.mark.parametrize("vocab_size", [20, 256, 300, 65_536, 65_537, 70_000])
def test_vocabularies_of_all_sizes_come_out_as_they_went_in(vocab_size: int, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {"train": [3000, 2100]}, vocab_size)
    assert contents(packed_and_unpacked(store)) == contents(store)


@pytest.mark.parametrize("num_ids", [1, 255, 256, 257, 511, 512, 40_478, 65_281, 65_535, 65_536])
def test_every_rank_has_a_code_and_frequent_ones_have_short_codes(num_ids: int) -> None:
    codes = Coding(np.arange(num_ids)[::-1], np.dtype("<u2"))
    tokens = np.concatenate([codes.ids, codes.ids[::-1]])
    content = codes.encode(tokens)
    np.testing.assert_array_equal(np.concatenate(list(codes.decode(content))), tokens)
    one_byte = min(num_ids, 256, (65_536 - num_ids) // 255)
    assert len(content) == 2 * (2 * num_ids - one_byte)


def test_text_takes_less_than_two_thirds_of_its_store(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {"train": [20_000]})
    assert pack(str(store), str(tmp_path / "file"), LINES.append).bytes < 2 / 3 * 40_000


@pytest.mark.parametrize("kibibytes", range(6, 11))
def test_what_does_not_fit_is_left_out_by_whole_documents_and_the_index_is_true_of_the_rest(
    kibibytes: int, tmp_path: Path
) -> None:
    lengths = [700, 1, 1299, 900, 450, 150, 300, 2500, 20, 30, 40]
    store = write_store(tmp_path / "store", {"train": lengths, "validation": [600, 900]})
    whole = TokenStore.open(store)
    result = TokenStore.open(packed_and_unpacked(store, kibibytes / 1024))
    assert store.with_name("file").stat().st_size <= kibibytes * 1024
    kept = result.index.splits["train"].documents
    assert 0 < kept < len(lengths)
    end = sum(lengths[:kept])
    np.testing.assert_array_equal(result.split("train"), whole.split("train")[:end])
    np.testing.assert_array_equal(result.split("validation"), whole.split("validation"))
    assert result.index.splits["validation"] == whole.index.splits["validation"]
    assert result.index.recipe_sha256 != whole.index.recipe_sha256
    # One document more would have been too much: an id takes two bytes at most.
    assert store.with_name("file").stat().st_size > kibibytes * 1024 - 2 * lengths[kept] - 64


def test_a_limit_that_all_of_it_fits_leaves_out_nothing(store: Path) -> None:
    assert contents(packed_and_unpacked(store, 1.0)) == contents(store)


def test_a_limit_that_is_too_small_says_for_what(store: Path, tmp_path: Path) -> None:
    for max_mib, what in (
        (0.001, "the split 'validation', of which nothing"),
        (0.0042, "the first document of 'train'"),
    ):
        with pytest.raises(ConfigError, match=rf"--max_mib {max_mib}: too few for {what}"):
            pack(str(store), str(tmp_path / "file"), LINES.append, max_mib)
    for max_mib in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"--max_mib .*: must be above 0"):
            pack(str(store), str(tmp_path / "file"), LINES.append, max_mib)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_documents_that_cannot_be_told_apart_are_not_left_out(store: Path, tmp_path: Path) -> None:
    tree = json.loads((store / "index.json").read_text())
    tree["splits"]["train"]["documents"] = 2
    (store / "index.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="does not tell where its documents end"):
        pack(str(store), str(tmp_path / "file"), LINES.append, 0.006)


def test_a_damaged_store_is_not_packed(store: Path, tmp_path: Path) -> None:
    content = bytearray((store / "train.bin").read_bytes())
    content[0] ^= 1
    (store / "train.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.bin: damaged"):
        pack(str(store), str(tmp_path / "file"), LINES.append)


@pytest.mark.parametrize("way", [pack, unpack])
def test_nothing_is_overwritten_and_no_url_is_written_to(
    way: Callable[..., object], store: Path, tmp_path: Path
) -> None:
    pack(str(store), str(tmp_path / "file"), LINES.append)
    source = store if way is pack else tmp_path / "file"
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="there: exists already; choose another name"):
        way(str(source), str(tmp_path / "there"), LINES.append)
    with pytest.raises(ConfigError, match=r"gs://bucket/x: is a URL"):
        way(str(source), "gs://bucket/x", LINES.append)
    (tmp_path / "there").rmdir()
    (tmp_path / "there").write_text("")
    with pytest.raises(DataError, match=r"there/x: cannot be written"):
        way(str(source), str(tmp_path / "there" / "x"), LINES.append)


def test_whatever_byte_of_the_file_is_lost_or_changed_no_store_appears(store: Path, tmp_path: Path) -> None:
    pack(str(store), str(tmp_path / "file"), LINES.append)
    content = (tmp_path / "file").read_bytes()
    index_end = 12 + len((store / "index.json").read_bytes())
    damaged = [content[:length] for length in range(0, len(content), 97)] + [b"", content + b"\0"]
    for place in range(0, len(content), 53):
        if not 12 <= place < index_end:  # a changed index is another one
            damaged.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for bad in damaged:
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(DataError, match=r"bad: is no whole packed token store: .*; copy or pack it again"):
            unpack(str(tmp_path / "bad"), str(tmp_path / "result"), LINES.append)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "file", "bad"}


def test_a_store_for_which_the_disk_has_no_room_is_not_begun(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(str(store), str(tmp_path / "file"), LINES.append)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9999))
    with pytest.raises(DataError, match="9,999 bytes are free, and the token store takes 10,000"):
        unpack(str(tmp_path / "file"), str(tmp_path / "result"), LINES.append)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "file"}


def test_what_would_be_refused_is_not_packed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_RATIO", 1)
    with pytest.raises(DataError, match="packs to less than 1/1, which `gpt pack --unpack` would refuse"):
        pack(str(store), str(tmp_path / "file"), LINES.append)
    assert not (tmp_path / "file").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: cannot be read: No such file"):
        unpack(str(tmp_path / "nowhere"), str(tmp_path / "result"), LINES.append)


@pytest.mark.parametrize("content", [b"\xff", b"\x00\xff", b"\xa0" * 3])
def test_half_a_token_is_refused(content: bytes) -> None:
    with pytest.raises(Damaged, match="ends within a token"):
        list(Coding(np.arange(40_000), np.dtype("<u2")).decode(content))
    with pytest.raises(Damaged, match="ends within a token"):
        list(Coding(np.arange(40_000), np.dtype("<u4")).decode(content))


def test_a_rank_that_no_id_has_is_refused() -> None:
    for dtype in ("<u2", "<u4"):
        with pytest.raises(Damaged, match="a rank that no id has"):
            list(Coding(np.arange(40_000), np.dtype(dtype)).decode(b"\xff" * 4))


def test_the_command_says_what_it_left_out(store: Path, tmp_path: Path, gpt: Callable[..., Command]) -> None:
    file, result = tmp_path / "file", tmp_path / "result"
    done = gpt("pack", store, file, "--max_mib", 0.006, "--json")
    report = json.loads(done.out)
    kept = report["index"]["splits"]["train"]
    assert report["documents_left_out"] == 6 - kept["documents"] > 0
    assert report["tokens_left_out"] == 3500 - kept["tokens"]
    left_out = rf"left out of train: {report['tokens_left_out']:,} tokens in the last {6 - kept['documents']} documents"
    assert re.search(f"^{left_out}$", done.err, re.MULTILINE)
    assert re.search(r"^pack: 0\.0 of 0\.0 MB packed to 0\.0 MB$", done.err, re.MULTILINE)
    done = gpt("pack", "--unpack", file, result)
    assert (done.code, "left out" in done.err) == (0, False)
    TokenStore.open(result).verify()
    done = gpt("pack", "--unpack", file, result)
    assert (done.code, done.err) == (2, f"error: {result}: exists already; choose another name, or remove it first\n")
