"""Figure 2 left of the paper: the scores of our runs against the number of pretrained layers they start from.

Runs are told apart by RunConfig.num_transferred_layers, 0 (embeddings alone) to all layers; those with
RunConfig.init_from = None are the point without pre-training. Validation scores, times 100, median over seeds.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", required=True, type=Path, metavar="DIR", help="every run directory below it counts")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="draw one line a task")
    parser.add_argument("--json", action="store_true", help="print one object a point a line on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.paper.transfer import collect_curves, draw_curves

    curves, notes = collect_curves(args.runs)
    for curve in curves:
        if curve.missing:
            points = ", ".join("no pre-training" if number is None else str(number) for number in curve.missing)
            notes.append(f"{curve.task}: no runs for {points}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for point in (point for curve in curves for point in curve.to_json()):
        if args.json:
            print(json.dumps(point))
        elif point["n"]:
            print(_describe(point))
    if args.output is not None:
        draw_curves(curves, args.output)
        print(f"wrote {args.output}", file=sys.stderr)
    return 0


def _describe(point: dict[str, Any]) -> str:
    start = f"{point['num_transferred_layers']} of {point['num_layers']} layers transferred"
    return (
        f"{point['task']}, {start if point['pretrained'] else 'no pre-training'}: {point['metric']} median "
        f"{point['median']:.1f}, {point['min']:.1f} to {point['max']:.1f}, seeds {' '.join(map(str, point['seeds']))}"
    )
