"""Score a run on a held-out split, by the config it saved: perplexity of text, or a task's metrics.

    eval.py --run=DIR [--split=NAME] [--step=N] [--json] [--gin.Section.field=value ...]

The predictions of a task are kept in DIR/predictions/SPLIT.jsonl.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt.cli.start import add_process_flags, parse_flags, run_guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one row a metric."""
    parser = argparse.ArgumentParser(prog="eval.py", description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory of train.py")
    parser.add_argument("--split", default="validation", metavar="NAME", help="train, validation (default) or test")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint to score (default: the latest)")
    parser.add_argument("--json", action="store_true", help="one JSON object a metric on standard output")
    add_process_flags(parser)
    args, overrides = parse_flags(parser, argv)

    from gpt.evaluation.scores import score_run
    from gpt.training.processes import is_first, joined

    facts = {"--run": str(args.run), "--split": args.split, "--step": args.step, "--gin": overrides}
    with joined(args, facts):
        for row in score_run(args.run, args.step, overrides, args.split):
            text = "{task}: {metric} {value:.6g} over {n} at step {step}".format(**row)
            if is_first():
                print(json.dumps(row) if args.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded(main))
