"""The training loop: one for pretraining and fine-tuning, from the config to the last checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
from jax.sharding import Mesh

from gpt.config import RunConfig
from gpt.errors import ConfigError, Preempted
from gpt.gin_io import differences
from gpt.model.attention import check_attention
from gpt.model.gpt import Params
from gpt.sharding import check_divisible, local_rows, make_mesh, shard_batch
from gpt.text.tokenizer import Tokenizer
from gpt.training.checkpoint import Checkpoints, find_checkpoint, load_params, require_whole
from gpt.training.checkpoint_dir import best_step
from gpt.training.evaluate import Score, evaluate
from gpt.training.goodput import total_shares
from gpt.training.interrupt import StopSignals
from gpt.training.meter import Meter
from gpt.training.optimizer import make_optimizer, make_schedule
from gpt.training.owner import owned
from gpt.training.problem import Problem, load_problem
from gpt.training.processes import is_first, meet
from gpt.training.profiling import Profiler, ProfileSteps
from gpt.training.record import record_start
from gpt.training.report import Report, Silence, open_report
from gpt.training.run_dir import (
    load_config,
    load_tokenizer,
    open_run,
    read_metrics,
    read_result,
    write_result,
)
from gpt.training.skipped import Finished, SkippedUpdates
from gpt.training.state import TrainState, create_state, make_keys, transfer
from gpt.training.steps import make_eval_step, make_train_step
from gpt.training.watchdog import PATIENCE, Watchdog


def train(config: RunConfig, profile_steps: ProfileSteps | None = None, *, until: int | None = None) -> dict[str, Any]:
    """Runs, or continues, the training that `config` describes; the summary of a finished run at once.

    `profile_steps` are traced by jax.profiler into RUN/profile. `until` ends it after that update, without a summary.

    Raises:
      GPTError: a setting or a file cannot be used; nothing has been overwritten then.
      Preempted: SIGTERM or Ctrl-C came; the state is saved, and the same call continues.
      NotFinite: too many updates in a row were skipped; nothing of them is in the weights.
    """
    tokenizer, problem = load_inputs(config)
    meet()  # What one process lacks ends all: the devices of one wait for those of the others.
    mesh = make_mesh(config.mesh)
    check_divisible(mesh, config.model, config.batch_size, config.accumulation_steps, config.pack_size)
    check_attention(mesh, config.model)
    if profile_steps is not None:
        profile_steps.require_within(1, problem.num_steps)

    run_dir = open_run(config, tokenizer)
    finished = read_result(run_dir)
    if finished is not None:
        if profile_steps is not None:
            raise ConfigError(f"--profile_steps: the run in {run_dir} is finished; set another RunConfig.output_dir")
        return finished
    with owned(run_dir), Checkpoints(run_dir, config.checkpoint) as checkpoints:
        _Training(config, problem, mesh, run_dir, checkpoints).run(profile_steps, until or problem.num_steps)
    meet()  # The first process has written the last line.
    if until is not None:
        return {}
    result = summary(run_dir, problem)
    if config.patience is not None:
        best = best_step(run_dir)
        result["best"] = next(
            line for line in read_metrics(run_dir) if line["kind"] == "validation" and line["step"] == best
        )
    if is_first():
        write_result(run_dir, result)
    return result


def load_inputs(config: RunConfig) -> tuple[Tokenizer, Problem]:
    """The vocabulary and the data of a training; GPTError when they, or the weights to start from, cannot be used."""
    if config.max_steps == 0:
        raise ConfigError(
            "RunConfig.max_steps = 0 describes weights that `gpt convert` wrote, not a training: to train them "
            "further, set RunConfig.init_from to their directory, and RunConfig.max_steps to None or more than 0"
        )
    tokenizer = Tokenizer.load(config.tokenizer.path, config.tokenizer.route)
    problem = load_problem(config, tokenizer)
    if config.init_from is not None:
        check_pretrained(config, tokenizer)
    return tokenizer, problem


class _Training:
    """One run at work."""

    def __init__(self, config: RunConfig, problem: Problem, mesh: Mesh, run_dir: Path, checkpoints: Checkpoints):
        self._config, self._problem, self._mesh, self._run_dir = config, problem, mesh, run_dir
        self._checkpoints = checkpoints
        rows = local_rows(mesh, config.num_batch_units)
        self._batches = problem.batches_of_seed(config.seed_of_data, rows=rows.tolist())
        share = len(rows) / config.num_batch_units
        self._meter = Meter(config.model, share, with_softmax="lm_loss" in problem.objective.coefficients)
        optimizer = make_optimizer(config.optimizer, problem.num_steps)
        keys = make_keys(config)
        state, shardings = create_state(config.model, problem.num_outputs, optimizer, keys, mesh)
        # Where the step is, on every device: no update has to send it there.
        self._dropout_key = jax.jit(lambda key: key, out_shardings=shardings.step)(keys.dropout)
        start = checkpoints.newest_verified()
        pretrained = None if start is not None else load_pretrained(config, mesh)
        self._state = starting_state(config, state, checkpoints, start, pretrained)
        self._first = int(self._state.step)
        notes = checkpoints.notes(start) if start else {}
        self._meter.put_back(notes.get("unread", []))
        self._scores: list[float] = notes.get("scores", [])
        self._train_step = self._meter.timed(
            make_train_step(config.model, problem.objective, optimizer, config.accumulation_steps, shardings)
        )
        self._eval_step = make_eval_step(config.model, problem.objective)
        self._schedule = make_schedule(config.optimizer, problem.num_steps)

    def run(self, profile_steps: ProfileSteps | None, until: int) -> None:
        """Makes all updates that are left, the last of them `until`, or those until patience ends.

        Raises:
          Preempted: a signal stopped it before the last.
          NotFinite: too many updates in a row were skipped.
        """
        config, problem, meter = self._config, self._problem, self._meter
        first, last = self._first, problem.num_steps
        if self._is_stalled():
            return  # It was killed after its last update.
        if profile_steps is not None:
            profile_steps.require_within(first + 1, last)
        title = config.task.name or "pretraining"
        with (
            open_report(self._run_dir, first, last, title) as report,
            StopSignals() as signals,
            Profiler(profile_steps, self._run_dir / "profile") as profiler,
            Watchdog(config.update_timeout_seconds) as watchdog,
        ):
            report.say(f"{title}: {last} updates, {describe(problem.facts)}; run directory {self._run_dir}")
            for note in problem.notes:
                report.say(f"warning: {note}")
            finished = Finished()
            skipped = SkippedUpdates(config, self._run_dir, first, problem.numbers_of, report.log)
            if is_first():
                record_start(self._run_dir, first)
            for step, batch in enumerate(meter.waiting(iterate(self._batches, first, until)), first + 1):
                with profiler.update(step, meter.wait):
                    sharded = shard_batch(self._mesh, batch, config.num_batch_units)
                    watchdog.expects(f"update {step}", patience=PATIENCE if meter.is_new(sharded) else 1.0)
                    self._state, metrics = self._train_step(self._state, sharded, self._dropout_key)
                    meter.add(metrics, batch)
                report.advance(step)
                stops, saves = signals.stop_after(step), self._checkpoints.is_due(step)
                due = due_after(step, last, config, stops=stops, saves=saves)
                for update in finished.add(step, metrics) + (finished.rest() if any(due) else []):
                    skipped.judge(*update)
                self._follow(step, due, report, watchdog)
                if step == last or self._is_stalled():
                    break
                if due.stops:
                    raise Preempted(
                        f"{signals.reason}: saved step {step} of {last}; the same command continues from there"
                    )

    def _follow(self, step: int, due: "Due", report: Report | Silence, watchdog: Watchdog) -> None:
        """What is due after an update: a log line, an evaluation, a checkpoint, in this order."""
        meter, score = self._meter, None
        if due.log:
            report.log(step, "train", {**meter.read(), "learning_rate": float(self._schedule(step - 1))})
        if due.evaluate:
            watchdog.expects(f"the evaluation after update {step}", patience=PATIENCE)
            with meter.spent("evaluate"):
                scores = evaluate(self._eval_step, self._state.params, self._problem, self._mesh)
            report.log(step, "validation", {name: score.value for name, score in scores.items()})
            score = main_score(self._problem, scores)
            self._scores.append(score)
        is_stalled = self._is_stalled()
        if is_stalled:
            report.say(f"{self._config.patience} evaluations without a better score: training ends")
        if due.save:
            watchdog.expects(f"the checkpoint of update {step}", patience=PATIENCE)
            with meter.spent("save"):
                notes = {"score": score, "scores": list(self._scores), "unread": meter.unread()}
                self._checkpoints.begin_save(self._state, notes)
            report.log(step, "time", meter.read_time())
            report.sync()  # What a checkpoint follows is on disk before it.
            self._checkpoints.publish()
            if due.stops or is_stalled:
                self._checkpoints.finish(self._state, notes)
        watchdog.expects(f"the batch of update {step + 1}")

    def _is_stalled(self) -> bool:
        """Whether as many evaluations as `patience` allows have passed since the best one."""
        patience, scores = self._config.patience, self._scores
        return patience is not None and bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


class Due(NamedTuple):
    """What follows an update; `stops` means that none comes after it here."""

    log: bool
    evaluate: bool
    save: bool
    stops: bool


def due_after(step: int, last: int, config: RunConfig, *, stops: bool, saves: bool) -> Due:
    """What follows update `step` of `last`, at the end everything; a signal `stops`, or a checkpoint `saves`."""
    ends = stops or step == last
    return Due(
        log=step % config.log_every_steps == 0 or step == last,
        evaluate=step % config.evaluate_every_steps == 0 or step == last,
        save=saves or ends,
        stops=ends,
    )


def main_score(problem: Problem, scores: dict[str, Score]) -> float:
    """What the best checkpoint is chosen by, the higher the better: a task's first metric, or the negative loss."""
    if problem.task is None:
        return -scores["lm_loss"].value
    return scores[problem.task.metrics[0]].value


def summary(run_dir: Path, problem: Problem) -> dict[str, Any]:
    """What a finished run has for a result: its last log lines, all its time, and what was counted in its data."""
    lines = read_metrics(run_dir)
    latest = {line["kind"]: line for line in lines}
    if "time" in latest:
        latest["time"] = total_shares(line for line in lines if line["kind"] == "time")
    return {"run": str(run_dir), "step": lines[-1]["step"], **latest, **problem.facts}


def load_pretrained(config: RunConfig, mesh: Mesh) -> Params | None:
    """The weights of `init_from`, if the run starts from any."""
    return None if config.init_from is None else load_params(find_checkpoint(Path(config.init_from)), mesh)


def starting_state(
    config: RunConfig, state: TrainState, checkpoints: Checkpoints, step: int | None, pretrained: Params | None
) -> TrainState:
    """The first there is of: the checkpoint of `step`, pretrained weights or some blocks of them, random weights."""
    if step is not None:
        return checkpoints.restore(step, like=state)
    if pretrained is not None:
        return state._replace(params=transfer(state.params, pretrained, config.num_transferred_layers))
    return state


def check_pretrained(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raises GPTError when the run in `init_from` has no weights, another architecture, or another vocabulary."""
    assert config.init_from is not None
    source = Path(config.init_from)
    saved = load_config(source)
    require_whole(find_checkpoint(source))
    fixed = {f"ModelConfig.{name}" for name in config.model.fixed_by_weights}
    changed = [line for line in differences(saved, config) if line.split(":")[0] in fixed]
    if changed:
        raise ConfigError(f"RunConfig.init_from = {config.init_from!r} is another architecture: {'; '.join(changed)}")
    if load_tokenizer(source).sha256 != tokenizer.sha256:
        raise ConfigError(
            f"TokenizerConfig.path = {config.tokenizer.path!r} is not the vocabulary that RunConfig.init_from = "
            f"{config.init_from!r} was trained with: set it to {str(source / 'tokenizer')!r}"
        )


def iterate(batches: grain.MapDataset, first: int, last: int) -> grain.DatasetIterator:
    """Batches of updates first + 1 to last, made ahead by background threads."""
    remaining = batches.slice(slice(first, last))
    return iter(remaining.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def describe(facts: dict[str, Any]) -> str:
    """What was counted in the data, for people."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in facts.items())
