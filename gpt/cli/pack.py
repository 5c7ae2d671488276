"""Put a token store into one small file, to be carried where there is no network, and take it out again.

The same ids come out, with an index that is true of them: nothing has to be prepared again.
"""

import argparse
import dataclasses
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a token store, a path or a URL; with --unpack a packed file")
    parser.add_argument("target", metavar="TARGET", help="the file to write, or the store; must not exist yet")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument(
        "--max_mib",
        type=float,
        metavar="N",
        help="a file of at most N MiB, which leaves out the last training documents as need be; default all",
    )
    direction.add_argument("--unpack", action="store_true", help="make a token store of a packed file")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.data.archive import pack, unpack

    def report(line: str) -> None:
        print(f"pack: {line}", file=sys.stderr, flush=True)

    if args.unpack:
        done = unpack(args.source, args.target, report)
    else:
        done = pack(args.source, args.target, report, args.max_mib)
    for name, split in done.index.splits.items():
        print(f"{name}: {split.tokens:,} tokens in {split.documents:,} documents", file=sys.stderr)
    if done.documents_left_out:
        print(
            f"left out of train: {done.tokens_left_out:,} tokens in the last {done.documents_left_out:,} documents",
            file=sys.stderr,
        )
    print(
        f"{args.target}: {'from ' if args.unpack else ''}{done.bytes / (1 << 20):.2f} MiB in {done.seconds:.1f} s",
        file=sys.stderr,
    )
    if args.json:
        print(json.dumps({"output": args.target, **dataclasses.asdict(done)}))
    return 0
