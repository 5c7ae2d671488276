"""Reads a compiled program's text: what is computed, how often, from and to which memory.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([\w\-]+)\(")
_ARRAY = re.compile(r"(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An operand or result: its size, and whether it lies in the chip's main memory."""

    num_bytes: float
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the text."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    """What follows the operands."""
    is_root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Computations it names."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        names = [name.strip().lstrip("%") for name in branches.group(1).split(",")] if branches else []
        return (*_CALLED.findall(self.text), *names)

    def attribute(self, name: str) -> str | None:
        """The name that follows `name=`."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return match.group(1) if match else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and which of them is run."""

    computations: dict[str, Computation]
    entry: str

    def executed(self) -> Iterator[tuple[int, Computation, Instruction]]:
        """Each instruction outside of fusions, with how often it runs and the computation it is in."""
        yield from self._walk(self.entry, 1)

    def _walk(self, name: str, times: int) -> Iterator[tuple[int, Computation, Instruction]]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield times, computation, instruction
            if instruction.opcode == "while":
                body = instruction.attribute("body") or ""
                yield from self._walk(body, times * self._trip_count(computation, instruction))
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in instruction.called:
                    yield from self._walk(called, times)

    def _trip_count(self, computation: Computation, loop: Instruction) -> int:
        """How often a loop runs whose counter goes up by one to a constant, as those of `lax.scan` do."""
        known = re.search(r'known_trip_count[":{\s]+n"?:"?(\d+)', loop.text)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition") or ""]
        ends = [_constant(instruction) for instruction in condition.values()]
        end = next((end for end in ends if end is not None), None)
        if end is None:
            raise ValueError(f"loop {loop.name}: its condition compares with no constant")
        counters = [item for item in condition.values() if item.opcode == "get-tuple-element"]
        index = int(re.search(r"index=(\d+)", counters[0].text).group(1)) if counters else 0  # pyright: ignore[reportOptionalMemberAccess]
        # A loop whose first round was taken out of it starts at 1.
        start = computation.get(loop.operands[0])
        while start is not None and start.opcode in ("tuple", "copy", "bitcast", "copy-done", "copy-start"):
            start = computation.get(start.operands[index if start.opcode == "tuple" else 0])
        return max(0, end - (_constant(start) or 0 if start is not None else 0))


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
        return None
    return int(instruction.operands[0])


def parse(text: str) -> Program:
    """The program of `Compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif (found := _INSTRUCTION.match(line)) and (instruction := _instruction(line, found)):
            current[instruction.name] = instruction
    return Program(computations, entry)


def _instruction(line: str, found: re.Match[str]) -> Instruction | None:
    start = found.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    operands = re.sub(r"/\*.*?\*/", "", line[opcode.end() : close])
    names = [operand.split()[-1].lstrip("%") for operand in _split(operands)]
    results = tuple(map(_array, _ARRAY.finditer(line, start, end)))
    return Instruction(
        found.group(1), opcode.group(1), results, tuple(names), line[close + 1 :], line.lstrip().startswith("ROOT ")
    )


def _split(operands: str) -> list[str]:
    """Operands between commas, where those inside of brackets do not count."""
    parts, depth = [""], 0
    for character in operands:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _closing(line: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed: {line[:200]}")


def _array(match: re.Match[str]) -> Array:
    dtype, sizes, layout = match.groups()
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group()) if dtype != "token" else 0  # pyright: ignore[reportOptionalMemberAccess]
    count = math.prod(int(size) for size in sizes.split(",") if size)
    return Array(count * bits / 8, in_hbm=not re.search(r"S\([1-9]", layout or ""))
