"""Training, generation and a population on one GPU, against `transformers` in the same call: 8 minutes on an H100.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --smoke      # the same at a size for any machine: that it runs

training     GPT-1 in bfloat16, 512 tokens, dropout on; each side at the batch that is fastest for it. The peer under
             bfloat16 autocast and torch.compile, with PyTorch's fused attention where `transformers` has it for GPT-1
generation   the likeliest 128 tokens after 32
population   as `python -m benchmarks.runs population`

Prints JSON lines, then a table. MFU is against the chip's dense bfloat16 peak.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.compare import Side, alternate, emit, report
from benchmarks.runs import make_task, measure_population
from gpt.config import ModelConfig
from gpt.hardware import find_chip
from gpt.training.meter import training_flops_per_token

TINY = {"vocab_size": 50, "context_length": 32, "num_layers": 1, "num_heads": 2, "embed_dim": 16, "mlp_dim": 64}


class Size(NamedTuple):
    """How large everything is."""

    model: dict[str, Any]
    length: int
    batches: Sequence[int]
    prompt: int
    new: int
    turns: int


H100 = Size({}, 512, (16, 32, 64), 32, 128, 5)
SMOKE = Size(TINY, 16, (2, 4), 4, 4, 1)
PEERS: dict[str, dict[str, Any]] = {
    "compiled": {"bf16": True, "compiled": True},
    "compiled_sdpa": {"bf16": True, "compiled": True, "fused": True},
}


def measure_training(size: Size, peak: float | None, peers: Sequence[str]) -> list[str]:
    """Prints a line for each batch, and one of the best; the rows of the table."""
    model = {**size.model, "compute_dtype": "bfloat16"}
    flops = training_flops_per_token(ModelConfig(**model), size.length)
    best: dict[str, tuple[float, int]] = {}
    for name in ("ours", *peers):
        for batch in size.batches:
            function, options = "benchmarks.huggingface.training", PEERS.get(name, {})
            if name == "ours":
                function = "benchmarks.ours.training"
            case = {"batch": batch, "length": size.length, "model": model, **options}
            try:
                with Side(function, case) as side:
                    found = alternate({name: side.turn}, size.turns)[name]
            except RuntimeError as error:  # too large a batch, or an attention that the peer does not have
                emit({"benchmark": "gpu_training", "side": name, "batch": batch, "error": str(error)})
                continue
            rate = batch * size.length / found["seconds"]
            emit({"benchmark": "gpu_training", "side": name, "batch": batch, "tokens_per_second": rate, **found})
            best[name] = max(best.get(name, (0.0, 0)), (rate, batch))
    rows = []
    for name, (rate, batch) in best.items():
        mfu = f"{rate * flops / peak:.1%}" if peak else "-"
        ratio = best["ours"][0] / rate if "ours" in best else float("nan")
        rows.append(f"| training, {name}, batch {batch} | {rate:,.0f} | {mfu} | {ratio:.2f} |")
    return rows


def measure_generation(size: Size) -> list[str]:
    """Prints a line for each batch; the rows of the table."""
    rows = []
    for batch in (1, 8, 64):
        case = {"batch": batch, "prompt": size.prompt, "new": size.new}
        with (
            Side("benchmarks.ours.generation", {**case, "model": size.model}) as ours,
            Side("benchmarks.huggingface.generation", {**case, "model": size.model}) as peer,
        ):
            sides = alternate({"ours": ours.turn, "eager": peer.turn}, 1, warm_up=False)
        report("gpu_generation", case, sides)
        for name, side in sides.items():
            ratio = side["seconds"] / sides["ours"]["seconds"]
            rate = batch * size.new / side["seconds"]
            rows.append(f"| generation, {name}, batch {batch} | {rate:,.0f} | - | {ratio:.2f} |")
    return rows


def main() -> None:
    """Print lines and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="of training; default all")
    parser.add_argument("--skip_population", action="store_true", help="the other two alone")
    args = parser.parse_args()
    size = SMOKE if args.smoke else H100
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the memory is for the sides, each as it needs
    kind = jax.devices()[0].device_kind
    if kind == "cpu" and not args.smoke:
        parser.error("no GPU is here; --smoke runs the same at a tiny size")
    chip = find_chip(kind)
    rows = measure_training(size, chip and chip.device_flops("bfloat16"), args.peers)
    rows += measure_generation(size)
    if not args.skip_population:
        with tempfile.TemporaryDirectory() as directory:
            measure_population(Path(directory), make_task(Path(directory), 64 if args.smoke else 2560), 8)
    print(f"\n| {kind} | tokens/s | MFU | ours is so many times as fast |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
