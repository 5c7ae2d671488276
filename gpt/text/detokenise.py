"""Text with the spaces that people write, from the words that a tokenizer parted.

Decoded ids have a space on either side of every punctuation mark: `" i do n't know , " he said .` from the original
route, `don ' t` from the basic one. Here spaces are taken out and nothing else is changed, so capitals, which the
vocabulary does not have, do not come back. Whether a straight quote opens or closes is told by those before it.
"""

_CLOSING = frozenset(".,!?;:)]}%…”»")
_OPENING = frozenset("([{$£€#“‘«")
_JOINING = frozenset("-–—/\\")
_APOSTROPHES = frozenset("'’")
_ENDINGS = frozenset(["s", "t", "re", "ve", "ll", "d", "m"])
"""What follows the apostrophe of a contraction, or of the genitive."""
_PREFIXES = frozenset(["o", "d", "l"])  # o'clock, d'artagnan, l'amour
_CUT_WORDS = frozenset(["an", "n", "th"])  # an' so forth
_ELISIONS = frozenset(["em", "tis", "twas", "til", "cause", "bout"])
_SPLIT_WORDS = frozenset([("gon", "na"), ("wan", "na"), ("got", "ta")])  # by spaCy
_ABBREVIATIONS = frozenset([("i", "e"), ("e", "g"), ("a", "m"), ("p", "m"), ("u", "s")])
_LONG_QUOTE = 8  # words; a quote that opened so long ago may have been left open


class Detokeniser:
    """Text from words that come one by one; a word is held back until the next one is known."""

    def __init__(self) -> None:
        self._before = ("\n", "\n")  # the last two words placed
        self._is_glued = True  # no space may follow the last word
        self._open: dict[str, int] = {}  # quotes that have been opened, and how many words ago
        self._held: str | None = None

    def push(self, word: str) -> str:
        """The text that one more word settles, with the space before it."""
        held, self._held = self._held, word
        return "" if held is None else self._place(held, word)

    def flush(self) -> str:
        """The rest of the text, which ends here."""
        held, self._held = self._held, None
        return "" if held is None else self._place(held, "\n")

    def _place(self, word: str, following: str) -> str:
        if word == "\n":
            self._open.clear()
        has_space, is_glue = self._spaces(word, following)
        text = word if self._is_glued or not has_space else f" {word}"
        self._before, self._is_glued = (self._before[1], word), is_glue
        self._open = {quote: age + 1 for quote, age in self._open.items()}
        return text

    def _spaces(self, word: str, following: str) -> tuple[bool, bool]:
        """Whether there is a space before the word, and whether there is none after it."""
        previous = self._before[1]
        if word == "\n" or _JOINING.issuperset(word):
            return False, True
        if word in (".", ",", ":"):
            is_number = previous[-1].isdigit() and following[0].isdigit()
            return False, is_number or (word == "." and (previous, following) in _ABBREVIATIONS)
        if _CLOSING.issuperset(word) or _is_ending(previous, word):
            return False, False
        if _OPENING.issuperset(word):
            return True, True
        if word in ('"', "_"):
            return self._quote(word, following)
        if word in _APOSTROPHES:
            return self._apostrophe(word, following)
        return True, False

    def _quote(self, quote: str, following: str) -> tuple[bool, bool]:
        previous, age = self._before[1], self._open.get(quote)
        # A closing quote follows a punctuation mark or ends a quoted word or two.
        was_left_open = age is not None and age > _LONG_QUOTE and previous[-1].isalnum() and following[0].isalnum()
        if age is None or was_left_open:
            self._open[quote] = 0
            return True, True
        del self._open[quote]
        return False, False

    def _apostrophe(self, mark: str, following: str) -> tuple[bool, bool]:
        previous = self._before[1]
        if previous[-1].isalpha() and (following in _ENDINGS or (previous in _PREFIXES and following[0].isalpha())):
            return False, True
        if following in _ELISIONS:
            return True, True
        if mark == "’" or mark in self._open:
            self._open.pop(mark, None)
            return False, False
        if previous.endswith(("s", "in")) or previous in _CUT_WORDS:  # the boys', runnin'
            return False, False
        return self._quote(mark, following)


def _is_ending(previous: str, word: str) -> bool:
    """Whether it is the end of a contraction as spaCy parts them: n't, 's."""
    is_contraction = word in ("n't", "n’t") or (word[0] in _APOSTROPHES and word[1:] in _ENDINGS)
    return is_contraction or (previous, word) in _SPLIT_WORDS


def detokenise(text: str) -> str:
    """The decoded text with its spaces where people put them."""
    detokeniser = Detokeniser()
    return "".join([*(detokeniser.push(word) for word in text.split(" ") if word), detokeniser.flush()])
