"""The settings of the update rule."""

import dataclasses
from typing import Literal

from gpt.config.setting import require, require_positive, require_rates, setting


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
    max_loss_ratio: float | None = setting(
        None, "skip an update whose loss is more than so many times the mean of the last hundred; None skips none"
    )
    max_skipped_updates: int = setting(
        10, "so many updates in a row that are skipped, their loss or gradient not finite, end the run (exit code 3)"
    )

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epsilon", "max_grad_norm", "max_skipped_updates")
        require(
            self.max_loss_ratio is None or self.max_loss_ratio > 1,
            f"OptimizerConfig.max_loss_ratio = {self.max_loss_ratio}: must be greater than 1",
        )
        require_rates(self, "b1", "b2")
        require(
            (self.warmup_steps is None) != (self.warmup_fraction is None),
            f"OptimizerConfig.warmup_steps = {self.warmup_steps} and warmup_fraction = {self.warmup_fraction}: "
            "set exactly one of them and the other to None",
        )
        require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"OptimizerConfig.warmup_steps = {self.warmup_steps}: must be 0 or more",
        )
        if self.warmup_fraction is not None:
            require_rates(self, "warmup_fraction")
        require(self.weight_decay >= 0, f"OptimizerConfig.weight_decay = {self.weight_decay}: must be 0 or more")
