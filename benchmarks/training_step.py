"""One training step at the size of GPT-1, against the same model of `transformers`.

    python -m benchmarks.training_step                        # three shapes, float32, dropout on
    python -m benchmarks.training_step --shapes 4x128 --peers eager compiled
    python -m benchmarks.training_step --shapes 2x512 --peers eager --remat dots    # ours saves memory

Both sides: forward, backward, clipping by global norm 1, an AdamW with decay, dropout 0.1 wherever the model has it.
Ours is the compiled update of `train.py`. Peers:

eager      PyTorch in float32, its fused AdamW
compiled   the same under torch.compile
mkl        eager, and Intel's matrix library told that the processor is Intel's: it is slower on others. On Intel's own
           it is left out unless asked for
bf16       eager under bfloat16 autocast

`mfu_measured` is each side's operations over those of a large float32 product of JAX, the faster of one before
the turns and one after them.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.compare import Side, alternate, report
from gpt.config import ModelConfig
from gpt.training.meter import measure_flops, training_flops_per_token

SHAPES = ("4x128", "2x512", "8x64")
PEERS: dict[str, dict[str, Any]] = {"eager": {}, "compiled": {"compiled": True}, "mkl": {}, "bf16": {"bf16": True}}


def telling_peers() -> list[str]:
    """All peers, but for `mkl` where it is `eager`."""
    cpuinfo = Path("/proc/cpuinfo")
    is_intel = cpuinfo.exists() and "GenuineIntel" in cpuinfo.read_text()
    return [peer for peer in PEERS if peer != "mkl" or not is_intel]


def mkl_environment(directory: Path) -> dict[str, str]:
    """The environment in which Intel's library takes its fast kernels; made by the C compiler `cc`."""
    source, library = directory / "mkl.c", directory / "mkl.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}


def measure(shape: str, peers: Sequence[str], turns: int, model: Mapping[str, Any]) -> None:
    """Prints the line of one shape."""
    batch, length = map(int, shape.split("x"))
    case = {"batch": batch, "length": length, "model": model}
    product = measure_flops("float32")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {"ours": Side("benchmarks.ours.training", case)}
        for peer in peers:
            environment = mkl_environment(directory) if peer == "mkl" else {}
            sides[peer] = Side("benchmarks.huggingface.training", {**case, **PEERS[peer]}, environment)
        medians = alternate({name: stack.enter_context(side).turn for name, side in sides.items()}, turns)
    product = max(product, measure_flops("float32"))
    flops = training_flops_per_token(ModelConfig(**model), length)
    for side in medians.values():
        side["tokens_per_second"] = batch * length / side["seconds"]
        side["mfu_measured"] = side["tokens_per_second"] * flops / product
    report("training_step", {"batch": batch, "length": length, **model}, medians)


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BxT", help="batch x length")
    parser.add_argument("--peers", nargs="*", default=telling_peers(), choices=PEERS, help="default all")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="ModelConfig.remat of ours")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="default 3")
    args = parser.parse_args()
    for shape in args.shapes:
        measure(shape, args.peers, args.turns, {"remat": args.remat} if args.remat else {})


if __name__ == "__main__":
    main()
