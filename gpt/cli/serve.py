"""Serve a model: a page to write with it, and an HTTP API in the style of OpenAI's.

Prints {"url": ..., "model": ...} on standard output once it answers. SIGTERM and Ctrl-C end it when the texts that
are being written are done.
"""

import argparse
import sys
from pathlib import Path

from gpt.cli.convert import add_tokenizer_arguments
from gpt.errors import ConfigError, DataError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="what `gpt score` reads")
    add_tokenizer_arguments(parser)
    parser.add_argument("--name", help="what the API calls the model; default: the name of its directory")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument(
        "--host",
        default=LOOPBACK[0],
        help="0.0.0.0 lets other machines in (default: %(default)s)",
    )
    parser.add_argument(
        "--token_file",
        type=Path,
        metavar="FILE",
        help="a secret that requests must bring, as bearer token",
    )
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="texts at once (default: %(default)s)")
    parser.add_argument(
        "--queue", type=int, default=64, metavar="N", help="texts that may wait for a slot (default: %(default)s)"
    )
    parser.add_argument(
        "--requests_per_minute", type=int, default=600, metavar="N", help="of one client (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    try:
        from gpt.demo.server import bind, make_service, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"gpt serve needs {error.name}, which is not installed: pip install '.[demo]'") from None
    from gpt.training.model_dir import load_model

    for name in ("slots", "queue", "requests_per_minute"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: must be 1 or more")
    token = _read_token(args.token_file)
    is_local = args.host in LOOPBACK
    if not is_local and token is None:
        print(f"warning: --host {args.host} lets other machines in, and no --token_file is set", file=sys.stderr)
    with bind(args.host, args.port) as listener:
        model = load_model(args.model, tokenizer_dir=args.tokenizer, route=args.route)
        for note in model.notes:
            print(f"warning: {note}", file=sys.stderr)
        service = make_service(
            args.model,
            model,
            args.slots,
            args.queue,
            name=args.name or args.model.resolve().name,
            token=token,
            requests_per_minute=args.requests_per_minute,
            # A foreign name that points to this machine must not open it to the pages of that name.
            hosts=("127.0.0.1", "localhost", "[::1]") if is_local else ("*",),
        )
        serve(service, listener, args.host)
    return 0


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--token_file {path}: cannot be read: {error}") from None
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise DataError(f"--token_file {path}: expected one word of ASCII characters")
    return token
