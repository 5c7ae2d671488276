"""The byte-pair tokenizer: text to ids of the vocabulary and back.

The route is "basic": BERT's normaliser (lower case, accents and control characters removed) and word splitter in front
of the merges, as Hugging Face's `OpenAIGPTTokenizerFast` does it. It never produces the newline token, which is
therefore free to separate documents.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gpt.errors import DataError

FILE_NAME = "tokenizer.json"
UNKNOWN = "<unk>"
WORD_END = "</w>"
NEWLINE = "\n" + WORD_END

_PIECE_LENGTH = 4096  # characters; the library keeps ~100 bytes for each while it encodes, and is fastest about here
_PIECES_AT_ONCE = 256
_BREAK = re.compile("[ \n]")


def new_basic_pipeline(vocab: dict[str, int] | None = None, merges: Sequence[tuple[str, str]] = ()) -> Any:
    """A `tokenizers.Tokenizer` of the basic route; without a vocabulary it can be trained."""
    pipeline = tokenizers.Tokenizer(
        models.BPE(vocab=vocab or {}, merges=list(merges), unk_token=UNKNOWN, end_of_word_suffix=WORD_END)
    )
    pipeline.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return pipeline


def split_at_breaks(text: str, length: int) -> Iterator[str]:
    """Pieces of at least `length` characters but the last, cut in front of spaces and newlines only.

    The route never looks across white space, so the ids of the pieces are the ids of the text.
    """
    start = 0
    while start < len(text):
        found = _BREAK.search(text, start + length)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


class Tokenizer:
    """A vocabulary of `vocab_size` ids; the model's special tokens follow it and never come from text."""

    def __init__(self, content: str) -> None:
        """`content` is a tokenizer.json; raises DataError unless it is a byte-pair encoding of the basic route."""
        self._content = content
        self._pipeline = _parse(content)
        self.vocab_size: int = self._pipeline.get_vocab_size()
        self.newline_id: int = self._pipeline.token_to_id(NEWLINE)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer that `save` wrote to a directory."""
        path = Path(directory) / FILE_NAME
        try:
            return cls(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            problem = f"there is no {FILE_NAME} in it" if path.parent.is_dir() else "there is no such directory"
            raise DataError(f"tokenizer {directory}: {problem}; `gpt tokenizer train` makes one") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, whole or not at all; an existing one is never replaced."""
        path = Path(directory) / FILE_NAME
        if path.exists():
            raise DataError(f"{path} exists already: choose another directory, or remove it first")
        temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                file.write(self._content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._content

    @property
    def sha256(self) -> str:
        """Hex digest of the content, whatever its white space and order of keys."""
        canonical = json.dumps(json.loads(self._content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

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
        ids: list[list[int]] = [[] for _ in texts]
        pieces = ((owner, piece) for owner, text in enumerate(texts) for piece in split_at_breaks(text, _PIECE_LENGTH))
        while batch := list(itertools.islice(pieces, _PIECES_AT_ONCE)):
            try:
                encodings = self._pipeline.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):
                raise DataError("a text holds half of a surrogate pair, which is no character") from None
            for (owner, _), encoding in zip(batch, encodings, strict=True):
                ids[owner].extend(encoding.ids)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids of the vocabulary."""
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token}: the vocabulary has ids from 0 to {self.vocab_size - 1}")
        return self._pipeline.decode(list(ids), skip_special_tokens=False)


def _parse(content: str) -> Any:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from None
    expected = json.loads(new_basic_pipeline().to_str())
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise DataError("not a tokenizer.json: it has no `model`")
    found = {**tree, **{f"model.{key}": value for key, value in tree["model"].items()}}
    # Parts that change ids. Dropout would make them random, truncation and post-processing would add or lose some.
    wanted = {key: expected[key] for key in ("normalizer", "pre_tokenizer", "decoder")}
    wanted |= {"model.type": "BPE", "model.unk_token": UNKNOWN, "model.end_of_word_suffix": WORD_END}
    wanted |= dict.fromkeys(("truncation", "padding", "post_processor", "model.dropout"))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DataError(
                f"not a byte-pair encoding of the basic route: {key} is {found.get(key)!r}, expected {value!r}"
            )
    try:
        pipeline = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"not a byte-pair encoding: {error}") from None
    vocab = tree["model"]["vocab"]
    if sorted(vocab.values()) != list(range(pipeline.get_vocab_size())):
        raise DataError(f"the ids of the {len(vocab)} vocabulary entries are not 0 to {len(vocab) - 1}, each once")
    if UNKNOWN not in vocab or NEWLINE not in vocab:
        raise DataError(f"the vocabulary lacks {UNKNOWN!r} or the document separator {NEWLINE!r}")
    return pipeline
