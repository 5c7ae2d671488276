"""The settings of vocabulary, text and labelled task."""

import dataclasses
import math
from typing import Literal

from gpt.config.setting import REQUIRED, require, require_positive, require_rates, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the vocabulary is, and the way from text to its words."""

    path: str = setting(
        REQUIRED, "directory with the tokenizer.json of `gpt tokenizer train`, or with OpenAI's or Hugging Face's files"
    )
    route: Literal["original", "basic"] | None = setting(
        None, "original (ftfy and spaCy, as OpenAI) or basic (BERT's); None: the one that tokenizer.json records"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text to pretrain on."""

    token_store: str | dict[str, float] | None = setting(  # noqa: RUF009 - nobody changes it
        None,
        "directory that `gpt prepare` wrote, or several by weight: {'books': 0.7, 'wiki': 0.3}; needed to pretrain",
    )

    def __post_init__(self) -> None:
        stores = self.token_store if isinstance(self.token_store, dict) else {}
        require(self.token_store != {}, "DataConfig.token_store = {}: must name at least one token store")
        for store, weight in stores.items():
            require(
                0 < weight < math.inf,
                f"DataConfig.token_store: the weight of {store!r} is {weight}: must be greater than 0",
            )

    @property
    def token_stores(self) -> dict[str, float]:
        """Weights by token store, in the order of their names; none when no store is set."""
        stores = self.token_store if isinstance(self.token_store, dict) else {self.token_store: 1.0}
        return {store: stores[store] for store in sorted(filter(None, stores))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The labelled task to fine-tune on (Radford et al. 2018, sections 3.2 and 3.3)."""

    name: str | None = setting(None, "one of gpt.tasks.TASKS; None pretrains")
    data_dir: str | None = setting(
        None, "directory with train.* and validation.* (jsonl, csv or tsv) or the published files; None reads the hub"
    )
    lm_coef: float = setting(0.5, "weight lambda of the auxiliary language-model loss, eq. 5")
    classifier_dropout_rate: float = setting(0.1, "dropout before the classifier")
    stsb_targets: Literal["soft_labels", "regression"] = setting(
        "soft_labels",
        "how the numbers of STS-B are learned: as weights of six classes, which OpenAI's code hints at, "
        "or by their squared error",
    )
    truncate: bool = setting(
        False, "cut examples longer than the context (longest segment first, its end) instead of refusing them"
    )
    max_train_examples: int | None = setting(
        None, "train on this many examples, drawn once, the same for every RunConfig.seed; None: all"
    )

    def __post_init__(self) -> None:
        require(self.lm_coef >= 0, f"TaskConfig.lm_coef = {self.lm_coef}: must be 0 or more")
        require_rates(self, "classifier_dropout_rate")
        require_positive(self, "max_train_examples")
        require(
            self.stsb_targets == "soft_labels" or self.name == "stsb",
            f"TaskConfig.stsb_targets = {self.stsb_targets!r} is for TaskConfig.name = 'stsb', and not for "
            f"{self.name!r}: leave it out",
        )
