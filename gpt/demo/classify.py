"""What the head of a fine-tuned run says of new inputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.config import RunConfig
from gpt.data.batches import held_out_task_batches, length_buckets
from gpt.errors import DataError
from gpt.model.gpt import Params
from gpt.tasks.columns import our_rows
from gpt.tasks.encode import encode_split
from gpt.tasks.reader import Split, parse_row
from gpt.tasks.registry import Task
from gpt.tasks.targets import predict
from gpt.tasks.transforms import MULTIPLE_CHOICE
from gpt.text.tokenizer import Tokenizer
from gpt.training.steps import TaskObjective, make_eval_step


class Classifier:
    """The head of a run with the input transform and the labels of its task."""

    def __init__(self, config: RunConfig, task: Task, params: Params, tokenizer: Tokenizer):
        self.task, self.task_name = task, config.task.name
        self._context_length, self._params, self._tokenizer = config.model.context_length, params, tokenizer
        # Without the auxiliary objective, whose logits nobody reads here.
        without_lm = dataclasses.replace(config.task, lm_coef=0.0)
        objective = TaskObjective(without_lm, task.targets, both_orders=task.transform.both_orders)
        self._evaluate = make_eval_step(config.model, objective)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What /v1/classify tells of one input: its label with all probabilities, or its number.

        Raises:
          DataError: a column is missing or no text, or the input is longer than the context.
        """
        (ours,) = our_rows({name: value for name, value in row.items() if name != "label"})
        example = parse_row(self.task, ours, row, "the input", may_be_secret=True)
        split = Split([example], num_dropped=0)
        encoded = encode_split(self.task, split, self._tokenizer, self._context_length, truncate=True, name="the input")
        if encoded.num_cut:
            raise DataError(f"the input is longer than the model's {self._context_length} tokens: shorten it")
        (batch,) = held_out_task_batches(encoded.examples, np.arange(1), self._context_length, batch_size=1)
        scores = np.asarray(self._evaluate(self._params, batch).scores, np.float64)
        if not np.isfinite(scores).all():
            raise DataError("the model gives scores that are no numbers: are there NaN among its weights?")
        return self._describe(scores)

    def warm_up(self) -> None:
        """Compiles what inputs of every length need; choices are compiled for as many as come, when they come."""
        columns = self.task.transform.columns
        if self.task.transform is MULTIPLE_CHOICE:
            return
        word = self._tokenizer.decode([1])
        for length in length_buckets(self._context_length):
            fitting = " ".join([word] * max(1, (length - 4) // len(columns)))
            self(dict.fromkeys(columns, fitting))

    def _describe(self, scores: np.ndarray) -> dict[str, Any]:
        prediction = predict(self.task.targets, scores)[0].item()
        if self.task.targets != "class":
            return {"label": None, "score": prediction}
        weights = np.exp(scores[0] - scores[0].max())
        probabilities = (weights / weights.sum()).tolist()
        labels = self.task.labels or tuple(range(len(probabilities)))
        return {
            "label": labels[prediction],
            "probs": probabilities,
            "num_classes": len(probabilities),
            "labels": list(labels),
        }
