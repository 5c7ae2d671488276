"""What is compared on a CPU, one after the other, and the page of its results.

    python -m benchmarks --output docs/results/performance.md      # what `make bench` does

What has not begun when the time is up is left out, and the page says so.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compare import ROOT

MOST_SECONDS = 11 * 60
"""After which no section begins; the last and longest takes four minutes."""

HOW = """\
Sides take turns in processes of their own, warm, with the same cores (`benchmarks/compare.py`): of updates,
scoring and fine-tuning, what is measured comes after some of it that does not count. Figures are medians.
`eager`, `compiled`, `mkl` and `bf16` are `transformers` on PyTorch (`benchmarks/training_step.py`). What was tried, and
why it stayed or went: `docs/performance.md`. Nothing on this page is of a GPU: there, `python -m benchmarks.gpu`."""


class Section(NamedTuple):
    """A command and what it shows."""

    title: str
    arguments: Sequence[str]
    note: str = ""


SECTIONS = (
    Section("Training step", ("training_step", "--shapes", "4x128", "8x64", "--turns", "2"),
            "Goals: 1.5 of eager, 1.1 of compiled."),
    Section("Training step, long", ("training_step", "--shapes", "2x512", "--turns", "1"),
            "Goals: 1.5 of eager, 1.1 of compiled."),
    Section("Training step, long, saving memory",
            ("training_step", "--shapes", "2x512", "--peers", "eager", "--remat", "dots", "--turns", "1"),
            "`ModelConfig.remat = 'dots'`. Goal: memory 0.75 of eager."),
    Section("Scoring", ("tasks", "scoring", "--turns", "2"), "Goal: 2."),
    Section("Greedy generation, batch 1", ("tasks", "generation", "--batch", "1"), "Goal: 12."),
    Section("Greedy generation, batch 8", ("tasks", "generation", "--batch", "8"), "Goal: 12."),
    Section("Tokenizer", ("tokenizer", "--turns", "1"),
            "Goals: 0.9 on the basic route, 5 on the original; more in `tokenizer.md`."),
    Section("Input pipeline", ("pipeline",), "Goal: 20 times the tokens a second of a training step."),
    Section("Start", ("runs", "start"), "Goal: 10 s, warm."),
    Section("Fine-tuning", ("tasks", "finetuning", "--turns", "1"),
            "The first batches of an epoch. Goal: 1.5."),
)  # fmt: skip


def run(section: Section) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of a section, shown as they come, and what went wrong."""
    command = [sys.executable, "-m", f"benchmarks.{section.arguments[0]}", *section.arguments[1:]]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            print(text, end="", flush=True)
            lines.append(json.loads(text))
    return lines, f"ended with exit code {process.returncode}" if process.returncode else None


def describe(section: Section, lines: Sequence[dict[str, Any]], problem: str | None) -> str:
    """The section of the page."""
    command = " ".join(["python", "-m", f"benchmarks.{section.arguments[0]}", *section.arguments[1:]])
    parts = [f"## {section.title}", section.note, f"```bash\n{command}\n```"]
    if lines:
        parts.append("\n".join(table(lines)))
    if problem is not None:
        parts.append(f"Not complete: {problem}.")
    return "\n\n".join(filter(None, parts))


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each side of each line."""
    rows = ["| case | side | measured | times as fast | memory, ours / theirs |", "|---|---|---|---|---|"]
    for line in lines:
        told = {"sides", "command", "benchmark"}
        case = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in line.items()
            if name not in told and not name.startswith(("ratio_", "memory_"))
        )  # fmt: skip
        for name, side in line["sides"].items():
            measured = ", ".join(f"{measure.replace('_', ' ')} {value:,}" for measure, value in side.items())
            ratio, memory = (line.get(f"{what}_{name}", "") for what in ("ratio", "memory"))
            rows.append(f"| {line['benchmark']} {case} | {name} | {measured} | {ratio} | {memory} |")
    return rows


def machine() -> str:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [row.split(": ")[1] for row in cpuinfo.read_text().splitlines() if row.startswith("model name")]
    name = names[0] if names else platform.processor()
    versions = ", ".join(f"{package} {_version(package)}" for package in ("jax", "torch", "transformers"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{len(os.sched_getaffinity(0))} cores of {name}; {versions}; load at the start {load}."


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Run all, print their lines, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--only", nargs="*", metavar="TITLE", help="sections by their first word, such as Scoring")
    args = parser.parse_args()
    parts = ["# Speed, against peers in the same run", "```bash\nmake bench\n```", machine(), HOW]
    began = time.monotonic()
    for section in SECTIONS:
        if args.only and section.title.split()[0] not in args.only:
            continue
        left = MOST_SECONDS - (time.monotonic() - began)
        lines, problem = run(section) if left > 0 else ([], "not begun, the time was up")
        parts.append(describe(section, lines, problem))
    parts.append(f"All of it took {(time.monotonic() - began) / 60:.1f} minutes.")
    args.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
