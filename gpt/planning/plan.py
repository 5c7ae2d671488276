"""A run on one mesh of hardware that is not there: does it compile, does it fit, how fast can it be."""

import dataclasses
import time
from typing import Any

from gpt.config import RunConfig
from gpt.data.store import TokenStore
from gpt.errors import ConfigError, DataError
from gpt.planning.advice import advise
from gpt.planning.collectives import Collective, compiled_collectives
from gpt.planning.estimate import estimate_step, recomputed_flops_per_token
from gpt.planning.hlo import parse
from gpt.planning.roofline import Roofline, roofline
from gpt.planning.step import Memory, compile_step, num_sequences
from gpt.planning.topology import Topology, devices
from gpt.planning.traffic import hbm_traffic
from gpt.sharding import check_divisible, make_mesh
from gpt.training.meter import training_flops_per_token

BOOKS_TOKENS = 1.19e9
"""Tokens of one epoch of BooksCorpus, which the paper does not give: the 0.96 petaflop/s-days that OpenAI published
for GPT, over 6 operations a parameter and token, 116.5 million parameters, 100 epochs."""
_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Workload:
    """What the run has to get through; `num_tokens` is None where it is not known."""

    tokens_per_step: int
    num_tokens: float | None
    source: str

    @property
    def num_steps(self) -> int:
        """Updates of the whole run; where that is not known, any number: only the learning rate depends on it."""
        return 1000 if self.num_tokens is None else max(1, int(self.num_tokens // self.tokens_per_step))


@dataclasses.dataclass(frozen=True)
class Plan:
    """One mesh; memory, operations and traffic are those of one chip in one step."""

    topology: Topology
    axes: dict[str, int]
    is_estimate: bool
    memory: Memory
    flops: float
    hbm_traffic: float
    collectives: list[Collective]
    roofline: Roofline | None
    """None when the program is too large to be compiled, so that nothing is known of it."""
    workload: Workload
    advice: list[str]
    seconds_to_compile: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the step needs no more memory than there is."""
        return self.memory.peak <= self.topology.hbm_bytes

    @property
    def tokens_per_day(self) -> float | None:
        """Tokens that all chips together get through in a day, at most."""
        return None if self.roofline is None else self.workload.tokens_per_step / self.roofline.bound * _DAY

    @property
    def days(self) -> float | None:
        """Days of the whole run, at least."""
        if self.tokens_per_day is None or self.workload.num_tokens is None:
            return None
        return self.workload.num_tokens / self.tokens_per_day

    def to_json(self) -> dict[str, Any]:
        """One object, as `gpt plan --json` prints it."""
        bound = self.roofline
        return {
            "topology": self.topology.name,
            "chips": self.topology.num_chips,
            "axes": self.axes,
            "source": "estimate" if self.is_estimate else "compiler",
            "compiles": None if self.is_estimate else bound is not None,
            "fits": self.fits,
            "bytes": {**dataclasses.asdict(self.memory), "limit": self.topology.hbm_bytes},
            "hbm_traffic": None if bound is None else self.hbm_traffic,
            "collectives": [dataclasses.asdict(one) for one in self.collectives],
            "flops": self.flops,
            "seconds": None if bound is None else bound.seconds,
            "step_seconds_bound": None if bound is None else bound.bound,
            "limited_by": None if bound is None else bound.limited_by,
            "mfu_bound": None if bound is None else bound.mfu,
            "tokens_per_day": self.tokens_per_day,
            "days": self.days,
            "tokens": self.workload.num_tokens,
            "tokens_source": self.workload.source,
            "advice": self.advice,
            "seconds_to_compile": self.seconds_to_compile,
        }


def make_plan(config: RunConfig, topology: Topology, *, estimate: bool = False) -> Plan:
    """The plan of `config` with its own mesh; estimated from shapes if asked for, or if nothing can compile it.

    Raises:
      ConfigError: the mesh does not divide the chips, the model or the batch.
    """
    estimate = estimate or not topology.can_compile
    if config.model.compute_dtype not in topology.chip.peak_flops:
        raise ConfigError(f"ModelConfig.compute_dtype = {config.model.compute_dtype!r}: {topology.chip.name} has none")
    if config.model.attention in ("cudnn", "splash"):
        raise ConfigError(
            f"ModelConfig.attention = {config.model.attention!r}: plans know no fused kernels, only attention that "
            "keeps its scores: set ModelConfig.attention = 'plain', for an upper bound of what the run needs"
        )
    mesh = make_mesh(config.mesh, devices(topology))
    check_divisible(mesh, config.model, config.batch_size, config.accumulation_steps, config.pack_size)
    workload = find_workload(config)
    with_softmax = config.is_pretraining or config.task.lm_coef > 0
    flops_per_token = training_flops_per_token(config.model, config.model.context_length, with_softmax=with_softmax)
    tokens = workload.tokens_per_step / topology.num_chips
    flops, repeated = flops_per_token * tokens, recomputed_flops_per_token(config.model) * tokens

    seconds, start = None, time.perf_counter()
    guess = estimate_step(config, mesh, topology.num_slices)
    memory, traffic, collectives, is_known = guess.memory, guess.hbm_traffic, guess.collectives, True
    if not estimate:
        compiled = compile_step(config, mesh, workload.num_steps)
        seconds = time.perf_counter() - start
        memory, traffic, collectives, is_known = compiled.memory, 0.0, [], compiled.text is not None
        if compiled.text is not None:
            program = parse(compiled.text)
            traffic, collectives = hbm_traffic(program), compiled_collectives(program, topology.num_slices)
    bound = None
    if is_known:
        bound = roofline(topology, config.model.compute_dtype, flops, traffic, collectives, repeated)
    return Plan(
        topology=topology,
        axes={axis: size for axis, size in mesh.shape.items() if size > 1} or {next(iter(mesh.shape)): 1},
        is_estimate=estimate,
        memory=memory,
        flops=flops,
        hbm_traffic=traffic,
        collectives=collectives,
        roofline=bound,
        workload=workload,
        advice=advise(config, mesh, memory, topology.hbm_bytes),
        seconds_to_compile=seconds,
    )


def find_workload(config: RunConfig) -> Workload:
    """How many tokens the run reads: of its own token store if that is there, or else of the paper's corpus."""
    tokens = config.batch_size * num_sequences(config) * config.model.context_length
    if config.max_steps:
        return Workload(tokens, float(tokens * config.max_steps), f"RunConfig.max_steps = {config.max_steps}")
    if not config.is_pretraining:
        return Workload(tokens, None, f"examples of {config.task.name!r} are not read, so their number is not known")
    epochs = f"{config.num_epochs} epochs of "
    try:
        size = sum(len(TokenStore.open(store).split("train")) for store in config.data.token_stores)
    except DataError:
        size = 0
    if size == 0:
        return Workload(
            tokens, config.num_epochs * BOOKS_TOKENS, f"{epochs}BooksCorpus, about {BOOKS_TOKENS:.3g} tokens"
        )
    return Workload(
        tokens, config.num_epochs * float(size), f"{epochs}{', '.join(config.data.token_stores)}: {size:,} tokens"
    )
