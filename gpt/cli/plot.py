"""Draw the loss curves of runs as a PNG."""

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--output", type=Path, default=Path("loss.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print {'output': FILE} on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.evaluation.curves import draw_loss_curves

    draw_loss_curves(args.runs, args.output)
    print(f"wrote {args.output}", file=sys.stderr)
    if args.json:
        print(json.dumps({"output": str(args.output)}))
    return 0
