"""Train a byte-pair vocabulary; encode text and decode ids with it."""

import argparse
import json
import sys
import time
from pathlib import Path

from gpt.data.sources import expand, read_documents
from gpt.errors import DataError
from gpt.reading import lines_of, parse_json
from gpt.text.pipeline import ROUTES
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe
from gpt.text.vocabulary import FILE_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="learn a vocabulary from text and write tokenizer.json")
    train.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text file, .jsonl, .parquet, a path or a URL (which may have *), or hub:OWNER/NAME[/CONFIG]:SPLIT",
    )
    train.add_argument("--vocab_size", type=int, required=True, metavar="N", help="ids of the vocabulary")
    train.add_argument(
        "--route", choices=ROUTES, default="basic", help="from text to words; original needs the extra; default basic"
    )
    train.add_argument("--output", required=True, metavar="DIR", help="where to write; must hold no tokenizer yet")
    train.add_argument("--text_field", default="text", metavar="NAME", help="field of a row; default text")
    train.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    for action, help_text in (
        ("encode", "one JSON string a line on standard input to one JSON list of ids a line"),
        ("decode", "one JSON list of ids a line on standard input to one JSON string a line"),
    ):
        filter_parser = actions.add_parser(action, help=help_text)
        filter_parser.add_argument(
            "--vocab",
            required=True,
            metavar="DIR",
            help="what `gpt tokenizer train` wrote, or OpenAI's or Hugging Face's vocabulary and merges",
        )
        filter_parser.add_argument(
            "--route", choices=ROUTES, help="from text to words; default the one that tokenizer.json records"
        )


def run(args: argparse.Namespace) -> int:
    if args.action == "train":
        return _train(args)
    tokenizer = Tokenizer.load(args.vocab, args.route)
    for number, line in enumerate(lines_of(sys.stdin.buffer, "standard input"), start=1):
        try:
            answer = _encode(tokenizer, line) if args.action == "encode" else _decode(tokenizer, line)
        except DataError as error:
            raise DataError(f"standard input, line {number}: {error}") from None
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    return 0


def _train(args: argparse.Namespace) -> int:
    if (Path(args.output) / FILE_NAME).exists():  # `save` refuses, too, but only after minutes of work
        raise DataError(f"--output {args.output}: holds a tokenizer already: choose another directory, or remove it")
    started = time.perf_counter()
    tokenizer = train_bpe(read_documents(expand(args.input), args.text_field), args.vocab_size, args.route)
    tokenizer.save(args.output)
    seconds = time.perf_counter() - started
    print(f"{args.output}: {tokenizer.vocab_size:,} ids in {seconds:.1f} s", file=sys.stderr)
    if args.json:
        report = {"output": args.output, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256}
        print(json.dumps({**report, "seconds": seconds}))
    return 0


def _encode(tokenizer: Tokenizer, line: bytes) -> list[int]:
    text = parse_json(line)
    if not isinstance(text, str):
        raise DataError(f"expected a JSON string, found {json.dumps(text):.80}")
    return tokenizer.encode(text)


def _decode(tokenizer: Tokenizer, line: bytes) -> str:
    ids = parse_json(line)
    if not isinstance(ids, list) or not all(type(item) is int for item in ids):
        raise DataError(f"expected a JSON list of ids, found {json.dumps(ids):.80}")
    return tokenizer.decode(ids)
