"""The tasks by name. To add one, add a line to TASKS and a gin file to configs/task/."""

import dataclasses

from gpt.errors import ConfigError
from gpt.files import did_you_mean
from gpt.tasks import sources, targets
from gpt.tasks.sources import MATCHED_SPLITS, SPLITS, Source
from gpt.tasks.targets import Targets
from gpt.tasks.transforms import CLASSIFICATION, ENTAILMENT, MULTIPLE_CHOICE, SIMILARITY, Transform


@dataclasses.dataclass(frozen=True)
class Task:
    """One labelled task.

    `metrics` are names of `gpt.metrics.METRICS`, the paper's first. `labels` are the label words in
    class order; multiple choice has none, its label is the index of the right candidate.
    """

    transform: Transform
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    source: Source = sources.LOCAL
    targets: Targets = "class"
    splits: tuple[str, ...] = SPLITS

    @property
    def num_outputs(self) -> int:
        """Scores of the classifier: one a label, or a single one a candidate; for numbers, what `targets` takes."""
        return targets.num_outputs(self.targets, len(self.labels))

    def members(self, split: str) -> tuple[str, ...]:
        """The splits that `split` means: itself, or its matched and mismatched parts; () when there is none."""
        return (split,) if split in self.splits else tuple(name for name in self.splits if name.startswith(f"{split}_"))


_NLI = ("entailment", "neutral", "contradiction")
_ENTAILS_OR_NOT = ("entailment", "not_entailment")
_F1, _ACCURACY = ("f1", "accuracy"), ("accuracy",)
_AREAS = ("concurrency", "data", "development", "files", "interface", "internet")

TASKS: dict[str, Task] = {
    # Sentences
    "cola": Task(CLASSIFICATION, ("matthews",), ("unacceptable", "acceptable"), sources.COLA),
    "sst2": Task(CLASSIFICATION, _ACCURACY, ("negative", "positive"), sources.SST2),
    # Similarity and paraphrase
    "mrpc": Task(SIMILARITY, _F1, ("not_equivalent", "equivalent"), sources.MRPC),
    "qqp": Task(SIMILARITY, _F1, ("not_duplicate", "duplicate"), sources.QQP),
    "stsb": Task(SIMILARITY, ("pearson", "spearman"), (), sources.STSB, "soft_labels"),
    # Natural language inference
    "mnli": Task(ENTAILMENT, _ACCURACY, _NLI, sources.MNLI, splits=MATCHED_SPLITS),
    "ax": Task(ENTAILMENT, ("matthews",), _NLI, sources.AX, splits=("test",)),
    "snli": Task(ENTAILMENT, _ACCURACY, _NLI, sources.SNLI),
    "scitail": Task(ENTAILMENT, _ACCURACY, ("entailment", "neutral"), sources.SCITAIL),
    "qnli": Task(ENTAILMENT, _ACCURACY, _ENTAILS_OR_NOT, sources.QNLI),
    "rte": Task(ENTAILMENT, _ACCURACY, _ENTAILS_OR_NOT, sources.RTE),
    "wnli": Task(ENTAILMENT, _ACCURACY, ("not_entailment", "entailment"), sources.WNLI),
    # Question answering and commonsense reasoning
    "race_middle": Task(MULTIPLE_CHOICE, _ACCURACY, (), sources.RACE_MIDDLE),
    "race_high": Task(MULTIPLE_CHOICE, _ACCURACY, (), sources.RACE_HIGH),
    "race": Task(MULTIPLE_CHOICE, _ACCURACY, (), sources.RACE),
    "story_cloze": Task(MULTIPLE_CHOICE, _ACCURACY, (), sources.STORY_CLOZE),
    "copa": Task(MULTIPLE_CHOICE, _ACCURACY, (), sources.COPA),
    # Written by `gpt quickstart`
    "stdlib_area": Task(CLASSIFICATION, _ACCURACY, _AREAS),
    "stdlib_next": Task(MULTIPLE_CHOICE, _ACCURACY),
}


def find_task(name: str) -> Task:
    """The task called `name`; ConfigError with the nearest names when there is none."""
    if name in TASKS:
        return TASKS[name]
    hint = did_you_mean(name, TASKS) or "."
    raise ConfigError(f"TaskConfig.name = {name!r} is no task{hint} There are: {', '.join(sorted(TASKS))}")
