"""Run every combination of the axes that gin files name, a directory each, beside any number of other workers.

    sweep/RunConfig.seed = [42, 43, 44]                                            # an axis of a setting
    sweep/gin_file.task = ['../task/cola.gin', ['../task/qnli.gin', 'slice.gin']]  # of files, or lists of files

Repeat the command to continue, on any machine that sees the directory, as often at once as there are devices: no
cell runs twice at the same time, and cells of workers that died are taken over from their last checkpoint.
--gin.Section.field=value sets what all cells share, --gin.sweep/Section.field=[...] an axis.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from gpt import gin_io
from gpt.errors import ConfigError

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory of the sweep")
    parser.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="a gin file; repeatable, later files win"
    )
    parser.add_argument(
        "--data_root",
        type=Path,
        metavar="DIR",
        help="directory with a folder a task, such as DIR/cola or DIR/CoLA, for cells without TaskConfig.data_dir",
    )
    parser.add_argument("--shard", metavar="i/n", help="every n-th cell, or group of a population, from the i-th on")
    parser.add_argument(
        "--population",
        default="off",
        metavar="auto|off|N",
        help="auto trains cells that differ in seed, learning rate, decay or lambda alone in one compiled program, "
        "spread over the devices; N at most so many at once; default: off",
    )
    parser.add_argument("--status", action="store_true", help="print how far the cells of --output are; run nothing")
    parser.add_argument("--json", action="store_true", help="print one object a cell a line on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.sweeps.status import read_status

    if args.status:
        if args.gin_file or args.overrides or args.shard or args.data_root or args.population != "off":
            raise ConfigError("--status takes --output and --json alone: it shows every cell that is there")
        _print(read_status(args.output), args.json)
        return 0
    from gpt.sweeps.grid import group_cells, make_cells, take_shard

    if not (args.population in ("auto", "off") or re.fullmatch("[1-9][0-9]*", args.population)):
        raise ConfigError(f"--population {args.population!r}: expected auto, off, or the most cells to train at once")
    cells = make_cells(gin_io.load_sweep(args.gin_file, args.overrides), args.output, args.data_root)

    from gpt.sweeps.worker import run_sweep  # starts JAX: only once all settings hold
    from gpt.training.population import population_key

    groups = [[cell] for cell in cells]
    if args.population != "off":
        groups = group_cells(cells, population_key, None if args.population == "auto" else int(args.population))
    mine = groups if args.shard is None else take_shard(groups, args.shard)
    _print(run_sweep(args.output, cells, mine), args.json)
    return 0


def _print(rows: list, as_json: bool) -> None:
    from rich.console import Console

    from gpt.sweeps.status import make_table

    if as_json:
        for row in rows:
            print(json.dumps(row._asdict()))
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(make_table(rows))
