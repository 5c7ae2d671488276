"""The original route: the text as OpenAI standardised it, in the words of spaCy's English tokenizer, lower-cased.

spaCy's tokenizer takes white space as given and works on one chunk between two spaces at a time, so the tokens of a
chunk are learnt once. One step of it does look further: it searches the finished tokens for the special cases (`:-)`,
`it's`) that its rules took apart, and does so across spaces. A run of tokens that only looks like a special case,
because spaces are inside it, stays as it is, but where it overlaps a real one the longer of the two counts. So chunks
of which the end and the beginning could be the inside of a special case are kept together.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from gpt.errors import DataError
from gpt.text import standardise
from gpt.text.pieces import Encoding, Piece
from gpt.text.standardise import NEWLINE_CHUNK
from gpt.text.vocabulary import NEWLINE

_MAX_REMEMBERED = 1 << 22  # characters of chunks; their ids and spaCy's own tables take about 60 bytes for each


class Splitter:
    """Text to chunks, and a chunk to the words that the merges see."""

    def __init__(self) -> None:
        """Raises DataError unless spaCy is installed."""
        self.forget()

    def forget(self) -> None:
        """Give back the memory of spaCy's tables, which grow with every new word."""
        self._spacy, self._insides = _load_spacy()
        self._special = frozenset(self._spacy.rules)
        self._lefts: dict[str, tuple[str, ...]] = {}

    def chunks(self, piece: Piece) -> list[str]:
        """Chunks whose words do not depend on each other; joined by spaces they are the standardised text."""
        chunks = standardise.chunks_of(piece)
        known = self._lefts
        for chunk in set(chunks).difference(known):
            known[chunk] = self._possible_lefts(chunk)
        lefts = list(map(known.__getitem__, chunks))
        joints = [i for i, ends in enumerate(lefts) if ends and i and chunks[i - 1].endswith(ends)]
        for i in reversed(joints):  # from the right, so that the positions to the left stay
            chunks[i - 1 : i + 1] = [f"{chunks[i - 1]} {chunks[i]}"]
        return chunks

    def _possible_lefts(self, chunk: str) -> tuple[str, ...]:
        """Ends of a chunk with which the first token of this one could be inside of a special case."""
        return tuple(
            left
            for left, right in self._insides.get(chunk[0], ())
            # No rule parts two letters, so a token that ends with a letter does not end in front of one.
            if chunk.startswith(right) and not (right[-1].isalpha() and chunk[len(right) :][:1].isalpha())
        )

    def words(self, chunk: str) -> list[str]:
        """The lower-cased words of a chunk."""
        # No rule parts two letters, which spares spaCy most chunks of a book: those of letters are a word, or special.
        if chunk.isascii() and chunk.isalpha() and chunk not in self._special:
            return [chunk.lower()]
        return [token.text.lower() for token in self._spacy(chunk)]

    def words_with_offsets(self, chunk: str) -> Iterator[tuple[str, list[int]]]:
        """Each lower-cased word, and for each of its characters the position in the chunk it comes from."""
        for token in self._spacy(chunk):
            # Lower case may be longer: that of a capital I with a dot has two characters.
            origins = [token.idx + i for i, character in enumerate(token.text) for _ in character.lower()]
            yield token.text.lower(), origins


class OriginalRoute:
    """Text to ids with a pipeline of `gpt.text.pipeline`, which sees single words."""

    piece_length = 1 << 16  # characters

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._newline_id: int | None = pipeline.token_to_id(NEWLINE)
        self._loaded: Splitter | None = None
        self._merges = pipeline.model
        self._ids: dict[str, tuple[int, ...]] = {}  # of chunks
        self._word_ids: dict[str, tuple[int, ...]] = {}
        self._remembered = 0

    @property
    def _splitter(self) -> Splitter:
        if self._loaded is None:  # spaCy takes seconds to import, and decoding can do without it
            self._loaded = Splitter()
        return self._loaded

    def cut(self, piece: Piece, length: int) -> Iterator[Piece]:
        """Pieces of at least `length` characters but the last, cut at line breaks that allow it."""
        return standardise.cut(piece, length)

    def encode(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Ids of each piece."""
        pieces_chunks = [self._splitter.chunks(piece) for piece in pieces]
        self._learn(set().union(*pieces_chunks))
        ids_of = self._ids.__getitem__
        return [list(itertools.chain.from_iterable(map(ids_of, chunks))) for chunks in pieces_chunks]

    def _learn(self, chunks: set[str]) -> None:
        """Have the ids of all these chunks in memory."""
        if self._remembered > _MAX_REMEMBERED:
            self._ids, self._word_ids, self._remembered = {}, {}, 0
            self._splitter.forget()
        new = list(chunks.difference(self._ids, (NEWLINE_CHUNK,)))
        self._remembered += sum(map(len, new))
        for chunk in new:
            words = self._splitter.words(chunk)
            self._ids[chunk] = tuple(itertools.chain.from_iterable(map(self._ids_of_word, words)))
        if NEWLINE_CHUNK in chunks:
            self._ids[NEWLINE_CHUNK] = (require_newline(self._newline_id),)

    def _ids_of_word(self, word: str) -> tuple[int, ...]:
        ids = self._word_ids.get(word)
        if ids is None:
            ids = self._word_ids[word] = tuple(token.id for token in self._merges.tokenize(word))
        return ids

    def encode_with_offsets(self, text: str) -> Encoding:
        """Ids and their spans in the standardised text, which comes with them."""
        splitter = self._splitter
        chunks = splitter.chunks(Piece(text))
        result = Encoding([], [], " ".join(chunks))
        start = 0
        for chunk in chunks:
            if chunk == NEWLINE_CHUNK:
                result.ids.append(require_newline(self._newline_id))
                result.offsets.append((start, start + 1))
            else:
                pairs = list(splitter.words_with_offsets(chunk))
                words, origins = [word for word, _ in pairs], [origin for _, origin in pairs]
                found = self._pipeline.encode(words, is_pretokenized=True, add_special_tokens=False)
                result.ids.extend(found.ids)
                for word, (first, last) in zip(found.word_ids, found.offsets, strict=True):
                    result.offsets.append((start + origins[word][first], start + origins[word][last - 1] + 1))
            start += len(chunk) + 1
        return result


def require_newline(newline_id: int | None) -> int:
    """The id of the newline token; DataError when the vocabulary has none."""
    if newline_id is None:
        raise DataError(
            f"the vocabulary has no newline token {NEWLINE!r}, which the original route makes of line breaks and "
            "documents are separated by; use OpenAI's vocabulary, or one of `gpt tokenizer train`"
        )
    return newline_id


def _load_spacy() -> tuple[Any, dict[str, list[tuple[str, str]]]]:
    """spaCy's English tokenizer, and the pairs of tokens inside of its special cases.

    Pairs are listed by the first character of the right one.
    """
    try:
        from spacy.lang.en import English
        from spacy.tokenizer import Tokenizer
        from spacy.vocab import Vocab
    except ImportError:
        raise standardise.missing("spacy") from None
    standardise.import_ftfy()
    english: Any = English().tokenizer
    affixes = {
        name: getattr(english, name)
        for name in ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
    }
    without_rules = Tokenizer(Vocab(), **affixes)
    insides: dict[str, set[tuple[str, str]]] = {}
    for case in english.rules:
        for left, right in itertools.pairwise(token.text for token in without_rules(case)):
            insides.setdefault(right[0], set()).add((left, right))
    # A vocabulary of its own, because English's computes a dozen attributes of every new word.
    bare = Tokenizer(Vocab(), english.rules, **affixes)
    return bare, {first: sorted(pairs) for first, pairs in insides.items()}
