"""Pretrain, or fine-tune on a task: flags -> config -> gpt.training.loop.train.

    train.py --gin_file=configs/run/pretrain.gin [--gin_file=...] [--gin.Section.field=value ...]

Repeat the command to continue an interrupted run. The last line on standard output is one JSON
object: run directory, final step, final losses.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from gpt import gin_io
from gpt.cli.start import add_process_flags, parse_flags, run_guarded
from gpt.training.profiling import ProfileSteps


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the training that the flags describe."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="a gin config; repeatable, later files win"
    )
    parser.add_argument("--profile_steps", metavar="FIRST:LAST", help="updates to trace into RUN/profile")
    add_process_flags(parser)
    args, overrides = parse_flags(parser, argv)
    config = gin_io.load(args.gin_file, overrides)
    profile_steps = None if args.profile_steps is None else ProfileSteps.parse(args.profile_steps)

    from gpt.training.loop import train  # imports JAX: only once all settings hold
    from gpt.training.processes import is_first, joined

    with joined(args, gin_io.settings_of(config)):
        result = train(config, profile_steps)
        if is_first():
            print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded(main))
