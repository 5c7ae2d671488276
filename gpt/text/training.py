"""Learning a byte-pair vocabulary from text."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import pre_tokenizers, trainers

from gpt.errors import DataError
from gpt.text import pipeline, standardise
from gpt.text.original import Splitter
from gpt.text.pieces import Piece, split_at_breaks
from gpt.text.pipeline import Route
from gpt.text.tokenizer import Tokenizer
from gpt.text.vocabulary import NEWLINE, UNKNOWN, WORD_END, Vocabulary

_PIECE_LENGTH = 1 << 16  # characters normalised at once
_MAX_CHARACTERS = 1000
_MIN_FREQUENCY = 2  # a pair seen once is no pattern


def train_bpe(texts: Iterable[str], vocab_size: int, route: Route = "basic") -> Tokenizer:
    """A tokenizer with exactly `vocab_size` ids in the layout of OpenAI's `encoder_bpe_40000.json`.

    0 is `<unk>`; then come the characters, the same characters as ends of words, the merges in the order in which they
    were learnt, and last the newline. Characters are the 1,000 most frequent. The same texts in any order give the same
    tokenizer. Raises DataError when the vocabulary has no room for the characters, or the texts cannot fill it.
    """
    counts = _count_basic(texts) if route == "basic" else _count_original(texts)
    alphabet = _alphabet(counts)
    base = [UNKNOWN, *alphabet, *(character + WORD_END for character in alphabet)]
    if vocab_size <= len(base):
        raise DataError(
            f"--vocab_size {vocab_size}: the {len(alphabet)} characters of the text alone take {len(base) + 1} ids; "
            "give a larger --vocab_size"
        )
    merges = _learn_merges(counts, base, alphabet, vocab_size, route)
    tokens = list(dict.fromkeys([*base, *(left + right for left, right in merges)]))[: vocab_size - 1]
    if len(tokens) < vocab_size - 1:
        raise DataError(
            f"--vocab_size {vocab_size}: the text is too small, it reached {len(tokens) + 1}; "
            f"lower --vocab_size to at most {len(tokens) + 1}, or give more text"
        )
    ids = {token: index for index, token in enumerate([*tokens, NEWLINE])}
    merges = [(left, right) for left, right in merges if {left, right, left + right} <= ids.keys()]
    return Tokenizer(Vocabulary(ids, merges), route)


def _count_basic(texts: Iterable[str]) -> Counter[str]:
    """How often each run of non-space characters occurs in the normalised texts."""
    normalizer = pipeline.build(None, "basic").normalizer
    counts: Counter[str] = Counter()
    for text in texts:
        for piece in split_at_breaks(text, _PIECE_LENGTH):
            counts.update(normalizer.normalize_str(piece).split())
    return counts


def _count_original(texts: Iterable[str]) -> Counter[str]:
    """How often each lower-cased word of spaCy's occurs in the standardised texts."""
    splitter = Splitter()
    chunks: Counter[str] = Counter()
    for text in texts:
        for piece in standardise.cut(Piece(text), _PIECE_LENGTH):
            chunks.update(splitter.chunks(piece))
    del chunks[standardise.NEWLINE_CHUNK]
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word in splitter.words(chunk):
            counts[word] += count
    return counts


def _alphabet(counts: Counter[str]) -> list[str]:
    """The most frequent characters, in code-point order."""
    frequency: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            frequency[character] += count
    ranked = sorted(frequency, key=lambda character: (-frequency[character], character))
    return sorted(ranked[:_MAX_CHARACTERS])


def _learn_merges(
    counts: Counter[str], base: Sequence[str], alphabet: Sequence[str], vocab_size: int, route: Route
) -> list[tuple[str, str]]:
    # The trainer numbers ends of words as it meets them in a hash table, and breaks ties by number. Given as special
    # tokens they have fixed numbers, so that equal texts give equal merges.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(base),
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner = pipeline.build(None, route)
    learner.normalizer = None  # the words are normalised
    if route == "original":
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_repeat(counts), trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _repeat(counts: Counter[str]) -> Iterator[str]:
    """Each word as often as it was counted: the trainer takes text, not counts."""
    for word, count in counts.items():
        while count > 0:
            repeats = min(count, 1 << 13)
            yield (word + " ") * repeats
            count -= repeats
