"""English that every Python carries: the documentation of its standard library, as text and as two labelled tasks.

Docstrings are read from the sources with `ast`; nothing is imported. A *unit* is a top-level
module with all that it contains, or one topic of `help()`. Units are held out whole, and no
paragraph that begins like one of a held-out unit is trained on, so that nothing leaks.
"""

import ast
import hashlib
import inspect
import itertools
import json
import os
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt.errors import DataError

AREAS: dict[str, str] = {
    "concurrency": "_threading_local asyncio concurrent contextvars multiprocessing queue sched selectors signal "
    "subprocess threading",
    "data": "_collections_abc _pydatetime _pydecimal _pylong abc bisect calendar collections colorsys copy datetime "
    "decimal enum fractions functools graphlib hashlib heapq hmac ipaddress numbers operator random secrets "
    "statistics types typing uuid weakref",
    "development": "__future__ _aix_support argparse ast bdb cProfile code codeop compileall contextlib "
    "dataclasses dis distutils doctest ensurepip faulthandler getopt imp importlib inspect linecache logging "
    "modulefinder optparse pdb pickletools pkgutil platform pprint profile pstats py_compile pyclbr pydoc reprlib "
    "runpy site symtable sysconfig tabnanny timeit token tokenize trace traceback tracemalloc unittest venv warnings "
    "zipapp zipimport",
    "files": "_compression _pyio aifc base64 bz2 codecs compression configparser csv dbm difflib encodings filecmp "
    "fileinput fnmatch genericpath gettext glob gzip io json locale lzma mimetypes netrc nturl2path ntpath os pathlib "
    "pickle plistlib posixpath quopri re shelve shutil sqlite3 sre_constants stat string stringprep struct sunau "
    "tarfile tempfile textwrap tomllib wave xdrlib xml zipfile",
    "interface": "_pyrepl cmd curses getpass idlelib pty rlcompleter tkinter tty turtle turtledemo webbrowser",
    "internet": "asynchat asyncore cgi cgitb email ftplib html http imaplib mailbox mailcap nntplib poplib smtpd "
    "smtplib socket socketserver ssl telnetlib urllib wsgiref xmlrpc",
}
"""Top-level modules of each part of the library, over all supported versions of Python."""

_AREA_OF = {module: area for area, modules in AREAS.items() for module in modules.split()}
_NOT_DOCUMENTATION = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "pydoc_data",
    "_vendor",
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_TOPIC = "topic "
_HELD_OUT_SHARE = 0.18
_MIN_WORDS, _MAX_WORDS = 8, 40
_NOT_PROSE = re.compile(r"\s*(>>>|\.\.\.|\$|\|)|\W+$")  # lines of examples, tables, and underlines
_WRONG_ENDINGS = 3  # training rows a pair of paragraphs gives, each with another wrong one


class Document(NamedTuple):
    """One docstring or topic: its unit and its paragraphs of prose, white space normalised."""

    unit: str
    paragraphs: tuple[str, ...]


class Corpus(NamedTuple):
    """Documents to train on and documents held out; no paragraph is in both."""

    train: list[Document]
    validation: list[Document]


def read_corpus(stdlib: Path | None = None) -> Corpus:
    """The documentation of the standard library at `stdlib` (None: of this Python), split by unit.

    Raises:
      DataError: no documentation is found there.
    """
    stdlib = stdlib or Path(sysconfig.get_path("stdlib"))
    documents = [*_docstrings(stdlib), *_topics(stdlib / "pydoc_data" / "topics.py")]
    if not documents:
        raise DataError(f"{str(stdlib)!r} holds no Python sources with docstrings: is this a whole Python?")
    held_out = _held_out_units(documents)
    validation = [document for document in documents if document.unit in held_out]
    hidden = {_gist(paragraph) for document in validation for paragraph in document.paragraphs}
    train = []
    for unit, paragraphs in documents:
        # A gap ends the document, as the paragraphs around it do not follow one another.
        # Of a held-out unit nothing remains: all that it contains is hidden.
        for is_hidden, run in itertools.groupby(paragraphs, key=lambda paragraph: _gist(paragraph) in hidden):
            if not is_hidden:
                train.append(Document(unit, tuple(run)))
    return Corpus(train, validation)


def write_corpus(corpus: Corpus, directory: Path) -> None:
    """Writes `text/{train,validation}.jsonl` for `gpt prepare`, and the tasks `stdlib_area` and `stdlib_next`.

    Each split of a task is `NAME/{train,validation}.jsonl`; the same corpus gives the same bytes.
    """
    splits = {"train": corpus.train, "validation": corpus.validation}
    for split, documents in splits.items():
        _write_rows(directory / "text" / f"{split}.jsonl", _unit_texts(documents))
        _write_rows(directory / "stdlib_area" / f"{split}.jsonl", _area_rows(documents))
        endings = _WRONG_ENDINGS if split == "train" else 1
        _write_rows(directory / "stdlib_next" / f"{split}.jsonl", _next_rows(documents, endings))


def _docstrings(stdlib: Path) -> Iterator[Document]:
    for path in _sources(stdlib):
        tree = _parse(path)
        nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
        for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):  # the module itself has no line
            paragraphs = _prose(ast.get_docstring(node, clean=False) or "")
            if paragraphs:
                yield Document(path.relative_to(stdlib).parts[0].removesuffix(".py"), paragraphs)


def _topics(path: Path) -> Iterator[Document]:
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in sorted(ast.literal_eval(node.value).items()):
                paragraphs = _prose(text)
                if paragraphs:
                    yield Document(f"{_TOPIC}{name}", paragraphs)


def _sources(stdlib: Path) -> Iterator[Path]:
    """The Python files at `stdlib`, sorted, without entering directories that hold no documentation."""
    for directory, subdirectories, names in os.walk(stdlib):
        subdirectories[:] = sorted(set(subdirectories) - _NOT_DOCUMENTATION)
        yield from (Path(directory, name) for name in sorted(names) if name.endswith(".py"))


def _parse(path: Path) -> ast.Module:
    """The syntax tree of a file; an empty one if it cannot be read: it documents nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in old sources, an error under `python -W error`
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ast.Module(body=[], type_ignores=[])


def _prose(text: str) -> tuple[str, ...]:
    """The paragraphs that are sentences: no examples, indented code, tables or underlined titles."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        if any(map(_NOT_PROSE.match, lines)) or all(line.startswith("    ") for line in lines):
            continue
        words = block.split()
        paragraph = " ".join(words)
        letters = sum(character.isalpha() or character == " " for character in paragraph)
        if len(words) >= 3 and letters > 0.8 * len(paragraph):
            paragraphs.append(paragraph)
    return tuple(paragraphs)


def _held_out_units(documents: Sequence[Document]) -> set[str]:
    """In every area, and among the topics, whole units until they hold a given share of the text."""
    sizes: dict[str, dict[str, int]] = {}
    for unit, paragraphs in documents:
        stratum = _TOPIC if unit.startswith(_TOPIC) else _AREA_OF.get(unit, "")
        units = sizes.setdefault(stratum, {})
        units[unit] = units.get(unit, 0) + sum(map(len, paragraphs))
    held_out = set()
    for units in sizes.values():
        budget = _HELD_OUT_SHARE * sum(units.values())
        for unit in sorted(units, key=_digest):
            # A unit too large for what is left, such as tkinter, stays in training.
            if units[unit] <= budget:
                held_out.add(unit)
                budget -= units[unit]
    return held_out


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _unit_texts(documents: Sequence[Document]) -> Iterator[dict]:
    texts: dict[str, list[str]] = {}
    for unit, paragraphs in documents:
        texts.setdefault(unit, []).extend(paragraphs)
    for paragraphs in texts.values():
        yield {"text": "\n".join(dict.fromkeys(paragraphs))}


def _area_rows(documents: Sequence[Document]) -> Iterator[dict]:
    seen = set()
    for unit, paragraphs in documents:
        text = _first_words(" ".join(paragraphs))
        if unit in _AREA_OF and len(text.split()) >= _MIN_WORDS and text not in seen:
            seen.add(text)
            yield {"text": text, "label": _AREA_OF[unit]}


def _next_rows(documents: Sequence[Document], wrong_endings: int) -> Iterator[dict]:
    pairs: dict[tuple[str, str], str] = {}
    for unit, paragraphs in documents:
        texts = [_first_words(text) for text in paragraphs if len(text.split()) >= _MIN_WORDS]
        pairs |= dict.fromkeys(itertools.pairwise(texts), unit)
    # Wrong endings are right elsewhere: were opening paragraphs among them, their style would give them away.
    endings = [(unit, following) for (_, following), unit in pairs.items()]
    generator = random.Random(0)
    labels = itertools.cycle((0, 1))
    for (context, following), unit in pairs.items():
        for _ in range(wrong_endings):
            other_unit, wrong = generator.choice(endings)
            if other_unit != unit and wrong != following:
                label = next(labels)
                choices = [wrong, following] if label else [following, wrong]
                yield {"context": context, "choices": choices, "label": label}


def _first_words(text: str) -> str:
    return " ".join(text.split()[:_MAX_WORDS])


def _gist(paragraph: str) -> str:
    """What two copies of a paragraph have in common: the letters of its first words."""
    return re.sub(r"[\W\d_]+", " ", _first_words(paragraph)).strip().lower()


def _write_rows(path: Path, rows: Iterator[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
