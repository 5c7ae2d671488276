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
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt import gin_io
from gpt.config import RunConfig
from gpt.errors import ConfigError, DataError
from gpt.files import write_atomically
from gpt.reading import lines_of, parse_json, read_json, read_text
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
    """The summary of a finished run; None when it is not finished.

    Raises:
      DataError: it is no JSON object, or its `validation` is none.
    """
    path = run_dir / "result.json"
    if not path.exists():
        return None
    result = read_json(path)
    if not isinstance(result, dict) or not isinstance(result.get("validation", {}), dict):
        raise DataError(f"{path}: is no summary of a run: expected a JSON object, such as training writes at its end")
    return result


def validation_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores on validation, by metric, of the summary of a run."""
    values = result.get("validation", {}).items()
    return {name: float(value) for name, value in values if type(value) in (int, float) and name != "step"}


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Keeps the summary, which marks the run as finished."""
    write_atomically(run_dir / "result.json", json.dumps(result, indent=2) + "\n")


def read_num_steps(run_dir: Path) -> int | None:
    """How many updates a run takes; None before it has begun. DataError when the file says something else."""
    path = run_dir / "num_steps"
    if not path.exists():
        return None
    text = read_text(path)
    if not re.fullmatch(r"[0-9]{1,18}\n?", text):
        raise DataError(f"{path}: holds {text!r:.40}, expected the number of updates of the run")
    return int(text)


def write_num_steps(run_dir: Path, num_steps: int) -> None:
    """Keeps how many updates the run takes, for those who watch it."""
    write_atomically(run_dir / "num_steps", f"{num_steps}\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The log lines of a run so far, oldest first; a line cut short by a crash is left out.

    Raises:
      DataError: a line is no JSON object with a step and a kind; with its number.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        with path.open("rb") as file:
            lines = lines_of(file, path)
            return [_log_line(line, path, number) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _log_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        tree = parse_json(line)
    except DataError as error:
        raise DataError(f"{path}, line {number}: {error}") from None
    if not isinstance(tree, dict) or type(tree.get("step")) is not int or not isinstance(tree.get("kind"), str):
        raise DataError(f"{path}, line {number}: expected a JSON object with a step and a kind, such as training logs")
    return tree
