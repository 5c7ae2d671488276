"""Verify the checkpoints of runs: every file against the sha256 that was written with it."""

import argparse
import json
from pathlib import Path

from gpt.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument(
        "--sign",
        action="store_true",
        help="write the manifest of checkpoints that have none, which an earlier version wrote, from their files as "
        "they are",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a checkpoint on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.training.checkpoint_dir import path_of, saved_steps
    from gpt.training.manifest import NAME, find_damage, write_manifest
    from gpt.training.run_dir import load_config

    total, num_damaged = 0, 0
    for directory in args.runs:
        load_config(directory)  # says so when it is no run
        for step in saved_steps(directory):
            checkpoint = path_of(directory, step)
            if args.sign and not (checkpoint / NAME).exists():
                write_manifest(checkpoint, step, {"score": None, "unread": []})
            damage = find_damage(checkpoint, step)
            total, num_damaged = total + 1, num_damaged + (damage is not None)
            row = {"run": str(directory), "step": step, "damage": damage}
            text = f"{directory}: step {step}: {f'damaged: {damage}' if damage else 'whole'}"
            print(json.dumps(row) if args.json else text)
    if num_damaged:
        raise DataError(f"{num_damaged} of {total} checkpoints {'is' if num_damaged == 1 else 'are'} damaged")
    return 0
