"""Where the wall time of a run goes: how much of it are updates, and what the rest waits for."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

Part = Literal["compile", "data_wait", "update", "evaluate", "save"]
PARTS = ("compile", "data_wait", "update", "evaluate", "save", "other")
"""The parts of a run's time. Together they are all of it: `other` is what no other part claims."""


class Clock:
    """Seconds of wall time since it was made, by part."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def add(self, part: Part, seconds: float) -> None:
        """Claims time that has passed for `part`."""
        self._seconds[part] += seconds

    @contextlib.contextmanager
    def spent(self, part: Part) -> Iterator[None]:
        """Claims the time inside for `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - start)

    def seconds(self) -> dict[str, float]:
        """Seconds of each of PARTS so far."""
        claimed = sum(self._seconds.values())
        return {**self._seconds, "other": time.perf_counter() - self._start - claimed}


def difference(later: dict[str, float], earlier: dict[str, float]) -> dict[str, float]:
    """Seconds of each part between two readings of a clock."""
    return {part: later[part] - earlier[part] for part in PARTS}


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """`seconds` in all, and the share of each part; the shares add up to 1."""
    total = sum(seconds.values())
    return {"seconds": total, **{part: seconds[part] / total if total else 0.0 for part in PARTS}}


def total_shares(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The shares of several stretches of time together, each as `shares` gave it."""
    lines = list(lines)
    return shares({part: float(sum(line[part] * line["seconds"] for line in lines)) for part in PARTS})
