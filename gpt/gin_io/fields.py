"""Every setting by its gin name, `Section.field`, with its type, its default and the text of its values."""

import dataclasses
import itertools
from typing import Any, get_args, get_origin

from gpt.config import REQUIRED, SECTIONS, RunConfig
from gpt.files import did_you_mean

FIELDS = {
    f"{section.__name__}.{field.name}": field
    for section in SECTIONS
    for field in dataclasses.fields(section)
    if not dataclasses.is_dataclass(field.type)
}


def format_config(config: RunConfig) -> str:
    """Gin text of every setting, a line each, which `load` reads back to an equal config."""
    width = max(map(len, FIELDS))
    lines = [f"{key:<{width}} = {value!r}\n" for key, value in settings_of(config).items()]
    sections = itertools.groupby(lines, key=lambda line: line.partition(".")[0])
    return "\n".join("".join(section) for _, section in sections)


def describe_fields() -> str:
    """Every section and setting with its type, default and meaning, for `--help`."""
    docs = {section.__name__: section.__doc__ for section in SECTIONS}
    lines = []
    for key, field in FIELDS.items():
        if (section := key.partition(".")[0]) in docs:
            lines.append(f"\n{section}: {docs.pop(section)}")
        default = "REQUIRED" if field.default is REQUIRED else repr(field.default)
        lines += [f"  {key}: {type_text(field.type)} = {default}", f"      {field.metadata['help']}"]
    return "\n".join(lines).lstrip() + "\n"


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """A line for each setting that differs, such as `ModelConfig.num_layers: 6 there, 12 here`."""
    here = settings_of(new)
    return [
        f"{key}: {there!r} there, {here[key]!r} here" for key, there in settings_of(old).items() if there != here[key]
    ]


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every setting of a config by its gin name."""
    sections = {type(part).__name__: part for part in (config, *vars(config).values())}
    return {key: getattr(sections[key.partition(".")[0]], field.name) for key, field in FIELDS.items()}


def options_of(annotation: Any) -> list[Any]:
    """The types that a field takes; of a Literal, its values."""
    if get_origin(annotation) is dict:
        return [annotation]
    return [option for argument in get_args(annotation) for option in options_of(argument)] or [annotation]


def type_text(annotation: Any) -> str:
    """The types that a field takes, as a reader writes them."""
    names = [option.__name__ if type(option) is type else repr(option) for option in options_of(annotation)]
    return " | ".join(names).replace("NoneType", "None")


def explain_unknown(section: str, name: str) -> str:
    """What is wrong with `section.name`, which is no setting, and the nearest that is one."""
    sections = [section.__name__ for section in SECTIONS]
    if section not in sections:
        hint = did_you_mean(section, sections) or f"; the sections are {', '.join(sections)}"
        return f"unknown section `{section}`{hint}"
    own = [key.rpartition(".")[2] for key in FIELDS if key.startswith(f"{section}.")]
    hint = did_you_mean_field(name) or did_you_mean(name, own) or f"; its fields are {', '.join(own)}"
    return f"{section} has no field `{name}`{hint}"


def did_you_mean_field(name: str) -> str:
    """The hint for a field that was written without its section, or with that of another one."""
    places = [f"`{key}`" for key in FIELDS if key.endswith(f".{name}")]
    return f"; did you mean {' or '.join(places)}?" if places else ""
