"""The settings of the network."""

import dataclasses
from typing import Literal

from gpt.config.setting import require, require_positive, require_rates, setting

_LSTM_ONLY = frozenset({"lstm_dim"})
_TRANSFORMER_ONLY = frozenset(
    {
        "num_layers", "num_heads", "mlp_dim", "activation", "attention_dropout_rate", "embedding_table_dropout",
        "softmax_over_positions", "layer_norm_epsilon", "scan_layers", "attention",
    }
)  # fmt: skip
_FIXED_BY_WEIGHTS = (
    "architecture", "vocab_size", "num_layers", "num_heads", "embed_dim", "mlp_dim", "lstm_dim", "activation",
    "layer_norm_epsilon",
)  # fmt: skip


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
    remat: Literal["none", "dots", "full"] = setting(
        "none",
        "what backward computes again instead of keeping: nothing; all of a layer but matrix products with weights; "
        "all of a layer",
    )
    attention: Literal["plain", "xla", "cudnn", "splash"] = setting(
        "plain",
        "plain, the only one with dropout; without it the kernel of XLA, cuDNN (NVIDIA GPU, bfloat16) or Splash (TPU)",
    )

    def __post_init__(self) -> None:
        require_positive(
            self, "vocab_size", "context_length", "num_layers", "num_heads", "embed_dim", "mlp_dim",
            "lstm_dim",
            "layer_norm_epsilon", "init_std",
        )  # fmt: skip
        require_rates(self, "embed_dropout_rate", "attention_dropout_rate", "residual_dropout_rate")
        require(
            self.num_special_tokens in (0, 3),
            f"ModelConfig.num_special_tokens = {self.num_special_tokens}: must be 0 (pretraining) "
            "or 3 (start, delimiter and extract, for fine-tuning)",
        )
        require(
            self.embed_dim % self.num_heads == 0 or "num_heads" in self.absent,
            f"ModelConfig.embed_dim = {self.embed_dim} does not divide into "
            f"ModelConfig.num_heads = {self.num_heads} heads",
        )
        if self.architecture == "lstm":
            for name in ("embedding_table_dropout", "softmax_over_positions"):
                require(
                    not getattr(self, name),
                    f"ModelConfig.{name} = True is for the transformer alone, and ModelConfig.architecture is 'lstm': "
                    f"set ModelConfig.{name} = False",
                )
        if "attention" not in self.absent:
            self._check_attention()

    def _check_attention(self) -> None:
        name = f"ModelConfig.attention = {self.attention!r}"
        require(
            self.attention == "plain" or self.attention_dropout_rate == 0,
            f"{name} with ModelConfig.attention_dropout_rate = {self.attention_dropout_rate}: none of the fused "
            "kernels has dropout: set ModelConfig.attention_dropout_rate = 0, or ModelConfig.attention = 'plain'",
        )
        if self.attention == "cudnn":
            require(
                self.compute_dtype == "bfloat16",
                f"{name} with ModelConfig.compute_dtype = {self.compute_dtype!r}: cuDNN's kernel computes in bfloat16: "
                "set ModelConfig.compute_dtype = 'bfloat16', or ModelConfig.attention = 'plain' or 'xla'",
            )
            require(
                self.head_dim % 8 == 0 and self.head_dim <= 128,
                f"{name} with {self.head_dim} channels a head, ModelConfig.embed_dim / ModelConfig.num_heads: cuDNN's "
                "kernel takes a multiple of 8 up to 128: change one of them, or set ModelConfig.attention = 'plain'",
            )

    @property
    def absent(self) -> frozenset[str]:
        """Settings that the architecture does not have: whatever they are, the model is the same."""
        return _TRANSFORMER_ONLY if self.architecture == "lstm" else _LSTM_ONLY

    @property
    def fixed_by_weights(self) -> frozenset[str]:
        """Settings that must be those that the weights were trained with."""
        positions = () if self.architecture == "lstm" else ("context_length",)
        return frozenset((*_FIXED_BY_WEIGHTS, *positions)) - self.absent

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def num_embeddings(self) -> int:
        """Rows of the token table: the vocabulary, then the special tokens."""
        return self.vocab_size + self.num_special_tokens
