"""Where each task's rows are published: on the hub, and in which files of the original release.

Ids, configurations and columns of the hub are those of its data set cards; file names are those of
GLUE and of each set's own release.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

SPLITS = ("train", "validation", "test")
MATCHED_SPLITS = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")

Divide = Callable[[str, list[Any]], list[Any]]
"""The rows of one of our splits, from all rows of a file that holds two of them."""


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub: id, configuration, and its split for ours where names differ."""

    path: str
    name: str | None
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    divide: Divide | None = None


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of one form, by split; where a split has several, it is all of them in this order."""

    kind: Literal["jsonl", "csv", "tsv", "xml", "passages"]
    names: Mapping[str, tuple[str, ...]]
    divide: Divide | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """All places to read a task from, and how its files differ from a plain table.

    `header` names the columns of tables that come without; `ragged` tables have rows of other
    lengths; rows of an `undecided` label have no right answer and are left out; `aliases` are other
    words for labels.
    """

    hub: Hub | None = None
    files: tuple[Files, ...] = ()
    header: tuple[str, ...] = ()
    ragged: bool = False
    undecided: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)


def plain_files(split: str) -> tuple[Files, ...]:
    """The names that files of any task may have; `dev` is GLUE's word for validation."""
    stems = dict.fromkeys((split, official(split)))
    return tuple(Files(kind, {split: (f"{stem}.{kind}",)}) for stem in stems for kind in ("jsonl", "csv", "tsv"))


def official(split: str) -> str:
    """The name that GLUE and most releases have for one of our splits."""
    return split.replace("validation", "dev")


def _every_split(kind: Literal["jsonl", "csv", "tsv", "passages"], *patterns: str) -> Files:
    splits = dict.fromkeys((*SPLITS, *MATCHED_SPLITS))
    return Files(kind, {split: tuple(pattern.format(official(split)) for pattern in patterns) for split in splits})


def _openai_halves(split: str, rows: list[Any]) -> list[Any]:
    """Story Cloze has no stories with two endings to train on: OpenAI's code divides the validation stories so."""
    from sklearn.model_selection import train_test_split

    if split == "test" or len(rows) < 3:
        return rows
    train, validation = train_test_split(rows, test_size=round(len(rows) / 5), random_state=3535999445)  # 374 of 1,871
    return list(train if split == "train" else validation)


def _last_hundred(split: str, rows: list[Any]) -> list[Any]:
    """COPA's 500 questions for development, divided as SuperGLUE does: 400 to train on, the last 100 for validation."""
    return {"train": rows[:400], "validation": rows[400:]}.get(split, rows)


def _glue(name: str, **changes: Any) -> Source:
    return Source(Hub("nyu-mll/glue", name), **changes)


def _race(*levels: str) -> Source:
    level = levels[0] if len(levels) == 1 else "all"
    folders = [f"{{}}/{level}" for level in levels]
    return Source(Hub("ehovy/race", level), (_every_split("passages", *folders),))


_STORY_FILES = {
    "train": "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
    "validation": "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
    "test": "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
}

COLA = _glue(
    "cola",
    files=(
        Files(
            "tsv",
            {"train": ("in_domain_train.tsv",), "validation": ("in_domain_dev.tsv", "out_of_domain_dev.tsv")},
        ),
    ),
    header=("source", "label", "original_label", "sentence"),
)
SST2 = _glue("sst2")
MRPC = _glue("mrpc", files=(Files("tsv", {"test": ("msr_paraphrase_test.txt",)}),))
QQP = _glue("qqp", ragged=True)
STSB = _glue(
    "stsb",
    files=(_every_split("tsv", "sts-{}.csv"),),
    header=("genre", "file", "year", "old_index", "score", "sentence1", "sentence2"),
    ragged=True,
)
MNLI = _glue(
    "mnli",
    files=(_every_split("jsonl", "multinli_1.0_{}.jsonl"), _every_split("tsv", "multinli_1.0_{}.txt")),
    undecided=("-",),
)
QNLI = _glue("qnli")
RTE = _glue("rte")
WNLI = _glue("wnli")
AX = _glue("ax", files=(Files("tsv", {"test": ("diagnostic.tsv",)}), Files("tsv", {"test": ("diagnostic-full.tsv",)})))
SNLI = Source(
    Hub("stanfordnlp/snli", None),
    (_every_split("jsonl", "snli_1.0_{}.jsonl"), _every_split("tsv", "snli_1.0_{}.txt")),
    undecided=("-", "-1"),
)
SCITAIL = Source(
    Hub("allenai/scitail", "tsv_format"),
    (_every_split("tsv", "scitail_1.0_{}.tsv"), _every_split("jsonl", "scitail_1.0_{}.txt")),
    header=("premise", "hypothesis", "label"),
    aliases={"entails": "entailment"},
)
RACE_MIDDLE, RACE_HIGH, RACE = _race("middle"), _race("high"), _race("middle", "high")
STORY_CLOZE = Source(
    Hub("MoE-UNC/story_cloze", None, {"train": "validation"}, _openai_halves),
    (Files("csv", {split: (name,) for split, name in _STORY_FILES.items()}, _openai_halves),),
)
COPA = Source(
    Hub("aps/super_glue", "copa"),
    (
        Files(
            "xml",
            {"train": ("copa-dev.xml",), "validation": ("copa-dev.xml",), "test": ("copa-test.xml",)},
            _last_hundred,
        ),
        Files("jsonl", {"validation": ("val.jsonl",)}),  # SuperGLUE's word for it
    ),
)
LOCAL = Source()
