"""Gin files and `--gin.` overrides to a `RunConfig`, and a `RunConfig` to gin text.

The only module that imports gin, and of gin it takes the parser alone. Names, types and precedence
are resolved here against the dataclasses of `gpt.config`: gin's own registry accepts a wrong type, a
misspelt scope, an unused macro and a setting given twice without a word, and can run code.
"""

import dataclasses
import itertools
import os
import re
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from gin import config_parser

from gpt.config import REQUIRED, SECTIONS, RunConfig
from gpt.errors import ConfigError
from gpt.files import did_you_mean

_FIELDS = {
    f"{section.__name__}.{field.name}": field
    for section in SECTIONS
    for field in dataclasses.fields(section)
    if not dataclasses.is_dataclass(field.type)
}
_NO_CODE = "a config holds values only and never runs code; delete it"


class _Binding(NamedTuple):
    """One `key = value`, where the key is `Section.field` or the name of a macro."""

    key: str
    value: Any
    where: str


@dataclasses.dataclass(frozen=True)
class _Symbol:
    """`%macro` or `@reference`, as gin's parser met it."""

    sign: str
    name: str

    def __repr__(self) -> str:
        return self.sign + self.name


class _Delegate(config_parser.ParserDelegate):
    def macro(self, macro_name: str) -> Any:
        return _Symbol("%", macro_name)

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:  # noqa: ARG002
        return _Symbol("@", scoped_configurable_name)


def load(gin_files: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """The config of gin files, of which a later one wins, and of overrides, which win over all files.

    An override is the text after `--gin.`: `ModelConfig.num_layers=6`, or a macro, `lr=1e-4`.
    Every line read is checked, also one that a later line replaces. Raises ConfigError.
    """
    bindings = [binding for path in gin_files for binding in _read_file(Path(path))]
    bindings += _refuse_duplicates([_read_override(text) for text in overrides], "on the command line")
    resolved = _resolve_macros(bindings)
    settings = {binding.key: _typed(binding) for binding in resolved if binding.key in _FIELDS}
    _refuse_unset(settings)
    try:
        return _build(RunConfig, settings)
    except ConfigError as error:
        words = set(re.findall(r"\w+", str(error)))
        places = [binding.where for key, binding in settings.items() if words.issuperset(key.split("."))]
        raise ConfigError(f"{error} (set in {', '.join(places)})" if places else str(error)) from None


def format_config(config: RunConfig) -> str:
    """Gin text of every setting, a line each, which `load` reads back to an equal config."""
    width = max(map(len, _FIELDS))
    lines = [f"{key:<{width}} = {value!r}\n" for key, value in _values(config).items()]
    sections = itertools.groupby(lines, key=lambda line: line.partition(".")[0])
    return "\n".join("".join(section) for _, section in sections)


def describe_fields() -> str:
    """Every section and setting with its type, default and meaning, for `--help`."""
    docs = {section.__name__: section.__doc__ for section in SECTIONS}
    lines = []
    for key, field in _FIELDS.items():
        if (section := key.partition(".")[0]) in docs:
            lines.append(f"\n{section}: {docs.pop(section)}")
        default = "REQUIRED" if field.default is REQUIRED else repr(field.default)
        lines += [f"  {key}: {_type_text(field.type)} = {default}", f"      {field.metadata['help']}"]
    return "\n".join(lines).lstrip() + "\n"


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """A line for each setting that differs, such as `ModelConfig.num_layers: 6 there, 12 here`."""
    here = _values(new)
    return [f"{key}: {there!r} there, {here[key]!r} here" for key, there in _values(old).items() if there != here[key]]


def _read_file(path: Path, included_in: str = "") -> list[_Binding]:
    """The bindings of a file, after those of the files it includes, so that its own win."""
    included, own = [], []
    for statement in _parse(_read_text(path, included_in), path):
        where = _where(path, statement.location.line_num)
        if isinstance(statement, config_parser.ImportStatement):
            raise ConfigError(f"{where}: `{statement.format()}`: {_NO_CODE}")
        if isinstance(statement, config_parser.IncludeStatement):
            if included_in:
                raise ConfigError(
                    f"{where}: include {statement.filename!r}: this file is itself included (in {included_in}); "
                    "included files include nothing further, so include both there"
                )
            beside, here = path.parent / statement.filename, Path(statement.filename)
            included += _read_file(here if here.exists() and not beside.exists() else beside, included_in=where)
        if isinstance(statement, config_parser.BindingStatement):
            own.append(_binding(statement, where))
    return included + _refuse_duplicates(own, "in this file")


def _read_text(path: Path, included_in: str) -> str:
    source = f"{os.path.normpath(path)}{f' (included in {included_in})' if included_in else ''}"
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [sibling.name for sibling in path.parent.glob("*.gin")]
        raise ConfigError(f"{source}: no such file{did_you_mean(path.name, siblings)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: expected a gin file in UTF-8; byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{source}: expected a gin file, cannot read it: {error.strerror}") from None


def _read_override(text: str) -> _Binding:
    flag = f"--gin.{text}"
    match = re.fullmatch(r"\s*(\w[\w./]*)\s*=\s*(\S.*?)\s*", text)
    if not match:
        raise ConfigError(f"{flag}: expected --gin.Section.field=value, such as --gin.ModelConfig.num_layers=6")
    name, value = match.groups()
    try:
        (statement,) = _parse(f"{name} = {value}", flag)
    except ConfigError:
        if value[0] in "'\"([{%@":
            raise
        (statement,) = _parse(f"{name} = {value!r}", flag)  # a bare word: runs/first, cosine
    binding = _binding(statement, flag)
    takes_text = binding.key in _FIELDS and str in _options(_FIELDS[binding.key].type)
    return binding._replace(value=value) if takes_text and type(binding.value) in (int, float) else binding


def _parse(text: str, source: Path | str) -> list[Any]:
    """The statements of gin text; errors name `source`, a file or a command-line flag."""
    try:
        return list(config_parser.ConfigParser(text, _Delegate()))
    except SyntaxError as error:
        # Only the last line of gin's message is for a reader; the first shows the address of an object.
        line, reason = error.lineno, error.msg.splitlines()[-1].strip()
    except tokenize.TokenError as error:
        reason, (line, _) = error.args
    expected = "expected `Section.field = value`, text in quotes"
    raise ConfigError(f"{_where(source, line)}: not gin syntax: {reason} ({expected})")


def _where(source: Path | str, line: int | None) -> str:
    return f"{os.path.normpath(source)}:{line}" if isinstance(source, Path) else source


def _binding(statement: config_parser.BindingStatement, where: str) -> _Binding:
    """A parsed binding, its scope and name checked."""
    key = ".".join(filter(None, (statement.selector, statement.arg_name)))
    if statement.scope:
        raise ConfigError(
            f"{where}: `{statement.scope}/{key}`: scopes are not used here, because each section exists once; "
            f"did you mean `{key}`?"
        )
    # Gin's parser reads `-%name` as `%name`.
    if isinstance(statement.value, _Symbol) and re.match(r"[^#'\"]*-\s*%", statement.location.line_content):
        raise ConfigError(f"{where}: `-{statement.value}`: a macro takes no sign; define a negative one")
    if statement.arg_name and key not in _FIELDS:
        raise ConfigError(f"{where}: {_explain_unknown(statement.selector, statement.arg_name)}")
    return _Binding(key, statement.value, where)


def _explain_unknown(section: str, name: str) -> str:
    sections = [section.__name__ for section in SECTIONS]
    if section not in sections:
        hint = did_you_mean(section, sections) or f"; the sections are {', '.join(sections)}"
        return f"unknown section `{section}`{hint}"
    own = [key.rpartition(".")[2] for key in _FIELDS if key.startswith(f"{section}.")]
    hint = _did_you_mean_field(name) or did_you_mean(name, own) or f"; its fields are {', '.join(own)}"
    return f"{section} has no field `{name}`{hint}"


def _refuse_duplicates(bindings: list[_Binding], place: str) -> list[_Binding]:
    first: dict[str, _Binding] = {}
    for binding in bindings:
        earlier = first.setdefault(binding.key, binding)
        if earlier is not binding:
            raise ConfigError(f"{binding.where}: `{binding.key}` is set twice {place}, first at {earlier.where}")
    return bindings


def _resolve_macros(bindings: list[_Binding]) -> list[_Binding]:
    """The bindings with the values that their macros stand for; a macro without definition or use is an error."""
    definitions = {binding.key: binding for binding in bindings if binding.key not in _FIELDS}
    used: set[str] = set()

    def resolve(binding: _Binding, trail: tuple[str, ...] = ()) -> _Binding:
        value, where = binding.value, binding.where
        if isinstance(value, list | tuple):
            items = [resolve(binding._replace(value=item), trail).value for item in value]
            return binding._replace(value=type(value)(items))
        if not isinstance(value, _Symbol):
            return binding
        if value.sign == "@":
            raise ConfigError(f"{where}: `{value}`: {_NO_CODE}")
        if value.name in ("REQUIRED", "gin.REQUIRED"):
            return binding._replace(value=REQUIRED)
        if value.name in trail:
            raise ConfigError(f"{where}: macro `{value}` stands for itself")
        if value.name not in definitions:
            raise ConfigError(f"{where}: undefined macro `{value}`{did_you_mean(value.name, definitions)}")
        used.add(value.name)
        _, meant, place = definitions[value.name]
        return resolve(binding._replace(value=meant, where=f"{where} ({value} of {place})"), (*trail, value.name))

    resolved = [resolve(binding) for binding in bindings]
    for name, binding in definitions.items():
        if name not in used:
            hint = _did_you_mean_field(name) or did_you_mean(name, used)
            raise ConfigError(f"{binding.where}: macro `{name}` is defined and never used{hint}")
    return resolved


def _options(annotation: Any) -> list[Any]:
    """The types that a field takes; of a Literal, its values."""
    return [option for argument in get_args(annotation) for option in _options(argument)] or [annotation]


def _type_text(annotation: Any) -> str:
    names = [option.__name__ if isinstance(option, type) else repr(option) for option in _options(annotation)]
    return " | ".join(names).replace("NoneType", "None")


def _typed(binding: _Binding) -> _Binding:
    """The binding with its value as the field takes it: an int may become a float, nothing else changes."""
    value, annotation = binding.value, _FIELDS[binding.key].type
    options = _options(annotation)
    if float in options and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{binding.where}: {binding.key}: the number is beyond the range of a float")
        return binding._replace(value=float(value))
    # `type`, not `isinstance`: True is no number of layers.
    if value is REQUIRED or type(value) in options or (isinstance(value, str) and value in options):
        return binding
    hint = did_you_mean(str(value), [option for option in options if isinstance(option, str)])
    raise ConfigError(f"{binding.where}: {binding.key} = {value!r}: expected {_type_text(annotation)}{hint}")


def _refuse_unset(settings: dict[str, _Binding]) -> None:
    """Raise one error that lists all required settings without a value."""
    unset = []
    for key, field in _FIELDS.items():
        binding = settings.get(key)
        if (binding.value if binding else field.default) is REQUIRED:
            origin = f"REQUIRED in {binding.where}" if binding else "no default"
            unset.append(f"\n  {key} ({origin}): {field.metadata['help']}")
    if unset:
        raise ConfigError(f"still to be set, in a gin file or with --gin.Section.field=value:{''.join(unset)}")


def _build(config_class: Any, settings: dict[str, _Binding]) -> Any:
    values = {}
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(field.type):
            values[field.name] = _build(field.type, settings)
        elif (key := f"{config_class.__name__}.{field.name}") in settings:
            values[field.name] = settings[key].value
    return config_class(**values)


def _values(config: RunConfig) -> dict[str, Any]:
    sections = {type(part).__name__: part for part in (config, *vars(config).values())}
    return {key: getattr(sections[key.partition(".")[0]], field.name) for key, field in _FIELDS.items()}


def _did_you_mean_field(name: str) -> str:
    """The hint for a field that was written without its section, or with that of another one."""
    places = [f"`{key}`" for key in _FIELDS if key.endswith(f".{name}")]
    return f"; did you mean {' or '.join(places)}?" if places else ""
