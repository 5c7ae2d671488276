"""The training loop: one for pretraining and fine-tuning, from the config to the last checkpoint."""

from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh

from gpt.config import RunConfig
from gpt.errors import ConfigError, Preempted
from gpt.gin_io import differences
from gpt.sharding import check_divisible, make_mesh, shard_batch
from gpt.text.tokenizer import Tokenizer
from gpt.training.checkpoint import Checkpoints, find_checkpoint, load_params
from gpt.training.evaluate import evaluate
from gpt.training.interrupt import StopSignals
from gpt.training.meter import Meter
from gpt.training.optimizer import make_optimizer, make_schedule
from gpt.training.problem import Problem, load_problem
from gpt.training.report import Report
from gpt.training.run_dir import (
    load_config,
    load_tokenizer,
    open_run,
    read_metrics,
    read_result,
    write_result,
)
from gpt.training.state import TrainState, create_state, transfer
from gpt.training.steps import make_eval_step, make_train_step


def train(config: RunConfig) -> dict[str, Any]:
    """Runs, or continues, the training that `config` describes; the summary of a finished run at once.

    Raises:
      GPTError: a setting or a file cannot be used; nothing has been overwritten then.
      Preempted: SIGTERM or Ctrl-C came; the state is saved, and the same call continues.
    """
    if config.max_steps == 0:
        raise ConfigError(
            "RunConfig.max_steps = 0 describes weights that `gpt convert` wrote, not a training: to train them "
            "further, set RunConfig.init_from to their directory, and RunConfig.max_steps to None or more than 0"
        )
    tokenizer = Tokenizer.load(config.tokenizer.path, config.tokenizer.route)
    problem = load_problem(config, tokenizer)
    if config.init_from is not None:
        check_pretrained(config, tokenizer)
    mesh = make_mesh(config.mesh)
    check_divisible(mesh, config.model, config.batch_size, config.accumulation_steps)

    run_dir = open_run(config, tokenizer)
    finished = read_result(run_dir)
    if finished is not None:
        return finished
    with Checkpoints(run_dir, config.checkpoint) as checkpoints:
        result = _train(config, problem, mesh, run_dir, checkpoints)
    write_result(run_dir, result)
    return result


def _train(config: RunConfig, problem: Problem, mesh: Mesh, run_dir: Path, checkpoints: Checkpoints) -> dict[str, Any]:
    optimizer = make_optimizer(config.optimizer, problem.num_steps)
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    state, shardings = create_state(config.model, problem.num_outputs, optimizer, init_key, mesh)
    state = _starting_state(config, state, mesh, checkpoints)
    train_step = make_train_step(
        config.model, problem.objective, optimizer, dropout_key, config.accumulation_steps, shardings
    )
    eval_step = make_eval_step(config.model, problem.objective)
    schedule = make_schedule(config.optimizer, problem.num_steps)
    meter = Meter(config.model)

    first, last = int(state.step), problem.num_steps
    title = config.task.name or "pretraining"
    with Report(run_dir, first, last, title) as report, StopSignals() as signals:
        report.say(f"{title}: {last} updates, {_describe(problem.facts)}; run directory {run_dir}")
        for note in problem.notes:
            report.say(f"warning: {note}")
        for step, batch in enumerate(_batches(problem, first), first + 1):
            state, metrics = train_step(state, shard_batch(mesh, batch))
            meter.add(metrics, batch)
            report.advance(step)
            if step % config.log_every_steps == 0 or step == last:
                report.log(step, "train", {**meter.read(), "learning_rate": float(schedule(step - 1))})
            if step % config.evaluate_every_steps == 0 or step == last:
                with meter.paused():
                    scores = evaluate(eval_step, state.params, problem, mesh)
                report.log(step, "validation", {name: score.value for name, score in scores.items()})
            if step % config.checkpoint.save_every_steps == 0 or step == last or signals.received:
                checkpoints.save(state)
            if signals.received and step < last:
                raise Preempted(
                    f"{signals.received}: saved step {step} of {last}; the same command continues from there"
                )
    latest = {line["kind"]: line for line in read_metrics(run_dir)}
    return {"run": str(run_dir), "step": last, **latest, **problem.facts}


def _starting_state(config: RunConfig, state: TrainState, mesh: Mesh, checkpoints: Checkpoints) -> TrainState:
    """The newest of: this run's latest checkpoint, the weights or some blocks of `init_from`, random weights."""
    if checkpoints.latest_step is not None:
        return checkpoints.restore(checkpoints.latest_step, like=state)
    if config.init_from is not None:
        pretrained = load_params(find_checkpoint(Path(config.init_from)), mesh)
        return state._replace(params=transfer(state.params, pretrained, config.num_transferred_layers))
    return state


def check_pretrained(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raises GPTError when the run in `init_from` has no weights, another architecture, or another vocabulary."""
    assert config.init_from is not None
    source = Path(config.init_from)
    saved = load_config(source)
    find_checkpoint(source)
    free = ("num_special_tokens", "_rate", "_dropout", "softmax_over", "compute_dtype", "scan_layers", "init_std")
    changed = [
        line
        for line in differences(saved, config)
        if line.startswith("ModelConfig.") and not any(name in line.split(":")[0] for name in free)
    ]
    if changed:
        raise ConfigError(f"RunConfig.init_from = {config.init_from!r} is another architecture: {'; '.join(changed)}")
    if load_tokenizer(source).sha256 != tokenizer.sha256:
        raise ConfigError(
            f"TokenizerConfig.path = {config.tokenizer.path!r} is not the vocabulary that RunConfig.init_from = "
            f"{config.init_from!r} was trained with: set it to {str(source / 'tokenizer')!r}"
        )


def _batches(problem: Problem, first: int) -> grain.DatasetIterator:
    """Batches of updates first + 1 to the last, made ahead by background threads."""
    remaining = problem.train_batches.slice(slice(first, problem.num_steps))
    return iter(remaining.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def _describe(facts: dict[str, Any]) -> str:
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in facts.items())
