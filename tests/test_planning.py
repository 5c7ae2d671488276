"""`gpt plan`: names of hardware, what is read from a program, estimates, and what is compiled where libtpu is."""

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from toy import Command, Toy

from gpt import gin_io
from gpt.config import MeshConfig, ModelConfig, RunConfig, TokenizerConfig
from gpt.config.data import DataConfig
from gpt.errors import ConfigError
from gpt.hardware import CHIPS
from gpt.planning import libtpu
from gpt.planning.collectives import Collective, compiled_collectives, sent_bytes
from gpt.planning.estimate import estimate_step
from gpt.planning.hlo import parse
from gpt.planning.plan import BOOKS_TOKENS, Plan, find_workload, make_plan
from gpt.planning.roofline import Roofline, roofline
from gpt.planning.search import search
from gpt.planning.step import batch_shapes, sharded_bytes
from gpt.planning.topology import FAMILIES, devices, find_topology
from gpt.planning.traffic import hbm_traffic
from gpt.sharding import make_mesh
from gpt.training.optimizer import make_optimizer
from gpt.training.state import Keys, create_state

ROOT = Path(__file__).parents[1]
PRETRAIN = str(ROOT / "configs" / "run" / "pretrain.gin")
SMALL = (f"--gin_file={PRETRAIN}", f"--gin_file={ROOT / 'configs' / 'model' / 'tiny.gin'}")
MODEL = ModelConfig(vocab_size=64, context_length=16, num_layers=3, num_heads=4, embed_dim=32, mlp_dim=64)
CONFIG = RunConfig(
    output_dir="run",
    batch_size=8,
    tokenizer=TokenizerConfig(path="tokenizer"),
    data=DataConfig(token_store="tokens"),
    model=MODEL,
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[aot]'"
)


def with_mesh(**axes: int) -> RunConfig:
    return dataclasses.replace(CONFIG, mesh=MeshConfig(**axes))


# Names


def test_slices_are_named_before_the_chip_or_by_themselves() -> None:
    topology = find_topology("2*v5e:4x4")
    assert topology == find_topology("V5E:4x4", num_slices=2)
    assert (topology.num_chips, topology.slice_size, topology.chip.name) == (32, 16, "TPU v5e")
    assert find_topology("v4:4x4x12").num_chips == 192


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5x:2x2", None, r"unknown chip 'v5x'; did you mean `v5\w`\?(.|\n)*v4: v4:2x2x1, .*\n.*v5e: v5e:1x1, v5e:2x2"),
        ("v5e-8", None, r"expected CHIP:SHAPE or SLICES\*CHIP:SHAPE. Known(.|\n)*h100: h100:1, h100:2"),
        ("v5e:3x3", None, "v5e has no shape '3x3'; it comes as 1x1, 2x2, 2x4"),
        ("v4:2x2x3", None, "v4 has no shape '2x2x3'; it comes as .* and any AxBxC of multiples of 4"),
        ("2*v5e:2x2", 3, "says 2 slices and --slices 3: leave one of them out"),
        ("0*v5e:2x2", None, "expected 1 slice or more"),
    ],
)
def test_a_topology_that_is_not_there_is_an_error_that_lists_those_that_are(
    name: str, slices: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_topology(name, slices)


def test_every_family_is_a_known_chip_and_uses_no_more_memory_than_it_has() -> None:
    chips = {chip.name: chip for chip in CHIPS}
    for family in FAMILIES.values():
        assert (family.hbm_bytes or 0) <= chips[family.chip].hbm_bytes * 1.01


# What is read from a compiled program


def compile_sums(num_layers: int) -> str:
    """Text of a loop of products whose contraction is split over four devices: one all-reduce a layer."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def place(spec: PartitionSpec, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    def apply(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    x, kernels = place(PartitionSpec(None, "data"), 8, 16), place(PartitionSpec(None, "data", None), num_layers, 16, 16)
    return jax.jit(apply).lower(x, kernels).compile().as_text() or ""


@pytest.mark.parametrize("num_layers", [3, 7])
def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs(num_layers: int) -> None:
    (collective,) = compiled_collectives(parse(compile_sums(num_layers)), num_slices=1)
    # All-reduces of [8, 16] float32 over four chips: each sends 2 x 3/4 of it.
    assert (collective.kind, collective.network, collective.count) == ("all-reduce", "ici", num_layers)
    assert collective.sent_bytes == num_layers * 8 * 16 * 4 * 2 * 3 / 4


HEAD = """HloModule step, is_scheduled=true

%region (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}
"""


def entry(*lines: str) -> str:
    return HEAD + "ENTRY %main (p: f32[8]) -> f32[8] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7}}",
        "[2,4]<=[8]",
        "[2,4]<=[4,2]T(1,0)",
        "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
        "mesh['axis_0'=2,'axis_1'=2,'axis_2'=2], device_ids=([2,2,2]T(2,1,0)) {'axis_0','axis_2'}",
    ],
)
def test_groups_are_read_in_every_way_that_xla_writes_them(groups: str) -> None:
    text = entry(
        "%p = f32[8]{0:T(128)} parameter(0)",
        f"ROOT %r = f32[8]{{0:T(128)}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%region",
    )
    assert compiled_collectives(parse(text), 1) == [Collective("all-reduce", "ici", 1, 32 * 2 * 3 / 4)]


def test_a_transfer_between_slices_is_counted_apart() -> None:
    text = entry(
        "%p = f32[8]{0:T(128)} parameter(0)",
        "%t = token[] after-all()",
        "%s = (f32[8]{0:T(128)}, u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}',
        "ROOT %r = f32[8]{0:T(128)} bitcast(%p)",
    )
    assert compiled_collectives(parse(text), 2) == [Collective("all-reduce", "dcn", 1, 32.0)]


LOOP = """
%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %i = s32[] get-tuple-element(%t), index=0
  %r = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%region
  ROOT %out = (s32[], f32[8]{0}) tuple(%i, %r)
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %end = s32[] constant(12)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}
"""


@pytest.mark.parametrize("first", [0, 1])
def test_a_loop_whose_first_round_was_taken_out_of_it_runs_once_less(first: int) -> None:
    text = entry(
        "%p = f32[8]{0} parameter(0)",
        f"%start = s32[] constant({first})",
        "%init = (s32[], f32[8]{0}) tuple(%start, %p)",
        "%loop = (s32[], f32[8]{0}) while(%init), condition=%condition, body=%body",
        "ROOT %last = f32[8]{0} get-tuple-element(%loop), index=1",
    ).replace("ENTRY", LOOP + "\nENTRY")
    (collective,) = compiled_collectives(parse(text), 1)
    assert collective.count == 12 - first


def test_a_collective_under_way_beside_other_work_counts_once_and_a_kept_part_is_a_reduce_scatter() -> None:
    def fused(name: str, line: str) -> str:
        return f"%{name} (q: f32[8]) -> f32[8] {{\n  %q = f32[8]{{0}} parameter(0)\n  {line}\n}}\n\n"

    gather = "all-gather(%q), channel_id=7, replica_groups={{0,1}}, dimensions={0}"
    start = f"%g = f32[16]{{0}} {gather}\n  ROOT %c = f32[16]{{0}} custom-call(%g)"
    sum_and_keep = "ROOT %k = f32[8]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%region"
    computations = (
        fused("started", f'{start}, custom_call_target="AsyncCollectiveStart"')
        + fused("beside", f"ROOT %h = f32[16]{{0}} {gather}")
        + fused("all-reduce-scatter.1", sum_and_keep)
    )
    text = entry(
        "%p = f32[8]{0} parameter(0)",
        "%one = f32[16]{0} fusion(%p), kind=kCustom, calls=%started",
        "%two = f32[16]{0} fusion(%p), kind=kCustom, calls=%beside",
        "ROOT %three = f32[4]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
    ).replace("ENTRY", computations + "ENTRY")
    found = {one.kind: one for one in compiled_collectives(parse(text), 1)}
    assert found == {
        "all-gather": Collective("all-gather", "ici", 1, 32.0),
        "reduce-scatter": Collective("reduce-scatter", "ici", 1, 16.0),
    }


def test_traffic_is_what_is_read_and_written_and_of_a_slice_the_part() -> None:
    inside = """%sliced (stack: f32[12,8], i: s32[]) -> f32[1,8] {
  %stack = f32[12,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,8}
}

"""
    text = entry(
        "%p = f32[12,8]{1,0} parameter(0)",
        "%n = s32[]{:S(6)} parameter(1)",
        "%row = f32[1,8]{1,0:T(8,128)S(1)} fusion(%p, %n), kind=kLoop, calls=%sliced",
        "ROOT %sum = f32[12,8]{1,0} add(%p, %row)",
    ).replace("ENTRY", inside + "ENTRY")
    # A row of 32 bytes into the chip's own memory, which is free to read again; then the array in and out.
    assert hbm_traffic(parse(text)) == 32 + 2 * 12 * 8 * 4


def test_chips_send_all_but_their_own_share() -> None:
    assert sent_bytes("all-gather", 800.0, 8) == sent_bytes("reduce-scatter", 800.0, 8) == 700
    assert sent_bytes("all-reduce", 800.0, 8) == 1400
    assert sent_bytes("all-reduce", 800.0, 1) == 0
    assert sent_bytes("collective-permute", 800.0, 2) == 800


def test_the_bound_is_the_busiest_part() -> None:
    topology = find_topology("v5e:2x2")
    traffic = [Collective("all-reduce", "ici", 1, 200e9 * 0.3)]
    bound = roofline(topology, "bfloat16", flops=197e12 * 0.1, hbm_traffic=819e9 * 0.2, collectives=traffic)
    assert bound.seconds == pytest.approx({"compute": 0.1, "hbm": 0.2, "ici": 0.3, "dcn": 0.0})
    assert (bound.bound, bound.limited_by, bound.mfu) == (pytest.approx(0.3), "ici", pytest.approx(1 / 3))


def test_repeated_operations_take_time_and_count_for_no_mfu() -> None:
    bound = roofline(find_topology("v5e:2x2"), "bfloat16", 197e12 * 0.3, 0.0, [], repeated_flops=197e12 * 0.1)
    assert (bound.bound, bound.mfu) == pytest.approx((0.4, 0.75))


def test_what_is_sent_over_a_network_of_unknown_speed_bounds_nothing() -> None:
    sent = [Collective("all-reduce", "dcn", 1, 1e9)]
    bound = roofline(find_topology("2*a100:8"), "bfloat16", 1e12, 1e9, sent)
    assert bound.dcn is None
    assert bound.bound > 0


# Estimates


@pytest.mark.parametrize("axes", [{}, {"data": 1, "fsdp": 4}, {"data": 2, "tensor": 2}])
def test_the_state_of_a_chip_is_estimated_to_the_byte(axes: dict[str, int]) -> None:
    config = with_mesh(**axes)
    mesh = make_mesh(config.mesh, jax.devices())
    state, _ = create_state(MODEL, None, make_optimizer(config.optimizer, 1), Keys(*3 * [jax.random.key(0)]), mesh)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    batch = sharded_bytes(batch_shapes(config, mesh))
    placeholders = make_mesh(config.mesh, devices(find_topology("h100:4")))
    assert estimate_step(config, placeholders, 1).memory.arguments == held + batch


def test_splitting_parameters_trades_memory_for_collectives() -> None:
    whole, split = (make_plan(with_mesh(**axes), find_topology("h100:4")) for axes in ({}, {"data": 1, "fsdp": 4}))
    assert split.memory.arguments < whole.memory.arguments / 3
    assert {one.kind for one in whole.collectives} == {"all-reduce"}
    assert {one.kind for one in split.collectives} == {"all-gather", "reduce-scatter"}


def test_two_slices_add_a_sum_between_them() -> None:
    def sent(name: str) -> set[str]:
        return {one.network for one in make_plan(CONFIG, find_topology(name)).collectives}

    assert (sent("h100:8"), sent("2*h100:4")) == ({"ici"}, {"ici", "dcn"})


def test_following_the_advice_makes_a_run_fit() -> None:
    model = dataclasses.replace(ModelConfig(), compute_dtype="bfloat16")
    config = dataclasses.replace(CONFIG, model=model, batch_size=4096)
    plan = make_plan(config, find_topology("a100:4"))
    assert not plan.fits
    parts = next(int(text.split(" = ")[1].split(":")[0]) for text in plan.advice if "accumulation_steps" in text)
    size = next(int(text.split(" = ")[1]) for text in plan.advice if "batch_size" in text)
    for changed in (
        dataclasses.replace(config, accumulation_steps=parts),
        dataclasses.replace(config, batch_size=size),
    ):
        assert make_plan(changed, find_topology("a100:4")).fits


@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
def test_what_backward_computes_again_trades_memory_for_operations(architecture: str) -> None:
    def plan(remat: str) -> tuple[Plan, Roofline]:
        model = dataclasses.replace(MODEL, num_layers=1 if architecture == "lstm" else 3, architecture=architecture)
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(model, remat=remat), batch_size=512)
        plan = make_plan(config, find_topology("h100:4"))
        assert plan.roofline is not None
        return plan, plan.roofline

    plans, bounds = zip(*(plan(remat) for remat in ("none", "dots", "full")), strict=True)
    none, dots, full = (plan.memory.peak for plan in plans)
    assert none > dots > full
    none, dots, full = (bound.compute for bound in bounds)
    # At most the forward pass, a third of the operations, is done twice.
    assert none <= dots < full < none * 4 / 3
    assert len({plan.flops for plan in plans}) == 1


def test_the_least_remat_that_makes_a_run_fit_is_among_the_advice() -> None:
    model = dataclasses.replace(ModelConfig(), compute_dtype="bfloat16")
    config = dataclasses.replace(CONFIG, model=model, batch_size=160)
    plan = make_plan(config, find_topology("v5e:2x2"), estimate=True)
    (advice,) = [text for text in plan.advice if "remat" in text]
    remat = advice.split("'")[1]
    changed = dataclasses.replace(config, model=dataclasses.replace(model, remat=remat))
    assert not plan.fits
    assert make_plan(changed, find_topology("v5e:2x2"), estimate=True).fits


def test_the_best_mesh_is_first_and_all_of_them_divide_the_model() -> None:
    plans = search(CONFIG, find_topology("h100:8"), num_compiled=0)
    assert len(plans) > 8
    assert all(math.prod(plan.axes.values()) == 8 for plan in plans)
    bounds = [plan.roofline.bound for plan in plans if plan.roofline]
    assert bounds == sorted(bounds)
    assert len({json.dumps(plan.axes) for plan in plans}) == len(plans)


def test_a_search_without_a_single_mesh_says_why() -> None:
    config = dataclasses.replace(CONFIG, batch_size=1, model=dataclasses.replace(MODEL, context_length=7, num_heads=1))
    with pytest.raises(ConfigError, match=r"no mesh of h100:8 divides model and batch.*RunConfig.batch_size = 1"):
        search(config, find_topology("h100:8"), num_compiled=0)


# The length of a run


def test_a_run_is_as_long_as_its_own_store_its_steps_or_the_paper_say(toy: Toy) -> None:
    own = dataclasses.replace(CONFIG, data=DataConfig(token_store=str(toy.store)), num_epochs=3)
    tokens = json.loads((toy.store / "index.json").read_text())["splits"]["train"]["tokens"]
    assert find_workload(own).num_tokens == 3 * tokens
    two = DataConfig(token_store={str(toy.store): 1.0, f"file://{toy.store}": 2.0})
    assert find_workload(dataclasses.replace(own, data=two)).num_tokens == 3 * 2 * tokens
    assert find_workload(dataclasses.replace(CONFIG, max_steps=10)).num_tokens == 10 * 8 * 16
    books = find_workload(CONFIG)
    assert books.num_tokens == 100 * BOOKS_TOKENS
    assert "BooksCorpus" in books.source


# The command


@pytest.fixture
def plan(gpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """Runs `gpt plan` here, and restores what it does to the environment."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return lambda *flags: gpt("plan", *flags)


KEYS = {
    "axes", "compiles", "bytes", "collectives", "flops", "step_seconds_bound", "mfu_bound", "fits", "source", "advice",
    "topology", "chips", "hbm_traffic", "seconds", "limited_by", "tokens_per_day", "days", "tokens", "tokens_source",
    "seconds_to_compile",
}  # fmt: skip


def test_an_estimate_needs_no_data_and_says_that_it_is_one(plan: Callable[..., Command]) -> None:
    code, out, err = plan("--topology=h100:8", *SMALL, "--gin.MeshConfig.tensor=2", "--json")
    assert (code, err) == (0, "")
    (row,) = map(json.loads, out.splitlines())
    assert row.keys() == KEYS
    assert (row["source"], row["compiles"], row["axes"]) == ("estimate", None, {"data": 4, "tensor": 2})
    assert row["bytes"].keys() == {"arguments", "temporaries", "peak", "limit"}
    assert 0 < row["mfu_bound"] <= 1
    assert row["days"] == pytest.approx(row["tokens"] / row["tokens_per_day"])
    text = plan("--topology=h100:8", *SMALL).out
    assert "ESTIMATE from shapes alone, nothing was compiled" in text
    assert "100 epochs of BooksCorpus" in text


def test_without_libtpu_a_tpu_is_estimated(plan: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt.planning.topology.importlib.util.find_spec", lambda _name: None)
    (row,) = map(json.loads, plan("--topology=2*v5e:2x2", *SMALL, "--json").out.splitlines())
    assert (row["source"], row["chips"], row["axes"]) == ("estimate", 8, {"data": 8})


def test_a_search_prints_meshes_side_by_side_and_names_the_fastest(plan: Callable[..., Command]) -> None:
    code, out, _ = plan("--topology=h100:4", *SMALL, "--search")
    assert code == 0
    assert "ESTIMATES from shapes alone" in out
    assert "fastest that fits: " in out
    assert len(plan("--topology=h100:4", *SMALL, "--search", "--json").out.splitlines()) > 4


def test_a_task_is_planned_as_well(plan: Callable[..., Command]) -> None:
    task = f"--gin_file={ROOT / 'configs' / 'task' / 'race.gin'}"
    (row,) = map(json.loads, plan("--topology=h100:1", task, "--json").out.splitlines())
    assert row["days"] is None
    assert "'race'" in row["tokens_source"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v9:2x2",), "unknown chip 'v9'"),
        (("--topology=h100:8", "--gin.MeshConfig.fsdp=3"), "does not divide 8 devices"),
        (("--topology=h100:8", "--gin.ModelConfig.num_layer=3"), "no field `num_layer`; did you mean `num_layers`"),
        (("--topology=h100:8", "--batch=3"), "flag '--batch=3' is not known"),
    ],
)
def test_what_cannot_be_planned_is_a_clear_error(
    flags: tuple[str, ...], message: str, plan: Callable[..., Command]
) -> None:
    code, out, err = plan(*flags, *SMALL)
    assert (code, out) == (2, "")
    assert message in err


def test_other_commands_still_refuse_flags_that_they_do_not_know(gpt: Callable[..., Command]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpt("tables", "--runs=runs", "--gin.RunConfig.seed=1")
    assert stop.value.code == 2


def test_settings_that_a_caller_does_not_need_may_be_unset() -> None:
    config = gin_io.load(
        [PRETRAIN],
        ["TokenizerConfig.path=mine"],
        if_unset={"RunConfig.output_dir": "none", "TokenizerConfig.path": "none", "DataConfig.token_store": "none"},
    )
    assert (config.output_dir, config.tokenizer.path, config.data.token_store) == ("none", "mine", "none")


# Compiled


def test_libtpu_looks_for_no_tpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(libtpu, "has_tpu", lambda: True)
    libtpu.set_libtpu_environment()
    assert "TPU_WORKER_HOSTNAMES" not in libtpu.os.environ
    monkeypatch.setattr(libtpu, "has_tpu", lambda: False)
    libtpu.set_libtpu_environment()
    assert libtpu.os.environ["TPU_WORKER_HOSTNAMES"] == "localhost"


@needs_libtpu
def test_the_step_of_a_run_is_compiled_for_tpus_that_are_not_there() -> None:
    model = dataclasses.replace(MODEL, num_layers=2, embed_dropout_rate=0.0, attention_dropout_rate=0.0,
                                residual_dropout_rate=0.0)  # fmt: skip
    config = dataclasses.replace(CONFIG, model=model)
    plan = make_plan(config, find_topology("v5e:2x2"))
    assert (plan.to_json()["compiles"], plan.fits, plan.axes) == (True, True, {"data": 4})
    guess = make_plan(config, find_topology("v5e:2x2"), estimate=True)
    # The compiler pads small arrays to whole tiles.
    assert plan.memory.arguments >= guess.memory.arguments
    sums = next(one for one in plan.collectives if one.kind == "all-reduce")
    params = guess.memory.arguments / 3
    assert params * 1.5 * 0.9 < sums.sent_bytes < params * 1.5 * 1.5
    assert 0 < plan.to_json()["mfu_bound"] < 1
    assert (
        make_plan(config, find_topology("v5e:2x2")).memory == plan.memory
    )  # a warning of a bad cache would be an error


@needs_libtpu
def test_a_batch_too_large_is_told_by_how_much(plan: Callable[..., Command]) -> None:
    flags = ("--gin.RunConfig.batch_size=65536", "--gin.MeshConfig.data=4")
    code, out, _ = plan("--topology=v5e:2x2", *SMALL, *flags)
    assert code == 0
    assert "GiB TOO MUCH" in out
    assert "RunConfig.accumulation_steps = " in out


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("name", "networks"),
    [("v5e:2x4", {"ici"}), ("v5e:16x16", {"ici"}), ("v4:2x2x2", {"ici"}), ("2*v5e:2x4", {"ici", "dcn"})],
)
def test_gpt1_compiles_and_fits_at_full_size(name: str, networks: set[str], plan: Callable[..., Command]) -> None:
    batch = 2048 if name == "v5e:16x16" else 64
    flags = ("--gin.ModelConfig.compute_dtype=bfloat16", f"--gin.RunConfig.batch_size={batch}", "--json")
    code, out, _ = plan(f"--topology={name}", f"--gin_file={PRETRAIN}", *flags)
    row = json.loads(out)
    assert (code, row["compiles"], row["fits"]) == (0, True, True)
    assert {one["network"] for one in row["collectives"]} == networks
    # Gradients in the layers' precision, and those of the embedding in float32, summed once.
    sent = sum(one["sent_bytes"] for one in row["collectives"] if one["network"] == "ici")
    assert 1.5 * 2 * 116.5e6 < sent < 4 * 4 * 116.5e6


# The page


PAGE = (ROOT / "docs" / "scaling.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| ((?:data|fsdp) [^|]*) \| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)


def gpt_13b(*overrides: str) -> ModelConfig:
    files = [PRETRAIN, ROOT / "configs" / "model" / "gpt_13b.gin"]
    unset = {"RunConfig.output_dir": "", "TokenizerConfig.path": "", "DataConfig.token_store": ""}
    return gin_io.load(files, ["ModelConfig.compute_dtype=bfloat16", *overrides], if_unset=unset).model


@pytest.mark.parametrize(("name", "mesh", "parts", "figures"), ROWS)
def test_the_estimates_of_the_page_on_scaling_are_what_the_command_says(
    name: str, mesh: str, parts: str, figures: str
) -> None:
    topology = find_topology(name)
    axes = {axis: int(size) for axis, size in (part.split() for part in mesh.split(" x "))}
    config = dataclasses.replace(
        CONFIG,
        mesh=MeshConfig(**{**axes, "data": axes.get("data", 1) // topology.num_slices or 1}),
        accumulation_steps=int(parts),
        batch_size=64,
        model=ModelConfig(compute_dtype="bfloat16"),
    )
    if name.partition("*")[2].startswith("v5p") or name.startswith("v5p"):
        config = dataclasses.replace(config, model=gpt_13b(), batch_size=1024)
    plan = make_plan(config, topology, estimate=True)
    assert plan.roofline is not None
    memory, compute, hbm, *_, step, mfu, days = figures.split(" | ")
    assert memory == f"{plan.memory.peak / 2**30:.1f}"
    seconds = (plan.roofline.compute, plan.roofline.hbm, plan.roofline.bound)
    assert [compute, hbm, step] == [f"{value * 1e3:.3g}" for value in seconds]
    assert (mfu, days) == (f"{plan.roofline.mfu:.1%}", f"{plan.days:.3g}")


def test_the_estimate_with_remat_on_the_page_is_what_the_command_says() -> None:
    found = re.search(r"in one part, (\S+) GiB and (\S+) GB sent a step, a\n.*\((\S+) ms\)", PAGE)
    assert found
    model = gpt_13b("ModelConfig.remat=dots")
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=-1), batch_size=1024, model=model)
    plan = make_plan(config, find_topology("v5p:4x8x8"), estimate=True)
    assert plan.roofline is not None
    sent = sum(one.sent_bytes for one in plan.collectives) / 1e9
    assert found.groups() == (f"{plan.memory.peak / 2**30:.1f}", f"{sent:.1f}", f"{plan.roofline.bound * 1e3:.3g}")
