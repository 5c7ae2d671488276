"""Files of token ids to a token store, which appears complete."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gpt.data.parts import EncodedPart
from gpt.data.place import Place
from gpt.data.sources import TRAIN, VALIDATION, fingerprint
from gpt.data.store import INDEX_NAME, SplitIndex, StoreIndex, TokenStore, token_dtype
from gpt.errors import DataError
from gpt.files import sync
from gpt.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a store depends on; `inputs` and `validation` are fingerprints of files."""

    inputs: list[str]
    validation: list[str]
    validation_fraction: float  # 0 where held-out files are named
    text_field: str
    tokenizer_sha256: str
    vocab_size: int
    separator_id: int

    @classmethod
    def of(
        cls, inputs: Sequence[str], validation: Sequence[str], fraction: float, text_field: str, tokenizer: Tokenizer
    ) -> "Recipe":
        """The recipe of these files and settings; reads the files."""
        return cls(
            [fingerprint(item) for item in inputs], [fingerprint(item) for item in validation], fraction, text_field,
            tokenizer.sha256, tokenizer.vocab_size, tokenizer.newline_id,
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """All but the text, by flag."""
        return {
            "--validation_fraction": self.validation_fraction,
            "--text_field": self.text_field,
            "--tokenizer": self.tokenizer_sha256,
        }

    @property
    def sha256(self) -> str:
        """The digest of all of it."""
        content = {
            "inputs": self.inputs,
            "validation": self.validation or self.validation_fraction,
            "text_field": self.text_field,
            "tokenizer": self.tokenizer_sha256,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def partial_of(output: Place) -> Place:
    """Where the parts of a store are until it is complete."""
    return Place(f"{output}.partial")


def find_store(output: Place, recipe: Recipe | None = None) -> StoreIndex | None:
    """The index of the store at `output`; None when there is none yet.

    Raises DataError when something else is there, or a store of another recipe.
    """
    if not output.exists() or _is_unfinished(output):
        return None
    way_out = "choose another --output, or remove it first"
    try:
        index = TokenStore.open(str(output)).index
    except DataError as error:
        raise DataError(f"--output {output}: exists already, and cannot be used ({error}); {way_out}") from None
    if recipe is not None and index.recipe_sha256 != recipe.sha256:
        raise DataError(
            f"--output {output}: exists already, prepared from other text, settings or tokenizer; {way_out}"
        )
    return index


def _is_unfinished(output: Place) -> bool:
    """Whether it holds what an interrupted `assemble` left behind a URL, where directories cannot be renamed."""
    return (
        output.local is None
        and output.sizes().keys() <= {f"{TRAIN}.bin", f"{VALIDATION}.bin"}
        and partial_of(output).exists()
    )


def assemble(parts: Sequence[EncodedPart], recipe: Recipe, output: Place) -> StoreIndex:
    """Joins the parts, whose files are below `partial_of(output)`, into a store; the parts are removed then.

    Raises DataError when no document is left to train on.
    """
    partial = partial_of(output)
    parts = _with_held_out(parts)
    if not any(part.split == TRAIN for part in parts):
        raise DataError(
            f"--validation_fraction {recipe.validation_fraction}: nothing is left to train on of "
            f"{sum(part.documents for part in parts)} document(s); "
            "give more documents, name held-out files with --validation, or set --validation_fraction 0"
        )
    target = output if output.local is None else partial / "store"
    target.make_directory()
    splits = {}
    for split in sorted({part.split for part in parts}):
        own = [part for part in parts if part.split == split]
        digest, size = hashlib.sha256(), 0
        with (target / f"{split}.bin").open("wb") as file:
            for part in own:
                content = (partial / part.file).read()
                digest.update(content)
                size += file.write(content)
            if target.local is not None:
                sync(file)
        tokens = size // token_dtype(recipe.vocab_size).itemsize
        splits[split] = SplitIndex(f"{split}.bin", tokens, sum(part.documents for part in own), digest.hexdigest())
    index = StoreIndex(recipe.tokenizer_sha256, recipe.vocab_size, recipe.separator_id, recipe.sha256, splits)
    (target / INDEX_NAME).write(index.to_json().encode())  # last, because it makes a store of them
    if target.local is not None and output.local is not None:
        target.local.rename(output.local)
    partial.remove()
    return index


def _with_held_out(parts: Sequence[EncodedPart]) -> list[EncodedPart]:
    """The parts, those of the document with the lowest draw held out if no others are; see Document."""
    lowest = min((part.draw for part in parts if part.draw is not None), default=None)
    if lowest is None or any(part.split == VALIDATION for part in parts):
        return list(parts)
    first = next(number for number, part in enumerate(parts) if part.draw == lowest)
    last = next(number for number, part in enumerate(parts) if number >= first and part.documents)
    return [
        dataclasses.replace(part, split=VALIDATION) if first <= number <= last else part
        for number, part in enumerate(parts)
    ]
