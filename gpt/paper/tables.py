"""Tables 2 to 5 of the paper, cell by cell: the published number, and what our runs give for it."""

import dataclasses
import statistics
from typing import Any

from gpt.paper.published import PublishedTable, published_table
from gpt.paper.runs import FULL, Collection, Scores

Source = tuple[str, tuple[str, ...]]
"""A task, and the names its metric may have in result.json; the first that is there counts."""

# The matched split is the first of two, and so its metric needs no ending (gpt.training.evaluate).
_MATCHED = ("accuracy", "accuracy_matched")
_MISMATCHED = ("accuracy_mismatched",)


@dataclasses.dataclass(frozen=True)
class Column:
    """What a column shows: its title, and the metrics whose mean it is, of means where they are several."""

    title: str
    terms: tuple[tuple[Source, ...], ...]

    @property
    def task(self) -> str:
        """The tasks that a run is needed of."""
        return "+".join(dict.fromkeys(task for term in self.terms for task, _ in term))

    @property
    def metric(self) -> str:
        """The metric, where there is one."""
        return self.terms[0][0][1][0] if len(self.terms) == len(self.terms[0]) == 1 else "mean"


def _one(title: str, task: str, *metrics: str) -> Column:
    return Column(title, (((task, metrics),),))


def _mean_of(title: str, *columns: Column) -> Column:
    return Column(title, tuple(term for column in columns for term in column.terms))


def _both(title: str, task: str, *metrics: str) -> Column:
    return Column(title, (tuple((task, (metric,)) for metric in metrics),))


_COLA, _SST2 = _one("CoLA", "cola", "matthews"), _one("SST-2", "sst2", "accuracy")
_MRPC, _STSB, _QQP = _one("MRPC", "mrpc", "f1"), _one("STS-B", "stsb", "pearson"), _one("QQP", "qqp", "f1")
_QNLI, _RTE = _one("QNLI", "qnli", "accuracy"), _one("RTE", "rte", "accuracy")
# A run that knows one accuracy only gives that.
_MNLI = Column("MNLI", ((("mnli", _MATCHED), ("mnli", (*_MISMATCHED, "accuracy"))),))

COLUMNS: dict[str, Column] = {
    "mnli_m": _one("MNLI-m", "mnli", *_MATCHED),
    "mnli_mm": _one("MNLI-mm", "mnli", *_MISMATCHED),
    "snli": _one("SNLI", "snli", "accuracy"),
    "scitail": _one("SciTail", "scitail", "accuracy"),
    "qnli": _QNLI,
    "rte": _RTE,
    "story_cloze": _one("Story Cloze", "story_cloze", "accuracy"),
    "race_middle": _one("RACE-m", "race_middle", "accuracy"),
    "race_high": _one("RACE-h", "race_high", "accuracy"),
    "race": _one("RACE", "race", "accuracy"),
    "cola": _COLA,
    "sst2": _SST2,
    "mrpc": _MRPC,
    "stsb": _STSB,
    "qqp": _QQP,
    "mnli": _MNLI,
    "glue": _mean_of(
        "GLUE",
        _COLA,
        _SST2,
        _both("MRPC", "mrpc", "f1", "accuracy"),
        _both("STS-B", "stsb", "pearson", "spearman"),
        _both("QQP", "qqp", "f1", "accuracy"),
        _MNLI,
        _QNLI,
        _RTE,
        _one("WNLI", "wnli", "accuracy"),
    ),
    "average": _mean_of("Avg.", _COLA, _SST2, _MRPC, _STSB, _QQP, _MNLI, _QNLI, _RTE),
}
"""By the names of `published.yaml`. A mean takes the seeds that all of its tasks have."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a row that has a kind. Scores are in percent; ours are by seed, empty without runs."""

    table: int
    kind: str
    column: str
    published: float | None
    ours: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Every number of the cell; None where there is none."""
        values = list(self.ours.values())
        median = statistics.median(values) if values else None
        column = COLUMNS[self.column]
        return {
            "table": self.table,
            "row": self.kind,
            "column": self.column,
            "task": column.task,
            "metric": column.metric,
            "published": self.published,
            "published_split": "test",
            "split": "validation",
            "n": len(values),
            "seeds": list(self.ours),
            "median": median,
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "max": max(values, default=None),
            "difference": None if median is None or self.published is None else median - self.published,
        }


@dataclasses.dataclass(frozen=True)
class Table:
    """A published table, and our cells of each row that has a kind, in the order of the columns."""

    published: PublishedTable
    cells: dict[str, list[Cell]]


def make_table(number: int, collection: Collection) -> Table:
    """Table `number` with our runs in it."""
    published = published_table(number)
    cells = {
        row.kind: [
            Cell(number, row.kind, name, value, _scores(COLUMNS[name], row.kind, collection))
            for name, value in zip(published.columns, row.values, strict=True)
        ]
        for row in published.rows
        if row.kind is not None
    }
    assert FULL in cells
    return Table(published, cells)


def _scores(column: Column, kind: str, collection: Collection) -> dict[int, float]:
    """Percent by seed, for the seeds that have all of the column's metrics."""
    by_seed: dict[int, float] = {}
    runs = [collection.scores.get((task, kind), {}) for term in column.terms for task, _ in term]
    for seed in sorted(set.intersection(*(set(scores) for scores in runs))):
        terms = []
        for term in column.terms:
            found = [_first(collection.scores[task, kind][seed], metrics) for task, metrics in term]
            terms.append(None if None in found else statistics.fmean(value for value in found if value is not None))
        if None not in terms:
            by_seed[seed] = 100 * statistics.fmean(value for value in terms if value is not None)
    return by_seed


def _first(scores: Scores, metrics: tuple[str, ...]) -> float | None:
    return next((scores[metric] for metric in metrics if metric in scores), None)
