"""Many runs in one compiled program: a `population` axis over runs of equal shape, a few members on each device.

Members differ in what a program takes as numbers: seed, learning rate, weight decay, lambda. The step is
that of `train.py` under `jax.vmap`, and each member has the run directory that it would have alone.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt.config import MeshConfig, RunConfig
from gpt.data.batches import TaskBatch, TextBatch
from gpt.errors import ConfigError, DataError, Preempted
from gpt.model.attention import check_attention
from gpt.model.gpt import Params
from gpt.sharding import check_population, make_mesh, map_population, shard_population
from gpt.training.evaluate import join_scores, judge_results
from gpt.training.interrupt import StopSignals
from gpt.training.loop import describe, due_after, iterate, load_inputs, load_pretrained, main_score, starting_state
from gpt.training.members import (
    Member,
    common_step,
    float_array,
    judge_updates,
    log_updates,
    of_member,
    save_members,
    unread,
)
from gpt.training.meter import Meter
from gpt.training.optimizer import make_optimizer
from gpt.training.problem import Problem
from gpt.training.record import record_start
from gpt.training.run_dir import open_run, read_result
from gpt.training.skipped import Finished
from gpt.training.state import TrainState, make_creation, make_keys
from gpt.training.steps import EvalStep, Scalars, compiler_options, make_evaluation, make_update
from gpt.training.watchdog import PATIENCE, Watchdog


class Knobs(NamedTuple):
    """What members differ in, as the step takes it: one entry a member, on the leading axis."""

    learning_rate: Any
    weight_decay: Any
    coefficients: dict[str, Any]  # of each loss
    dropout_key: Any


def population_key(config: RunConfig) -> RunConfig:
    """`config` without what members of a population may differ in: those of equal keys train together.

    These are seed, output_dir, learning rate, weight decay, and lambda where it is above 0: without
    the language model a step is another program.
    """
    return dataclasses.replace(
        config,
        seed=0,
        output_dir="",
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0, weight_decay=0.0),
        task=dataclasses.replace(config.task, lm_coef=float(config.task.lm_coef > 0)),
    )


def train_population(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Runs, or continues, the trainings that `configs` describe, all at once; the summary of each, as `train`'s.

    A member whose scores are no longer numbers stops, as it would alone, and leaves the others as they
    are: in place of its summary stand `run`, `step` and `error`, and it has no result.json.

    Members continue from the newest step that all of them have saved; what one has beyond that is kept.

    Raises:
      GPTError: a setting or a file cannot be used, or the configs do not belong together.
      Preempted: SIGTERM or Ctrl-C came; all states are saved, and the same call continues.
    """
    config = _check_together(configs)
    tokenizer, problem = load_inputs(config)
    mesh = make_mesh(config.mesh)
    check_population(mesh)
    check_attention(mesh, config.model)

    run_dirs = [open_run(member, tokenizer) for member in configs]
    results = [read_result(run_dir) for run_dir in run_dirs]
    unfinished = [index for index, result in enumerate(results) if result is None]
    if unfinished:
        with contextlib.ExitStack() as stack:
            members = [
                Member(configs[index], run_dirs[index], problem, stack, is_shown=index == unfinished[0])
                for index in unfinished
            ]
            _train(members, problem, mesh)
        for index, member in zip(unfinished, members, strict=True):
            results[index] = member.result(problem)
    return [result for result in results if result is not None]


def _check_together(configs: Sequence[RunConfig]) -> RunConfig:
    """The first of the configs; ConfigError unless all can be members of one population."""
    if not configs:
        raise ConfigError("a population needs at least one config")
    if len({population_key(config) for config in configs}) > 1:
        raise ConfigError(
            "members of a population may differ in RunConfig.seed, RunConfig.output_dir, "
            "OptimizerConfig.learning_rate, OptimizerConfig.weight_decay, and TaskConfig.lm_coef above 0 alone: "
            "group them by population_key"
        )
    if len({Path(config.output_dir).resolve() for config in configs}) < len(configs):
        raise ConfigError("two members of a population have the same RunConfig.output_dir: give each its own")
    if configs[0].patience is not None:
        raise ConfigError(
            f"RunConfig.patience = {configs[0].patience}: members of a population end together; train each by itself"
        )
    if configs[0].pack_size is not None:
        raise ConfigError(
            f"RunConfig.pack_size = {configs[0].pack_size}: members of a population need batches of equal shape, and "
            "the rows that packs take depend on the seed; set it to None, or train each by itself"
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"a population trains in one process, and here are {jax.process_count()}: "
            "divide the runs over the processes, as `gpt sweep --shard i/n` does"
        )
    return configs[0]


def _train(members: list[Member], problem: Problem, mesh: Mesh) -> None:
    config = members[0].config
    meter = Meter(config.model, with_softmax="lm_loss" in problem.objective.coefficients)
    # Every device takes as many members; copies of the last fill it up and go nowhere.
    lanes = [*members, *members[-1:] * (-len(members) % mesh.size)]
    state, knobs = _starting_population(lanes, problem, mesh)
    train_step, eval_step = make_population_steps(config, problem, mesh)
    train_step = meter.timed(train_step)
    batches = _stack_batches(problem, lanes)
    first, last = int(jax.device_get(state.step)[0]), problem.num_steps
    window = unread(lanes, first) if first else []
    report = members[0].report
    with StopSignals() as signals, Watchdog(config.update_timeout_seconds) as watchdog:
        report.say(
            f"population of {len(members)} on {mesh.size} devices: {last} updates from {first}, "
            f"{describe(problem.facts)}; shown here: {members[0].run_dir}"
        )
        for note in problem.notes:
            report.say(f"warning: {note}")
        finished = Finished()
        for member in members:
            member.watch_updates(problem, first)
            record_start(member.run_dir, first, len(members))
        for step, batch in enumerate(meter.waiting(iterate(batches, first, last)), first + 1):
            watchdog.expects(f"update {step}", patience=PATIENCE if meter.is_new(batch) else 1.0)
            state, metrics = train_step(state, shard_population(mesh, batch), knobs)
            meter.add(metrics, jax.tree.map(lambda leaf: leaf[: len(members)], batch))
            window.append(metrics)
            report.advance(step)
            stops, saves = signals.stop_after(step), any(member.checkpoints.is_due(step) for member in members)
            due = due_after(step, last, config, stops=stops, saves=saves)
            judge_updates(members, finished.add(step, metrics) + (finished.rest() if any(due) else []))
            if due.log:
                log_updates(members, step, meter.read_speed(), jax.device_get(window))
                window = []
            for member in members:
                member.score = None
            if due.evaluate:
                watchdog.expects(f"the evaluation after update {step}", patience=PATIENCE)
                with meter.spent("evaluate"):
                    _evaluate(members, step, eval_step, state.params, problem)
            if due.save:
                watchdog.expects(f"the checkpoints of update {step}", patience=PATIENCE)
                window = jax.device_get(window)
                save_members(members, step, state, meter, window, is_last=due.stops)
            if due.stops and step < last:
                raise Preempted(f"{signals.reason}: saved step {step} of {last}; the same command continues from there")
            if all(member.failure for member in members):
                return
            watchdog.expects(f"the batch of update {step + 1}")


def _starting_population(lanes: list[Member], problem: Problem, mesh: Mesh) -> tuple[TrainState, Knobs]:
    """The states of all members, each where its own run would start, and what they differ in."""
    config = lanes[0].config
    optimizer = make_optimizer(config.optimizer, problem.num_steps)
    create = jax.jit(make_creation(config.model, problem.num_outputs, optimizer))
    one_device = make_mesh(MeshConfig(), jax.devices()[:1])
    common = common_step(lanes)
    pretrained = None if common is not None else load_pretrained(config, one_device)
    states, keys = [], []
    for member in lanes:
        own_keys = make_keys(member.config)
        fresh = create(own_keys)
        state = starting_state(member.config, fresh, member.checkpoints, common, pretrained)
        states.append(jax.device_get(state))
        keys.append(own_keys.dropout)
    knobs = Knobs(
        learning_rate=float_array(member.config.optimizer.learning_rate for member in lanes),
        weight_decay=float_array(member.config.optimizer.weight_decay for member in lanes),
        coefficients={
            name: float_array(_coefficient(member.config, name, value) for member in lanes)
            for name, value in problem.objective.coefficients.items()
        },
        dropout_key=jnp.stack(keys),
    )
    return shard_population(mesh, (jax.tree.map(lambda *leaves: np.stack(leaves), *states), knobs))


def _coefficient(config: RunConfig, name: str, value: float) -> float:
    return config.task.lm_coef if name == "lm_loss" and not config.is_pretraining else value


def make_population_steps(config: RunConfig, problem: Problem, mesh: Mesh) -> tuple[Callable[..., Any], EvalStep]:
    """The compiled update of all members, from (state, batch, knobs), and the evaluation of one batch by all."""

    def update(state: TrainState, batch: TextBatch | TaskBatch, knobs: Knobs) -> tuple[TrainState, Scalars]:
        optimizer = make_optimizer(config.optimizer, problem.num_steps, knobs.learning_rate, knobs.weight_decay)
        objective = copy.copy(problem.objective)
        objective.coefficients = knobs.coefficients
        one = make_update(config.model, objective, optimizer, config.accumulation_steps)
        return one(state, batch, knobs.dropout_key)

    evaluation = make_evaluation(config.model, problem.objective)
    return (
        jax.jit(
            map_population(mesh, update, (0, 0, 0)),
            donate_argnums=0,
            compiler_options=compiler_options(config.model, mesh),
        ),
        jax.jit(map_population(mesh, evaluation, (0, None))),
    )


def _stack_batches(problem: Problem, lanes: list[Member]) -> grain.MapDataset:
    """Batch k of every member, stacked: of all seeds it has the same shape."""
    by_seed = {seed: problem.batches_of_seed(seed) for seed in {member.config.seed_of_data for member in lanes}}

    def stack(step: int) -> TextBatch | TaskBatch:
        batch_of = {seed: batches[step] for seed, batches in by_seed.items()}
        return jax.tree.map(
            lambda *leaves: np.stack(leaves), *(batch_of[member.config.seed_of_data] for member in lanes)
        )

    return grain.MapDataset.range(problem.num_steps).map(stack)


def _evaluate(members: list[Member], step: int, eval_step: EvalStep, params: Params, problem: Problem) -> None:
    """A line of each member with its scores; a member without finite ones has failed."""
    results = {
        split: [jax.device_get(eval_step(params, batch)) for batch in held_out.batches()]
        for split, held_out in problem.held_outs.items()
    }
    for index, member in enumerate(members):
        try:
            scores = join_scores(
                {
                    split: judge_results([of_member(result, index) for result in batches], problem, split).scores
                    for split, batches in results.items()
                }
            )
        except DataError as error:
            if member.failure is None:
                member.failure = (step, str(error))
                members[0].report.say(f"warning: {member.run_dir} stops here, the others go on: {error}")
            continue
        member.log(step, "validation", {name: score.value for name, score in scores.items()})
        member.score = main_score(problem, scores)
