"""One worker of a sweep: it claims a cell, trains it, and looks for the next, beside any number of others."""

import contextlib
import itertools
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gpt.config import RunConfig, TokenizerConfig
from gpt.errors import ConfigError, DataError, GPTError, Preempted, SweepError
from gpt.sweeps.directory import attempts_of, open_sweep
from gpt.sweeps.grid import Cell
from gpt.sweeps.status import Row, read_status, score_text, showing_status
from gpt.text.tokenizer import Tokenizer
from gpt.training.lease import Lease, claim, file_time, latest_attempt
from gpt.training.loop import check_pretrained, train
from gpt.training.population import train_population
from gpt.training.report import console
from gpt.training.run_dir import read_result

Group = Sequence[Cell]
"""Cells that train together, or a single one."""

Train = Callable[[Sequence[RunConfig]], list[dict[str, Any]]]


def train_cells(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Trains one run, or several in one program; their summaries, with `error` in that of one that failed."""
    return [train(configs[0])] if len(configs) == 1 else train_population(configs)


def run_sweep(output: Path, cells: Sequence[Cell], mine: Sequence[Group], run: Train = train_cells) -> list[Row]:
    """Runs those cells of `mine` that are not finished and that nobody else runs; how the cells of `mine` are then.

    `cells` is the whole sweep; `run` trains those of one group that could be claimed.

    Raises:
      ConfigError, DataError: the sweep cannot start; nothing was run.
      SweepError: cells have failed; all others were run.
      Preempted: SIGTERM or Ctrl-C came; the cells at hand are saved, and the same call continues.
    """
    own = list(itertools.chain(*mine))
    _check_inputs([cell for cell in own if read_result(output / cell.name) is None])
    open_sweep(output, cells)
    names = [cell.name for cell in own]
    worker = _Worker(output, run)
    with showing_status(output, names), _stopping_at_once():
        # From the first again after every group that was run: another worker may have lost one.
        while any(worker.try_group(group) for group in mine):
            pass
    rows = read_status(output, names)
    running = [f"{row.cell} ({row.host}, process {row.pid})" for row in rows if row.state == "running"]
    if running:
        _say(f"nothing left to claim; still running elsewhere: {', '.join(running)}")
    failed = [f"\n  {row.cell}: {row.error}" for row in rows if row.state == "failed"]
    if failed:
        raise SweepError(f"{len(failed)} of {len(rows)} cells failed; the same command tries again:{''.join(failed)}")
    return rows


class _Worker:
    def __init__(self, output: Path, run: Train):
        self._output, self._run = output, run
        self._start = file_time(output)

    def try_group(self, group: Group) -> bool:
        """Whether cells of the group were run here, well or badly: those that nobody else holds."""
        with contextlib.ExitStack() as stack:
            held = []
            for cell in group:
                lease = self._claim(cell)
                if lease is not None:
                    held.append((cell, stack.enter_context(lease)))
            if held:
                self._run_cells(held)
        return bool(held)

    def _claim(self, cell: Cell) -> Lease | None:
        """The lease of a cell that is to be run."""
        folder = attempts_of(self._output, cell.name)
        if self._is_done(cell) or self._has_failed_lately(folder):
            return None
        try:
            lease = claim(folder)
        except OSError as error:
            raise DataError(f"cannot write to --output {str(self._output)!r}: {error}") from error
        if lease is not None and self._is_done(cell):  # since we looked
            lease.end("done")
            return None
        return lease

    def _run_cells(self, held: Sequence[tuple[Cell, Lease]]) -> None:
        for cell, lease in held:
            number = lease.attempt.number
            _say(f"{cell.name}: begins{f', attempt {number}' if number > 1 else ''}")
        try:
            results = self._run([cell.config for cell, _ in held])
        except Preempted:
            raise
        except Exception as error:  # else a defect, or too little memory: perhaps of these cells alone
            if not isinstance(error, GPTError):
                traceback.print_exc()
            reason = str(error) if isinstance(error, GPTError) else f"{type(error).__name__}: {error}"
            if len(held) > 1:
                _say(f"these {len(held)} cells cannot be trained together, so one by one: {reason}")
                for one in held:
                    self._run_cells([one])
                return
            results = [{"error": reason}]
        for (cell, lease), result in zip(held, results, strict=True):
            lease.end("failed" if "error" in result else "done", result.get("error"))
            (row,) = read_status(self._output, [cell.name])
            _say(f"{cell.name}: {row.state}, {row.error or score_text(row)}")

    def _is_done(self, cell: Cell) -> bool:
        return read_result(self._output / cell.name) is not None

    def _has_failed_lately(self, folder: Path) -> bool:
        """Whether the cell failed after this worker began: it is for the next one."""
        attempt = latest_attempt(folder)
        return attempt is not None and attempt.end == "failed" and attempt.path.stat().st_mtime >= self._start


def _check_inputs(cells: Sequence[Cell]) -> None:
    """Raises ConfigError that names everything that cells would look for in vain, each once with its first cell."""
    problems: dict[str, str] = {}
    tokenizers: dict[TokenizerConfig, Tokenizer] = {}
    checked = set()
    for cell in cells:
        config = cell.config
        try:
            if config.task.data_dir is not None and not Path(config.task.data_dir).is_dir():
                raise ConfigError(f"TaskConfig.data_dir = {config.task.data_dir!r}: there is no such directory")
            source = (config.tokenizer, config.model, config.init_from)
            if source in checked:
                continue
            checked.add(source)
            if config.tokenizer not in tokenizers:
                tokenizers[config.tokenizer] = Tokenizer.load(config.tokenizer.path, config.tokenizer.route)
            if config.init_from is not None:
                check_pretrained(config, tokenizers[config.tokenizer])
        except GPTError as error:
            problems.setdefault(str(error), cell.name)
    if problems:
        lines = "".join(f"\n  {name}: {problem}" for problem, name in problems.items())
        raise ConfigError(f"the sweep cannot start, because cells lack what they need:{lines}")


@contextlib.contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C raise Preempted; while a cell trains, its loop saves first."""

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Preempted(f"{signal.Signals(number).name}: between two updates; the same command continues")

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    console().print(text, markup=False)
