"""The original route once more, step by step as it is described, on whole texts and in plain Python.

It shares no code with `gpt.text`: what that does by chunks, caches and Rust must give these ids.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

import ftfy
from spacy.lang.en import English

PUNCTUATION = r"""(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|}+|{+|\|+|_+)"""
REPLACED = {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}


def standardise(text: str) -> str:
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    text = re.sub(PUNCTUATION, r" \1 ", text)
    text = re.sub(r"\s*\n\s*", " \n ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def merge_word(word: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The symbols of a word: again and again, all neighbours of the pair that was learnt first become one."""
    symbols = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [pair for pair in itertools.pairwise(symbols) if pair in ranks]
        if not pairs:
            return symbols
        first = min(pairs, key=ranks.__getitem__)
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == first:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged


class ReferenceTokenizer:
    """Ids of texts, with the symbols of each word kept as OpenAI's code keeps them."""

    def __init__(self, ids: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self.ids = ids
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.english = English().tokenizer
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids = []
        for token in self.english(standardise(ftfy.fix_text(text))):
            word = token.text.lower()
            if word not in self.known:
                symbols = ["\n</w>"] if word.strip(" ") == "\n" else merge_word(word, self.ranks)
                self.known[word] = [self.ids.get(symbol, 0) for symbol in symbols]
            ids += self.known[word]
        return ids
