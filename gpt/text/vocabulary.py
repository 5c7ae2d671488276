"""Vocabulary and merges, and the four kinds of file that hold them.

| files | who writes them |
|---|---|
| `tokenizer.json` | we, and Hugging Face's fast tokenizers: vocabulary, merges and what is in front of them |
| `encoder_bpe_40000.json`, `vocab_40000.bpe` | OpenAI: the vocabulary, and one merge a line below a header |
| `vocab.json`, `merges.txt` | Hugging Face: the same two under other names |

Everything read is checked here, so that a `Vocabulary` that exists can be used.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.errors import DataError
from gpt.files import write_atomically
from gpt.reading import read_json, read_text

UNKNOWN = "<unk>"
WORD_END = "</w>"
NEWLINE = "\n" + WORD_END

FILE_NAME = "tokenizer.json"
PAIRS = {"openai": ("encoder_bpe_40000.json", "vocab_40000.bpe"), "huggingface": ("vocab.json", "merges.txt")}
"""Names of the file with the vocabulary and of the file with the merges, by who named them."""

_HEADER = "#version: 0.2"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token to id (0 to n - 1, each once), and the pairs to merge, first learnt first."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]

    def __post_init__(self) -> None:
        """Raises DataError unless ids are complete and every merge makes one token of two."""
        if sorted(self.ids.values()) != list(range(len(self.ids))):
            raise DataError(
                f"the ids of the {len(self.ids)} vocabulary entries are not 0 to {len(self.ids) - 1}, each once"
            )
        if UNKNOWN not in self.ids:
            raise DataError(f"the vocabulary lacks {UNKNOWN!r}, which stands for every unknown character")
        seen: set[tuple[str, str]] = set()
        for number, pair in enumerate(self.merges, start=1):
            left, right = pair
            for token in (left, right, left + right):
                if token not in self.ids:
                    raise DataError(
                        f"vocabulary and merges do not belong together: merge {number} is {left!r} {right!r}, "
                        f"and the vocabulary has no {token!r}"
                    )
            if pair in seen:
                raise DataError(f"merge {number}, {left!r} {right!r}, is a duplicate")
            seen.add(pair)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.ids)

    def unreachable(self) -> list[str]:
        """Tokens that are no character, no end of a word of one, and that no merge makes."""
        made = {left + right for left, right in self.merges}
        return [
            token
            for token in self.ids
            if token not in made and token not in (UNKNOWN, NEWLINE) and len(token.removesuffix(WORD_END)) != 1
        ]


def read_pair(vocab_path: Path, merges_path: Path) -> Vocabulary:
    """The vocabulary of a file with the tokens and one with the merges; DataError names the file that is wrong."""
    tree = read_json(vocab_path)
    merges = _parse_merges(read_text(merges_path), merges_path)
    try:
        vocabulary = Vocabulary(checked_ids(tree), merges)
    except DataError as error:
        raise DataError(f"{vocab_path} and {merges_path.name}: {error}") from None
    if unreachable := vocabulary.unreachable():
        raise DataError(
            f"{vocab_path} and {merges_path.name}: vocabulary and merges do not belong together: no merge makes "
            f"{unreachable[0]!r}, nor {len(unreachable) - 1} other tokens; take both files from one place, uncut"
        )
    return vocabulary


def checked_ids(tree: Any) -> dict[str, int]:
    """The value itself if it is an object of tokens and ids; DataError otherwise."""
    if not isinstance(tree, dict):
        raise DataError(f"not a vocabulary: expected one JSON object of tokens and ids, found {json.dumps(tree):.40}")
    for token, index in tree.items():
        if type(index) is not int:
            raise DataError(
                f"not a vocabulary: the id of {token!r} is {json.dumps(index):.40}, expected a whole number"
            )
    return tree


def _parse_merges(text: str, path: Path) -> list[tuple[str, str]]:
    lines = text.split("\n")
    if not lines[0].startswith("#version"):
        raise DataError(
            f"{path}: the first line is {lines[0]!r:.80}, expected {_HEADER!r}: readers pass over the first line, "
            "so without the header the first merge would be lost. Put the header in front"
        )
    if lines[-1] == "":
        lines.pop()
    merges = []
    for number, line in enumerate(lines[1:], start=2):
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise DataError(f"{path}, line {number}: expected two tokens parted by one space, found {line!r:.80}")
        merges.append((parts[0], parts[1]))
    return merges


def pair_contents(vocabulary: Vocabulary, kind: str) -> dict[str, str]:
    """File name to content of a pair of PAIRS, as its owner writes it."""
    vocab_name, merges_name = PAIRS[kind]
    if kind == "openai":
        vocab = json.dumps(dict(vocabulary.ids))
    else:
        vocab = json.dumps(dict(vocabulary.ids), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    merges = "".join(f"{left} {right}\n" for left, right in vocabulary.merges)
    return {vocab_name: vocab, merges_name: f"{_HEADER}\n{merges}"}


def write_new(directory: Path, contents: Mapping[str, str]) -> None:
    """Write files, each whole or not at all; an existing one is never replaced."""
    for name in contents:
        if (directory / name).exists():
            raise DataError(f"{directory / name} exists already: choose another directory, or remove it first")
    for name, content in contents.items():
        path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from None
