"""Files made to fill the memory, to keep a reader busy without end, to reach elsewhere or to run code."""

import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from foreign import Global, Storage, pickle_of, write_config, write_torch_zip
from hostile import CONFIG, READERS

from gpt import gin_io, reading
from gpt.data.archive_format import frame_of
from gpt.data.rows import read_rows
from gpt.data.store import TokenStore
from gpt.errors import ConfigError, DataError
from gpt.evaluation.submission import check_submission
from gpt.gin_io import load_sweep
from gpt.interop.huggingface import read_huggingface
from gpt.interop.torch_file import read_torch_file
from gpt.sweeps.directory import read_sweep
from gpt.sweeps.status import read_status
from gpt.tasks.reader import read_split
from gpt.tasks.registry import find_task
from gpt.training.lease import latest_attempt
from gpt.training.run_dir import read_metrics, read_num_steps, read_result


def refusal(name: str, folder: Path, content: bytes) -> str:
    """What is said of a file that a reader refuses."""
    READERS[name].make(folder)
    with pytest.raises((DataError, ConfigError)) as caught:
        READERS[name].feed(folder, content)
    return str(caught.value)


# The memory


def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15},), }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(8)
    assert "params_0.npy: not a whole .npy array of floats" in refusal("npy", tmp_path / "npy", content)
    entry = json.dumps({"x": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}).encode()
    content = struct.pack("<Q", len(entry)) + entry + bytes(8)
    assert "not a whole .safetensors file" in refusal("safetensors", tmp_path / "safetensors", content)
    tree = json.loads(READERS["index.json"].seed)
    tree["splits"]["train"]["tokens"] = 10**15
    for name in ("index.json", "index.json by URL"):
        assert "has 60 bytes, 1,000,000,000,000,000 tokens take" in refusal(
            name, tmp_path / name, json.dumps(tree).encode()
        )


def test_a_packed_store_that_claims_more_than_its_size_allows_writes_nothing(tmp_path: Path) -> None:
    seed = READERS["packed store"].seed
    length = struct.unpack_from("<I", seed, 8)[0]
    tree = json.loads(seed[12 : 12 + length])
    frames = seed[12 + length :]

    def refusal_of(tree: Any, frames: bytes) -> str:
        index = json.dumps(tree).encode()
        return refusal("packed store", tmp_path, seed[:8] + struct.pack("<I", len(index)) + index + frames)

    tree["splits"]["train"]["tokens"] = 10**6
    assert re.search(r"it claims 2,000,000 bytes of ids of 40, and is \d+ bytes long", refusal_of(tree, frames))
    tree["splits"]["train"]["tokens"] = 30
    assert "of ids of 4,294,967,296" in refusal_of({**tree, "vocab_size": 1 << 32, "dtype": "uint32"}, frames)
    for claimed in (0, 61, 82, 2**32 - 1):
        first = struct.pack("<I", claimed) + frames[4:]
        assert f"a frame claims {claimed:,} bytes, expected 1 to 80" in refusal_of(tree, first)
    first = frames[:4] + struct.pack("<I", 2**32 - 1) + frames[8:]
    assert "4,294,967,295 bytes are claimed, expected at most 1,104" in refusal_of(tree, first)
    bomb = pa.compress(bytes(1 << 24), "zstd", asbytes=True)
    first = struct.pack("<II", 60, len(bomb)) + bomb
    assert re.search(r"zstd: .*Destination buffer is too small", refusal_of(tree, first))
    assert "its ids are not those of a vocabulary of 40" in refusal_of(tree, frame_of(struct.pack("<H", 40)))
    tree["splits"]["train"]["tokens"] = 29
    assert "a frame of 'train' holds another number of tokens" in refusal_of(tree, frames)
    content = seed[:8] + b"\xff" * 4 + seed[12:]
    assert "claimed, expected at most 1,048,576" in refusal("packed store", tmp_path, content)


def test_of_an_index_no_more_is_fetched_than_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt.data.store.MAX_BYTES", 10)
    for name in ("index.json", "index.json by URL"):
        assert "index.json: is larger than 10 bytes" in refusal(name, tmp_path / name, b" " * 11)


def test_a_config_that_claims_very_many_layers_is_held_against_the_weights(tmp_path: Path) -> None:
    write_config(tmp_path, n_layer=10**9)
    READERS["config.json"].make(tmp_path / "valid")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "valid" / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"n_layer = 1,000,000,000, but model\.safetensors holds 38 arrays"):
        read_huggingface(tmp_path, None)
    assert "n_embd = 10000000000: expected int" in refusal(
        "config.json", tmp_path / "wide", json.dumps({"n_embd": 10**10}).encode()
    )


def test_a_list_of_very_many_shapes_is_not_compared_one_with_another(tmp_path: Path) -> None:
    shapes = [[12, 8], [40, 8], *[[1]] * 100_000]
    problem = refusal("params_shapes.json", tmp_path, json.dumps(shapes).encode())
    assert "100,002 shapes; expected at most 2,402" in problem


def test_a_stretched_view_of_one_value_is_refused(tmp_path: Path) -> None:
    wide = Global(
        "torch._utils", "_rebuild_tensor_v2", Storage("FloatStorage", "0", 8), 0, (10**6, 10**6), (0, 0), False, {}
    )
    write_torch_zip(tmp_path / "x.bin", {"x": np.zeros(8, np.float32)}, {"x": wide})
    with pytest.raises(DataError, match=r"would have more than 4 times the 8 values that it stores\. Refused"):
        read_torch_file(tmp_path / "x.bin")


def test_weights_that_compress_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(DataError, match="its parts are compressed or lie over one another"):
        read_torch_file(path)


def test_parts_of_a_zip_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 16))
        archive.filelist *= 9
    with pytest.raises(DataError, match="its parts are compressed or lie over one another"):
        read_torch_file(path)


def test_a_submission_is_unpacked_up_to_a_bound_and_nothing_else_in_its_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt.evaluation.submission.MAX_BYTES", 1000)
    for name, problem in (("RTE.tsv", "RTE.tsv is larger than 1,000 bytes"), ("../../x", "../../x is none of GLUE's")):
        with zipfile.ZipFile(tmp_path / "glue.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(2000))
        with pytest.raises(DataError, match=problem):
            check_submission(tmp_path / "glue.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["glue.zip"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv"])
def test_a_line_without_end_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    (tmp_path / name).write_text("a" * 2000)
    with pytest.raises(DataError, match=rf"{name}, line 1: is longer than 1,000 bytes"):
        list(read_rows(tmp_path / name))


def test_a_quote_that_is_never_closed_does_not_swallow_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n1,"' + "2\n" * 100_000)
    with pytest.raises(DataError, match=r"field larger than field limit \(131072\)"):
        list(read_rows(tmp_path / "x.csv"))


@pytest.mark.parametrize("depth", [2, 40])
def test_entities_of_xml_are_refused(depth: int, tmp_path: Path) -> None:
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, depth))
    (tmp_path / "copa-test.xml").write_text(
        f"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e0 'ha'>{entities}]><x>&e{depth - 1};</x>"
    )
    with pytest.raises(DataError, match=r"copa-test\.xml: defines entities"):
        read_split(find_task("copa"), str(tmp_path), "test")


def test_macros_that_double_and_double_again_are_refused() -> None:
    macros = [f"m{n}=[%m{n + 1}, %m{n + 1}]" for n in range(60)]
    with pytest.raises(ConfigError, match="macros stand for more than 20,000 values in all"):
        gin_io.load([], [*macros, "m60=1", "RunConfig.seed=%m0"])


@pytest.mark.parametrize("axes", [10, 1])
def test_a_sweep_of_more_cells_than_anyone_can_run_is_refused(axes: int, tmp_path: Path) -> None:
    fields = ("seed", "batch_size", "num_epochs", "log_every_steps", "evaluate_every_steps")
    values = list(range(1, 100 if axes > 1 else 20_000))
    path = tmp_path / "x.gin"
    path.write_text("".join(f"sweep/RunConfig.{field} = {values}\n" for field in fields[:axes]))
    with pytest.raises(ConfigError, match="expected at most 10,000"):
        load_sweep([path])


# Time


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_key_that_takes_forever_to_hash_is_never_hashed(is_zip: bool, tmp_path: Path) -> None:
    key: Any = ()
    for _ in range(60):
        key = (key, key)
    bomb = b"\x80\x02}(" + pickle.dumps(key, protocol=2)[2:-1] + b"K\x01u."
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
    if not is_zip:
        parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        (tmp_path / "x.bin").write_bytes(b"".join(map(pickle_of, parts)) + bomb)
    with pytest.raises(DataError, match=r"it holds a dict whose keys are no text\. Refused, and nothing in it was run"):
        read_torch_file(tmp_path / "x.bin")


def test_a_chain_of_macros_without_end_is_refused() -> None:
    macros = [f"m{n}=%m{n + 1}" for n in range(2000)]
    with pytest.raises(ConfigError, match="macros or values lie too deep in one another"):
        gin_io.load([], [*macros, "m2000=1", "RunConfig.seed=%m0"])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("'a' " * 2000, "More than 1000 strings one after another"),
        ("0x" + "f" * 5000, "A whole number of more than 4096 bits"),
        ("9" * 5000, "not gin syntax"),
        ("'\0'", "not gin syntax"),
    ],
)
def test_a_value_that_gin_would_stumble_over_is_refused(value: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.gin").write_text(f"RunConfig.output_dir = {value}\n")
    with pytest.raises(ConfigError, match=problem):
        gin_io.load([tmp_path / "x.gin"])


def test_a_gin_file_beyond_a_mebibyte_and_one_that_is_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gin").write_bytes(CONFIG + b"\n" * (1 << 20))
    with pytest.raises(DataError, match=r"x\.gin: is larger than 1,048,576 bytes"):
        gin_io.load([tmp_path / "x.gin"])
    os.mkfifo(tmp_path / "pipe.gin")
    with pytest.raises(DataError, match="is a pipe or a device"):
        gin_io.load([tmp_path / "pipe.gin"])


@pytest.mark.parametrize("name", ["tokenizer.json", "safetensors", "torch zip", "config.json", "npy", "index.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    READERS[name].make(tmp_path)
    path = tmp_path / READERS[name].file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"is a pipe or a device|it has no size that is known beforehand"):
        READERS[name].read(tmp_path)


# Code


@pytest.mark.parametrize(
    "statement",
    [
        "RunConfig.output_dir = @os.system",
        "RunConfig.output_dir = @os.system('x')",
        "RunConfig.output_dir = @a/os.system()",
        "RunConfig.output_dir = [{'x': (@gpt.cli.main.main(),)}]",
        "x = @__import__()\nRunConfig.output_dir = %x",
        "import os",
        "from os import system",
        "RunConfig.output_dir = __import__('os')",
        "RunConfig.output_dir = (lambda: 1)()",
        "os.system.command = 'x'",
        "gin.configurable = 1",
    ],
)
def test_gin_reaches_no_code(statement: str, tmp_path: Path) -> None:
    (tmp_path / "x.gin").write_text(f"{statement}\n")
    with pytest.raises(ConfigError):
        gin_io.load([tmp_path / "x.gin"])


def test_no_module_of_ours_can_run_what_it_reads() -> None:
    sources = {path: path.read_text() for path in (Path(gin_io.__file__).parents[1]).rglob("*.py")}
    for call in (
        "pickle.load",
        "Unpickler(",
        " eval(",
        " exec(",
        "allow_pickle=True",
        "yaml.load(",
        "marshal",
        "shelve.",
    ):
        assert not [path for path, text in sources.items() if call in text], call


def test_an_instruction_of_pickle_that_makes_objects_is_refused(tmp_path: Path) -> None:
    for bomb in (
        b"(cos\nsystem\n",
        b"\x80\x02cos\nsystem\nS'x'\n\x85R.",
        b"(S'x'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",
    ):
        (tmp_path / "x.bin").write_bytes(bomb)
        with pytest.raises(DataError, match="Refused, and nothing in it was run"):
            read_torch_file(tmp_path / "x.bin")


# Elsewhere


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/../x.bin", "..\\x.bin", "x\0.bin", "C:x.bin", ".."]
)
def test_an_index_of_weights_names_files_of_its_folder_alone(name: str, tmp_path: Path) -> None:
    content = json.dumps({"weight_map": {"x": name}}).encode()
    assert "an index must not reach outside" in refusal("safetensors index", tmp_path, content)


@pytest.mark.parametrize("file", ["../train.bin", "/etc/passwd", "train.bin/", "./train.bin", "train.bin\0"])
def test_an_index_of_tokens_names_files_of_its_store_alone(file: str, tmp_path: Path) -> None:
    tree = json.loads(READERS["index.json"].seed)
    tree["splits"]["train"]["file"] = file
    for name in ("index.json", "index.json by URL"):
        assert "file of split 'train' is" in refusal(name, tmp_path / name, json.dumps(tree).encode())


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", ".attempts", "a\\b", "a\0b"])
def test_a_record_of_a_sweep_names_cells_of_its_directory_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"settings": {}, "cells": {name: {}}}))
    with pytest.raises(DataError, match="is no cell of a sweep"):
        read_sweep(tmp_path)


def test_a_record_of_a_sweep_names_tasks(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"settings": {"TaskConfig.name": {}}, "cells": {"a": {}}}))
    with pytest.raises(DataError, match=r"sweep\.json: TaskConfig\.name of 'a' is {}, expected the name of a task"):
        read_status(tmp_path)


def test_a_lease_names_a_process_and_no_path(tmp_path: Path) -> None:
    seed = json.loads(READERS["lease"].seed)
    (tmp_path / "0001.json").write_text(json.dumps({**seed, "pid": "../../tmp/x"}))
    with pytest.raises(DataError, match=r"0001\.json: is no attempt at a cell: pid is '\.\./\.\./tmp/x'"):
        latest_attempt(tmp_path)


# Numbers and names


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    for text in ("", "1e3", "-1", "٣", "9" * 5000, "1\n2\n"):
        (tmp_path / "num_steps").write_text(text)
        with pytest.raises(DataError, match=r"num_steps: holds .* expected the number of updates"):
            read_num_steps(tmp_path)
    for text in ("[]", '{"validation": 1}', "{"):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(DataError, match=r"result\.json: "):
            read_result(tmp_path)
    for text in ("[]", '{"step": 1}', '{"step": true, "kind": "train"}', '{"kind": "train"}', "{"):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "kind": "train"}}\n{text}\n')
        with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: "):
            read_metrics(tmp_path)


def test_a_score_that_is_no_number_is_not_shown(tmp_path: Path) -> None:
    READERS["result of a cell"].make(tmp_path)
    (tmp_path / "sweep/seed=1/result.json").write_text('{"validation": {"perplexity": "low"}}')
    assert [row.value for row in read_status(tmp_path / "sweep")] == [None, None]


def test_a_label_of_very_many_digits_is_none(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"text,label\na,{'9' * 5000}\n")
    with pytest.raises(DataError, match=r"train\.csv, line 2: label '9{79} is not in the set"):
        read_split(find_task("cola"), str(tmp_path), "train")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match=r"x\.csv: two columns have one name: a, b, a"):
        list(read_rows(tmp_path / "x.csv"))


def test_a_store_on_a_server_that_tells_no_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(*_: Any, **__: Any) -> dict[str, Any]:
        return {"type": "file", "size": None}

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.info", info)
    with pytest.raises(DataError, match="it has no size that is known beforehand"):
        TokenStore.open("memory://nowhere")
