"""The directory of a run: what it was asked for, and what came of it.

config.gin          every setting of the run, to start or evaluate it again
tokenizer/          a copy of the vocabulary, so that the run stands alone
checkpoints/STEP/   parameters and optimizer state
num_steps           how many updates the run takes
metrics.jsonl       one JSON object a log line, steps ascending
profile/            traces of `train.py --profile_steps`
result.json         the summary, once the run is finished
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from gpt import gin_io
from gpt.config import RunConfig
from gpt.errors import ConfigError, DataError
from gpt.files import write_atomically
from gpt.text.tokenizer import Tokenizer
from gpt.training.processes import is_first, meet


def open_run(config: RunConfig, tokenizer: Tokenizer) -> Path:
    """The run directory of `config`, created, or found with the same config in it; all processes see the same one.

    Raises:
      ConfigError: another config was used in this directory, but for the mesh; names the differing settings.
      DataError: it cannot be written.
    """
    run_dir = Path(config.output_dir)
    meet()  # Nothing is written before every process has what it needs.
    if is_first():
        _create_run(run_dir, config, tokenizer)
    meet()
    if not (run_dir / "config.gin").exists():
        raise ConfigError(
            f"RunConfig.output_dir = {config.output_dir!r} is another directory on this host than in process 0: "
            "set a path that all hosts share"
        )
    return run_dir


def _create_run(run_dir: Path, config: RunConfig, tokenizer: Tokenizer) -> None:
    if (run_dir / "config.gin").exists():
        # Where it lies, and on what devices, is no part of what a run is: both may differ from machine to machine.
        there = dataclasses.replace(load_config(run_dir), output_dir=config.output_dir, mesh=config.mesh)
        changed = gin_io.differences(there, config)
        if changed:
            raise ConfigError(
                f"RunConfig.output_dir = {config.output_dir!r} holds a run of another config: {'; '.join(changed)}. "
                "Repeat that run's settings to resume it, or set another RunConfig.output_dir"
            )
    elif run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ConfigError(
            f"RunConfig.output_dir = {config.output_dir!r} exists and is not a run directory: "
            "set a new path, so that nothing in it is overwritten"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # First, because it marks the directory as this run's: what a full disk stops here, a repeat completes.
        write_atomically(run_dir / "config.gin", gin_io.format_config(config))
        if not (run_dir / "tokenizer" / "tokenizer.json").exists():
            tokenizer.save(run_dir / "tokenizer")
    except OSError as error:
        raise DataError(f"cannot write to RunConfig.output_dir = {config.output_dir!r}: {error}") from error


def load_config(run_dir: Path) -> RunConfig:
    """The config a run was started with; DataError when the directory is no run."""
    path = run_dir / "config.gin"
    if not path.exists():
        raise DataError(f"{str(run_dir)!r} is not a run directory: there is no config.gin in it")
    return gin_io.load([path])


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """The run's own copy of its vocabulary."""
    return Tokenizer.load(run_dir / "tokenizer")


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None when it is not finished."""
    path = run_dir / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Keeps the summary, which marks the run as finished."""
    write_atomically(run_dir / "result.json", json.dumps(result, indent=2) + "\n")


def read_num_steps(run_dir: Path) -> int | None:
    """How many updates a run takes; None before it has begun."""
    path = run_dir / "num_steps"
    return int(path.read_text(encoding="utf-8")) if path.exists() else None


def write_num_steps(run_dir: Path, num_steps: int) -> None:
    """Keeps how many updates the run takes, for those who watch it."""
    write_atomically(run_dir / "num_steps", f"{num_steps}\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The log lines of a run so far, oldest first; a line cut short by a crash is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
