"""The published numbers, from `published.yaml` beside this file."""

import dataclasses
import functools
from importlib import resources
from typing import Any, NamedTuple

TABLES = (2, 3, 4, 5)
"""The tables of results; table 1 lists data sets."""


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One line of a table; `kind` says which of our runs belong to it, None: earlier work."""

    method: str
    kind: str | None
    values: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """A table as printed: scores in percent, None where a cell is empty."""

    number: int
    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]


@functools.cache
def load_published() -> dict[str, Any]:
    """Everything in the file, as it stands there."""
    import yaml

    text = resources.files("gpt.paper").joinpath("published.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def published_table(number: int) -> PublishedTable:
    """Table 2, 3, 4 or 5."""
    table = load_published()[f"table{number}"]
    rows = tuple(PublishedRow(row["method"], row.get("kind"), tuple(row["values"])) for row in table["rows"])
    return PublishedTable(number, table["title"], table["source"], tuple(table["columns"]), rows)


class Scale(NamedTuple):
    """What figure 2 right calls 0 and 1, in percent, and what the score of 1 is."""

    guess: float
    best: float
    best_is: str

    def normalise(self, percent: float) -> float:
        """The place of a score on the scale; below 0 when it is worse than a guess."""
        return (percent - self.guess) / (self.best - self.guess)


def zero_shot_scale(task: str) -> Scale:
    """From a random guess to the best of the time, or to all answers right where the paper prints no best."""
    constants = load_published()["zero_shot"]
    guess, best = constants["random"][task], constants["state_of_the_art"].get(task)
    return Scale(guess, 100.0, "all answers right") if best is None else Scale(guess, best, "the best earlier result")
