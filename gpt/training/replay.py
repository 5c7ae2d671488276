"""The first updates of a run, made again: whether their losses are the same, bit by bit."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, DataError
from gpt.training.loop import train
from gpt.training.record import read_starts
from gpt.training.run_dir import load_config, load_tokenizer, read_metrics

COMPARED = ("loss", "lm_loss", "task_loss", "gradient_norm", "skipped")


def replay(run_dir: Path, num_steps: int | None = None) -> list[dict[str, Any]]:
    """One row a log line of the first `num_steps` updates (None: until the first line): step, metric, both values.

    The run is begun again, in a temporary directory, with the config and the vocabulary that it kept.

    Raises:
      ConfigError: no log line is that early, or the run has not come so far.
      DataError: it was a member of a population, whose program is another one.
    """
    config = load_config(run_dir)
    starts = read_starts(run_dir)
    if any(line["population"] > 1 for line in starts):
        raise DataError(f"{str(run_dir)!r} was trained in a population, whose sums are rounded in another order")
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    wanted = num_steps or (lines[0]["step"] if lines else 0)
    there = [line for line in lines if line["step"] <= wanted]
    if not there or (num_steps is not None and lines[-1]["step"] < num_steps):
        logged = f"from {lines[0]['step']} to {lines[-1]['step']}" if lines else "none"
        raise ConfigError(
            f"--steps {num_steps}: {str(run_dir)!r} has log lines of updates: {logged}; give a number within them"
        )
    with tempfile.TemporaryDirectory() as directory:
        load_tokenizer(run_dir).save(Path(directory) / "tokenizer")
        again = dataclasses.replace(
            config,
            output_dir=str(Path(directory) / "run"),
            tokenizer=dataclasses.replace(config.tokenizer, path=str(Path(directory) / "tokenizer")),
        )
        train(again, until=there[-1]["step"])
        here = {line["step"]: line for line in read_metrics(Path(again.output_dir)) if line["kind"] == "train"}
    return [
        {"step": line["step"], "metric": name, "then": line[name], "now": here[line["step"]].get(name)}
        for line in there
        for name in COMPARED
        if name in line
    ]
