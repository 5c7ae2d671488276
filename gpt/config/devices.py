"""The settings of devices and of what is kept on disk."""

import dataclasses

from gpt.config.setting import require, require_positive, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices of a slice each axis takes, and how many slices; -1: the rest. May change when a run resumes."""

    data: int = setting(-1, "devices that split the batch and copy the parameters")
    fsdp: int = setting(1, "devices that split the batch and the parameters")
    sequence: int = setting(1, "devices that split each sequence; keys and values are gathered in every layer")
    tensor: int = setting(
        1, "devices that split heads, feed-forward width, vocabulary, and between layers the sequence"
    )
    dcn_data: int = setting(-1, "slices that split the batch and copy the parameters; 1 where there are none")
    dcn_fsdp: int = setting(1, "slices that split the batch and the parameters, for models too large for one slice")

    def __post_init__(self) -> None:
        for names in (("data", "fsdp", "sequence", "tensor"), ("dcn_data", "dcn_fsdp")):
            sizes = {name: getattr(self, name) for name in names}
            require(
                all(size == -1 or size > 0 for size in sizes.values()) and list(sizes.values()).count(-1) <= 1,
                f"MeshConfig {sizes}: sizes are greater than 0, and at most one is -1",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    save_every_steps: int = setting(1000, "updates between checkpoints; the last update is always saved")
    keep: int = setting(2, "newest checkpoints to keep, at least 2, so that a damaged one is never the only one")
    keep_every_steps: int | None = setting(None, "also keep every checkpoint of a step that this divides; None: none")
    keep_best: bool = setting(
        False,
        "also keep the checkpoint of the best validation score: of text the lowest lm_loss, of a task the highest of "
        "its first metric",
    )

    def __post_init__(self) -> None:
        require_positive(self, "save_every_steps", "keep_every_steps")
        require(
            self.keep_every_steps is None or self.keep_every_steps % self.save_every_steps == 0,
            f"CheckpointConfig.keep_every_steps = {self.keep_every_steps}: must be a multiple of "
            f"CheckpointConfig.save_every_steps = {self.save_every_steps}",
        )
        require(self.keep >= 2, f"CheckpointConfig.keep = {self.keep}: must be at least 2")
