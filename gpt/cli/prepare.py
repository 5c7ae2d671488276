"""Turn text files, .jsonl, .parquet or hub data sets into a token store.

The same command continues where an interrupted one stopped, and does nothing when its store is there. Files and store
may be behind URLs such as gs://bucket/books/*.txt. Large input is prepared by n commands, which differ in --shard i/n
alone, anywhere, at any time; when all are done, `gpt prepare --join n --output DIR` makes the store of one command.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys

from gpt.data.prepare import Preparation, join, prepare
from gpt.data.shards import Shard
from gpt.errors import ConfigError, Preempted
from gpt.text.pipeline import ROUTES
from gpt.text.tokenizer import Tokenizer

_TEXT_FLAGS = (
    "input", "tokenizer", "route", "validation", "validation_fraction", "text_field", "workers", "shard",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS  # so that `--join` can refuse what it has no use for
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="FILE",
        help="text file (one document), .jsonl or .parquet (a document a row), a path or a URL (which may have *), "
        "or hub:OWNER/NAME[/CONFIG]:SPLIT",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="what `gpt tokenizer train` wrote, or OpenAI's or Hugging Face's vocabulary and merges",
    )
    parser.add_argument(
        "--route", choices=ROUTES, help="from text to words; default the one that tokenizer.json records"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the token store; must not exist yet")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--validation", nargs="+", metavar="FILE", help="held-out documents")
    held_out.add_argument(
        "--validation_fraction",
        type=float,
        metavar="F",
        help="documents to hold out, drawn by their text; default 0.01, 0 for none",
    )
    parser.add_argument("--text_field", metavar="NAME", help="field of a row; default text")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; default one a core")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--shard", metavar="I/N", help="prepare the I-th of N blocks of the input files, for --join")
    parts.add_argument("--join", type=int, metavar="N", help="join what --shard 1/N to N/N made; takes --output alone")
    parser.add_argument(
        "--json", action="store_true", default=False, help="print the report as JSON on standard output"
    )


def run(args: argparse.Namespace) -> int:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        done = _run(args)
    except KeyboardInterrupt:
        raise Preempted("interrupted; finished parts are kept, the same command continues") from None
    finally:
        signal.signal(signal.SIGTERM, previous)
    what = f"{args.output}, shard {args.shard}" if "shard" in args else args.output
    for name, split in done.splits.items():
        print(f"{name}: {split.tokens:,} tokens in {split.documents:,} documents", file=sys.stderr)
    speed = done.megabytes / done.seconds
    if done.already_prepared:
        print(f"{what}: already prepared", file=sys.stderr)
    elif "join" in args:
        print(f"{what}: joined {args.join} shards in {done.seconds:.1f} s", file=sys.stderr)
    else:
        print(f"{what}: {done.megabytes:.1f} MB in {done.seconds:.1f} s, {speed:.1f} MB/s", file=sys.stderr)
    if args.json:
        report = {"output": args.output, **dataclasses.asdict(done), "megabytes_per_second": speed}
        print(json.dumps(report))
    return 0


def _run(args: argparse.Namespace) -> Preparation:
    given = {name: getattr(args, name) for name in _TEXT_FLAGS if name in args}
    if "join" in args:
        if given:
            raise ConfigError(f"--{min(given)}: --join takes --output alone; the shards know the rest")
        return join(args.output, args.join)
    for name in ("input", "tokenizer"):
        if name not in given:
            raise ConfigError(f"--{name}: is needed to prepare text (`gpt prepare --help` lists all flags)")
    if "shard" in given:
        given["shard"] = Shard.parse(given["shard"])
    tokenizer = Tokenizer.load(given.pop("tokenizer"), given.pop("route", None))
    workers = given.pop("workers", os.cpu_count() or 1)
    return prepare(given.pop("input"), tokenizer, args.output, workers=workers, **given)
