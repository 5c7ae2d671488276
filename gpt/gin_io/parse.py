"""Gin text to bindings: the only module that imports gin, and of gin it takes the parser alone."""

import dataclasses
import itertools
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from gpt.errors import ConfigError
from gpt.files import did_you_mean
from gpt.gin_io.fields import FIELDS, explain_unknown, options_of
from gpt.reading import read_bytes

NO_CODE = "a config holds values only and never runs code; delete it"
_SWEEP, _GIN_FILE = "sweep", "gin_file"
_MAX_BYTES = 1 << 20
_MAX_STRINGS = 1000
_MAX_BITS = 4096


class Binding(NamedTuple):
    """One `key = value`, where the key is `Section.field` or the name of a macro.

    `axis` is the key of the axis of a sweep that this is, or that gave the value; empty where there is none.
    """

    key: str
    value: Any
    where: str
    axis: str = ""


@dataclasses.dataclass(frozen=True)
class Symbol:
    """`%macro` or `@reference`, as gin's parser met it."""

    sign: str
    name: str

    def __repr__(self) -> str:
        return self.sign + self.name


class _Key(str):
    """A key of a dictionary that equals no other, so that one given twice is found."""

    __eq__, __hash__ = object.__eq__, object.__hash__


class _Parser(config_parser.ConfigParser):
    _strings = 0

    def _advance(self) -> None:
        before: Any = self.current_token
        super()._advance()
        after: Any = self.current_token
        self._strings = self._strings + 1 if before.type == after.type == tokenize.STRING else 0
        if self._strings > _MAX_STRINGS:  # gin reads all of them again for each
            self._raise_syntax_error(f"More than {_MAX_STRINGS} strings one after another.")

    def parse_value(self) -> Any:
        value = super().parse_value()
        if type(value) is int and value.bit_length() > _MAX_BITS:  # in base 16, what Python then refuses to print
            self._raise_syntax_error(f"A whole number of more than {_MAX_BITS} bits.")
        return value

    def _parse_dict_item(self) -> tuple[Any, Any]:
        key, value = super()._parse_dict_item()
        return _Key(key) if isinstance(key, str) else key, value


class _Delegate(config_parser.ParserDelegate):
    def macro(self, macro_name: str) -> Any:
        return Symbol("%", macro_name)

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:  # noqa: ARG002
        return Symbol("@", scoped_configurable_name)


def read_all(gin_files: Sequence[str | Path], overrides: Sequence[str]) -> list[Binding]:
    """The bindings of files and then of overrides, in the order in which later ones win."""
    bindings = [binding for path in gin_files for binding in itertools.chain(*read_file(Path(path)))]
    flags = refuse_duplicates([_read_override(text) for text in overrides], "on the command line")
    return bindings + _files_first(flags)


def read_file(path: Path, included_in: str = "") -> tuple[list[Binding], list[Binding]]:
    """The bindings that a file includes, and its own, which win over those."""
    included, own = [], []
    for statement in _parse(_read_text(path, included_in), path):
        where = _where(path, statement.location.line_num)
        if isinstance(statement, config_parser.ImportStatement):
            raise ConfigError(f"{where}: `{statement.format()}`: {NO_CODE}")
        if isinstance(statement, config_parser.IncludeStatement):
            if included_in:
                raise ConfigError(
                    f"{where}: include {statement.filename!r}: this file is itself included (in {included_in}); "
                    "included files include nothing further, so include both there"
                )
            located = _locate(statement.filename, path.parent)
            included += itertools.chain(*read_file(located, included_in=where))
        if isinstance(statement, config_parser.BindingStatement):
            own.append(_binding(statement, where, path.parent))
    return included, _files_first(refuse_duplicates(own, "in this file"))


def macros_in(value: Any) -> Iterator[str]:
    """The names of the macros that a value mentions."""
    if isinstance(value, Symbol) and value.sign == "%":
        yield value.name
    elif isinstance(value, list | tuple):
        for item in value:
            yield from macros_in(item)
    elif isinstance(value, dict):
        yield from macros_in(list(value.items()))


def is_file_axis(key: str) -> bool:
    """Whether the key is that of an axis of gin files, `gin_file.NAME`."""
    return key.partition(".")[0] == _GIN_FILE


def _files_first(bindings: list[Binding]) -> list[Binding]:
    """The same bindings, axes of gin files first: they are includes, and what stands beside them wins."""
    return sorted(bindings, key=lambda binding: not is_file_axis(binding.key))


def _locate(name: str, folder: Path) -> Path:
    beside, here = folder / name, Path(name)
    return here if here.exists() and not beside.exists() else beside


def _read_text(path: Path, included_in: str) -> str:
    source = f"{os.path.normpath(path)}{f' (included in {included_in})' if included_in else ''}"
    try:
        return read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [sibling.name for sibling in path.parent.glob("*.gin")]
        raise ConfigError(f"{source}: no such file{did_you_mean(path.name, siblings)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: expected a gin file in UTF-8; byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{source}: expected a gin file, cannot read it: {error.strerror}") from None


def _read_override(text: str) -> Binding:
    flag = f"--gin.{text}"
    match = re.fullmatch(r"(\w[\w./]*)\s*=\s*(\S.*)", text.strip())
    if not match:
        raise ConfigError(f"{flag}: expected --gin.Section.field=value, such as --gin.ModelConfig.num_layers=6")
    name, value = match.groups()
    try:
        (statement,) = _parse(f"{name} = {value}", flag)
    except ConfigError:
        if value[0] in "'\"([{%@":
            raise
        (statement,) = _parse(f"{name} = {value!r}", flag)  # a bare word: runs/first, cosine
    binding = _binding(statement, flag, Path())
    takes_text = binding.key in FIELDS and not binding.axis and str in options_of(FIELDS[binding.key].type)
    return binding._replace(value=value) if takes_text and type(binding.value) in (int, float) else binding


def _parse(text: str, source: Path | str) -> list[Any]:
    """The statements of gin text; errors name `source`, a file or a command-line flag."""
    try:
        return list(_Parser(text, _Delegate()))
    except SyntaxError as error:
        # Only the last line of gin's message is for a reader; the first shows the address of an object.
        line, reason = error.lineno, error.msg.splitlines()[-1].strip()
    except tokenize.TokenError as error:
        reason, (line, _) = error.args
    except RecursionError:
        reason, line = "nested too deeply", None
    except ValueError as error:
        reason, line = str(error), None
    expected = "expected `Section.field = value`, text in quotes"
    raise ConfigError(f"{_where(source, line)}: not gin syntax: {reason} ({expected})")


def _where(source: Path | str, line: int | None) -> str:
    return f"{os.path.normpath(source)}:{line}" if isinstance(source, Path) else source


def _binding(statement: config_parser.BindingStatement, where: str, folder: Path) -> Binding:
    """A parsed binding, its scope and name checked; the files of an axis are looked for in `folder` first."""
    key = ".".join(filter(None, (statement.selector, statement.arg_name)))
    if statement.scope not in (None, "", _SWEEP):
        raise ConfigError(
            f"{where}: `{statement.scope}/{key}`: scopes are not used here, because each section exists once; "
            f"did you mean `{key}`?"
        )
    # Gin's parser reads `-%name` as `%name`.
    if isinstance(statement.value, Symbol) and re.match(r"[^#'\"]*-\s*%", statement.location.line_content):
        raise ConfigError(f"{where}: `-{statement.value}`: a macro takes no sign; define a negative one")
    if statement.scope and not statement.arg_name:
        raise ConfigError(
            f"{where}: `{_SWEEP}/{key}` is no axis: expected {_SWEEP}/Section.field or {_SWEEP}/{_GIN_FILE}.NAME"
        )
    if statement.scope and is_file_axis(key):
        return Binding(key, _files(statement.value, key, where, folder), where, key)
    if statement.arg_name and key not in FIELDS:
        raise ConfigError(f"{where}: {explain_unknown(statement.selector, statement.arg_name)}")
    return Binding(key, statement.value, where, key if statement.scope else "")


def _files(value: Any, key: str, where: str, folder: Path) -> Any:
    """The value of an axis of gin files, each one a tuple of paths."""
    if not isinstance(value, list | tuple):
        return value
    located = []
    for item in value:
        names = [item] if isinstance(item, str) else item
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{where}: {key}: {item!r}: expected the name of a gin file, or a list of names")
        located.append(tuple(_locate(name, folder) for name in names))
    return located


def refuse_duplicates(bindings: list[Binding], place: str) -> list[Binding]:
    """The same bindings; ConfigError when two of them have one key."""
    first: dict[str, Binding] = {}
    for binding in bindings:
        earlier = first.setdefault(binding.key, binding)
        if earlier is not binding:
            both = "" if binding.axis == earlier.axis else ", once as an axis of a sweep and once fixed"
            raise ConfigError(f"{binding.where}: `{binding.key}` is set twice {place}, first at {earlier.where}{both}")
    return bindings
