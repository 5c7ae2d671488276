"""What a run learns: its objective, its batches, and what it is judged by on held-out data."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from gpt.config import RunConfig
from gpt.data.batches import TaskExamples, finetuning_batches, finetuning_groups, held_out_order, held_out_task_batches
from gpt.data.packing import packed_batches
from gpt.data.store import TokenStore
from gpt.data.windows import Text, held_out_text_batches, passes, pretraining_batches, pretraining_windows, short_names
from gpt.errors import ConfigError
from gpt.tasks.encode import EncodedSplit, encode_split
from gpt.tasks.reader import read_split
from gpt.tasks.registry import Task, find_task
from gpt.text.tokenizer import Tokenizer
from gpt.training.steps import LanguageModelObjective, Objective, TaskObjective


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out batches and, for a task, what their rows are, padding left out.

    `batches` gives those of all rows, or with `rows` these rows of each: no others of a token store are read.
    `labels` are the label of each row, None where they are secret; `order` is its number in the split, and
    `num_sequences` are the sequences that its example has.
    """

    batches: Callable[..., Sequence[Any]]
    batch_size: int
    labels: np.ndarray | None = None
    order: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    num_sequences: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything about a run that comes from data, before any device is touched."""

    objective: Objective
    num_steps: int
    batches_of_seed: Callable[..., grain.MapDataset]
    """Training batches of a RunConfig.seed; with `rows`, those rows, or packs, of each: no others are built or read."""
    numbers_of: Callable[[int, int], dict[str, list[int]]]
    """What is in the batch of a seed and a step: numbers of windows by token store, or of examples."""
    held_outs: dict[str, HeldOut]
    """What the run is judged by, by split: one, for MultiNLI a matched and a mismatched one, of text one a store."""
    task: Task | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was counted while reading: shown at the start and kept with the results."""
    notes: tuple[str, ...] = ()
    """What looks wrong with the data and does not hinder."""

    @property
    def num_outputs(self) -> int | None:
        """Outputs of the classifier; None when there is no labelled task."""
        return None if self.task is None else self.task.num_outputs

    @property
    def held_out(self) -> HeldOut:
        """The first of the held-out splits."""
        return next(iter(self.held_outs.values()))


def load_problem(config: RunConfig, tokenizer: Tokenizer, *, only_split: str | None = None) -> Problem:
    """The problem that `config` states; with `only_split`, that split and all of it, for evaluation alone."""
    if tokenizer.vocab_size != config.model.vocab_size:
        raise ConfigError(
            f"ModelConfig.vocab_size = {config.model.vocab_size}, but the tokenizer in TokenizerConfig.path = "
            f"{config.tokenizer.path!r} has {tokenizer.vocab_size} tokens: set it to that number"
        )
    if config.is_pretraining:
        return _pretraining(config, tokenizer, only_split)
    return _finetuning(config, tokenizer, only_split)


def find_objective(config: RunConfig) -> tuple[Objective, Task | None]:
    """What `config` minimises, and its labelled task if it has one; no data are read."""
    if config.is_pretraining:
        return LanguageModelObjective(), None
    task = find_task(config.task.name or "")
    if config.task.stsb_targets == "regression":
        task = dataclasses.replace(task, targets="regression")
    return TaskObjective(config.task, task.targets, both_orders=task.transform.both_orders), task


def _num_steps(config: RunConfig, batches: grain.MapDataset) -> int:
    return len(batches) if config.max_steps is None else min(len(batches), config.max_steps)


def _no_batches(_seed: int, rows: Sequence[int] | None = None) -> grain.MapDataset:  # noqa: ARG001 - as the others
    # Of what is evaluated alone: the training split may be of any size, or not be there.
    return grain.MapDataset.range(0)


def _no_numbers(seed: int, step: int) -> dict[str, list[int]]:  # noqa: ARG001 - as the others
    return {}


def _pretraining(config: RunConfig, tokenizer: Tokenizer, only_split: str | None) -> Problem:
    if config.data.token_store is None:
        raise ConfigError(
            "DataConfig.token_store is not set, because these weights were converted and not trained here: "
            "set --gin.DataConfig.token_store to a directory that `gpt prepare` wrote"
        )
    if only_split not in (None, "validation"):
        raise ConfigError(f"split {only_split!r}: text is scored on validation, the held-out split of its token store")
    weights = config.data.token_stores
    stores = {name: TokenStore.open(path, tokenizer) for name, path in short_names(list(weights)).items()}
    texts = {
        name: Text(store.split("train"), weight)
        for (name, store), weight in zip(stores.items(), weights.values(), strict=True)
    }
    held_out = {name: store.split("validation") for name, store in stores.items()}
    facts = {
        "train_tokens": sum(len(text.tokens) for text in texts.values()),
        "validation_tokens": sum(map(len, held_out.values())),
    }
    length, batch_size = config.model.context_length, config.batch_size
    batches_of_seed, max_batches = _no_batches, None
    if only_split is None:
        batches_of_seed = functools.partial(pretraining_batches, texts, length, batch_size, config.num_epochs)
        max_batches = config.evaluation_batches
    batches = batches_of_seed(config.seed_of_data)
    num_steps = _num_steps(config, batches)
    if len(texts) > 1 and only_split is None:
        times = passes(texts, length, num_steps * batch_size)
        facts |= {f"{name}_passes": round(count, 2) for name, count in times.items()}
    return Problem(
        objective=find_objective(config)[0],
        batches_of_seed=batches_of_seed,
        numbers_of=functools.partial(pretraining_windows, texts, length, batch_size),
        num_steps=num_steps,
        held_outs={
            f"validation_{name}" if len(stores) > 1 else "validation": HeldOut(
                functools.partial(held_out_text_batches, tokens, length, batch_size, max_batches), batch_size
            )
            for name, tokens in held_out.items()
        },
        facts=facts,
    )


def _finetuning(config: RunConfig, tokenizer: Tokenizer, only_split: str | None) -> Problem:
    objective, task = find_objective(config)
    assert task is not None
    facts: dict[str, Any] = {}
    batches_of_seed, numbers_of, notes = _no_batches, _no_numbers, ()
    if only_split is None:
        _require_split(config, task, "train")
        encoded = _encode(config, task, tokenizer, "train", facts)
        train, drawn = _draw(encoded.examples, config.task.max_train_examples)
        facts["train_examples_used"] = len(train.labels)
        notes = _one_class(config, train)
        source = (train, config.model.context_length, config.batch_size, config.num_epochs)
        if config.pack_size is None:
            batches_of_seed = functools.partial(finetuning_batches, *source)
        else:
            batches_of_seed = functools.partial(packed_batches, *source, pack_size=config.pack_size)

        def numbers_of(seed: int, step: int) -> dict[str, list[int]]:
            return {"train": drawn[finetuning_groups(*source, seed)[step]].tolist()}

    batches = batches_of_seed(config.seed_of_data)

    _require_split(config, task, only_split or "validation")
    max_batches = config.evaluation_batches if only_split is None else None
    held_outs = {}
    for split in task.members(only_split or "validation"):
        encoded = _encode(config, task, tokenizer, split, facts)
        examples = encoded.examples
        order = held_out_order(examples, config.batch_size, max_batches)
        held_outs[split] = HeldOut(
            functools.partial(held_out_task_batches, examples, order, config.model.context_length, config.batch_size),
            config.batch_size,
            labels=None if encoded.labels is None else encoded.labels[order],
            order=order,
            num_sequences=np.array([len(examples.sequences[number]) for number in order]),
        )
    return Problem(
        objective=objective,
        batches_of_seed=batches_of_seed,
        numbers_of=numbers_of,
        num_steps=_num_steps(config, batches),
        held_outs=held_outs,
        task=task,
        facts=facts,
        notes=notes,
    )


def _require_split(config: RunConfig, task: Task, split: str) -> None:
    if not task.members(split):
        hint = ""
        if task.splits == ("test",):
            hint = ": it judges runs of mnli, by eval.py --run=RUN --split=test --gin.TaskConfig.name=ax"
        raise ConfigError(
            f"TaskConfig.name = {config.task.name!r} has no split {split!r}, only {', '.join(task.splits)}{hint}"
        )


def _encode(config: RunConfig, task: Task, tokenizer: Tokenizer, split: str, facts: dict[str, Any]) -> EncodedSplit:
    """One split as token ids; what was counted goes into the facts."""
    found = read_split(task, config.task.data_dir, split)
    encoded = encode_split(
        task,
        found,
        tokenizer,
        config.model.context_length,
        truncate=config.task.truncate,
        name=f"{split} split of task {config.task.name!r}",
    )
    facts[f"{split}_cut"] = encoded.num_cut
    if found.num_dropped:
        facts[f"{split}_without_label_dropped"] = found.num_dropped
    facts[f"{split}_examples"] = len(found.examples)
    return encoded


def _one_class(config: RunConfig, train: TaskExamples) -> tuple[str, ...]:
    if len(np.unique(train.labels, axis=0)) > 1:
        return ()
    return (f"all {len(train.labels)} training examples of {config.task.name!r} have the same label",)


def _draw(examples: TaskExamples, size: int | None) -> tuple[TaskExamples, np.ndarray]:
    """The examples that a run learns from, and their numbers in the split."""
    if size is None or size >= len(examples.labels):
        return examples, np.arange(len(examples.labels))
    # The same for every seed: a spread over seeds is one of initial weights, order and dropout.
    rows = np.sort(np.random.default_rng(0).permutation(len(examples.labels))[:size])
    return TaskExamples([examples.sequences[row] for row in rows], examples.labels[rows]), rows
