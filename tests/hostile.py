"""Every reader of files that others may have written, with a valid file of each to start from.

`READERS` is what the property tests and `make fuzz` go through: whatever the bytes of one file, `read` gives a value or
raises a GPTError.
"""

import dataclasses
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import save
from starlette.exceptions import HTTPException

from gpt import gin_io
from gpt.config import ModelConfig, RunConfig, TaskConfig, TokenizerConfig
from gpt.data.archive import pack, unpack
from gpt.data.assemble import Recipe
from gpt.data.parts import EncodedPart
from gpt.data.place import Place
from gpt.data.rows import read_rows
from gpt.data.shards import Record
from gpt.data.sources import read_documents
from gpt.data.store import SplitIndex, StoreIndex, TokenStore
from gpt.demo.bodies import Body, ClassifyBody, CompletionBody, parse
from gpt.errors import DataError
from gpt.evaluation.submission import SHEETS, check_submission, write_submission
from gpt.gin_io import load_sweep
from gpt.interop.huggingface import read_huggingface
from gpt.interop.openai import read_openai
from gpt.interop.tensors import read_tensors
from gpt.paper.runs import finished_runs
from gpt.sweeps.directory import attempts_of, open_sweep
from gpt.sweeps.grid import make_cells
from gpt.sweeps.status import make_table, read_status
from gpt.tasks.reader import read_split
from gpt.tasks.registry import find_task
from gpt.text.tokenizer import Tokenizer
from gpt.training.lease import claim
from gpt.training.manifest import find_damage
from gpt.training.owner import owned
from gpt.training.run_dir import read_metrics, read_num_steps, read_result

CONFIG = gin_io.format_config(
    RunConfig(
        output_dir="run",
        tokenizer=TokenizerConfig(path="tokenizer"),
        model=ModelConfig(num_special_tokens=3),
        task=TaskConfig(name="rte"),
    )
).encode()
RUN_RESULT = {"run": "cell", "step": 1, "validation": {"step": 1, "matthews": 0.5, "perplexity": 9.0}}
PAIRS = {"text_a": "a man", "text_b": "a woman", "label": 1}


class Reader(NamedTuple):
    """Reads `file` of a folder in which everything else is as `companions` say."""

    file: str
    read: Callable[[Path], Any]
    seed: bytes
    companions: dict[str, bytes] = {}  # noqa: RUF012 - of a NamedTuple

    def make(self, folder: Path) -> None:
        """Writes the folder, the file and its companions."""
        for name, content in {**self.companions, self.file: self.seed}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def feed(self, folder: Path, content: bytes) -> Any:
        """What is read when the file holds these bytes."""
        (folder / self.file).write_bytes(content)
        return self.read(folder)


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _in(write: Callable[[Path], Any]) -> dict[str, bytes]:
    """The files that `write` leaves in a folder."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        return {str(path.relative_to(name)): path.read_bytes() for path in Path(name).rglob("*") if path.is_file()}


def _read_store_by_url(folder: Path) -> Any:
    files = {f"/hostile/{path.name}": path.read_bytes() for path in (folder / "s").iterdir()}
    try:
        for name, content in files.items():
            MemoryFileSystem().pipe_file(name, content)
        return [TokenStore.open("memory://hostile").split("train")[:5]]
    finally:
        MemoryFileSystem.store.clear()


def _pack(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file, content in _STORE.items():
            (Path(name) / Path(file).name).write_bytes(content)
        pack(name, str(folder / "packed"), str)


def _unpack(folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as name:
        return unpack(str(folder / "packed"), f"{name}/store", str)


def _rows(task: str, split: str = "train") -> Callable[[Path], Any]:
    return lambda folder: read_split(find_task(task), str(folder), split)


def _parquet() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": ["the cat", "sat"]}), content)
    return content.getvalue()


def _zip(texts: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return content.getvalue()


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _sweep(folder: Path) -> None:
    cells = make_cells(load_sweep([], ["sweep/RunConfig.seed=[1, 2]", *SWEEP_FLAGS]), folder / "sweep")
    open_sweep(folder / "sweep", cells)
    claim(attempts_of(folder / "sweep", "seed=1"))
    (folder / "sweep" / "seed=1").mkdir()
    (folder / "sweep" / "seed=1" / "result.json").write_text(json.dumps(RUN_RESULT))


def _own(folder: Path) -> None:
    os.utime(folder / "run/.owners/0001.json", (0, 0))  # else one of another machine is waited for
    (folder / "run/.owners/0002.json").unlink(missing_ok=True)  # of an earlier reading
    with owned(folder / "run"):
        pass


def _table(folder: Path) -> None:
    make_table(read_status(folder / "sweep"))


SWEEP_FLAGS = ["DataConfig.token_store=store", "TokenizerConfig.path=tokenizer"]
_TOKENIZER = foreign.make_tokenizer()
_TOKENIZER_FILE = _in(lambda folder: _TOKENIZER.save(folder))
_PAIR = _in(lambda folder: _TOKENIZER.save(folder, "huggingface"))
_WEIGHTS = foreign.make_weights()
_HF = {"config.json": _dumped(foreign.huggingface_config()), "model.safetensors": save(_WEIGHTS)}
_BIN = {"config.json": _HF["config.json"]}
_ZIP = _in(lambda folder: foreign.write_torch_zip(folder / "x", _WEIGHTS))["x"]
_LEGACY = _in(lambda folder: foreign.write_torch_legacy(folder / "x", _WEIGHTS))["x"]
_OPENAI = _in(lambda folder: foreign.write_openai_files(folder, _WEIGHTS))
_TOKENS = np.arange(30, dtype="<u2").tobytes()
_DIGEST = hashlib.sha256(_TOKENS).hexdigest()
_INDEX = StoreIndex(_DIGEST, 40, 0, _DIGEST, {"train": SplitIndex("train.bin", 30, 1, _DIGEST)})
_STORE = {"s/index.json": _INDEX.to_json().encode(), "s/train.bin": _TOKENS}
_PACKED = _in(_pack)
_SHARD = dataclasses.asdict(
    Record(
        ["a.txt"], [], Recipe([_DIGEST], [], 0.1, "text", _DIGEST, 40, 0), [EncodedPart("train", 1, None, "0.bin", 2)]
    )
)
_SWEEP = _in(_sweep)
_LEASE = "sweep/.attempts/seed=1/0001.json"
_LOCK = _SWEEP[_LEASE].replace(b'"process_start": "', b'"process_start": "0')  # of a process that is gone
_RUN = {"config.gin": CONFIG, "result.json": _dumped(RUN_RESULT), "num_steps": b"12\n"}
_METRICS = b"".join(
    _dumped({"step": step, "kind": kind, "task_loss": 0.5, "lm_loss": 2.0}) + b"\n"
    for step in (1, 2)
    for kind in ("train", "validation")
)
_COPA = (
    b'<?xml version="1.0"?>\n<copa-corpus version="1.0">\n<item id="1" asks-for="cause" '
    b'most-plausible-alternative="1"><p>It fell.</p><a1>It was cut.</a1><a2>It rained.</a2></item>\n</copa-corpus>\n'
)
_PASSAGE = {"article": "A cat.", "questions": ["Who?"], "options": [["cat", "dog"]], "answers": ["A"], "id": "1"}
_STORY = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,"
    'RandomFifthSentenceQuiz2,AnswerRightEnding\n1,a,"b, ""c""",d,e,f,g,2\n'
)
_SHEETS = {
    name: "index\tprediction\n" + f"0\t{sheet.labels[0] if sheet.labels else '1.0'}\n" for name, sheet in SHEETS.items()
}


def _read_hf(folder: Path) -> Any:
    return read_huggingface(folder, None)


def _read_openai(folder: Path) -> Any:
    return read_openai(folder, None)


def _body(kind: type[Body]) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        try:
            body: Any = parse(kind, (folder / "body.json").read_bytes())
            return (body.prompts, body.stops, body.decoding(1)) if kind is CompletionBody else body.rows
        except HTTPException as error:
            if error.status_code != 400:
                raise
            raise DataError(error.detail) from None

    return read


def _with(reader: Callable[[Path], Any], files: dict[str, bytes], file: str) -> Reader:
    return Reader(file, reader, files[file], {name: content for name, content in files.items() if name != file})


READERS = {
    "tokenizer.json": _with(Tokenizer.load, _TOKENIZER_FILE, "tokenizer.json"),
    "vocab.json": _with(lambda folder: Tokenizer.load(folder, "basic"), _PAIR, "vocab.json"),
    "merges.txt": _with(lambda folder: Tokenizer.load(folder, "original"), _PAIR, "merges.txt"),
    "gin file": Reader("run.gin", lambda folder: gin_io.load([folder / "run.gin"]), CONFIG),
    "gin flag": Reader(
        "flag",
        lambda folder: gin_io.load([], [(folder / "flag").read_bytes().decode(errors="surrogateescape")]),
        b"DataConfig.token_store={'books': 0.7, 'wiki': %share}",
    ),
    "sweep.gin": Reader(
        "sweep.gin",
        lambda folder: make_cells(load_sweep([folder / "sweep.gin"], SWEEP_FLAGS), folder / "sweep"),
        b"warmup = 20\nOptimizerConfig.warmup_steps = %warmup\nsweep/RunConfig.seed = [1, 2]\n"
        b"sweep/OptimizerConfig.learning_rate = [1e-3, 1e-4]\n",
    ),
    "safetensors": _with(_read_hf, _HF, "model.safetensors"),
    "safetensors index": Reader(
        "model.safetensors.index.json",
        lambda folder: read_tensors(folder / "model.safetensors.index.json"),
        _dumped({"weight_map": {"x": "a.safetensors"}}),
        {"a.safetensors": save({"x": np.zeros(3, np.float32)})},
    ),
    "torch zip": Reader("pytorch_model.bin", _read_hf, _ZIP, _BIN),
    "torch legacy": Reader("pytorch_model.bin", _read_hf, _LEGACY, _BIN),
    "config.json": _with(_read_hf, _HF, "config.json"),
    "npy": _with(_read_openai, _OPENAI, "params_0.npy"),
    "npy of version 2": Reader(
        "params_0.npy",
        _read_openai,
        b"\x93NUMPY\x02\x00\x46\x00\x00\x00" + _npy(np.zeros(1))[10:80] + b"\0" * 8,
        _OPENAI,
    ),
    "params_shapes.json": _with(_read_openai, _OPENAI, "params_shapes.json"),
    "hparams.json": _with(_read_openai, _OPENAI, "hparams.json"),
    "index.json": _with(lambda folder: TokenStore.open(folder / "s").verify(), _STORE, "s/index.json"),
    "index.json by URL": _with(_read_store_by_url, _STORE, "s/index.json"),
    "shard.json": Reader("shard.json", lambda folder: Record.read(Place(folder)), _dumped(_SHARD), {"0.bin": b"12"}),
    "packed store": _with(_unpack, _PACKED, "packed"),
    "train.bin": _with(lambda folder: TokenStore.open(folder / "s").split("train")[:9], _STORE, "s/train.bin"),
    "train.bin by URL": _with(_read_store_by_url, _STORE, "s/train.bin"),
    "jsonl rows": Reader("train.jsonl", _rows("mrpc"), _dumped(PAIRS) + b"\n" + _dumped(PAIRS)),
    "csv rows": Reader("train.csv", _rows("rte"), b'text_a,text_b,label\n"a, ""b""",c,1\nd,"e\nf",0\n'),
    "tsv rows": Reader("train.tsv", _rows("cola"), b'gj04\t1\t*\tA cat sat.\ngj04\t0\t\tSat cat "a.\n'),
    "ragged rows": Reader("train.tsv", _rows("qqp"), b"id\tquestion1\tquestion2\tis_duplicate\n1\ta\tb\t0\n2\ta\n"),
    "story csv": Reader(
        "cloze_test_test__spring2016 - cloze_test_ALL_test.csv", _rows("story_cloze", "test"), _STORY.encode()
    ),
    "copa xml": Reader("copa-test.xml", _rows("copa", "test"), _COPA),
    "race passage": Reader("train/middle/1.txt", _rows("race_middle"), _dumped(_PASSAGE)),
    "choices": Reader(
        "train.jsonl", _rows("race"), _dumped({"context": "a", "question": "b?", "choices": ["c", "d"], "label": 1})
    ),
    "plain rows": Reader("x.csv", lambda folder: list(read_rows(folder / "x.csv")), b"a,b\n1,2\n"),
    "jsonl documents": Reader(
        "a.jsonl", lambda folder: list(read_documents([str(folder / "a.jsonl")])), _dumped({"text": "a cat"})
    ),
    "text documents": Reader("a.txt", lambda folder: list(read_documents([str(folder / "a.txt")])), "é cat".encode()),
    "parquet": Reader("a.parquet", lambda folder: list(read_documents([str(folder / "a.parquet")])), _parquet()),
    "result.json": _with(lambda folder: finished_runs(folder), {**_RUN, "metrics.jsonl": _METRICS}, "result.json"),
    "manifest.json": Reader(
        "manifest.json",
        lambda folder: find_damage(folder, 3),
        _dumped({"step": 3, "notes": {}, "files": {"a": {"bytes": 1, "sha256": _DIGEST}}}),
        {"a": b"a"},
    ),
    "config.gin": _with(lambda folder: finished_runs(folder), _RUN, "config.gin"),
    "a finished run": Reader("result.json", read_result, _dumped(RUN_RESULT)),
    "num_steps": Reader("num_steps", read_num_steps, b"12\n"),
    "metrics.jsonl": Reader("metrics.jsonl", read_metrics, _METRICS),
    "sweep.json": _with(_table, _SWEEP, "sweep/sweep.json"),
    "lease": _with(_table, _SWEEP, _LEASE),
    "lease to claim": _with(lambda folder: claim((folder / _LEASE).parent), _SWEEP, _LEASE),
    "owner's lock": Reader("run/.owners/0001.json", _own, _LOCK),
    "result of a cell": _with(_table, _SWEEP, "sweep/seed=1/result.json"),
    "completion request": Reader(
        "body.json",
        _body(CompletionBody),
        _dumped({"prompt": ["a", "b"], "max_tokens": 3, "temperature": 0.5, "stop": ["c"], "seed": 1, "n": 2}),
    ),
    "classify request": Reader("body.json", _body(ClassifyBody), _dumped({"input": [{"text_a": "a"}, "b"]})),
    "submission": Reader("glue.zip", lambda folder: check_submission(folder / "glue.zip"), _zip(_SHEETS)),
    "predictions": Reader(
        "runs/rte/predictions/test.jsonl",
        lambda folder: write_submission(folder / "runs", folder / "glue.zip", allow_partial=True),
        b'{"row": 0, "prediction": 1}\n',
        {
            "runs/rte/config.gin": CONFIG,
            "runs/rte/result.json": _dumped({"validation": {"accuracy": 0.5}}),
        },
    ),
}
"""By what they read."""
