"""The tasks by name. To add one, add a line to TASKS and a gin file to configs/task/."""

import dataclasses
import difflib

from gpt.errors import ConfigError
from gpt.tasks.transforms import CLASSIFICATION, ENTAILMENT, MULTIPLE_CHOICE, Transform


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub: its id, its configuration, and our column name of each of its columns."""

    path: str
    name: str
    columns: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Task:
    """One labelled task.

    `labels` are the label words in class order; multiple choice has none, its label is the
    index of the right candidate.
    """

    transform: Transform
    metric: str
    labels: tuple[str, ...] = ()
    hub: Hub | None = None

    @property
    def num_outputs(self) -> int:
        """Scores of the classifier: one a label, or a single one a candidate."""
        return len(self.labels) or 1


_SENTENCE = {"sentence": "text"}
_SENTENCE_PAIR = {"sentence1": "text_a", "sentence2": "text_b"}

TASKS: dict[str, Task] = {
    "cola": Task(CLASSIFICATION, "matthews", ("unacceptable", "acceptable"), Hub("nyu-mll/glue", "cola", _SENTENCE)),
    "sst2": Task(CLASSIFICATION, "accuracy", ("negative", "positive"), Hub("nyu-mll/glue", "sst2", _SENTENCE)),
    "rte": Task(ENTAILMENT, "accuracy", ("entailment", "not_entailment"), Hub("nyu-mll/glue", "rte", _SENTENCE_PAIR)),
    "stdlib_area": Task(
        CLASSIFICATION, "accuracy", ("concurrency", "data", "development", "files", "interface", "internet")
    ),
    "stdlib_next": Task(MULTIPLE_CHOICE, "accuracy"),
}


def find_task(name: str) -> Task:
    """The task called `name`; ConfigError with the nearest names when there is none."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(f"TaskConfig.name = {name!r} is no task{hint} There are: {', '.join(sorted(TASKS))}")
