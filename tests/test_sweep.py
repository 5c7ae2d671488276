"""`gpt sweep`: who runs which cell, what is left when a worker dies, and how far a sweep says it is."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from toy import ROOT, Command, Toy, run_python, run_until

from gpt.config import MeshConfig, RunConfig, TaskConfig, TokenizerConfig
from gpt.errors import ConfigError, DataError, Preempted, SweepError
from gpt.files import create
from gpt.sharding import make_mesh
from gpt.sweeps.directory import attempts_of, open_sweep, read_sweep
from gpt.sweeps.grid import Cell
from gpt.sweeps.status import count_states, make_table, read_status
from gpt.sweeps.worker import run_sweep
from gpt.training import lease as leases
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.lease import Lease, claim, latest_attempt
from gpt.training.run_dir import read_result, write_num_steps, write_result


@pytest.fixture
def cells(toy: Toy, tmp_path: Path) -> list[Cell]:
    """A sweep over two seeds of the toy language, in `tmp_path / "sweep"`."""
    model = dataclasses.replace(RunConfig.__dataclass_fields__["model"].default_factory(), num_special_tokens=3)  # type: ignore[misc]
    return [
        Cell(
            f"seed={seed}",
            RunConfig(
                output_dir=str(tmp_path / "sweep" / f"seed={seed}"),
                seed=seed,
                tokenizer=TokenizerConfig(path=str(toy.tokenizer)),
                task=TaskConfig(name="cola", data_dir=str(toy.cola)),
                model=model,
            ),
        )
        for seed in (1, 2)
    ]


def alone(cells: list[Cell]) -> list[list[Cell]]:
    """Each cell in a group of its own."""
    return [[cell] for cell in cells]


class FakeTrain:
    """Finishes runs at once; for the seeds in `raises` raises that instead. Remembers what it was asked for."""

    def __init__(self, raises: dict[int, BaseException] | None = None):
        self.groups: list[list[int]] = []
        self.raises = raises or {}

    @property
    def seeds(self) -> list[int]:
        return [seed for group in self.groups for seed in group]

    def __call__(self, configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
        self.groups.append([config.seed for config in configs])
        return [self.train(config) for config in configs]

    def train(self, config: RunConfig) -> dict[str, Any]:
        run_dir = Path(config.output_dir)
        run_dir.mkdir(exist_ok=True)
        write_num_steps(run_dir, 10)
        (run_dir / "metrics.jsonl").write_text('{"step": 4, "kind": "train"}\n')
        if config.seed in self.raises:
            raise self.raises[config.seed]
        (run_dir / "metrics.jsonl").write_text('{"step": 10, "kind": "train"}\n')
        write_result(run_dir, {"step": 10, "validation": {"matthews": config.seed / 4}})
        return {}


def states(output: Path) -> dict[str, str]:
    return {row.cell: row.state for row in read_status(output)}


def gone_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def rewrite(lease: Lease, **values: Any) -> None:
    lease.attempt.path.write_text(lease.attempt._replace(**values).text())


# Cells are run once


def test_every_cell_is_run_and_a_finished_one_never_again(cells: list[Cell], tmp_path: Path) -> None:
    train = FakeTrain()
    rows = run_sweep(tmp_path / "sweep", cells, alone(cells), train)
    assert [(row.cell, row.state, row.step, row.of, row.metric, row.value) for row in rows] == [
        ("seed=1", "done", 10, 10, "matthews", 0.25),
        ("seed=2", "done", 10, 10, "matthews", 0.5),
    ]
    assert run_sweep(tmp_path / "sweep", cells, alone(cells), train) == rows
    assert train.seeds == [1, 2]


def test_a_shard_runs_its_own_cells_alone(cells: list[Cell], tmp_path: Path) -> None:
    train = FakeTrain()
    run_sweep(tmp_path / "sweep", cells, alone(cells[1:]), train)
    assert train.seeds == [2]
    assert states(tmp_path / "sweep") == {"seed=1": "waiting", "seed=2": "done"}


def test_a_cell_that_another_worker_holds_is_left_to_it(
    cells: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, train = tmp_path / "sweep", FakeTrain()
    open_sweep(output, cells)
    held = claim(attempts_of(output, "seed=1"))
    assert held is not None
    run_sweep(output, cells, alone(cells), train)
    assert train.seeds == [2]
    host = held.attempt.host
    expected = f"nothing left to claim; still running elsewhere: seed=1 ({host}, process {os.getpid()})\n"
    assert capsys.readouterr().err.endswith(expected)
    held.end("stopped")
    run_sweep(output, cells, alone(cells), train)
    assert train.seeds == [2, 1]


def test_a_cell_finished_between_the_look_and_the_claim_is_not_run(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = FakeTrain()

    def claim_late(folder: Path) -> Lease | None:
        train([cells[0].config])  # by another worker
        return claim(folder)

    monkeypatch.setattr("gpt.sweeps.worker.claim", claim_late)
    run_sweep(tmp_path / "sweep", cells, alone(cells[:1]), train)
    assert train.seeds == [1]


def test_of_many_that_claim_a_lost_cell_at_once_one_gets_it(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    lost = claim(folder)
    assert lost is not None
    rewrite(lost, pid=gone_process())
    barrier, won = threading.Barrier(8), []

    def compete() -> None:
        barrier.wait()
        won.append(claim(folder))

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in won if lease is not None]) == 1
    latest = latest_attempt(folder)
    assert latest is not None
    assert latest.number == 2


def test_a_file_is_made_once_and_whole(tmp_path: Path) -> None:
    assert create(tmp_path / "file", "first")
    assert not create(tmp_path / "file", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "first"


# Leases that are lost


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to tell whether a process lives")
def test_on_one_machine_a_lease_is_lost_with_its_process_and_not_before(tmp_path: Path) -> None:
    lease = claim(tmp_path / "cell")
    assert lease is not None
    os.utime(lease.attempt.path, (0, 0))  # no sign of life for very long
    assert claim(tmp_path / "cell") is None
    rewrite(lease, process_start="1")  # another process that got the number
    second = claim(tmp_path / "cell")
    assert second is not None
    rewrite(second, pid=gone_process())
    assert claim(tmp_path / "cell") is not None


@pytest.mark.parametrize("machine", ["another one", ""])
def test_from_another_machine_a_lease_is_lost_when_no_sign_of_life_came_for_long(machine: str, tmp_path: Path) -> None:
    lease = claim(tmp_path / "cell")
    assert lease is not None
    rewrite(lease, machine=machine, pid=gone_process())
    assert claim(tmp_path / "cell") is None
    now = time.time()
    os.utime(lease.attempt.path, (now, now - leases.LOST_AFTER_SECONDS + 60))
    assert claim(tmp_path / "cell") is None
    os.utime(lease.attempt.path, (now, now - leases.LOST_AFTER_SECONDS - 60))
    assert claim(tmp_path / "cell") is not None


def test_a_lease_gives_signs_of_life_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    lease = claim(tmp_path / "cell")
    assert lease is not None
    with lease:
        os.utime(lease.attempt.path, (0, 0))
        deadline = time.monotonic() + 30
        while lease.attempt.path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert latest_attempt(tmp_path / "cell") == lease.attempt._replace(end="stopped")


def test_a_process_that_was_taken_over_leaves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    has_left = threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        has_left.set()

    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(os, "_exit", leave)
    lease = claim(tmp_path / "cell")
    assert lease is not None
    with lease:
        rewrite(lease, pid=gone_process())
        assert claim(tmp_path / "cell") is not None
        assert has_left.wait(30)
    assert set(left) == {75}
    assert "error: cell: no sign of life was seen for 300 s, and another process has taken over" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to tell whether a process lives")
def test_a_cell_whose_worker_was_killed_is_taken_over_at_once(cells: list[Cell], tmp_path: Path) -> None:
    output, train = tmp_path / "sweep", FakeTrain()
    open_sweep(output, cells)
    script = (
        "import sys, time; from pathlib import Path; from gpt.training.lease import claim\n"
        "with claim(Path(sys.argv[1])):\n  print('claimed', flush=True)\n  time.sleep(600)"
    )
    folder = attempts_of(output, "seed=1")
    with subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"claimed\n"
        run_sweep(output, cells, alone(cells), train)
        assert train.seeds == [2]
        worker.kill()
    (row, _) = run_sweep(output, cells, alone(cells), train)
    assert train.seeds == [2, 1]
    assert (row.state, row.attempts) == ("done", 2)


# Failures and stops


def test_a_failing_cell_does_not_stop_the_others_and_the_next_start_tries_it_again(
    cells: list[Cell], tmp_path: Path
) -> None:
    output, failing = tmp_path / "sweep", FakeTrain({1: DataError("no rows")})
    with pytest.raises(SweepError, match=r"^1 of 2 cells failed; the same command tries again:\n  seed=1: no r"):
        run_sweep(output, cells, alone(cells), failing)
    assert failing.seeds == [1, 2]
    (row, _) = read_status(output)
    assert (row.state, row.error, row.step, row.attempts) == ("failed", "no rows", 4, 1)
    mended = FakeTrain()
    run_sweep(output, cells, alone(cells), mended)
    assert mended.seeds == [1]
    assert states(output) == {"seed=1": "done", "seed=2": "done"}


def test_a_defect_in_one_cell_is_shown_and_kept_and_the_others_run(
    cells: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = FakeTrain({1: MemoryError("out of memory")})
    with pytest.raises(SweepError, match="seed=1: MemoryError: out of memory"):
        run_sweep(tmp_path / "sweep", cells, alone(cells), train)
    assert train.seeds == [1, 2]
    assert "Traceback" in capsys.readouterr().err


def test_a_stop_gives_the_cell_back_and_the_same_call_continues(cells: list[Cell], tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    with pytest.raises(Preempted, match="SIGTERM: saved"):
        run_sweep(output, cells, alone(cells), FakeTrain({1: Preempted("SIGTERM: saved step 4")}))
    assert states(output) == {"seed=1": "stopped", "seed=2": "waiting"}
    train = FakeTrain()
    run_sweep(output, cells, alone(cells), train)
    assert train.seeds == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_the_training_loop_gives_the_cell_back_too(
    number: signal.Signals, cells: list[Cell], tmp_path: Path
) -> None:
    before = signal.getsignal(number)

    def train(_configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
        os.kill(os.getpid(), number)
        time.sleep(60)
        return []

    with pytest.raises(Preempted, match=f"^{number.name}: between two updates; the same command continues"):
        run_sweep(tmp_path / "sweep", cells, alone(cells), train)
    assert states(tmp_path / "sweep") == {"seed=1": "stopped", "seed=2": "waiting"}
    assert signal.getsignal(number) is before


# Populations


def test_a_group_is_trained_together_without_the_cells_that_are_done_or_held(cells: list[Cell], tmp_path: Path) -> None:
    output, train = tmp_path / "sweep", FakeTrain()
    third = cells[0]._replace(
        name="seed=3", config=dataclasses.replace(cells[0].config, seed=3, output_dir=str(output / "seed=3"))
    )
    fourth = third._replace(
        name="seed=4", config=dataclasses.replace(third.config, seed=4, output_dir=str(output / "seed=4"))
    )
    group = [*cells, third, fourth]
    run_sweep(output, group, alone(cells[:1]), train)
    with claim(attempts_of(output, "seed=3")) or pytest.fail("not claimed"):
        run_sweep(output, group, [group], train)
    assert train.groups == [[1], [2, 4]]
    assert states(output) == {"seed=1": "done", "seed=2": "done", "seed=3": "stopped", "seed=4": "done"}


def test_a_member_of_a_population_that_fails_leaves_the_others_their_results(cells: list[Cell], tmp_path: Path) -> None:
    output, fake = tmp_path / "sweep", FakeTrain()

    def train(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
        fake(configs[1:])
        return [{"run": "seed=1", "step": 4, "error": "the weights have diverged"}, {}]

    with pytest.raises(SweepError, match="seed=1: the weights have diverged"):
        run_sweep(output, cells, [cells], train)
    assert states(output) == {"seed=1": "failed", "seed=2": "done"}


@pytest.mark.parametrize("reason", [DataError("no rows"), MemoryError("no rows")])
def test_cells_that_cannot_be_trained_together_are_trained_one_by_one(
    reason: Exception, cells: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, train = tmp_path / "sweep", FakeTrain({1: reason})
    with pytest.raises(SweepError, match="1 of 2 cells failed"):
        run_sweep(output, cells, [cells], train)
    assert train.groups == [[1, 2], [1], [2]]
    assert states(output) == {"seed=1": "failed", "seed=2": "done"}
    assert "these 2 cells cannot be trained together, so one by one: " in capsys.readouterr().err


def test_a_stop_gives_all_cells_of_a_population_back(cells: list[Cell], tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        run_sweep(tmp_path / "sweep", cells, [cells], FakeTrain({1: Preempted("SIGTERM: saved step 4")}))
    assert states(tmp_path / "sweep") == {"seed=1": "stopped", "seed=2": "stopped"}


# The directory


def test_a_directory_of_another_sweep_is_refused_with_the_differences(cells: list[Cell], tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    run_sweep(output, cells, alone(cells), FakeTrain())
    before = (output / "sweep.json").read_text()
    longer = [cell._replace(config=dataclasses.replace(cell.config, num_epochs=7)) for cell in cells]
    with pytest.raises(ConfigError, match=r"holds another sweep: RunConfig.num_epochs: 100 there, 7 here\. Repeat"):
        run_sweep(output, longer, alone(longer), FakeTrain())
    with pytest.raises(ConfigError, match=r"num_epochs: 100 there, 7 here \(in seed=1\)\. Repeat"):
        run_sweep(output, [longer[0], cells[1]], alone(cells), FakeTrain())
    others = [cells[0], cells[1]._replace(name="seed=3")]
    with pytest.raises(ConfigError, match="holds another sweep: only there: seed=2; only here: seed=3"):
        run_sweep(output, others, alone(others), FakeTrain())
    assert (output / "sweep.json").read_text() == before


def test_of_two_sweeps_that_begin_in_one_directory_at_once_one_is_refused(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = [cell._replace(name=f"other-{cell.name}") for cell in cells]

    def create_late(path: Path, text: str) -> bool:
        monkeypatch.setattr("gpt.sweeps.directory.create", create)
        open_sweep(tmp_path / "sweep", other)
        return create(path, text)

    monkeypatch.setattr("gpt.sweeps.directory.create", create_late)
    with pytest.raises(ConfigError, match="holds another sweep: only there: other-seed=1, other-seed=2; only here"):
        open_sweep(tmp_path / "sweep", cells)
    assert set(read_sweep(tmp_path / "sweep")) == {"other-seed=1", "other-seed=2"}


def test_a_directory_that_moved_is_the_same_sweep(cells: list[Cell], tmp_path: Path) -> None:
    run_sweep(tmp_path / "sweep", cells, alone(cells), FakeTrain())
    (tmp_path / "sweep").rename(tmp_path / "moved")
    moved = [
        cell._replace(config=dataclasses.replace(cell.config, output_dir=str(tmp_path / "moved" / cell.name)))
        for cell in cells
    ]
    train = FakeTrain()
    assert [row.state for row in run_sweep(tmp_path / "moved", moved, alone(moved), train)] == ["done", "done"]
    assert train.seeds == []


def test_a_directory_with_files_of_others_is_refused_and_left_alone(cells: list[Cell], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is not the directory of a sweep: give a new path"):
        run_sweep(tmp_path / "sweep", cells, alone(cells), FakeTrain())
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is not the directory of a sweep"):
        open_sweep(tmp_path / "sweep" / "thesis.tex", cells)
    with pytest.raises(DataError, match="cannot write to --output"):
        open_sweep(tmp_path / "sweep" / "thesis.tex" / "new", cells)


def test_what_cells_would_look_for_in_vain_is_named_before_anything_is_made(cells: list[Cell], tmp_path: Path) -> None:
    lost = [
        cells[0]._replace(config=dataclasses.replace(cells[0].config, init_from=str(tmp_path / "none"))),
        cells[1]._replace(
            config=dataclasses.replace(cells[1].config, task=TaskConfig(name="cola", data_dir=str(tmp_path / "gone")))
        ),
    ]
    with pytest.raises(ConfigError) as caught:
        run_sweep(tmp_path / "sweep", lost, alone(lost), FakeTrain())
    first, second, third = str(caught.value).splitlines()
    assert first == "the sweep cannot start, because cells lack what they need:"
    assert second == f"  seed=1: '{tmp_path / 'none'}' is not a run directory: there is no config.gin in it"
    assert third == f"  seed=2: TaskConfig.data_dir = '{tmp_path / 'gone'}': there is no such directory"
    assert not (tmp_path / "sweep").exists()


# Status


def test_the_table_counts_the_states_and_leaves_out_what_matters_least(cells: list[Cell], tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    with pytest.raises(SweepError):
        run_sweep(output, cells, alone(cells), FakeTrain({2: DataError("no [rows]")}))
    rows = read_status(output)
    assert count_states(rows) == "2 cells: 1 failed, 1 done"
    assert make_table(rows).row_count == 2
    short = make_table(rows, max_rows=1)
    assert short.title == "2 cells: 1 failed, 1 done (1 not shown)"
    assert [[str(cell) for cell in column.cells] for column in short.columns] == [
        ["seed=2"], ["failed"], ["4/10"], [""], ["no [rows]"],
    ]  # fmt: skip


def test_a_lost_cell_is_told_from_one_that_runs(cells: list[Cell], tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    open_sweep(output, cells)
    running, lost = (claim(attempts_of(output, cell.name)) for cell in cells)
    assert running is not None
    assert lost is not None
    rewrite(lost, pid=gone_process())
    assert states(output) == {"seed=1": "running", "seed=2": "lost"}


def test_the_command_shows_the_status_of_a_sweep_without_its_gin_files(
    cells: list[Cell], tmp_path: Path, gpt: Callable[..., Command]
) -> None:
    output = tmp_path / "sweep"
    run_sweep(output, cells, alone(cells[:1]), FakeTrain())
    command = gpt("sweep", "--status", "--output", output, "--json")
    assert command.code == 0
    assert [(row["cell"], row["state"], row["value"]) for row in command.rows] == [
        ("seed=1", "done", 0.25),
        ("seed=2", "waiting", None),
    ]
    lines = gpt("sweep", "--status", "--output", output).out.splitlines()
    assert lines[0].strip() == "2 cells: 1 waiting, 1 done"
    assert lines[2].split() == ["seed=1", "done", "10/10", "matthews", "0.25"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--status",), "is not the directory of a sweep: there is no sweep.json in it"),
        (("--status", "--shard", "1/2"), "--status takes --output and --json alone"),
        (("--shard", "3/2", "--gin_file=configs/task/cola.gin"), "no axis to sweep over"),
        (("--population", "0"), "--population '0': expected auto, off, or the most cells to train at once"),
        (("--population", "on"), "--population 'on': expected auto, off, or the most cells to train at once"),
        (("--seed=3",), "flag '--seed=3' is not known: settings are given as --gin.Section.field=value"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    flags: tuple[str, ...], message: str, tmp_path: Path, gpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = gpt("sweep", "--output", tmp_path / "sweep", *flags)
    assert (command.code, command.out) == (2, "")
    assert message in command.err
    assert not (tmp_path / "sweep").exists()


def test_a_command_without_settings_refuses_them(gpt: Callable[..., Command], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        gpt("plot", tmp_path, "--output", tmp_path / "x.png", "--gin.RunConfig.seed=1")


# With real training


def sweep_flags(toy: Toy, output: Path) -> list[str]:
    """A sweep of two learning rates on the toy `cola`."""
    flags = [flag for flag in toy.finetune_flags(None) if "learning_rate" not in flag and "data_dir" not in flag]
    axis = "--gin.sweep/OptimizerConfig.learning_rate=[0.01,0.001]"
    return ["sweep", f"--output={output}", f"--data_root={toy.cola.parent}", axis, *flags, "--json"]


def test_a_sweep_leaves_ordinary_run_directories(
    toy: Toy, tmp_path: Path, gpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    flags = [*sweep_flags(toy, tmp_path / "sweep"), "--gin.RunConfig.max_steps=2", "--shard=2/2"]
    command = gpt(*flags)
    assert command.code == 0, command.err
    assert [(row["cell"], row["state"], row["step"], row["of"]) for row in command.rows] == [
        ("learning_rate=0.001", "done", 2, 2),
    ]
    result = read_result(Path(command.rows[0]["run"]))
    assert result is not None
    assert command.rows[0]["value"] == result["validation"]["matthews"]
    tables = gpt("tables", "--runs", tmp_path / "sweep", "--json")
    assert tables.code == 0
    assert {row["n"] for row in tables.rows} == {0, 1}


def final_weights(run: Path) -> Any:
    return load_params(find_checkpoint(run), make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_a_sweep_stopped_in_mid_cell_continues_from_its_checkpoint_to_the_same_weights(
    number: signal.Signals, code: int, toy: Toy, tmp_path: Path
) -> None:
    # The save of step 12 may be lost, but it waited for that of step 6.
    stopped = run_until(number, 13, sweep_flags(toy, tmp_path / "stopped"), "gpt/__main__.py")
    assert stopped.code == code, stopped.err
    state = "lost" if number == signal.SIGKILL else "stopped"
    assert states(tmp_path / "stopped") == {"learning_rate=0.01": state, "learning_rate=0.001": "waiting"}
    resumed, undisturbed = (
        run_python("gpt/__main__.py", *sweep_flags(toy, tmp_path / name)) for name in ("stopped", "undisturbed")
    )
    assert (resumed.code, undisturbed.code) == (0, 0), resumed.err + undisturbed.err
    assert "step 6/" not in resumed.err.split("learning_rate=0.001: begins")[0]
    assert [row["attempts"] for row in resumed.rows] == [2, 1]
    for name in ("learning_rate=0.01", "learning_rate=0.001"):
        here, there = (final_weights(tmp_path / sweep / name) for sweep in ("stopped", "undisturbed"))
        jax.tree.map(np.testing.assert_array_equal, here, there)


@pytest.mark.slow
def test_two_workers_at_once_share_the_cells(toy: Toy, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpt", *sweep_flags(toy, tmp_path / "sweep")]
    workers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    begun = sorted(re.findall(r"^(.*): begins", "".join(said), re.MULTILINE))
    assert begun == ["learning_rate=0.001", "learning_rate=0.01"]
    assert set(states(tmp_path / "sweep").values()) == {"done"}


@pytest.mark.slow
def test_a_population_gives_each_cell_the_scores_that_it_has_alone(toy: Toy, tmp_path: Path) -> None:
    together, apart = (
        run_python("-m", "gpt", *sweep_flags(toy, tmp_path / name), f"--population={name}") for name in ("auto", "off")
    )
    assert (together.code, apart.code) == (0, 0), together.err + apart.err
    assert "population of 2 on 1 devices" in together.err
    for row, other in zip(together.rows, apart.rows, strict=True):
        results = [read_result(Path(one["run"])) for one in (row, other)]
        losses = [result["validation"]["lm_loss"] for result in results if result is not None]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
