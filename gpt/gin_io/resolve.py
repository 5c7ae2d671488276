"""Bindings to a `RunConfig`: what wins, macros, types, and what is still to be set."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.config import REQUIRED, RunConfig
from gpt.errors import ConfigError
from gpt.files import did_you_mean
from gpt.gin_io.fields import FIELDS, did_you_mean_field, options_of, type_text
from gpt.gin_io.parse import NO_CODE, Binding, Symbol, read_all

_MAX_VALUES = 20_000


def load(
    gin_files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    if_unset: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The config of gin files, of which a later one wins, and of overrides, which win over all files.

    An override is the text after `--gin.`: `ModelConfig.num_layers=6`, or a macro, `lr=1e-4`.
    `if_unset` has values of settings that nobody sets and that the caller does not need.
    Every line read is checked, also one that a later line replaces. Raises ConfigError.
    """
    bindings = read_all(gin_files, overrides)
    for binding in bindings:
        if binding.axis:
            raise ConfigError(
                f"{binding.where}: `sweep/{binding.axis}` is an axis of a sweep, and this is one run: "
                "use `gpt sweep`, or delete the axis"
            )
    return build_config(bindings, if_unset=if_unset)


def build_config(
    bindings: Sequence[Binding], used_elsewhere: Collection[str] = (), if_unset: Mapping[str, Any] | None = None
) -> RunConfig:
    """The config of bindings, of which a later one wins; ConfigError when it cannot run.

    Macros of `used_elsewhere` may be without use here.
    """
    resolved = _resolve_macros(bindings, used_elsewhere)
    settings = {binding.key: typed(binding) for binding in resolved if binding.key in FIELDS}
    for key, value in (if_unset or {}).items():
        if key not in settings or settings[key].value is REQUIRED:
            settings[key] = Binding(key, value, "no file")
    _refuse_unset(settings)
    try:
        return _build(RunConfig, settings)
    except ConfigError as error:
        words = set(re.findall(r"\w+", str(error)))
        places = [binding.where for key, binding in settings.items() if words.issuperset(key.split("."))]
        raise ConfigError(f"{error} (set in {', '.join(places)})" if places else str(error)) from None


def _resolve_macros(bindings: Sequence[Binding], used_elsewhere: Collection[str]) -> list[Binding]:
    """The bindings with the values that their macros stand for; a macro without definition or use is an error."""
    definitions = {binding.key: binding for binding in bindings if binding.key not in FIELDS}
    used: set[str] = set()
    counter = itertools.count(1)

    def resolve(binding: Binding, trail: tuple[str, ...] = ()) -> Binding:
        value, where = binding.value, binding.where
        if next(counter) > _MAX_VALUES:
            raise ConfigError(f"{where}: macros stand for more than {_MAX_VALUES:,} values in all")
        if isinstance(value, list | tuple):
            items = [resolve(binding._replace(value=item), trail).value for item in value]
            return binding._replace(value=type(value)(items))
        if isinstance(value, dict):
            pairs = resolve(binding._replace(value=list(value.items())), trail).value
            keys = [str(key) for key, _ in pairs]
            if len(set(keys)) < len(keys):
                raise ConfigError(f"{where}: {max(keys, key=keys.count)!r} is there twice")
            return binding._replace(value={str(k) if isinstance(k, str) else k: item for k, item in pairs})
        if not isinstance(value, Symbol):
            return binding
        if value.sign == "@":
            raise ConfigError(f"{where}: `{value}`: {NO_CODE}")
        if value.name in ("REQUIRED", "gin.REQUIRED"):
            return binding._replace(value=REQUIRED)
        if value.name in trail:
            raise ConfigError(f"{where}: macro `{value}` stands for itself")
        if value.name not in definitions:
            raise ConfigError(f"{where}: undefined macro `{value}`{did_you_mean(value.name, definitions)}")
        used.add(value.name)
        meant, place = definitions[value.name].value, definitions[value.name].where
        return resolve(binding._replace(value=meant, where=f"{where} ({value} of {place})"), (*trail, value.name))

    try:
        resolved = [resolve(binding) for binding in bindings]
    except RecursionError:
        raise ConfigError(f"{bindings[0].where}: macros or values lie too deep in one another from here on") from None
    for name, binding in definitions.items():
        if name not in used and name not in used_elsewhere:
            hint = did_you_mean_field(name) or did_you_mean(name, used)
            raise ConfigError(f"{binding.where}: macro `{name}` is defined and never used{hint}")
    return resolved


def typed(binding: Binding) -> Binding:
    """The binding with its value as the field takes it: an int may become a float, nothing else changes."""
    value, annotation = binding.value, FIELDS[binding.key].type
    options = options_of(annotation)
    if float in options and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{binding.where}: {binding.key}: the number is beyond the range of a float")
        return binding._replace(value=float(value))
    if type(value) is int and int in options and abs(value) >= 1 << 63:
        raise ConfigError(f"{binding.where}: {binding.key}: the number is beyond the range of 64 bits")
    if type(value) is dict and dict[str, float] in options and _holds_numbers(value):
        return binding._replace(value={key: float(number) for key, number in value.items()})
    # `type`, not `isinstance`: True is no number of layers.
    if value is REQUIRED or type(value) in options or (isinstance(value, str) and value in options):
        return binding
    hint = did_you_mean(str(value), [option for option in options if isinstance(option, str)])
    raise ConfigError(f"{binding.where}: {binding.key} = {value!r:.300}: expected {type_text(annotation)}{hint}")


def _holds_numbers(value: dict[Any, Any]) -> bool:
    def is_number(number: Any) -> bool:
        return type(number) is float or (type(number) is int and abs(number) <= sys.float_info.max)

    return all(type(key) is str and is_number(number) for key, number in value.items())


def _refuse_unset(settings: dict[str, Binding]) -> None:
    """Raise one error that lists all required settings without a value."""
    unset = []
    for key, field in FIELDS.items():
        binding = settings.get(key)
        if (binding.value if binding else field.default) is REQUIRED:
            origin = f"REQUIRED in {binding.where}" if binding else "no default"
            unset.append(f"\n  {key} ({origin}): {field.metadata['help']}")
    if unset:
        raise ConfigError(f"still to be set, in a gin file or with --gin.Section.field=value:{''.join(unset)}")


def _build(config_class: Any, settings: dict[str, Binding]) -> Any:
    values = {}
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(field.type):
            values[field.name] = _build(field.type, settings)
        elif (key := f"{config_class.__name__}.{field.name}") in settings:
            values[field.name] = settings[key].value
    return config_class(**values)
