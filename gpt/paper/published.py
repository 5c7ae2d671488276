"""The published numbers, from `published.yaml` beside this file."""

import dataclasses
import functools
from importlib import resources
from typing import Any

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


def normalised_zero_shot(task: str, percent: float) -> float | None:
    """The score between a random guess (0) and the best single model of the time (1); None without a known best."""
    constants = load_published()["zero_shot"]
    best, guess = constants["state_of_the_art"].get(task), constants["random"][task]
    return None if best is None else (percent - guess) / (best - guess)
