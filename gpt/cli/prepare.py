"""Turn text files, .jsonl, .parquet or hub data sets into a token store.

The same command continues where an interrupted one stopped, and does nothing when its store is there.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys

from gpt.data.prepare import prepare
from gpt.errors import Preempted
from gpt.text.pipeline import ROUTES
from gpt.text.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text file (one document), .jsonl, .parquet, or hub:OWNER/NAME[/CONFIG]:SPLIT (a document a row)",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="DIR",
        help="what `gpt tokenizer train` wrote, or OpenAI's or Hugging Face's vocabulary and merges",
    )
    parser.add_argument(
        "--route", choices=ROUTES, help="from text to words; default the one that tokenizer.json records"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the token store; must not exist yet")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--validation", nargs="+", default=[], metavar="FILE", help="held-out documents")
    held_out.add_argument(
        "--validation_fraction",
        type=float,
        default=0.01,
        metavar="F",
        help="documents to hold out, drawn by their text; default 0.01, 0 for none",
    )
    parser.add_argument("--text_field", default="text", metavar="NAME", help="field of a row; default text")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default one a core"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        done = prepare(
            args.input,
            Tokenizer.load(args.tokenizer, args.route),
            args.output,
            validation=args.validation,
            validation_fraction=args.validation_fraction,
            text_field=args.text_field,
            workers=args.workers,
        )
    except KeyboardInterrupt:
        raise Preempted("interrupted; finished parts are kept, the same command continues") from None
    finally:
        signal.signal(signal.SIGTERM, previous)
    for name, split in done.splits.items():
        print(f"{name}: {split.tokens:,} tokens in {split.documents:,} documents", file=sys.stderr)
    speed = done.megabytes / done.seconds
    if done.already_prepared:
        print(f"{args.output}: already prepared", file=sys.stderr)
    else:
        print(f"{args.output}: {done.megabytes:.1f} MB in {done.seconds:.1f} s, {speed:.1f} MB/s", file=sys.stderr)
    if args.json:
        report = {"output": args.output, **dataclasses.asdict(done), "megabytes_per_second": speed}
        print(json.dumps(report))
    return 0
