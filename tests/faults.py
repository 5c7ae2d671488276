"""The fault matrix: faults of many kinds, at random, against tiny runs; a table of what came of them.

    python tests/faults.py --output DIR [--only NAME ...] [--scale 1.0] [--seed 0]

Every run is compared, bit by bit, with a twin that nothing disturbed. Counts are kept in DIR/counts.jsonl, so that a
repeated command goes on where it was. `lost` are steps that were saved and are gone, `wrong` are runs that ended in
other weights or other log lines than their twin without an error.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import faulthandler
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A process with threads is not to be forked.
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

# Imported before any process is forked, and no device is made here: a child begins to train after a second.
import jax  # noqa: E402 - after the path
import numpy as np  # noqa: E402
from orbax.checkpoint import v1 as ocp  # noqa: E402
from toy import Toy, make_toy  # noqa: E402

from gpt import gin_io  # noqa: E402
from gpt.config import RunConfig  # noqa: E402
from gpt.errors import GPTError  # noqa: E402
from gpt.training import meter  # noqa: E402
from gpt.training.checkpoint_dir import newest_verified, saved_steps  # noqa: E402
from gpt.training.loop import train  # noqa: E402
from gpt.training.manifest import find_damage  # noqa: E402
from gpt.training.population import train_population  # noqa: E402
from gpt.training.run_dir import read_metrics, read_result  # noqa: E402

SPEED = {"tokens_per_second", "step_seconds", "mfu_measured", "measured_tflops", "peak_process_gib"}
SPEED |= {"slowest_host", "slowest_host_seconds"}
_LONGEST = 400.0
"""Seconds after which a child is taken to hang: at load 10 on two cores sound ones have taken more than 120."""
_WEIGHTS = (6, 2, 1)
"""How often each kind of training is struck."""
_RESUMED = 20
"""Of so many damaged runs one goes on to its end; of the others is looked at what it would go on from."""
_ENDED: dict[int, int] = {}
"""Exit codes of children that a strike has already waited for."""


class Outcome(NamedTuple):
    """One fault: whether it did its work, and what came of it."""

    kind: str
    result: str  # resumed, refused, unharmed
    lost: int = 0
    wrong: int = 0
    note: str = ""


class Job(NamedTuple):
    """A training, as often as it takes: pretraining, fine-tuning, or a population, in directories below one."""

    name: str
    configs: tuple[RunConfig, ...]

    def at(self, root: Path) -> "Job":
        names = [Path(config.output_dir).name for config in self.configs]
        return Job(
            self.name,
            tuple(
                dataclasses.replace(config, output_dir=str(root / name))
                for config, name in zip(self.configs, names, strict=True)
            ),
        )

    @property
    def runs(self) -> list[Path]:
        return [Path(config.output_dir) for config in self.configs]


# Children


def start(job: Job, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """A child that trains; its process number. It ends with the exit code of train.py."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        faulthandler.dump_traceback_later(_LONGEST / 2)
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "gpt-jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        meter.measure_flops = lambda _: 1e12
        before()
        if len(job.configs) == 1:
            train(job.configs[0])
        else:
            train_population(job.configs)
        code = 0
    except GPTError as error:
        code = error.exit_code
        with contextlib.suppress(OSError):  # the disk of the log is full as well
            sys.stderr.write(f"error: {error}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float = _LONGEST) -> int | None:
    """The exit code of a child, negative for a signal; None when it has not ended by then."""
    if child in _ENDED:
        return _ENDED.pop(child)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def end(child: int, log: Path, seconds: float = _LONGEST) -> int:
    """The exit code of a child that is to end by itself."""
    code = wait(child, seconds)
    if code is None:
        os.kill(child, signal.SIGKILL)
        wait(child)
        raise AssertionError(f"a child did not end in {seconds} s; {log}")
    return code


# What is compared


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The log lines but for speed and times."""
    lines = [line for line in read_metrics(run) if line["kind"] != "time"]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in lines]


def weights_of(run: Path, step: int) -> dict[str, str]:
    """A hash of each array of a checkpoint; read in a child, because this process must have no threads.

    One that cannot be read equals no other.
    """
    path = str((run / "checkpoints" / str(step)).resolve())
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if not child:
            try:
                saved = ocp.checkpointables_metadata(path).metadata
                here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # two processes may have written it
                abstract = jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                    {name: saved[name] for name in ("params", "optimizer")},
                )
                hashes = {
                    jax.tree_util.keystr(name): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
                    for name, leaf in jax.tree.leaves_with_path(ocp.load_checkpointables(path, abstract))
                }
                Path(file.name).write_text(json.dumps(hashes))
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        end(child, run)
        return json.loads(Path(file.name).read_text() or json.dumps({"unreadable": path}))


def differences(job: Job, twin: Job) -> list[str]:
    """What a job and its undisturbed twin differ in."""
    found = []
    for run, other in zip(job.runs, twin.runs, strict=True):
        if read_result(run) is None:
            found.append(f"{run.name}: not finished")
        if lines_of(run) != lines_of(other):
            found.append(f"{run.name}: other log lines")
        step = saved_steps(other)[-1]
        if weights_of(run, step) != weights_of(other, step):
            found.append(f"{run.name}: other weights")
    return found


def whole_steps(run: Path) -> list[int]:
    """The steps whose checkpoints are whole."""
    return [step for step in saved_steps(run) if find_damage(run / "checkpoints" / str(step), step) is None]


# The matrix


class Bench(NamedTuple):
    """What all cases share: jobs, their undisturbed twins and how long these took, and where to work."""

    root: Path
    jobs: tuple[Job, ...]
    seconds: dict[str, float]
    rng: random.Random

    def twin(self, job: Job) -> Job:
        return job.at(self.root / "twins" / job.name)

    @contextlib.contextmanager
    def work(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.root) as directory:
            yield Path(directory)


def make_inputs(root: Path) -> tuple[Job, ...]:
    """Data below `root`, and the jobs on it."""
    toy = Toy(*(root / "toy" / name for name in ("tokenizer", "store", "cola", "choices")))
    if not toy.store.exists():
        child = os.fork()
        if not child:  # here are threads
            make_toy(root / "toy")
            os._exit(0)
        assert wait(child) == 0
    pretrained = root / "twins" / "pretraining" / "run"
    one = _config(toy, "fine-tuning", root, pretrained)
    two = _config(toy, "fine-tuning", root, pretrained, seed=1)
    return (
        Job("pretraining", (_config(toy, "pretraining", root, None),)),
        Job("fine-tuning", (one,)),
        Job("population", (_replace(one, "one"), _replace(two, "two"))),
    )


def make_bench(root: Path, seed: int) -> Bench:
    """Makes data and twins, or finds them."""
    root.mkdir(parents=True, exist_ok=True)
    jobs = make_inputs(root)
    bench = Bench(root, jobs, {}, random.Random(seed))
    log = root / "log.txt"
    times = root / "seconds.json"
    if times.exists():
        bench.seconds.update(json.loads(times.read_text()))
        return bench
    for job in jobs:
        twin = bench.twin(job)
        for _ in range(2):  # the first compiles
            begin = time.monotonic()
            for run in twin.runs:
                shutil.rmtree(run, ignore_errors=True)
            code = end(start(_keeping_all(twin), log), log)
            assert code == 0, f"the twin of {job.name} ended with {code}: {log}"
            bench.seconds[job.name] = time.monotonic() - begin
        print(f"twin of {job.name}: {bench.seconds[job.name]:.1f} s", flush=True)
    times.write_text(json.dumps(bench.seconds))
    return bench


def _keeping_all(job: Job) -> Job:
    return job._replace(
        configs=tuple(
            dataclasses.replace(
                config,
                checkpoint=dataclasses.replace(config.checkpoint, keep_every_steps=config.checkpoint.save_every_steps),
            )
            for config in job.configs
        )
    )


def _replace(config: RunConfig, name: str) -> RunConfig:
    return dataclasses.replace(config, output_dir=name)


def _config(toy: Toy, kind: str, root: Path, init_from: Path | None, **changes: Any) -> RunConfig:
    flags = toy.pretrain_flags if kind == "pretraining" else toy.finetune_flags(init_from)
    files = [str(ROOT / flag.removeprefix("--gin_file=")) for flag in flags if flag.startswith("--gin_file=")]
    values = dict(flag.removeprefix("--gin.").split("=", 1) for flag in flags if flag.startswith("--gin."))
    values |= {
        "RunConfig.output_dir": str(root / "run"),
        "RunConfig.log_every_steps": "3",
        "RunConfig.evaluate_every_steps": "5",
        "CheckpointConfig.save_every_steps": "2",
        **{f"RunConfig.{name}": str(value) for name, value in changes.items()},
    }
    return gin_io.load(files, [f"{key}={value}" for key, value in values.items()])


def disturb(
    bench: Bench, kind: str, job: Job, count: int, strike: Callable[[int], str], before: Callable[[], None]
) -> Iterator[Outcome]:
    """One run that is struck `count` times, goes on each time, and is compared with its twin in the end."""
    with bench.work() as work:
        job_here, log = job.at(work), work / "log.txt"
        outcomes: list[Outcome] = []
        while True:
            newest = [max(whole_steps(run), default=0) for run in job_here.runs]
            struck = len(outcomes) < count
            child = start(job_here, log, before if struck else lambda: None)
            how = strike(child) if struck else ""
            code = end(child, log)
            after = [max(whole_steps(run), default=0) for run in job_here.runs]
            lost = sum(new < old for new, old in zip(after, newest, strict=True))
            if struck:
                outcomes.append(Outcome(kind, "resumed", lost=lost, note=f"{job.name}: {how}: exit {code}"))
            if code == 0:
                break
            if not struck:
                outcomes.append(Outcome(kind, "refused", wrong=1, note=log.read_text()[-600:]))
                break
        found = differences(job_here, bench.twin(job))
        if found and outcomes:
            outcomes[-1] = outcomes[-1]._replace(wrong=1, note=f"{outcomes[-1].note}; {found}")
            shutil.copytree(work, bench.root / "wrong" / f"{kind}-{time.time_ns()}", dirs_exist_ok=True)
        yield from outcomes


def killing(bench: Bench, job: Job) -> Callable[[int], str]:
    def strike(child: int) -> str:
        delay = bench.rng.uniform(0, bench.seconds[job.name])
        code = wait(child, delay)
        if code is None:
            os.kill(child, signal.SIGKILL)
            return f"SIGKILL after {delay:.2f} s"
        _ENDED[child] = code
        return "finished before"

    return strike


def storming(bench: Bench, job: Job) -> Callable[[int], str]:
    def strike(child: int) -> str:
        code = wait(child, bench.rng.uniform(0.5, 1.0) * bench.seconds[job.name])
        sent = 0
        while code is None and sent < 50:
            os.kill(child, bench.rng.choice([signal.SIGTERM, signal.SIGINT]))
            sent += 1
            code = wait(child, bench.rng.choice([0.0, 0.01, 0.3]))
        if code is not None:
            _ENDED[child] = code
        return f"{sent} signals"

    return strike


def kills(bench: Bench) -> Iterator[Outcome]:
    """SIGKILL at a random instant, several times a run, of all kinds of training."""
    while True:
        job = bench.rng.choices(bench.jobs, _WEIGHTS)[0]
        yield from disturb(bench, "kill -9", job, bench.rng.randint(3, 8), killing(bench, job), lambda: None)


def freezes(bench: Bench) -> Iterator[Outcome]:
    """All threads of a run stand still at a random instant, and what a kill would leave then is looked at.

    Each copy of its directory must hold the newest checkpoint of the copy before it or a newer one, with the arrays of
    the twin, and every log line up to it.
    """
    while True:
        job = bench.rng.choices(bench.jobs, _WEIGHTS)[0]
        with bench.work() as work:
            here, log = job.at(work / "live"), work / "log.txt"
            child, copies = start(here, log), []
            time.sleep(bench.seconds[job.name] * bench.rng.uniform(0, 0.5))
            while wait(child, bench.rng.expovariate(60 / bench.seconds[job.name])) is None and len(copies) < 60:
                os.kill(child, signal.SIGSTOP)
                if (work / "live").exists():
                    copies.append(Path(shutil.copytree(work / "live", work / f"copy{len(copies)}")))
                os.kill(child, signal.SIGCONT)
            if len(copies) == 60:
                end(child, log)
            yield from _look_at(copies, job, bench)


def _look_at(copies: list[Path], job: Job, bench: Bench) -> Iterator[Outcome]:
    newest = dict.fromkeys((run.name for run in job.runs), 0)
    for copy in copies:
        lost, found = 0, []
        for run, twin in zip(job.at(copy).runs, bench.twin(job).runs, strict=True):
            steps = whole_steps(run)
            step = max(steps, default=0)
            lost += step < newest[run.name] or len(steps) != len(saved_steps(run))
            newest[run.name] = step
            expected = [line for line in lines_of(twin) if line["step"] <= step]
            if [line for line in lines_of(run) if line["step"] <= step] != expected:
                found.append(f"{run.name}: other log lines up to {step}")
            if step and weights_of(run, step) != _twin_weights(twin, step):
                found.append(f"{run.name}: other weights at {step}")
        yield Outcome(
            "frozen as by kill -9", "looked at", lost, int(bool(found)), f"{job.name}: {newest} {found or ''}"
        )


@functools.cache
def _twin_weights(run: Path, step: int) -> dict[str, str]:
    return weights_of(run, step)


def storms(bench: Bench) -> Iterator[Outcome]:
    """SIGTERM and SIGINT again and again."""
    while True:
        job = bench.rng.choices(bench.jobs, _WEIGHTS)[0]
        yield from disturb(bench, "signal storm", job, bench.rng.randint(1, 3), storming(bench, job), lambda: None)


def clocks(bench: Bench) -> Iterator[Outcome]:
    """The clock jumps by up to a year at any look at it, and the process is killed."""

    def jump() -> None:
        true, jumps = time.time, random.Random(os.getpid())
        time.time = lambda: true() + jumps.uniform(-3e7, 3e7)
        time.time_ns = lambda: int(time.time() * 1e9)

    while True:
        job = bench.rng.choices(bench.jobs, _WEIGHTS)[0]
        yield from disturb(bench, "clock jumps", job, 2, killing(bench, job), jump)


def full_disks(bench: Bench) -> Iterator[Outcome]:
    """No file may grow beyond a random size; then there is room again."""
    while True:
        job, limit = bench.rng.choices(bench.jobs, _WEIGHTS)[0], int(10 ** bench.rng.uniform(2.5, 4.7))

        def fill(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        for outcome in disturb(bench, "full disk", job, 1, lambda _: f"{limit} bytes", fill):  # noqa: B023
            code = int(outcome.note.rsplit("exit ", 1)[-1].split(";")[0]) if "exit " in outcome.note else 0
            yield outcome if code in (0, 2) else outcome._replace(wrong=1)


def read_only(bench: Bench) -> Iterator[Outcome]:
    """The run directory, or that of its checkpoints, cannot be written to; then it can."""
    while True:
        job = bench.rng.choice(bench.jobs[:2])
        with bench.work() as work:
            here, log = job.at(work), work / "log.txt"
            (run,) = here.runs
            child = start(here, log)
            code = wait(child, bench.rng.uniform(0.3, 1) * bench.seconds[job.name])
            if code is None:
                os.kill(child, signal.SIGKILL)
                wait(child)
            target = bench.rng.choice([run, run / "checkpoints"])
            before = whole_steps(run)
            if not target.exists():
                continue
            target.chmod(0o555)
            code = end(start(here, log, _without_capabilities), log)
            target.chmod(0o755)
            lost = len(set(before) - set(whole_steps(run)))
            last = end(start(here, log), log)
            found = differences(here, bench.twin(job)) if last == 0 else [f"exit {last}"]
            wrong = int(bool(found) or code not in (0, 2))
            yield Outcome("read-only directory", "refused" if code else "unharmed", lost, wrong, f"exit {code} {found}")


def _without_capabilities() -> None:
    """Gives up root's right to write where the permissions say no."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, data) == 0


def flips(bench: Bench) -> Iterator[Outcome]:
    """One bit of one file of the newest checkpoint."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        bit = bench.rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)

    yield from _damages(bench, "flipped bit", damage)


def truncations(bench: Bench) -> Iterator[Outcome]:
    """A file of the newest checkpoint is cut short."""
    yield from _damages(
        bench, "truncated file", lambda path: os.truncate(path, bench.rng.randrange(path.stat().st_size))
    )


def missing(bench: Bench) -> Iterator[Outcome]:
    """A file of the newest checkpoint is gone."""
    yield from _damages(bench, "missing file", lambda path: path.unlink())


def extra(bench: Bench) -> Iterator[Outcome]:
    """A file too many in the newest checkpoint."""
    yield from _damages(
        bench, "extra file", lambda path: path.with_name(f"{path.name}.1").write_bytes(path.read_bytes())
    )


def _damages(bench: Bench, kind: str, damage: Callable[[Path], Any]) -> Iterator[Outcome]:
    """Damage done to an interrupted run, which goes on then: every time, the bad checkpoint must be set aside."""
    job, number, step = bench.jobs[0], 0, None
    (twin,) = bench.twin(job).runs
    while True:
        with bench.work() as work:
            here, log = _keeping_all(job.at(work)), work / "log.txt"
            (run,) = here.runs
            shutil.copytree(twin, run)
            (run / "result.json").unlink()
            steps = saved_steps(run)
            directory = run / "checkpoints" / str(steps[-1])
            files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size]
            path = bench.rng.choice(files)
            damage(path)
            is_same = path.name == "manifest.json" and find_damage(directory, steps[-1]) is None
            number += 1
            if number % _RESUMED:
                step = newest_verified(run)
            else:
                assert end(start(here, log), log) == 0, log.read_text()
            aside = (run / "checkpoints" / f"{steps[-1]}.damaged").exists()
            found = differences(here, bench.twin(job)) if number % _RESUMED == 0 else []
            if number % _RESUMED and aside and step != steps[-2]:
                found = [f"went back to {step}"]
            wrong = int(bool(found) or aside == is_same)
            note = str(path.relative_to(run))
            yield Outcome(kind, "gone back" if aside else "unharmed", 0, wrong, f"{note} {found or ''}")


def one_of_two(bench: Bench) -> Iterator[Outcome]:
    """Of two processes that train together, one is killed; the other must end, and both continue."""
    config = bench.jobs[0].configs[0]
    flags = [f"--gin.{key}={value!r}" for key, value in gin_io.settings_of(config).items() if value is not None]
    twin = bench.root / "twins" / "two-processes"
    if read_result(twin) is None:
        shutil.rmtree(twin, ignore_errors=True)
        codes, _ = _pair(twin, flags, None, bench)
        assert codes == [0, 0], codes
    while True:
        with bench.work() as work:
            victim = bench.rng.randrange(2)
            codes, seconds = _pair(work / "run", flags, victim, bench)
            before = whole_steps(work / "run")
            last, _ = _pair(work / "run", flags, None, bench)
            lost = len(before) and max(before) > max(saved_steps(work / "run"), default=0)
            job, other = Job("two", (_replace(config, str(work / "run")),)), Job("two", (_replace(config, str(twin)),))
            found = differences(job, other) if last == [0, 0] else [f"exit codes {last}"]
            wrong = int(bool(found) or (codes[1 - victim] == 0 and codes[victim] != 0))
            note = f"process {victim} killed, the other ended {seconds:.1f} s later with {codes[1 - victim]} {found}"
            yield Outcome("kill of one of two", "resumed", int(lost), wrong, note)


def _pair(run: Path, flags: list[str], victim: int | None, bench: Bench) -> tuple[list[int], float]:
    """The exit codes of two processes, and how long the survivor outlived the killed one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    kept = [flag for flag in flags if not flag.startswith(("--gin.RunConfig.output_dir", "--gin.MeshConfig"))]
    command = [sys.executable, "train.py", *kept, f"--gin.RunConfig.output_dir={run}", "--num_processes=2"]
    command += [f"--coordinator=127.0.0.1:{port}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    log = (bench.root / "pairs.txt").open("a")
    pair = [
        subprocess.Popen(
            [*command, f"--process_id={number}"], cwd=ROOT, env=environment, stdout=log, stderr=log, text=True
        )
        for number in range(2)
    ]
    struck = time.monotonic()
    if victim is not None:
        while not (run / "metrics.jsonl").exists() and pair[victim].poll() is None:
            time.sleep(0.05)
        time.sleep(bench.rng.uniform(0, 4))
        pair[victim].kill()
        struck = time.monotonic()
    codes = [process.wait(timeout=_LONGEST) for process in pair]
    log.close()
    return codes, time.monotonic() - struck


CASES: dict[str, tuple[Callable[[Bench], Iterator[Outcome]], int]] = {
    "freezes": (freezes, 300),
    "kills": (kills, 200),
    "flips": (flips, 100),
    "truncations": (truncations, 20),
    "missing": (missing, 20),
    "extra": (extra, 20),
    "full_disks": (full_disks, 20),
    "read_only": (read_only, 10),
    "clocks": (clocks, 20),
    "storms": (storms, 20),
    "one_of_two": (one_of_two, 5),
}


def read_counts(path: Path) -> list[Outcome]:
    """The outcomes so far."""
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def table(outcomes: list[Outcome]) -> str:
    """The counts of each kind of fault, in markdown."""
    lines = [
        "| fault | times | went on from what was saved | lost steps | wrong without an error |",
        "|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        good = sum(not outcome.wrong for outcome in own)
        lines.append(f"| {kind} | {len(own)} | {good} | {sum(o.lost for o in own)} | {sum(o.wrong for o in own)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs what is left of the matrix, prints its table, and fails on anything lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where to work, and the counts")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="kinds of faults (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many of each")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so long")
    args = parser.parse_args()
    root, begin = args.output.resolve(), time.monotonic()
    counts = root / "counts.jsonl"
    bench = make_bench(root, seed=len(read_counts(counts)))
    for name in args.only:
        case, wanted = CASES[name]
        outcomes = case(bench)
        kind_count = json.loads((root / "done.json").read_text()) if (root / "done.json").exists() else {}
        while kind_count.get(name, 0) < wanted * args.scale and time.monotonic() - begin < args.seconds:
            outcome = next(outcomes)
            with counts.open("a") as file:
                file.write(json.dumps(outcome._asdict()) + "\n")
            kind_count[name] = kind_count.get(name, 0) + 1
            (root / "done.json").write_text(json.dumps(kind_count))
            print(name, kind_count[name], outcome.result, outcome.note[:200], "WRONG" * outcome.wrong, flush=True)
    outcomes = read_counts(counts)
    print(table(outcomes))
    return int(any(outcome.wrong or outcome.lost for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
