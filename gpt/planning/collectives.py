"""What chips send each other in one step, by the text of the compiled program or by a formula."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from gpt.planning.hlo import Instruction, Program

Network = Literal["ici", "dcn"]
"""Between chips of a slice or node (NVLink too), or between slices or nodes."""

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over one network in one step, of one chip."""

    kind: str
    network: Network
    count: int
    sent_bytes: float
    """Bytes that leave the chip."""


def sent_bytes(kind: str, num_bytes: float, group: int) -> float:
    """Bytes that leave each of `group` chips, at least, when `num_bytes` is the larger of operand and result.

    An all-reduce is a reduce-scatter and an all-gather, each of which moves all but a chip's own share
    (Patarasuk and Yuan 2009, bandwidth optimal all-reduce).
    """
    if kind == "collective-permute":
        return num_bytes
    return num_bytes * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def add_up(collectives: Iterable[Collective]) -> list[Collective]:
    """One entry for each kind and network, the largest first."""
    sums: dict[tuple[str, Network], Collective] = {}
    for one in collectives:
        if one.sent_bytes:
            key = one.kind, one.network
            old = sums.get(key, Collective(*key, 0, 0.0))
            sums[key] = Collective(*key, old.count + one.count, old.sent_bytes + one.sent_bytes)
    return sorted(sums.values(), key=lambda one: -one.sent_bytes)


def compiled_collectives(program: Program, num_slices: int) -> list[Collective]:
    """The collectives of a program that was compiled for TPUs, loops counted as often as they run.

    Between slices each chip hands its share to the host (`send`), whose runtime completes the collective.
    """
    return add_up(_each(program, num_slices))


def _each(program: Program, num_slices: int) -> Iterator[Collective]:
    for times, _computation, instruction in program.executed():
        if instruction.opcode == "send" and (transfer := re.search(r"transfer_type=\"?(\w+)", instruction.text)):
            # The first result is the buffer; an all-gather's is a chip's own share.
            kind = transfer.group(1).lower().replace("_", "-").replace("one-to-one", "collective-permute")
            num_bytes = instruction.results[0].num_bytes * (num_slices if kind == "all-gather" else 1)
            yield Collective(kind, "dcn", times, times * sent_bytes(kind, num_bytes, num_slices))
        if instruction.opcode == "fusion":
            inside = program.computations[instruction.attribute("calls") or ""].values()
            yield from _fused(instruction, list(inside), times)
        elif instruction.opcode.removesuffix("-start") in KINDS:
            yield _collective(instruction.opcode.removesuffix("-start"), instruction, times)


def _fused(fusion: Instruction, inside: list[Instruction], times: int) -> Iterator[Collective]:
    """A collective inside of a fusion: one that is started there, or an all-reduce of which a part is kept.

    Other fusions repeat a collective that is under way beside what they compute.
    """
    is_start = any("AsyncCollectiveStart" in instruction.text for instruction in inside)
    is_scatter = (fusion.attribute("calls") or "").startswith("all-reduce-scatter")
    for instruction in inside:
        if instruction.opcode in KINDS and (is_start or is_scatter):
            yield _collective("reduce-scatter" if is_scatter else instruction.opcode, instruction, times)


def _collective(kind: str, instruction: Instruction, times: int) -> Collective:
    num_bytes = sum((array.num_bytes for array in instruction.results), 0.0)
    if instruction.opcode.endswith("-start"):
        num_bytes = max(array.num_bytes for array in instruction.results)  # operand, result, and flags
    group = _group_size(instruction.text)
    if instruction.opcode == "reduce-scatter":
        num_bytes *= group
    return Collective(kind, "ici", times, times * sent_bytes(kind, num_bytes, group))


def _group_size(text: str) -> int:
    """Chips that take part together; the three ways in which XLA writes them."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return match.group(1).count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match.group(1))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match.group(1))}
        group = 1
        for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match.group(2)):
            group *= int(part) if part else sizes[name]
        return group
    return 1
