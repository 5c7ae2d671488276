"""Convert weights and their tokenizer between OpenAI's files, Hugging Face folders and runs of train.py.

Values are kept bit by bit. A converted run can be evaluated, started from (RunConfig.init_from) and scored.
"""

import argparse
import json
import sys
from pathlib import Path

from gpt.text.pipeline import ROUTES

FORMATS = ("openai", "huggingface", "run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="what to read; of a run, the latest checkpoint")
    parser.add_argument("target", type=Path, metavar="TARGET", help="directory to write; must not exist")
    parser.add_argument("--from", required=True, choices=FORMATS, dest="source_format", help="what SOURCE is")
    parser.add_argument("--to", required=True, choices=FORMATS, dest="target_format", help="what TARGET becomes")
    add_tokenizer_arguments(parser)
    parser.add_argument("--without_head", action="store_true", help="leave out the classifier of a fine-tuned model")
    parser.add_argument(
        "--num_special_tokens",
        type=int,
        choices=(0, 3),
        help="cut off the rows of the special tokens, or add new ones; default: as in SOURCE",
    )
    parser.add_argument("--seed", type=int, default=42, help="of new rows, drawn from N(0, ModelConfig.init_std)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON on standard output")


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the one beside the weights")
    parser.add_argument(
        "--route",
        choices=ROUTES,
        help="from text to words; default: what tokenizer.json states, else original for OpenAI's files, basic for "
        "Hugging Face's",
    )


def run(args: argparse.Namespace) -> int:
    from gpt.interop.weights import flatten
    from gpt.training.model_dir import convert, load_model, with_special_tokens, without_head

    model = load_model(args.source, args.source_format, args.tokenizer, args.route)
    if args.without_head:
        model = without_head(model)
    if args.num_special_tokens is not None:
        model = with_special_tokens(model, args.num_special_tokens, args.seed)
    notes = convert(model, args.target, args.target_format)
    for note in (*model.notes, *notes):
        print(f"warning: {note}", file=sys.stderr)
    count = sum(array.size for array in flatten(model.params).values())
    print(f"{args.target}: {count:,} parameters as {args.target_format}", file=sys.stderr)
    if args.json:
        print(json.dumps({"output": str(args.target), "format": args.target_format, "parameters": count}))
    return 0
