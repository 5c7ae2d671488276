"""Prompts as clients give them: text or ids, with the place of each token in the text."""

from collections.abc import Sequence
from typing import NamedTuple

from starlette.exceptions import HTTPException

from gpt.errors import DataError
from gpt.generation.logits import UNKNOWN_ID
from gpt.text.tokenizer import Tokenizer
from gpt.text.vocabulary import WORD_END


class Prompt(NamedTuple):
    """A text, its ids, and the character of the text where each of them begins."""

    text: str
    ids: list[int]
    offsets: list[int]

    def last(self, num_tokens: int | None) -> "Prompt":
        """The same text of which only so many of the last ids are read."""
        if num_tokens is None:
            return self
        return Prompt(self.text, self.ids[-num_tokens:], self.offsets[-num_tokens:])


def read_prompt(prompt: str | list[int], tokenizer: Tokenizer) -> Prompt:
    """The prompt; HTTPException 400 for one of which the vocabulary knows nothing, and for ids that it has not."""
    try:
        found = _of_text(prompt, tokenizer) if isinstance(prompt, str) else _of_ids(prompt, tokenizer)
    except DataError as error:
        raise HTTPException(400, f"`prompt`: {error}") from None
    if not found.ids:
        raise HTTPException(400, "`prompt` is empty: it needs at least one word to continue from")
    if set(found.ids) == {UNKNOWN_ID}:
        raise HTTPException(400, f"`prompt` is {found.text!r:.60}: the vocabulary knows none of its characters")
    return found


def _of_ids(ids: list[int], tokenizer: Tokenizer) -> Prompt:
    offsets, end = [], 0
    for token in tokenizer.tokens(ids):
        offsets.append(end)
        end += len(spell(token))
    return Prompt(tokenizer.decode(ids), ids, offsets)


def _of_text(text: str, tokenizer: Tokenizer) -> Prompt:
    encoding = tokenizer.encode_with_offsets(text)
    starts = [start for start, _ in encoding.offsets]
    if encoding.text != text:
        places = _align(encoding.text, text)
        starts = [places[start] for start in starts]
    return Prompt(text, encoding.ids, starts)


def _align(standardised: str, text: str) -> list[int]:
    """For each character of the text that the original route reads, where it comes from in the text as it was given.

    That route puts in spaces and replaces quotes, dashes and broken characters; letters mostly stay.
    """
    places, place = [], 0
    for character in standardised:
        while place < len(text) - 1 and text[place].isspace() and not character.isspace():
            place += 1
        while place < len(text) - 1 and character.isalnum() and not text[place].isalnum():
            place += 1
        places.append(place)
        is_same_kind = place < len(text) and character.isalnum() == text[place].isalnum()
        if is_same_kind and not character.isspace() and place < len(text) - 1:
            place += 1
    return places


def spell(token: str) -> str:
    """An entry of the vocabulary as a client sees it: a space after each word."""
    return token.replace(WORD_END, " ")


def spell_all(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """`spell` of ids."""
    return [spell(token) for token in tokenizer.tokens(ids)]
