"""What a run would cost on hardware that is not there: memory, collectives, bound on its speed.

The step of train.py is compiled for TPUs by libtpu (pip install '.[aot]') on any machine; without it, and for
GPUs, the figures are estimated from shapes alone. No data, tokenizer or output directory need be there.

    gpt plan --topology v5e:16x16 --gin_file configs/run/pretrain.gin --gin.ModelConfig.compute_dtype=bfloat16
"""

import argparse
import json
import os
import shutil
import sys

from gpt import gin_io

TAKES_SETTINGS = True

_NOT_NEEDED = {
    "RunConfig.output_dir": "not needed",
    "RunConfig.init_from": None,
    "TokenizerConfig.path": "not needed",
    "DataConfig.token_store": "not there",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", required=True, metavar="NAME", help="such as v5e:16x16, 2*v4:4x4x4 or h100:8")
    parser.add_argument("--slices", type=int, metavar="N", help="slices, or nodes of GPUs, of that shape; default: 1")
    parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="as of train.py; repeatable")
    parser.add_argument("--search", action="store_true", help="try every mesh, and name the fastest that fits")
    parser.add_argument(
        "--compile",
        type=int,
        default=4,
        metavar="N",
        help="with --search, compile so many (default: %(default)s)",
    )
    parser.add_argument("--estimate", action="store_true", help="compile nothing: figures from shapes alone, at once")
    parser.add_argument("--json", action="store_true", help="print one object a mesh a line")


def run(args: argparse.Namespace) -> int:
    # Looking for devices of this machine is of no use here, and libtpu would complain that there is no TPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    config = gin_io.load(args.gin_file, args.overrides, if_unset=_NOT_NEEDED)

    from rich.console import Console

    from gpt.planning.plan import make_plan
    from gpt.planning.report import MODEL, print_plan, print_table
    from gpt.planning.search import search
    from gpt.planning.topology import find_topology

    topology = find_topology(args.topology, args.slices)
    if args.search:
        plans = search(config, topology, 0 if args.estimate else args.compile)
    else:
        plans = [make_plan(config, topology, estimate=args.estimate)]
    if args.json:
        for plan in plans:
            print(json.dumps(plan.to_json()))
        return 0
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    console = Console(width=columns, highlight=False, soft_wrap=True)
    if args.search:
        print_table(plans, console)
    print_plan(plans[0], console)
    console.print(MODEL)
    return 0
