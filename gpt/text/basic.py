"""The basic route: BERT's normaliser and word splitter in front of the merges, all inside the `tokenizers` library.

Lower case, no accents, no control characters, every punctuation mark a word of its own; what Hugging Face's fast
tokenizer does. It never produces the newline token, which is therefore free to separate documents.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from gpt.errors import DataError
from gpt.text.pieces import Encoding, Piece, split_at_breaks


class BasicRoute:
    """Text to ids with a pipeline of `gpt.text.pipeline`."""

    piece_length = 2048  # characters; the library keeps ~100 bytes for each while it encodes, and is fastest below 3000

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def cut(self, piece: Piece, length: int) -> Iterator[Piece]:
        """Pieces of at least `length` characters but the last; the route never looks across white space."""
        return map(Piece, split_at_breaks(piece.text, length))

    def encode(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Ids of each piece."""
        try:
            encodings = self._pipeline.encode_batch_fast([piece.text for piece in pieces], add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise DataError("a text holds half of a surrogate pair, which is no character") from None
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, text: str) -> Encoding:
        """Ids and their spans in `text` itself."""
        result = Encoding([], [], text)
        start = 0
        for piece in self.cut(Piece(text), self.piece_length):
            try:
                found = self._pipeline.encode(piece.text, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):
                raise DataError("a text holds half of a surrogate pair, which is no character") from None
            result.ids.extend(found.ids)
            result.offsets.extend((start + first, start + last) for first, last in found.offsets)
            start += len(piece.text)
        return result
