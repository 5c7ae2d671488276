"""Score language models on tasks they were never trained on, by the heuristics of the paper's section 5.

Columns of the .jsonl files: winograd text, pronoun, choices, label; cola and sst2 text, label; race article,
questions, options, answers. Several models and tasks may follow their flags; tasks and files go in pairs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gpt.cli.convert import add_tokenizer_arguments
from gpt.errors import ConfigError

TASKS = ("winograd", "cola", "sst2", "race")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, nargs="+", type=Path, metavar="DIR", help="what `gpt score` reads")
    add_tokenizer_arguments(parser)
    parser.add_argument("--task", required=True, nargs="+", choices=TASKS, help="what to ask")
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="FILE", help="rows, a file a task")
    parser.add_argument(
        "--threshold_data",
        type=Path,
        metavar="FILE",
        help="for cola: rows to choose the threshold on (the training split); default: the median of the scores",
    )
    parser.add_argument("--checkpoints", action="store_true", help="every checkpoint that a run has kept")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.png", help="draw all scores against updates, in one picture"
    )
    parser.add_argument("--json", action="store_true", help="print one object a score a line on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.paper.zero_shot import Data, draw_zero_shot, score_model
    from gpt.training.model_dir import load_model

    if len(args.task) != len(args.data) or len(set(args.task)) != len(args.task):
        raise ConfigError(
            f"{len(args.task)} names behind --task and {len(args.data)} files behind --data: they go in pairs, "
            "each task once"
        )
    if args.threshold_data is not None and "cola" not in args.task:
        raise ConfigError("--threshold_data is for --task cola alone: the other tasks choose between candidates")
    data = Data(dict(zip(args.task, args.data, strict=True)), args.threshold_data)
    rows = []
    for directory in args.model:
        model = load_model(directory, tokenizer_dir=args.tokenizer, route=args.route)
        for note in model.notes:
            print(f"warning: {note}", file=sys.stderr)
        for row in score_model(directory, model, data, all_checkpoints=args.checkpoints):
            print(json.dumps(row) if args.json else _describe(row), flush=True)
            rows.append(row)
    if args.output is not None:
        draw_zero_shot(rows, args.output)
        print(f"wrote {args.output}", file=sys.stderr)
    return 0


def _describe(row: dict[str, Any]) -> str:
    parts = [f"{row['task']}: {row['metric']} {row['value']:.4g} over {row['n']}"]
    if "step" in row:
        parts[0] += f" at step {row['step']}"
    parts.append(f"{row['normalised']:.3g} between random guess (0) and {row['best_is']} (1)")
    if "threshold" in row:
        parts.append(f"acceptable above {row['threshold']:.4g}, the {row['threshold_from']}")
    if row.get("num_ties"):
        parts.append(f"{row['num_ties']} ties, the first chosen")
    if row["num_cut"]:
        parts.append(f"{row['num_cut']} texts cut to the context, their beginning lost")
    return "; ".join([*parts, *row.get("notes", ())])
