"""Plans as text."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gpt.planning.plan import Plan

_GIB = 2.0**30
MODEL = (
    "The bound is the busiest of: analytic operations at the chip's peak, bytes between chip and memory, bytes sent "
    "over all links of the slice (ICI, NVLink) at once, bytes sent between slices (DCN); all else hidden behind it."
)


def axes_text(plan: Plan) -> str:
    """The axes that split something, such as `data 4 x fsdp 2`."""
    return " x ".join(f"{axis} {size}" for axis, size in plan.axes.items())


def print_plan(plan: Plan, console: Console) -> None:
    """One plan in full, a figure a line."""
    topology, memory, bound = plan.topology, plan.memory, plan.roofline
    how = "ESTIMATE from shapes alone, nothing was compiled" if plan.is_estimate else "compiled"
    if plan.seconds_to_compile is not None:
        how += f" in {plan.seconds_to_compile:.0f} s"
    console.print(f"{topology.name}: {topology.num_chips} chips {topology.chip.name}, mesh {axes_text(plan)}; {how}")
    fits = (
        f"{_gib(topology.hbm_bytes - memory.peak)} left"
        if plan.fits
        else f"{_gib(memory.peak - topology.hbm_bytes)} TOO MUCH"
    )
    console.print(
        f"  memory a chip      arguments {_gib(memory.arguments)} + temporaries {_gib(memory.temporaries)}; "
        f"peak {_gib(memory.peak)} of {_gib(topology.hbm_bytes)}: {fits}"
    )
    for number, change in enumerate(plan.advice):
        console.print(f"  {'change one of' if number == 0 else '':<18} {change}")
    if bound is None:
        return
    console.print(f"  operations a chip  {plan.flops:.3g}: {_ms(bound.compute)} at peak")
    console.print(f"  memory traffic     {plan.hbm_traffic / 1e9:.1f} GB: {_ms(bound.hbm)}")
    for one in plan.collectives:
        console.print(
            f"  {one.network} {one.kind:<18} {one.count:.0f} times, {one.sent_bytes / 1e9:.3f} GB sent a chip"
        )
    for network in ("ici", "dcn"):
        seconds = getattr(bound, network)
        if seconds is None or seconds > 0:
            console.print(f"  {network} in all         {'bandwidth not known' if seconds is None else _ms(seconds)}")
    console.print(
        f"  step               {_ms(bound.bound)} at least, limited by {bound.limited_by}; MFU {bound.mfu:.1%} at most"
    )
    days = "" if plan.days is None else f"; {plan.days:.3g} days at least"
    console.print(f"  tokens a day       {plan.tokens_per_day or 0:.3g} at most{days} for {plan.workload.source}")


def print_table(plans: Sequence[Plan], console: Console) -> None:
    """Plans side by side, and which of them is the fastest that fits."""
    table = Table(
        title=f"{plans[0].topology.name}, per chip{' (ESTIMATES from shapes alone)' if plans[0].is_estimate else ''}"
    )
    for heading in ("mesh", "peak", "of", "fits", "compute", "HBM", "ICI", "DCN", "step", "MFU", "days"):
        table.add_column(heading, justify="left" if heading == "mesh" else "right")
    for plan in plans:
        bound = plan.roofline
        times = [None] * 5 if bound is None else [bound.compute, bound.hbm, bound.ici, bound.dcn, bound.bound]
        table.add_row(
            axes_text(plan),
            _gib(plan.memory.peak),
            _gib(plan.topology.hbm_bytes),
            "yes" if plan.fits else "NO",
            *("-" if seconds is None else _ms(seconds) for seconds in times),
            "-" if bound is None else f"{bound.mfu:.1%}",
            "-" if plan.days is None else f"{plan.days:.3g}",
        )
    console.print(table)
    best = plans[0]
    if best.fits and best.roofline is not None:
        console.print(f"fastest that fits: {axes_text(best)}, {_ms(best.roofline.bound)} a step at least")
    else:
        console.print("none fits")


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
