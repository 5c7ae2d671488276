"""The input pipeline alone: pretraining batches of (64, 512) from a token store on disk.

    python -m benchmarks.pipeline

ours      what `train.py` waits for: shuffled windows, read ahead by background threads
peer      plain NumPy indexing of the same memory map at the same windows, in a loop

`ratio` is plain indexing's seconds over ours. `tokens_per_second` is to be compared with what a step takes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.compare import Turn, alternate, report
from gpt.data.windows import Text, pretraining_batches
from gpt.training.loop import iterate


def make_sides(tokens: np.ndarray, batch: int, length: int, steps: int) -> dict[str, Turn]:
    """Both, of `steps` batches a turn; seconds a batch."""
    order = np.random.default_rng(0).permutation((len(tokens) - 1) // length)

    def ours() -> None:
        batches = pretraining_batches({"random": Text(tokens, 1.0)}, length, batch, 1, seed=0)
        for made in iterate(batches, 0, steps):
            made.tokens.sum()

    def plain() -> None:
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            np.stack([tokens[row * length : (row + 1) * length + 1] for row in rows]).astype(np.int32).sum()

    def timed(work: Callable[[], None]) -> Turn:
        def turn() -> dict[str, float]:
            start = time.perf_counter()
            work()
            seconds = (time.perf_counter() - start) / steps
            return {"seconds": seconds, "tokens_per_second": batch * length / seconds}

        return turn

    return {"ours": timed(ours), "plain": timed(plain)}


def main() -> None:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="batches a turn; default 200")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="default 5")
    args = parser.parse_args()
    batch, length = 64, 512
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "tokens")
        np.random.default_rng(0).integers(40478, size=(args.steps + 1) * batch * length, dtype=np.uint16).tofile(file)
        sides = make_sides(np.memmap(file, np.uint16, "r"), batch, length, args.steps)
        report("pipeline", {"batch": batch, "length": length}, alternate(sides, args.turns))


if __name__ == "__main__":
    main()
