"""The settings of a run: frozen dataclasses whose defaults are the published numbers.

`RunConfig` is the root and holds all others. Every field carries its meaning in
`field.metadata["help"]`; a field without default must be set. Consistency is checked on
construction, so a config that exists is a config that can run.

Defaults: Radford et al. 2018, section 4.1; where the paper is silent, OpenAI's released
fine-tuning code.
"""

from gpt.config.data import DataConfig, TaskConfig, TokenizerConfig
from gpt.config.devices import CheckpointConfig, MeshConfig
from gpt.config.model import ModelConfig
from gpt.config.optimizer import OptimizerConfig
from gpt.config.run import SECTIONS, RunConfig
from gpt.config.setting import REQUIRED

__all__ = [
    "REQUIRED",
    "SECTIONS",
    "CheckpointConfig",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "TaskConfig",
    "TokenizerConfig",
]
