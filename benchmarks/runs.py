"""Whole commands on a small made-up task: the start of a run, and eight seeds in one program against one by one.

    python -m benchmarks.runs                      # both
    python -m benchmarks.runs start
    python -m benchmarks.runs population --seeds 8 --examples 640

start        `train.py` for one update of `tiny`, from a cold and from a warm compilation cache, until the process has
             ended: evaluation and saving of the last update included, so the time to the first update is less
population   `gpt sweep` over seeds of CoLA at `tiny`, with `--population auto` and without, from a warm compilation
             cache; seconds of the whole command, and beside it a single seed
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.compare import ROOT, emit, report
from gpt.text.training import train_bpe


def make_task(directory: Path, examples: int) -> list[str]:
    """Sentences of random words in two classes, a vocabulary, and the settings that name them."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(200)]
    lines = [
        json.dumps({"text": " ".join(draw.choices(words, k=draw.randrange(4, 14))), "label": number % 2})
        for number in range(examples)
    ]
    (directory / "task").mkdir()
    (directory / "task" / "train.jsonl").write_text("\n".join(lines))
    (directory / "task" / "validation.jsonl").write_text("\n".join(lines[:64]))
    tokenizer = train_bpe([" ".join(words)], 100, "basic")
    tokenizer.save(directory / "tokenizer")
    return [
        "--gin_file=configs/task/cola.gin", "--gin_file=configs/model/tiny.gin",
        f"--gin.ModelConfig.vocab_size={tokenizer.vocab_size}",
        f"--gin.TokenizerConfig.path={directory / 'tokenizer'}", f"--gin.TaskConfig.data_dir={directory / 'task'}",
        "--gin.RunConfig.init_from=None", "--gin.RunConfig.num_epochs=1",
    ]  # fmt: skip


def seconds_of(arguments: list[str], cache: Path) -> float:
    """How long a command of Python takes, which must succeed."""
    start = time.perf_counter()
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with exit code {done.returncode}: {done.stderr}")
    return time.perf_counter() - start


def measure_start(directory: Path, settings: list[str]) -> None:
    """Prints the line of `start`."""
    seconds = [
        seconds_of(
            ["train.py", *settings, "--gin.RunConfig.max_steps=1", f"--gin.RunConfig.output_dir={directory / turn}"],
            directory / "cache",
        )
        for turn in ("cold", "warm")
    ]
    emit(
        {
            "benchmark": "start",
            "model": "tiny",
            "sides": {"cold": {"seconds": seconds[0]}, "warm": {"seconds": seconds[1]}},
        }
    )


def measure_population(directory: Path, settings: list[str], seeds: int) -> None:
    """Prints the line of `population`."""

    def sweep(name: str, seeds: int, *flags: str) -> dict[str, float]:
        axis = directory / f"{seeds}.gin"
        axis.write_text(f"sweep/RunConfig.seed = {list(range(seeds))}\n")
        command = ["-m", "gpt", "sweep", "--output", str(directory / name), *settings, *flags, f"--gin_file={axis}"]
        return {"seconds": seconds_of(command, directory / "cache")}

    few = "--gin.RunConfig.max_steps=2"
    sweep("ours-warm-up", seeds, "--population", "auto", few)
    sweep("one-warm-up", 1, few)
    ours = sweep("ours", seeds, "--population", "auto")
    sides = {"ours": ours, "in_turn": sweep("in-turn", seeds), "one_seed": sweep("one", 1)}
    report("population", {"seeds": seeds, "model": "tiny"}, sides)


def main() -> None:
    """Print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", default=("start", "population"), help="default both", metavar="WORK")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument("--examples", type=int, default=640, metavar="N", help="of the task; default 640")
    args = parser.parse_args()
    if set(args.work) - {"start", "population"}:
        parser.error("WORK is start or population")
    with tempfile.TemporaryDirectory() as directory:
        settings = make_task(Path(directory), args.examples)
        if "start" in args.work:
            measure_start(Path(directory), settings)
        if "population" in args.work:
            measure_population(Path(directory), settings, args.seeds)


if __name__ == "__main__":
    main()
