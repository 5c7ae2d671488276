"""Our fine-tuned runs under a directory, sorted into the rows of the paper's tables."""

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpt import gin_io
from gpt.config import CheckpointConfig, MeshConfig, ModelConfig, RunConfig
from gpt.errors import DataError, GPTError
from gpt.training.run_dir import load_config, read_result, validation_scores

FULL, NO_PRETRAINING, NO_AUX_LM, LSTM = "full", "no_pretraining", "no_aux_lm", "lstm"

Scores = dict[str, float]
"""Validation scores of one run by metric, as its result.json has them: 0 to 1 or -1 to 1."""


class FinishedRun(NamedTuple):
    """A fine-tuned run that came to its end."""

    path: Path
    config: RunConfig
    scores: Scores


class Collection(NamedTuple):
    """Scores by (task, kind) and then by seed, and what the reader of a table should know about them."""

    scores: dict[tuple[str, str], dict[int, Scores]]
    notes: list[str]


def kind_of(config: RunConfig) -> str | None:
    """The row of table 5 that a run belongs to; None when no row is like it.

    Such a run changes more than one thing of the full model, or takes over some of its blocks only.
    """
    if not config.transfers_all_layers:
        return None
    changes = [
        kind
        for kind, changed in (
            (LSTM, config.model.architecture == "lstm"),
            (NO_PRETRAINING, config.init_from is None),
            (NO_AUX_LM, config.task.lm_coef == 0),
        )
        if changed
    ]
    return FULL if not changes else changes[0] if len(changes) == 1 else None


def collect_runs(root: Path) -> Collection:
    """The scores of every fine-tuned run under `root`.

    Runs of a cell differ in nothing but the seed: where there are several settings, the one with the
    most seeds is taken, of equal ones the one that comes first by path, and a note says so.

    Raises:
      DataError: `root` is no directory, or there is no run in it.
    """
    runs, notes = finished_runs(root)
    num_partial = sum(not run.config.transfers_all_layers for run in runs)
    if num_partial:
        notes.append(
            f"{num_partial} runs take over some of the pretrained blocks only (RunConfig.num_transferred_layers), and "
            "are left out: `gpt transfer` shows them"
        )
    cells: dict[tuple[str, str], list[FinishedRun]] = defaultdict(list)
    for run in runs:
        kind = kind_of(run.config)
        if kind is not None:
            cells[str(run.config.task.name), kind].append(run)
        elif run.config.transfers_all_layers:
            notes.append(f"{run.path}: left out, differs from the full model in more than one row of table 5 does")
    scores = {}
    for (task, kind), members in sorted(cells.items()):
        chosen = _of_one_setting(members, f"{task}, {kind}", notes)
        scores[task, kind] = by_seed(chosen, notes)
    return Collection(scores, notes)


def _run_dirs(root: Path) -> Iterator[Path]:
    for directory, subdirectories, files in os.walk(root):
        subdirectories.sort()
        if "config.gin" in files:
            subdirectories.clear()  # checkpoints and events, thousands of files
            yield Path(directory)


def finished_runs(root: Path) -> tuple[list[FinishedRun], list[str]]:
    """Every finished run of a task under `root`, in the order of their paths, and notes on what could not be used.

    Raises:
      DataError: `root` is no directory, or there is no run in it.
    """
    if not root.is_dir():
        raise DataError(f"--runs {str(root)!r} is no directory: give the one that holds your run directories")
    directories = list(_run_dirs(root))
    if not directories:
        raise DataError(f"--runs {str(root)!r} holds no run directory (one with a config.gin): train there first")
    runs, notes, num_unfinished = [], [], 0
    for path in directories:
        try:
            config = load_config(path)
            result = read_result(path)
        except (GPTError, OSError, ValueError) as error:
            notes.append(f"{path}: left out, cannot be read: {error}")
            continue
        if config.task.name is None:
            continue
        if result is None:
            num_unfinished += 1
            continue
        scores = validation_scores(result)
        bad = sorted(name for name, value in scores.items() if not math.isfinite(value))
        if bad or not scores:
            found = f"{', '.join(bad)} is no finite number" if bad else "no validation scores"
            notes.append(f"{path}: left out, result.json has {found}")
            continue
        runs.append(FinishedRun(path, config, scores))
    if num_unfinished:
        notes.append(f"{num_unfinished} runs of a task are not finished (no result.json), and left out")
    return runs, notes


def setting_of(config: RunConfig) -> RunConfig:
    """The config without what decides nothing but the seed, the place and the reports."""
    model = config.model
    defaults = ModelConfig()
    model = dataclasses.replace(model, **{name: getattr(defaults, name) for name in model.absent})
    return dataclasses.replace(
        config,
        model=model,
        output_dir="",
        num_transferred_layers=None if config.transfers_all_layers else config.num_transferred_layers,
        seed=0,
        log_every_steps=1,
        evaluate_every_steps=1,
        mesh=MeshConfig(),
        checkpoint=CheckpointConfig(),
    )


def _of_one_setting(runs: list[FinishedRun], cell: str, notes: list[str]) -> list[FinishedRun]:
    settings: dict[RunConfig, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        settings[setting_of(run.config)].append(run)
    # `max` keeps the first of equals, and the runs came in the order of their paths.
    chosen = max(settings, key=lambda setting: len({run.config.seed for run in settings[setting]}))
    for setting, others in settings.items():
        if setting != chosen:
            differences = "; ".join(gin_io.differences(setting, chosen))
            notes.append(f"{cell}: {len(others)} runs of other settings left out ({differences})")
    return settings[chosen]


def by_seed(runs: list[FinishedRun], notes: list[str]) -> dict[int, Scores]:
    """The scores of runs of one setting, the first of each seed; of others a note is made."""
    scores: dict[int, Scores] = {}
    for run in runs:
        if run.config.seed in scores:
            notes.append(f"{run.path}: left out, a run of the same settings and seed came before it")
        else:
            scores[run.config.seed] = run.scores
    return scores
