"""Make, or check, the zip file that GLUE's server takes, from the test predictions that eval.py kept.

Each task takes its newest run with predictions: eval.py --run=RUN --split=test; for AX the run on
MultiNLI with --gin.TaskConfig.name=ax as well.
"""

import argparse
import json
import sys
from pathlib import Path

from gpt.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", type=Path, metavar="DIR", help="where the run directories are, at any depth")
    what.add_argument("--check", type=Path, metavar="FILE", help="a zip to check: names, header, rows, label words")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the zip to write, with --runs")
    parser.add_argument("--allow_partial", action="store_true", help="leave out test sets without predictions")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.evaluation.submission import check_submission, write_submission

    if args.check is not None:
        if args.output is not None or args.allow_partial:
            raise ConfigError("--output and --allow_partial go with --runs, not with --check")
        files = check_submission(args.check)
        print(
            f"{args.check}: {len(files)} files, {sum(files.values()):,} predictions, all as expected", file=sys.stderr
        )
        if args.json:
            print(json.dumps({"file": str(args.check), "files": files}))
        return 0
    if args.output is None:
        raise ConfigError("--runs needs --output FILE, the zip to write")
    report = write_submission(args.runs, args.output, allow_partial=args.allow_partial)
    for name, file in report["files"].items():
        print(f"{name}: {file['rows']:,} predictions of {file['run']}", file=sys.stderr)
    if report["missing"]:
        print(f"warning: left out {', '.join(report['missing'])}", file=sys.stderr)
    if report["validation_glue_score"] is not None:
        print(f"GLUE average of these runs on validation: {report['validation_glue_score']:.4f}", file=sys.stderr)
    print(f"{args.output}: {len(report['files'])} files", file=sys.stderr)
    if args.json:
        print(json.dumps(report))
    return 0
