"""What a run learns: its objective, its batches, and what it is judged by on held-out data."""

import dataclasses
from typing import Any

import grain
import numpy as np

from gpt.config import RunConfig
from gpt.data.batches import (
    TaskExamples,
    finetuning_batches,
    held_out_task_batches,
    held_out_text_batches,
    pretraining_batches,
)
from gpt.data.store import TokenStore
from gpt.errors import ConfigError, DataError
from gpt.tasks.reader import read_examples
from gpt.tasks.registry import Task, find_task
from gpt.tasks.transforms import lay_out
from gpt.text.tokenizer import Tokenizer
from gpt.training.steps import LanguageModelObjective, Objective, TaskObjective


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out batches and, for a task, the label of each of their rows, padding left out."""

    batches: list[Any]
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything about a run that comes from data, before any device is touched."""

    objective: Objective
    train_batches: grain.MapDataset
    num_steps: int
    held_out: HeldOut
    task: Task | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was counted while reading: shown at the start and kept with the results."""

    @property
    def num_outputs(self) -> int | None:
        """Outputs of the classifier; None when there is no labelled task."""
        return None if self.task is None else self.task.num_outputs


def load_problem(config: RunConfig, tokenizer: Tokenizer, *, whole_validation: bool = False) -> Problem:
    """The problem that `config` states; `whole_validation` ignores RunConfig.evaluation_batches."""
    if tokenizer.vocab_size != config.model.vocab_size:
        raise ConfigError(
            f"ModelConfig.vocab_size = {config.model.vocab_size}, but the tokenizer in TokenizerConfig.path = "
            f"{config.tokenizer.path!r} has {tokenizer.vocab_size} tokens: set it to that number"
        )
    max_batches = None if whole_validation else config.evaluation_batches
    if config.is_pretraining:
        return _pretraining(config, tokenizer, max_batches)
    return _finetuning(config, tokenizer, max_batches)


def _num_steps(config: RunConfig, batches: grain.MapDataset) -> int:
    return len(batches) if config.max_steps is None else min(len(batches), config.max_steps)


def _no_batches() -> grain.MapDataset:
    # Of converted weights, which are evaluated alone: their training split may be of any size.
    return grain.MapDataset.range(0)


def _pretraining(config: RunConfig, tokenizer: Tokenizer, max_batches: int | None) -> Problem:
    if config.data.token_store is None:
        raise ConfigError(
            "DataConfig.token_store is not set, because these weights were converted and not trained here: "
            "set --gin.DataConfig.token_store to a directory that `gpt prepare` wrote"
        )
    store = TokenStore.open(config.data.token_store, tokenizer)
    train, validation = store.split("train"), store.split("validation")
    length = config.model.context_length
    batches = _no_batches()
    if config.max_steps != 0:
        batches = pretraining_batches(train, length, config.batch_size, config.num_epochs, config.seed)
    return Problem(
        objective=LanguageModelObjective(),
        train_batches=batches,
        num_steps=_num_steps(config, batches),
        held_out=HeldOut(held_out_text_batches(validation, length, config.batch_size, max_batches)),
        facts={"train_tokens": len(train), "validation_tokens": len(validation)},
    )


def _finetuning(config: RunConfig, tokenizer: Tokenizer, max_batches: int | None) -> Problem:
    assert config.task.name is not None
    task = find_task(config.task.name)
    splits, facts = {}, {}
    for split in ("train", "validation"):
        splits[split], facts[f"{split}_cut"] = _encode_split(config, task, tokenizer, split)
        facts[f"{split}_examples"] = len(splits[split].labels)
    train, validation = _draw(splits["train"], config.task.max_train_examples, config.seed), splits["validation"]
    facts["train_examples_used"] = len(train.labels)

    length = config.model.context_length
    batches = _no_batches()
    if config.max_steps != 0:
        batches = finetuning_batches(train, length, config.batch_size, config.num_epochs, config.seed)
    held_out, order = held_out_task_batches(validation, length, config.batch_size, max_batches)
    return Problem(
        objective=TaskObjective(config.task),
        train_batches=batches,
        num_steps=_num_steps(config, batches),
        held_out=HeldOut(held_out, validation.labels[order]),
        task=task,
        facts=facts,
    )


def _encode_split(config: RunConfig, task: Task, tokenizer: Tokenizer, split: str) -> tuple[TaskExamples, int]:
    """The split as token ids, and how many of its examples had to be cut."""
    examples = read_examples(task, config.task.data_dir, split)
    texts = [text for example in examples for segments in example.sequences for text in segments]
    encoded = iter(tokenizer.encode_batch(texts))
    sequences, num_cut = [], 0
    for number, example in enumerate(examples, 1):
        where = f"{split} split of task {config.task.name!r}, row {number}"
        layouts = []
        for texts_of_sequence in example.sequences:
            segments = [next(encoded) for _ in texts_of_sequence]
            if not all(segments):
                raise DataError(f"{where}: a text has no tokens: {texts_of_sequence!r}; remove the row")
            layouts.append(lay_out(segments, tokenizer, config.model.context_length))
        if any(layout.was_cut for layout in layouts):
            num_cut += 1
            if not config.task.truncate:
                raise DataError(
                    f"{where}: longer than ModelConfig.context_length = {config.model.context_length} tokens with its "
                    "special tokens: set TaskConfig.truncate = True to cut such examples, or a longer context"
                )
        sequences.append([layout.ids for layout in layouts])
    return TaskExamples(sequences, np.array([example.label for example in examples], np.int32)), num_cut


def _draw(examples: TaskExamples, size: int | None, seed: int) -> TaskExamples:
    if size is None or size >= len(examples.labels):
        return examples
    rows = np.sort(np.random.default_rng(seed).permutation(len(examples.labels))[:size])
    return TaskExamples([examples.sequences[row] for row in rows], examples.labels[rows])
