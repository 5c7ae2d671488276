"""The text of a continuation while its tokens come, as far as it will not change, up to a stop string."""

from collections.abc import Sequence

from gpt.errors import ConfigError
from gpt.text.detokenise import Detokeniser
from gpt.text.tokenizer import Tokenizer
from gpt.text.vocabulary import WORD_END


class TextStream:
    """One continuation: `text` so far, `num_ids` of it, and whether it `is_stopped` by a stop string.

    The text holds whole words and begins with a space where the prompt needs one. A stop string is no part of it,
    and `num_ids` counts the tokens up to the word where the text ends. Stop strings that would leave fewer than
    `min_new_tokens` tokens are passed over. Raw text has a space between all words, as the vocabulary parts them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        *,
        min_new_tokens: int = 0,
        is_raw: bool = False,
    ) -> None:
        self.text, self.num_ids, self.is_stopped = "", 0, False
        self._tokenizer, self._stops, self._min_new_tokens = tokenizer, stops, min_new_tokens
        self._detokeniser = None if is_raw else Detokeniser()
        self._word, self._num_pushed = "", -len(prompt)
        self._ends: list[tuple[int, int]] = [(0, 0)]  # after each word: length of the text, and number of ids
        self._counts: list[int] = []  # number of ids at the end of each word that is not yet in the text
        self._num_given = 0  # characters that `push` has returned
        self._to_skip = sum(len(token.removesuffix(WORD_END)) for token in tokenizer.tokens(prompt))
        self._read(prompt)

    def push(self, ids: Sequence[int]) -> str:
        """What more tokens add to the text for good; nothing more once it is stopped."""
        self._read(ids)
        return self._give(self._num_held())

    def finish(self) -> str:
        """The rest of the text, the word that was not ended included."""
        if not self.is_stopped:
            self._end_word()
            self._add(self._detokeniser.flush() if self._detokeniser else "")
        return self._give(0)

    def _read(self, ids: Sequence[int]) -> None:
        for token in self._tokenizer.tokens(ids):
            if self.is_stopped:
                return
            self._num_pushed += 1
            self._word += token.removesuffix(WORD_END)
            if token.endswith(WORD_END):
                self._end_word()

    def _end_word(self) -> None:
        word, self._word = self._word, ""
        if not word:
            return
        self._counts.append(self._num_pushed)
        self._add(self._detokeniser.push(word) if self._detokeniser else f" {word}")

    def _add(self, text: str) -> None:
        """One more word with the space before it, or nothing."""
        if not text:
            return
        count = self._counts.pop(0)
        while self._to_skip and text:
            self._to_skip -= text[0] != " "
            text = text[1:]
        self.text += text
        self.num_ids = max(count, 0)
        self._ends.append((len(self.text), self.num_ids))
        found = [place for stop in self._stops for place in self._places(stop)]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True
            self.num_ids = self._num_ids_of(min(found))

    def _places(self, stop: str) -> list[int]:
        """Where a stop string begins that counts: the first one, or none."""
        place = self.text.find(stop, self._num_given)
        while place >= 0 and self._num_ids_of(place) < self._min_new_tokens:
            place = self.text.find(stop, place + 1)
        return [place] if place >= 0 else []

    def _num_ids_of(self, length: int) -> int:
        """Number of ids of so many characters of the text."""
        return next(count for end, count in self._ends if end >= length)

    def _num_held(self) -> int:
        """Characters at the end of the text that may begin a stop string."""
        if self.is_stopped:
            return 0
        longest = max(map(len, self._stops), default=0)
        tails = range(min(longest - 1, len(self.text) - self._num_given), 0, -1)
        return next((n for n in tails if any(stop.startswith(self.text[-n:]) for stop in self._stops)), 0)

    def _give(self, num_held: int) -> str:
        new = self.text[self._num_given : len(self.text) - num_held]
        self._num_given += len(new)
        return new


def check_stops(stops: Sequence[str]) -> None:
    """Raises ConfigError for a stop string that no text could ever meet, or that every text would."""
    for stop in stops:
        if not stop:
            raise ConfigError("a stop string is empty, and would end every text before its first word; leave it out")
        if stop != stop.lower():
            raise ConfigError(
                f"stop string {stop!r} would never be met: the vocabulary has no capitals; write {stop.lower()!r}"
            )
