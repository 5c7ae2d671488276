"""How time and memory of a training step grow with batch, length, depth, width and vocabulary, drawn as PNG.

    python -m benchmarks.growth --output docs/results/growth.png

Each is doubled from a small model, the others held. Points are measured: seconds are the median of some steps, memory
is what XLA reserves for the compiled step, its state included. Lines are analytic: operations of the matrix products
at the speed of a large one measured here, and the bytes of `gpt plan --estimate`.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.compare import emit
from benchmarks.ours import one_device, start
from gpt.config import DataConfig, ModelConfig, RunConfig, TokenizerConfig
from gpt.data.batches import TextBatch
from gpt.planning.estimate import estimate_step
from gpt.sharding import shard_batch
from gpt.training.meter import measure_flops, training_flops_per_token
from gpt.training.steps import LanguageModelObjective

BASE = {
    "batch": 4, "length": 64, "num_layers": 2, "embed_dim": 128, "vocab_size": 4096,
}  # fmt: skip
NAMES = {"batch": "batch", "length": "length", "num_layers": "depth", "embed_dim": "width", "vocab_size": "vocabulary"}


class Point(NamedTuple):
    """A step of one size, measured and by the formulas."""

    size: int
    seconds: float
    analytic_seconds: float
    gib: float
    analytic_gib: float


def measure(sizes: Mapping[str, int], size: int, steps: int, flops: float) -> Point:
    """The point of these sizes; `flops` is the speed of a large matrix product."""
    model = ModelConfig(
        vocab_size=sizes["vocab_size"],
        context_length=sizes["length"],
        num_layers=sizes["num_layers"],
        num_heads=max(1, sizes["embed_dim"] // 64),
        embed_dim=sizes["embed_dim"],
        mlp_dim=4 * sizes["embed_dim"],
    )
    batch, length = sizes["batch"], sizes["length"]
    state, step, key = start(model, LanguageModelObjective(), None)
    text = TextBatch(np.ones((batch, length + 1), np.int32), np.ones((batch, length), np.float32))
    text = shard_batch(one_device(), text, batch)
    compiled: Any = step.lower(state, text, key).compile()
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    seconds = []
    for _ in range(steps + 1):  # the first warms up
        began = time.perf_counter()
        state, metrics = compiled(state, text, key)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    config = RunConfig(
        output_dir="",
        tokenizer=TokenizerConfig(path=""),
        data=DataConfig(token_store="-"),
        model=model,
        batch_size=batch,
    )
    return Point(
        size,
        statistics.median(seconds[1:]),
        batch * length * training_flops_per_token(model, length) / flops,
        held / 2**30,
        estimate_step(config, one_device(), 1).memory.peak / 2**30,
    )


def draw(curves: Mapping[str, list[Point]], path: Path) -> None:
    """Writes the picture: seconds above, memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(curves), 6), layout="constrained")
    grid = figure.subplots(2, len(curves), squeeze=False)
    for column, (name, points) in enumerate(curves.items()):
        for row, (what, unit) in enumerate((("seconds", "seconds a step"), ("gib", "GiB"))):
            axes = grid[row][column]
            sizes = [point.size for point in points]
            measured = [getattr(point, what) for point in points]
            axes.loglog(sizes, measured, "o", label="measured")
            axes.loglog(sizes, [getattr(point, f"analytic_{what}") for point in points], "-", label="analytic")
            axes.set_xticks(sizes, list(map(str, sizes)))
            axes.set_yticks(measured, [f"{value:.2g}" for value in measured])
            axes.minorticks_off()
            axes.set(xlabel=NAMES[name], ylabel=unit if column == 0 else "")
    grid[0][0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print a line for each point and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the PNG to write")
    parser.add_argument("--doublings", type=int, default=3, metavar="N", help="of each size; default 3")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="a point; default 5")
    args = parser.parse_args()
    flops = measure_flops("float32")
    curves: dict[str, list[Point]] = {}
    for name in BASE:
        curves[name] = []
        for doubling in range(args.doublings + 1):
            size = BASE[name] * 2**doubling
            curves[name].append(measure({**BASE, name: size}, size, args.steps, flops))
            emit({"benchmark": "growth", "of": NAMES[name], **curves[name][-1]._asdict()})
            jax.clear_caches()
    draw(curves, args.output)


if __name__ == "__main__":
    main()
