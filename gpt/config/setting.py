"""What every section of settings is made of: a field with its meaning, and checks that name the field."""

import dataclasses
from typing import Any

from gpt.errors import ConfigError

REQUIRED: Any = dataclasses.MISSING


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its meaning; `REQUIRED` as default means that it must be set."""
    return dataclasses.field(default=default, metadata={"help": help})


def require(holds: bool, message: str) -> None:
    """Raises ConfigError with the message unless it holds."""
    if not holds:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raises ConfigError that names the first of these fields that is 0 or less; None passes."""
    for name in names:
        value = getattr(config, name)
        require(
            value is None or value > 0,
            f"{type(config).__name__}.{name} = {value}: must be greater than 0",
        )


def require_rates(config: Any, *names: str) -> None:
    """Raises ConfigError that names the first of these fields that is no rate."""
    for name in names:
        value = getattr(config, name)
        require(
            0.0 <= value < 1.0,
            f"{type(config).__name__}.{name} = {value}: a rate is at least 0 and below 1",
        )
