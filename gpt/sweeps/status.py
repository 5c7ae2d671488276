"""How far each cell of a sweep is, told from its files alone, on any machine that sees them."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpt.sweeps.directory import attempts_of, read_sweep
from gpt.tasks.registry import find_task
from gpt.training.lease import Attempt, latest_attempt
from gpt.training.report import console
from gpt.training.run_dir import read_metrics, read_num_steps, read_result, validation_scores

State = Literal["running", "failed", "lost", "stopped", "waiting", "done"]
STATES: dict[State, str] = {
    "running": "bold cyan",
    "failed": "bold red",
    "lost": "yellow",
    "stopped": "yellow",
    "waiting": "dim",
    "done": "green",
}
"""Every state with its colour, in the order of a reader's interest."""

_REFRESH_SECONDS = 5.0


class Row(NamedTuple):
    """One cell: what it is doing, how far it is, and what came of it.

    `metric` is the paper's first of its task, or perplexity. `host` and `pid` are of the last attempt.
    """

    cell: str
    state: State
    step: int
    of: int | None
    metric: str
    value: float | None
    host: str | None
    pid: int | None
    attempts: int
    error: str | None
    run: str


def read_status(output: Path, names: Sequence[str] | None = None) -> list[Row]:
    """A row for each cell of the sweep in `output`, or for those of `names`; DataError when it holds no sweep."""
    settings = read_sweep(output)
    tasks = {name: own.get("TaskConfig.name") for name, own in settings.items()}
    return [_row(output, name, tasks[name]) for name in (settings if names is None else names)]


def count_states(rows: Sequence[Row]) -> str:
    """The number of cells in each state: `12 cells: 1 running, 8 waiting, 3 done`."""
    counts = Counter(row.state for row in rows)
    return f"{len(rows)} cells: {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])}"


def make_table(rows: Sequence[Row], max_rows: int | None = None) -> Table:
    """The rows for a terminal; of too many, those that matter least now are left out."""
    shown = set(rows)
    if max_rows is not None and len(rows) > max_rows:
        by_interest = sorted(rows, key=lambda row: list(STATES).index(row.state))
        shown = set(by_interest[:max_rows])
    hidden = len(rows) - len(shown)
    table = Table(
        title=count_states(rows) + (f" ({hidden} not shown)" if hidden else ""), title_justify="left", box=None
    )
    for column in ("cell", "state", "step", "score", ""):
        table.add_column(column, justify="right" if column in ("step", "score") else "left", overflow="fold")
    for row in rows:
        if row in shown:
            # Text, not markup: lines above a live table are printed without markup, and it with them.
            state = Text(row.state, style=STATES[row.state])
            table.add_row(Text(row.cell), state, _progress(row), score_text(row), Text(_remark(row)))
    return table


@contextlib.contextmanager
def showing_status(output: Path, names: Sequence[str]) -> Iterator[None]:
    """Within, a terminal shows the table of these cells under everything else; elsewhere nothing happens."""
    if not console().is_terminal:
        yield
        return
    table, read_at = Table(), -_REFRESH_SECONDS

    def current_table() -> Table:
        nonlocal table, read_at
        if time.monotonic() - read_at >= _REFRESH_SECONDS:
            table = make_table(read_status(output, names), max_rows=max(console().height - 8, 4))
            read_at = time.monotonic()
        return table

    with Live(get_renderable=current_table, console=console(), refresh_per_second=1):
        yield


def score_text(row: Row) -> str:
    """The main score of a finished cell, such as `matthews 0.4542`."""
    return "" if row.value is None else f"{row.metric} {row.value:.4g}"


def _row(output: Path, name: str, task: str | None) -> Row:
    run_dir = output / name
    attempt, result = latest_attempt(attempts_of(output, name)), read_result(run_dir)
    lines = read_metrics(run_dir)
    metric = "perplexity" if task is None else find_task(task).metrics[0]
    return Row(
        cell=name,
        state=_state(attempt, result),
        step=lines[-1]["step"] if lines else 0,
        of=read_num_steps(run_dir),
        metric=metric,
        value=None if result is None else validation_scores(result).get(metric),
        host=attempt.host if attempt else None,
        pid=attempt.pid if attempt else None,
        attempts=attempt.number if attempt else 0,
        error=attempt.error if attempt else None,
        run=str(run_dir),
    )


def _state(attempt: Attempt | None, result: dict[str, Any] | None) -> State:
    if result is not None:
        return "done"
    if attempt is None:
        return "waiting"
    if attempt.end == "failed":
        return "failed"
    if attempt.end is not None:
        return "stopped"
    return "running" if attempt.is_live else "lost"


def _progress(row: Row) -> str:
    if row.of is None:
        return ""
    return f"{row.step}/{row.of}"


def _remark(row: Row) -> str:
    if row.state == "failed":
        return row.error or ""
    if row.state == "running":
        return f"{row.host}, process {row.pid}"
    return f"attempt {row.attempts}" if row.attempts > 1 else ""
