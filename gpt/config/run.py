"""The root of all settings."""

import dataclasses
import math

from gpt.config.data import DataConfig, TaskConfig, TokenizerConfig
from gpt.config.devices import CheckpointConfig, MeshConfig
from gpt.config.model import ModelConfig
from gpt.config.optimizer import OptimizerConfig
from gpt.config.setting import REQUIRED, require, require_positive, setting
from gpt.files import is_url


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: pretraining, or fine-tuning when TaskConfig.name is set."""

    output_dir: str = setting(REQUIRED, "run directory: config, checkpoints, metrics; repeat the command to resume")
    init_from: str | None = setting(None, "run directory whose latest weights to start from; None: random weights")
    num_transferred_layers: int | None = setting(
        None, "fine-tuning: blocks taken over from init_from, lowest first, above its embeddings; None: all"
    )
    seed: int = setting(42, "governs initial weights, data order and dropout")
    init_seed: int | None = setting(None, "of the initial weights alone; None: seed")
    head_seed: int | None = setting(None, "of the initial weights of the task's head alone; None: init_seed")
    data_seed: int | None = setting(None, "of the order of the data alone; None: seed")
    dropout_seed: int | None = setting(None, "of dropout alone; None: seed")
    num_epochs: int = setting(100, "passes over the training split; the schedule ends with the last")
    max_steps: int | None = setting(
        None, "fewer updates than the epochs take; the schedule ends there; 0: weights of `gpt convert`, no update"
    )
    batch_size: int = setting(64, "sequences (pretraining) or examples (fine-tuning) an update, over all devices")
    accumulation_steps: int = setting(1, "parts in which a batch is computed, to save memory; same gradient")
    pack_size: int | None = setting(
        None,
        "fine-tuning: so many examples of an update lie back to back in common rows: the same losses and less padding, "
        "for more programs to compile; None: a sequence has a row of its own",
    )
    log_every_steps: int = setting(100, "updates between log lines")
    evaluate_every_steps: int = setting(1000, "updates between evaluations on the validation split")
    update_timeout_seconds: float | None = setting(
        3600.0, "an update that takes longer is a hang and ends the run (exit code 4); None: none is"
    )
    evaluation_batches: int | None = setting(None, "validation batches looked at during training; None: all")
    patience: int | None = setting(
        None,
        "stop after so many evaluations in a row without a better score, and let the best checkpoint be the run's "
        "result; None: train to the end, the last one is the result",
    )

    tokenizer: TokenizerConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require(
            not is_url(self.output_dir),
            f"RunConfig.output_dir = {self.output_dir!r}: must be a path, not a URL: run directories are on a local or "
            "mounted file system. Mount the bucket (gcsfuse, mount-s3) and give the path, or copy the run after it",
        )
        require_positive(
            self, "num_epochs", "batch_size", "accumulation_steps", "pack_size", "log_every_steps",
            "evaluate_every_steps", "evaluation_batches", "update_timeout_seconds", "patience",
        )  # fmt: skip
        require(
            self.max_steps is None or self.max_steps >= 0,
            f"RunConfig.max_steps = {self.max_steps}: must be 0 or more",
        )
        for name in ("seed", "init_seed", "head_seed", "data_seed", "dropout_seed"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 2**32, f"RunConfig.{name} = {value}: must be from 0 to 2**32 - 1")
        require(
            self.batch_size % self.accumulation_steps == 0,
            f"RunConfig.batch_size = {self.batch_size} does not divide into "
            f"RunConfig.accumulation_steps = {self.accumulation_steps} equal parts",
        )
        require(
            not self.checkpoint.keep_best or self.checkpoint.save_every_steps % self.evaluate_every_steps == 0,
            f"CheckpointConfig.keep_best needs a score of each checkpoint: make CheckpointConfig.save_every_steps = "
            f"{self.checkpoint.save_every_steps} a multiple of RunConfig.evaluate_every_steps = "
            f"{self.evaluate_every_steps}",
        )
        require(
            self.patience is None
            or (self.checkpoint.keep_best and self.checkpoint.save_every_steps == self.evaluate_every_steps),
            f"RunConfig.patience = {self.patience} goes back to the best checkpoint: set CheckpointConfig.keep_best = "
            f"True, and CheckpointConfig.save_every_steps to RunConfig.evaluate_every_steps = "
            f"{self.evaluate_every_steps}",
        )
        if self.num_transferred_layers is not None:
            self._check_transfer(self.num_transferred_layers)
        if self.pack_size is not None:
            self._check_packs(self.pack_size)
        if self.task.name is None:
            require(
                self.data.token_store is not None or self.max_steps == 0,
                "DataConfig.token_store is not set: pretraining reads the directory that `gpt prepare` wrote "
                "(to fine-tune, set TaskConfig.name)",
            )
        else:
            require(
                self.model.num_special_tokens == 3,
                f"ModelConfig.num_special_tokens = {self.model.num_special_tokens}: fine-tuning on "
                f"{self.task.name!r} needs 3 (start, delimiter, extract), as configs/run/finetune.gin sets",
            )

    def _check_transfer(self, number: int) -> None:
        what = f"RunConfig.num_transferred_layers = {number}"
        require(
            0 <= number <= self.model.num_layers,
            f"{what}: must be from 0 (embeddings alone) to ModelConfig.num_layers = {self.model.num_layers}",
        )
        for holds, reason in (
            (self.task.name is not None, "is for fine-tuning, and TaskConfig.name is not set"),
            (self.init_from is not None, "needs pretrained blocks to take over, and RunConfig.init_from is None"),
            (
                self.model.architecture == "transformer",
                "counts transformer blocks, and ModelConfig.architecture is 'lstm'",
            ),
        ):
            require(holds, f"{what} {reason}: set it to None")

    def _check_packs(self, size: int) -> None:
        what = f"RunConfig.pack_size = {size}"
        for holds, reason in (
            (self.task.name is not None, "is for fine-tuning, and TaskConfig.name is not set"),
            (
                self.model.architecture == "transformer",
                "needs attention to keep sequences apart, and ModelConfig.architecture is 'lstm'",
            ),
        ):
            require(holds, f"{what} {reason}: set it to None")
        require(
            self.batch_size % (size * self.accumulation_steps) == 0,
            f"{what}: RunConfig.batch_size = {self.batch_size} does not divide into packs of {size} examples for "
            f"each of RunConfig.accumulation_steps = {self.accumulation_steps} parts: the largest that does is "
            f"{math.gcd(size, self.batch_size // self.accumulation_steps)}",
        )

    @property
    def num_batch_units(self) -> int:
        """Length of the leading axis of a training batch, which is split over devices: its packs, or its rows."""
        return self.batch_size // (self.pack_size or 1)

    @property
    def transfers_all_layers(self) -> bool:
        """Whether no block of a pretrained model is left out; so None and the number of all blocks are one setting."""
        return self.num_transferred_layers in (None, self.model.num_layers)

    @property
    def seed_of_data(self) -> int:
        """The seed of the order of the data."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def is_pretraining(self) -> bool:
        """Whether the run learns from a token store alone, without a labelled task."""
        return self.task.name is None


SECTIONS: tuple[type, ...] = (
    RunConfig,
    TokenizerConfig,
    ModelConfig,
    DataConfig,
    TaskConfig,
    OptimizerConfig,
    MeshConfig,
    CheckpointConfig,
)
"""All config classes, root first."""
