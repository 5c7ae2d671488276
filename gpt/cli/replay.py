"""Repeat the first updates of a run, and compare their losses with those it logged, bit by bit."""

import argparse
import json
from pathlib import Path

from gpt.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--steps", type=int, metavar="K", help="updates to make (default: to the first log line)")
    parser.add_argument("--json", action="store_true", help="one JSON object a value on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.training.replay import replay

    rows = replay(args.run, args.steps)
    for row in rows:
        is_same = row["then"] == row["now"]
        text = "step {step}: {metric} {then!r} then, {now!r} now".format(**row)
        print(json.dumps({**row, "same": is_same}) if args.json else f"{text}: {'same' if is_same else 'different'}")
    changed = [row for row in rows if row["then"] != row["now"]]
    if changed:
        raise DataError(
            f"{len(changed)} of {len(rows)} values differ, first {changed[0]['metric']} of update "
            f"{changed[0]['step']}: other data, code, library versions, devices or mesh; {args.run}/starts.jsonl has "
            "those of the run"
        )
    return 0
