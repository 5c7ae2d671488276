"""The settings of a run: frozen dataclasses whose defaults are the published numbers.

`RunConfig` is the root and holds all others. Every field carries its meaning in
`field.metadata["help"]`; a field without default must be set. Consistency is checked on
construction, so a config that exists is a config that can run.

Defaults: Radford et al. 2018, section 4.1; where the paper is silent, OpenAI's released
fine-tuning code.
"""

import dataclasses
from typing import Any, Literal

from gpt.errors import ConfigError

REQUIRED: Any = dataclasses.MISSING


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its meaning; `REQUIRED` as default means that it must be set."""
    return dataclasses.field(default=default, metadata={"help": help})


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            value is None or value > 0,
            f"{type(config).__name__}.{name} = {value}: must be greater than 0",
        )


def _require_rates(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            0.0 <= value < 1.0,
            f"{type(config).__name__}.{name} = {value}: a rate is at least 0 and below 1",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The transformer: twelve post-LN decoder blocks of width 768, 116,534,784 parameters."""

    architecture: Literal["transformer", "lstm"] = setting(
        "transformer", "transformer, or the one-layer LSTM that table 5 compares with"
    )
    vocab_size: int = setting(40478, "token ids of the tokenizer (40,000 merges + 238 x 2 characters + 2)")
    num_special_tokens: int = setting(
        0, "embedding rows after the vocabulary for start, delimiter and extract: 0 to pretrain, 3 to fine-tune"
    )
    context_length: int = setting(512, "positions, the longest sequence in tokens")
    num_layers: int = setting(12, "transformer blocks")
    num_heads: int = setting(12, "attention heads a block")
    embed_dim: int = setting(768, "width of the residual stream")
    mlp_dim: int = setting(3072, "width of the feed-forward layer")
    lstm_dim: int = setting(2048, "units of the LSTM, which has one layer, no heads, no positions")
    activation: Literal["gelu", "relu", "silu"] = setting(
        "gelu", "non-linearity of the feed-forward layer; gelu in its tanh form"
    )
    embed_dropout_rate: float = setting(0.1, "dropout on the sum of token and position embedding")
    embedding_table_dropout: bool = setting(
        False,
        "apply embed_dropout_rate to the whole embedding table once an update, before lookup and softmax, "
        "as OpenAI's fine-tuning code does",
    )
    attention_dropout_rate: float = setting(0.1, "dropout on attention probabilities")
    residual_dropout_rate: float = setting(0.1, "dropout on what each sub-layer adds to the residual stream")
    softmax_over_positions: bool = setting(
        False, "let the position rows compete in the softmax over tokens, as OpenAI's fine-tuning code does"
    )
    layer_norm_epsilon: float = setting(1e-5, "added to the variance in layer normalisation")
    init_std: float = setting(0.02, "standard deviation of the initial weights")
    compute_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "precision of activations and matrix products; parameters are always float32"
    )
    scan_layers: bool | None = setting(
        None, "one compiled block scanned over the layers (small programs) or all unrolled; None: unrolled on CPU only"
    )

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocab_size", "context_length", "num_layers", "num_heads", "embed_dim", "mlp_dim",
            "lstm_dim",
            "layer_norm_epsilon", "init_std",
        )  # fmt: skip
        _require_rates(self, "embed_dropout_rate", "attention_dropout_rate", "residual_dropout_rate")
        _require(
            self.num_special_tokens in (0, 3),
            f"ModelConfig.num_special_tokens = {self.num_special_tokens}: must be 0 (pretraining) "
            "or 3 (start, delimiter and extract, for fine-tuning)",
        )
        _require(
            self.embed_dim % self.num_heads == 0,
            f"ModelConfig.embed_dim = {self.embed_dim} does not divide into "
            f"ModelConfig.num_heads = {self.num_heads} heads",
        )
        if self.architecture == "lstm":
            for name in ("embedding_table_dropout", "softmax_over_positions"):
                _require(
                    not getattr(self, name),
                    f"ModelConfig.{name} = True is for the transformer alone, and ModelConfig.architecture is 'lstm': "
                    f"set ModelConfig.{name} = False",
                )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def num_embeddings(self) -> int:
        """Rows of the token table: the vocabulary, then the special tokens."""
        return self.vocab_size + self.num_special_tokens


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

    token_store: str | None = setting(None, "directory that `gpt prepare` wrote; needed to pretrain")


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
    max_train_examples: int | None = setting(None, "train on this many examples, drawn with the seed; None: all")

    def __post_init__(self) -> None:
        _require(self.lm_coef >= 0, f"TaskConfig.lm_coef = {self.lm_coef}: must be 0 or more")
        _require_rates(self, "classifier_dropout_rate")
        _require_positive(self, "max_train_examples")
        _require(
            self.stsb_targets == "soft_labels" or self.name == "stsb",
            f"TaskConfig.stsb_targets = {self.stsb_targets!r} is for TaskConfig.name = 'stsb', and not for "
            f"{self.name!r}: leave it out",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, warm-up and decay."""

    name: Literal["openai_adam", "adamw"] = setting(
        "openai_adam", "OpenAI's own update (epsilon before bias correction) or optax.adamw"
    )
    learning_rate: float = setting(2.5e-4, "peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "shape of the decay to 0 after warm-up")
    warmup_steps: int | None = setting(2000, "updates of linear warm-up; None uses warmup_fraction")
    warmup_fraction: float | None = setting(None, "warm-up as a fraction of all updates; None uses warmup_steps")
    b1: float = setting(0.9, "decay rate of the first moment")
    b2: float = setting(0.999, "decay rate of the second moment")
    epsilon: float = setting(1e-8, "added to the root of the second moment")
    weight_decay: float = setting(0.01, "decoupled decay of kernels and embeddings, never of biases and gains")
    max_grad_norm: float | None = setting(1.0, "clip gradients to this global norm; None does not clip")

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate", "epsilon", "max_grad_norm")
        _require_rates(self, "b1", "b2")
        _require(
            (self.warmup_steps is None) != (self.warmup_fraction is None),
            f"OptimizerConfig.warmup_steps = {self.warmup_steps} and warmup_fraction = {self.warmup_fraction}: "
            "set exactly one of them and the other to None",
        )
        _require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"OptimizerConfig.warmup_steps = {self.warmup_steps}: must be 0 or more",
        )
        if self.warmup_fraction is not None:
            _require_rates(self, "warmup_fraction")
        _require(self.weight_decay >= 0, f"OptimizerConfig.weight_decay = {self.weight_decay}: must be 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each mesh axis takes; -1 on one axis takes what the others leave."""

    data: int = setting(-1, "devices that split the batch and copy the parameters")
    fsdp: int = setting(1, "devices that split the batch and the parameters")
    tensor: int = setting(1, "devices that split heads, feed-forward width and vocabulary")

    def __post_init__(self) -> None:
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        _require(
            all(size == -1 or size > 0 for size in sizes.values()) and list(sizes.values()).count(-1) <= 1,
            f"MeshConfig {sizes}: sizes are greater than 0, and at most one is -1",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    save_every_steps: int = setting(1000, "updates between checkpoints; the last update is always saved")
    keep: int = setting(2, "newest checkpoints to keep, at least 2, so that a damaged one is never the only one")

    def __post_init__(self) -> None:
        _require_positive(self, "save_every_steps")
        _require(self.keep >= 2, f"CheckpointConfig.keep = {self.keep}: must be at least 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: pretraining, or fine-tuning when TaskConfig.name is set."""

    output_dir: str = setting(REQUIRED, "run directory: config, checkpoints, metrics; repeat the command to resume")
    init_from: str | None = setting(None, "run directory whose latest weights to start from; None: random weights")
    seed: int = setting(42, "governs initial weights, data order and dropout")
    num_epochs: int = setting(100, "passes over the training split; the schedule ends with the last")
    max_steps: int | None = setting(
        None, "fewer updates than the epochs take; the schedule ends there; 0: weights of `gpt convert`, no update"
    )
    batch_size: int = setting(64, "sequences (pretraining) or examples (fine-tuning) an update, over all devices")
    accumulation_steps: int = setting(1, "parts in which a batch is computed, to save memory; same gradient")
    log_every_steps: int = setting(100, "updates between log lines")
    evaluate_every_steps: int = setting(1000, "updates between evaluations on the validation split")
    evaluation_batches: int | None = setting(None, "validation batches looked at during training; None: all")

    tokenizer: TokenizerConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        _require_positive(
            self, "num_epochs", "batch_size", "accumulation_steps", "log_every_steps",
            "evaluate_every_steps", "evaluation_batches",
        )  # fmt: skip
        _require(
            self.max_steps is None or self.max_steps >= 0,
            f"RunConfig.max_steps = {self.max_steps}: must be 0 or more",
        )
        _require(0 <= self.seed < 2**32, f"RunConfig.seed = {self.seed}: must be from 0 to 2**32 - 1")
        _require(
            self.batch_size % self.accumulation_steps == 0,
            f"RunConfig.batch_size = {self.batch_size} does not divide into "
            f"RunConfig.accumulation_steps = {self.accumulation_steps} equal parts",
        )
        if self.task.name is None:
            _require(
                self.data.token_store is not None or self.max_steps == 0,
                "DataConfig.token_store is not set: pretraining reads the directory that `gpt prepare` wrote "
                "(to fine-tune, set TaskConfig.name)",
            )
        else:
            _require(
                self.model.num_special_tokens == 3,
                f"ModelConfig.num_special_tokens = {self.model.num_special_tokens}: fine-tuning on "
                f"{self.task.name!r} needs 3 (start, delimiter, extract), as configs/run/finetune.gin sets",
            )

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
