"""Bytes between a chip and its main memory in one step of a compiled program."""

from gpt.planning.collectives import KINDS
from gpt.planning.hlo import Array, Computation, Instruction, Program

_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
    *("while", "conditional", "call", "after-all", "partition-id", "replica-id", "recv"),
    *("copy-done", "slice-done", "all-reduce-done", "all-gather-done", "collective-permute-done"),
    *("async-done", "send-done", "recv-done"),
)
"""Opcodes that move nothing themselves."""
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_traffic(program: Program) -> float:
    """Bytes read and written, loops counted as often as they run.

    Every operand is read and every result written once, where it lies in main memory; of an array that is
    sliced or updated in place, the part alone. Padding of tiles is left out.
    """
    moved = 0.0
    for times, computation, instruction in program.executed():
        if instruction.opcode not in _FREE:
            moved += times * _moved(program, computation, instruction)
    return moved


def _moved(program: Program, computation: Computation, instruction: Instruction) -> float:
    operands = [computation[name].results if name in computation else () for name in instruction.operands]
    opcode, results = instruction.opcode, instruction.results
    if opcode == "fusion":
        inside = program.computations[instruction.attribute("calls") or ""]
        read = 0.0
        for parameter in (item for item in inside.values() if item.opcode == "parameter"):
            if _in_hbm(operands[int(parameter.operands[0])]):
                read += _read(program, inside, parameter)
        return read + _written(program, inside, results)
    if opcode in _SLICES:
        return _size(results) * bool(_in_hbm(operands[0])) + _in_hbm(results)
    if opcode == "dynamic-update-slice":
        return _in_hbm(operands[1]) + _size(operands[1]) * bool(_in_hbm(results))
    if opcode in ("copy-start", "slice-start"):
        source_and_target = results[:2]
        moved = min(array.num_bytes for array in source_and_target)
        return moved * sum(array.in_hbm for array in source_and_target)
    if opcode.endswith("-start") or opcode == "send":
        return _in_hbm(results)
    return sum(map(_in_hbm, operands), 0.0) + _in_hbm(results)


def _read(program: Program, inside: Computation, source: Instruction) -> float:
    """Bytes of `source` that the instructions of a fusion need: of an array that is only sliced, the slices."""
    total = 0.0
    for use in inside.values():
        if source.name not in use.operands:
            continue
        place = use.operands.index(source.name)
        if use.opcode == "fusion":
            deeper = program.computations[use.attribute("calls") or ""]
            total += _read(program, deeper, _parameter(deeper, place))
        elif use.opcode == "bitcast":
            total += _read(program, inside, use)
        elif use.opcode in _SLICES and place == 0:
            total += _size(use.results)
        elif not (use.opcode in ("tuple", *KINDS) or (use.opcode == "dynamic-update-slice" and place == 0)):
            return _size(source.results)
    return min(total, _size(source.results))


def _written(program: Program, inside: Computation, results: tuple[Array, ...]) -> float:
    """Bytes that a fusion writes: of an array that it updates in place, the update; nothing that it passes on."""
    root = next(instruction for instruction in inside.values() if instruction.is_root)
    parts = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(results):
        return _in_hbm(results)
    total = 0.0
    for part, result in zip(parts, results, strict=True):
        while part.opcode == "bitcast":
            part = inside[part.operands[0]]
        if part.opcode == "fusion" and len(part.results) == 1:
            total += _written(program, program.computations[part.attribute("calls") or ""], (result,))
        elif part.opcode == "dynamic-update-slice":
            total += _size(inside[part.operands[1]].results) * result.in_hbm
        elif part.opcode not in ("parameter", "get-tuple-element", *KINDS):
            total += _in_hbm((result,))
    return total


def _parameter(computation: Computation, number: int) -> Instruction:
    return next(item for item in computation.values() if item.opcode == "parameter" and item.operands[0] == str(number))


def _in_hbm(arrays: tuple[Array, ...]) -> float:
    return sum((array.num_bytes for array in arrays if array.in_hbm), 0.0)


def _size(arrays: tuple[Array, ...]) -> float:
    return sum((array.num_bytes for array in arrays), 0.0)
