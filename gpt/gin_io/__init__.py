"""Gin files and `--gin.` overrides to a `RunConfig` or to the axes of a sweep, and a `RunConfig` to gin text.

Names, types and precedence are resolved here against the dataclasses of `gpt.config`: gin's own registry accepts
a wrong type, a misspelt scope, an unused macro and a setting given twice without a word, and can run code.
"""

from gpt.gin_io.fields import describe_fields, differences, format_config, settings_of
from gpt.gin_io.resolve import load
from gpt.gin_io.sweep import Axis, SweepSettings, load_sweep

__all__ = [
    "Axis",
    "SweepSettings",
    "describe_fields",
    "differences",
    "format_config",
    "load",
    "load_sweep",
    "settings_of",
]
