"""Continue prompts with any model: a run, Hugging Face's or OpenAI's files.

The prompt is that of --prompt, or all of standard input; --prompts has many. One text appears while it is written;
with --json, and of several, each when it is finished.
"""

import argparse
import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

from gpt.cli.convert import add_tokenizer_arguments
from gpt.errors import ConfigError, DataError
from gpt.generation.settings import Decoding
from gpt.reading import parse_json, read_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="what kind it is, its content tells")
    add_tokenizer_arguments(parser)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="what to continue; default: standard input, as one prompt")
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        help='a prompt a line; of a .jsonl file the "prompt" of each line; -: standard input',
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; repeatable")
    parser.add_argument("--end_at_newline", action="store_true", help="let the newline token end a text")
    parser.add_argument("--banned", action="append", default=[], metavar="TEXT", help="never comes; repeatable")
    _add_decoding_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="texts written at the same time (default: 8)")
    parser.add_argument(
        "--raw", action="store_true", help="leave a space between all words, as the vocabulary parts them"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='print {"prompt", "ids", "text", "logprobs", "finish_reason"} a text, with "score" of beam search',
    )


def _add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    hints = typing.get_type_hints(Decoding)
    for field in _flag_fields():
        kind = (typing.get_args(hints[field.name]) or (hints[field.name],))[0]  # the first of `int | None`
        text, flag = field.metadata["help"], f"--{field.name}"
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            shown = "" if field.default is None else " (default: %(default)s)"
            parser.add_argument(flag, type=kind, default=field.default, help=text + shown)


def _flag_fields() -> list[dataclasses.Field[Any]]:
    """The fields of `Decoding` but those that are ids, for which there are flags that take text."""
    return [field for field in dataclasses.fields(Decoding) if field.name not in ("banned", "end_ids")]


def run(args: argparse.Namespace) -> int:
    decoding = Decoding(**{field.name: getattr(args, field.name) for field in _flag_fields()})
    if args.batch_size < 1:
        raise ConfigError(f"--batch_size {args.batch_size}: must be 1 or more")
    prompts = _read_prompts(args)

    from gpt.generation.texts import write_texts
    from gpt.training.model_dir import load_model

    model = load_model(args.model, tokenizer_dir=args.tokenizer, route=args.route)
    for note in model.notes:
        print(f"warning: {note}", file=sys.stderr)
    decoding = _with_ids(decoding, args, model.tokenizer)
    is_alone = len(prompts) * decoding.num_samples == 1 and not args.json
    show = _Show(prompts[0]) if is_alone else None
    texts = write_texts(model, prompts, decoding, args.stop, is_raw=args.raw, batch_size=args.batch_size, show=show)
    num_texts = num_stopped = 0
    for text in texts:
        num_texts, num_stopped = num_texts + 1, num_stopped + (text.finish_reason == "stop")
        if args.json:
            print(json.dumps(_row(text)), flush=True)
        elif is_alone:
            print(flush=True)
        else:
            print(f"{text.prompt}{text.text}\n", flush=True)
    if args.stop and num_stopped < num_texts:
        print(f"{num_texts - num_stopped} of {num_texts} texts met no stop string", file=sys.stderr)
    return 0


class _Show:
    """Prints a prompt before the first word that continues it, and each word as it comes."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt

    def __call__(self, text: str) -> None:
        print(self._prompt + text, end="", flush=True)
        self._prompt = ""


def _row(text: Any) -> dict[str, Any]:
    row = {
        "prompt": text.prompt,
        "ids": text.ids,
        "text": text.text,
        "logprobs": text.log_probs,
        "finish_reason": text.finish_reason,
    }
    return row if text.score is None else {**row, "score": text.score}


def _with_ids(decoding: Decoding, args: argparse.Namespace, tokenizer: Any) -> Decoding:
    """The settings with the ids of the words that are banned, and of what ends a text."""
    if tokenizer is None:
        return decoding  # an error in `write_texts`
    banned = tuple(tuple(tokenizer.encode(word)) for word in args.banned)
    for word, ids in zip(args.banned, banned, strict=True):
        if not ids:
            raise ConfigError(f"--banned {word!r}: there is no word in it; leave it out")
    end_ids = (tokenizer.newline_id,) if args.end_at_newline else ()
    return dataclasses.replace(decoding, banned=banned, end_ids=end_ids)


def _read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts as they are, without the line end behind them."""
    if args.prompt is not None:
        return [args.prompt]
    if args.prompts is None:
        if sys.stdin.isatty():
            print("type the prompt; Ctrl-D ends it", file=sys.stderr)
        return [_read_stdin().rstrip("\n")]
    if args.prompts == "-":
        where, lines, is_json = "standard input", _read_stdin().splitlines(), False
    else:
        where, is_json = args.prompts, args.prompts.endswith(".jsonl")
        lines = read_text(Path(args.prompts)).splitlines()
    if not lines:
        raise DataError(f"{where} has no prompts: expected one a line")
    return [_prompt_of(line, f"{where}, line {number}") for number, line in enumerate(lines, 1)] if is_json else lines


def _prompt_of(line: str, where: str) -> str:
    try:
        row = parse_json(line)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise DataError(f'{where}: {line.strip():.80}: expected an object with a text as "prompt"')
    return row["prompt"]


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text: {error}") from None
