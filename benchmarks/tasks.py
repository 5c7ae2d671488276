"""Scoring, greedy generation and fine-tuning at the size of GPT-1, against the same model of `transformers`.

    python -m benchmarks.tasks                                          # all
    python -m benchmarks.tasks scoring finetuning
    python -m benchmarks.tasks generation --batch 8 --new 128

scoring      log-probability of every token of 16 sequences of 128
generation   the likeliest 128 tokens after 32, batch 1 and 8; the peer has no cache
finetuning   the first batches of an epoch over examples as many and as long as those of CoLA, SST-2 and RTE, no
             auxiliary loss; ours in length buckets, the peer's in random batches, each padded to its longest
             example; `--packed` adds ours with the examples of a batch packed (RunConfig.pack_size)
"""

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from benchmarks.compare import Side, alternate, report

FINETUNING = {"cola": (8_551, 32), "sst2": (67_349, 32), "rte": (2_490, 8)}
"""Examples of the training split, and batch size."""

BATCHES = 6
"""Of an epoch, the first ones."""


def measure(
    work: str,
    case: Mapping[str, Any],
    count: int,
    per: str,
    turns: int,
    model: Mapping[str, Any],
    warm_up: bool = True,
    packed: bool = False,
) -> None:
    """Prints the line of one case: `count` things a turn."""
    case_with_model = {**case, "model": model}
    sides = {"ours": ("ours", {}), "eager": ("huggingface", {})}
    if packed:
        sides["packed"] = ("ours", {"packed": True})
    with ExitStack() as stack:
        turn_of = {
            name: stack.enter_context(Side(f"benchmarks.{module}.{work}", {**case_with_model, **options})).turn
            for name, (module, options) in sides.items()
        }
        medians = alternate(turn_of, turns, warm_up=warm_up)
    for side in medians.values():
        side[f"{per}_per_second"] = count / side["seconds"]
    report(work, case, medians)


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work = ("scoring", "generation", "finetuning")
    parser.add_argument("work", nargs="*", default=work, help="default all", metavar="WORK")
    parser.add_argument("--packed", action="store_true", help="of fine-tuning: ours with packed examples as well")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="default 3; of generation 1")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], metavar="N", help="of generation; default 1 8")
    parser.add_argument("--new", type=int, default=128, metavar="N", help="tokens to generate; default 128")
    args = parser.parse_args()
    if set(args.work) - set(work):
        parser.error(f"WORK is one of {', '.join(work)}")
    if "scoring" in args.work:
        measure("scoring", {"batch": 16, "length": 128}, 16 * 128, "tokens", args.turns, {})
    if "generation" in args.work:
        for batch in args.batch:
            case = {"batch": batch, "prompt": 32, "new": args.new}
            measure("generation", case, batch * args.new, "tokens", 1, {}, warm_up=False)
    if "finetuning" in args.work:
        for task, (examples, batch) in FINETUNING.items():
            case = {"task": task, "examples": examples, "batch": batch, "batches": BATCHES}
            measure("finetuning", case, BATCHES * batch, "examples", args.turns, {}, warm_up=False, packed=args.packed)


if __name__ == "__main__":
    main()
