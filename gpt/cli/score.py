"""Log-probability of each token of the lines on standard input, by any model: a run, Hugging Face's or OpenAI's files.

A line is {"text": ...} or {"ids": [...]}; answers come in the same order.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.cli.convert import add_tokenizer_arguments
from gpt.errors import DataError
from gpt.reading import lines_of, parse_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="what kind it is, its content tells")
    add_tokenizer_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help='print {"ids": [...], "logprobs": [null, ...]} a line, natural logarithms, on standard output',
    )


def run(args: argparse.Namespace) -> int:
    import itertools

    from gpt.evaluation.token_scores import token_log_probs
    from gpt.training.model_dir import load_model

    model = load_model(args.model, tokenizer_dir=args.tokenizer, route=args.route)
    for note in model.notes:
        print(f"warning: {note}", file=sys.stderr)
    asked, scored = itertools.tee(_read_ids(model))
    for ids, log_probs in zip(asked, token_log_probs(model.config, model.params, scored), strict=True):
        print(json.dumps({"ids": ids, "logprobs": log_probs}) if args.json else _describe(log_probs), flush=True)
    return 0


def _read_ids(model: Any) -> Iterator[list[int]]:
    """The ids of each line; DataError with the number of a line that cannot be scored."""
    from gpt.evaluation.token_scores import check_ids

    for number, line in enumerate(lines_of(sys.stdin.buffer, "standard input"), 1):
        try:
            ids = _ids_of(line, model.tokenizer)
            check_ids(model.config, ids)
        except DataError as error:
            raise DataError(f"standard input, line {number}: {error}") from None
        yield ids


def _ids_of(line: bytes, tokenizer: Any) -> list[int]:
    tree = parse_json(line)
    if not isinstance(tree, dict) or len(tree.keys() & {"ids", "text"}) != 1:
        raise DataError(f'{json.dumps(tree):.80}: expected an object with either "ids" or "text"')
    if "ids" in tree:
        ids = tree["ids"]
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise DataError(f'"ids" is {json.dumps(ids):.80}: expected a list of whole numbers')
        return ids
    if not isinstance(tree["text"], str):
        raise DataError(f'"text" is {json.dumps(tree["text"]):.80}: expected a string')
    if tokenizer is None:
        raise DataError('"text" needs a tokenizer, and the model has none: give --tokenizer DIR, or "ids"')
    return tokenizer.encode(tree["text"])


def _describe(log_probs: list[float | None]) -> str:
    values = [value for value in log_probs if value is not None]
    if not values:
        return f"{len(log_probs)} tokens, nothing to predict"
    total = math.fsum(values)
    perplexity = math.exp(min(-total / len(values), 700.0))
    return f"{len(log_probs)} tokens, log-probability {total:.6g}, perplexity {perplexity:.6g}"
