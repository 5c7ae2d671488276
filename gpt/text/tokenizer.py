"""The byte-pair tokenizer: text to ids of the vocabulary and back.

There are two routes from text to the words that are split into ids, and a tokenizer takes one of them:

* original: ftfy, OpenAI's standardisation of text, spaCy's English tokenizer (`gpt.text.original`); what the published
  weights were trained with;
* basic: BERT's normaliser and word splitter (`gpt.text.basic`); what Hugging Face's fast tokenizer does.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from gpt.errors import DataError
from gpt.reading import read_text
from gpt.text import pipeline
from gpt.text.basic import BasicRoute
from gpt.text.original import OriginalRoute, require_newline
from gpt.text.pieces import Encoding, Piece
from gpt.text.pipeline import Route
from gpt.text.vocabulary import FILE_NAME, NEWLINE, PAIRS, Vocabulary, pair_contents, read_pair, write_new

_BATCH_LENGTH = 1 << 20  # characters encoded at once

FileKind = Literal["tokenizer", "openai", "huggingface"]


class Padded(NamedTuple):
    """Sequences of ids as one array."""

    ids: np.ndarray  # [sequences, length] int32
    mask: np.ndarray  # [sequences, length] bool, True for ids and False for padding


class Tokenizer:
    """A vocabulary of `vocab_size` ids; the model's special tokens follow it and never come from text."""

    def __init__(self, vocabulary: Vocabulary, route: Route) -> None:
        self.route: Route = route
        self.vocabulary = vocabulary
        self.vocab_size = vocabulary.size
        self._pipeline = pipeline.build(vocabulary, route)
        self._route = (OriginalRoute if route == "original" else BasicRoute)(self._pipeline)

    @classmethod
    def from_json(cls, content: str, route: Route | None = None) -> "Tokenizer":
        """The tokenizer of a tokenizer.json, with the route recorded in it unless another is asked for."""
        vocabulary, recorded = pipeline.parse(content)
        return cls(vocabulary, route or recorded)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], route: Route | None = None) -> "Tokenizer":
        """The tokenizer in a directory, of any kind of files that `save` writes.

        tokenizer.json is read if it is there, and records a route; the pairs of vocabulary and merges that OpenAI and
        Hugging Face published do not, and `route` has to say it. Raises DataError for what cannot be used.
        """
        directory = Path(directory)
        if (path := directory / FILE_NAME).exists():
            content = read_text(path)
            try:
                return cls.from_json(content, route)
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
        for vocab_name, merges_name in PAIRS.values():
            if (directory / vocab_name).exists() or (directory / merges_name).exists():
                vocabulary = read_pair(directory / vocab_name, directory / merges_name)
                if route is None:
                    raise DataError(
                        f"tokenizer {directory}: {vocab_name} and {merges_name} do not say which route from text to "
                        "words they go with; say it with --route (or TokenizerConfig.route): original gives the ids "
                        "that OpenAI's weights were trained with, basic those of Hugging Face's tokenizer"
                    )
                return cls(vocabulary, route)
        problem = f"there is no {FILE_NAME} in it" if directory.is_dir() else "there is no such directory"
        others = " or ".join(f"{vocab} with {merges}" for vocab, merges in PAIRS.values())
        raise DataError(f"tokenizer {directory}: {problem}; `gpt tokenizer train` makes one (and {others} can be used)")

    def save(self, directory: str | os.PathLike[str], kind: FileKind = "tokenizer") -> None:
        """Write the files of a kind, each whole or not at all; an existing one is never replaced.

        `tokenizer` is tokenizer.json; `openai` and `huggingface` are their pairs of files, which hold no route.
        """
        contents = {FILE_NAME: self.to_json()} if kind == "tokenizer" else pair_contents(self.vocabulary, kind)
        write_new(Path(directory), contents)

    def with_route(self, route: Route) -> "Tokenizer":
        """The same vocabulary with another route."""
        return self if route == self.route else Tokenizer(self.vocabulary, route)

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._pipeline.to_str(pretty=True)

    @property
    def sha256(self) -> str:
        """Hex digest of route, vocabulary and merges."""
        tree = json.loads(self._pipeline.to_str())
        tree["added_tokens"] = []  # the same in every vocabulary of the route
        return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def newline_id(self) -> int:
        """Id of the newline token, which also ends documents; DataError when the vocabulary has none."""
        return require_newline(self.vocabulary.ids.get(NEWLINE))

    @property
    def start_id(self) -> int:
        """Id of the token in front of a fine-tuning example (Radford et al. 2018, section 3.3)."""
        return self.vocab_size

    @property
    def delimiter_id(self) -> int:
        """Id of the token between the texts of a fine-tuning example."""
        return self.vocab_size + 1

    @property
    def extract_id(self) -> int:
        """Id of the last token of a fine-tuning example, where the classifier reads."""
        return self.vocab_size + 2

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return self.encode_pieces([Piece(text) for text in texts])

    def cut(self, text: str, length: int) -> Iterator[Piece]:
        """Pieces of at least `length` characters but the last, whose ids joined are the ids of the text."""
        return self._route.cut(Piece(text), length)

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Ids of each piece that `cut` made."""
        ids: list[list[int]] = [[] for _ in pieces]
        length = self._route.piece_length
        parts = ((owner, part) for owner, piece in enumerate(pieces) for part in self._route.cut(piece, length))
        for batch in _batches(parts):
            for (owner, _), found in zip(batch, self._route.encode([part for _, part in batch]), strict=True):
                ids[owner].extend(found)
        return ids

    def encode_with_offsets(self, text: str) -> Encoding:
        """Ids, and for each the span of characters it stands for.

        With the basic route the spans are in `text` itself. The original route changes the text before it looks at
        words; its spans are in the standardised text, which is what the `text` of the result holds.
        """
        return self._route.encode_with_offsets(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids of the vocabulary, a space after each word (`gpt.text.detokenise` takes out some)."""
        self._check(ids)
        return self._pipeline.decode(list(ids), skip_special_tokens=False)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The entries of the vocabulary; those at the end of a word end in `</w>`."""
        self._check(ids)
        return [self._pipeline.id_to_token(token) for token in ids]

    def _check(self, ids: Sequence[int]) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token}: the vocabulary has ids from 0 to {self.vocab_size - 1}")

    @staticmethod
    def pad(
        sequences: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "right", length: int | None = None
    ) -> Padded:
        """The sequences as one array, as long as the longest or as `length`.

        There is no padding token: padding holds id 0, and the mask says where it is.
        """
        longest = max(map(len, sequences), default=0)
        if length is not None and length < longest:
            raise DataError(f"length {length}: a sequence has {longest} tokens; cut it, or pad to a greater length")
        shape = (len(sequences), longest if length is None else length)
        padded = Padded(np.zeros(shape, np.int32), np.zeros(shape, bool))
        for row, sequence in enumerate(sequences):
            columns = slice(len(sequence)) if side == "right" else slice(shape[1] - len(sequence), None)
            padded.ids[row, columns] = sequence
            padded.mask[row, columns] = True
        return padded


def _batches(parts: Iterable[tuple[int, Piece]]) -> Iterator[list[tuple[int, Piece]]]:
    batch: list[tuple[int, Piece]] = []
    length = 0
    for owner, part in parts:
        batch.append((owner, part))
        length += len(part.text)
        if length >= _BATCH_LENGTH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
