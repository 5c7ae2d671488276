"""Speed of both tokenizer routes, one JSON line each, against a peer in the same run.

basic     the same pipeline of the `tokenizers` library, called without our code on whole texts
original  the plain Python form of the algorithm in tests/reference_tokenizer.py, on whole texts
prepare   the same plain form, against `gpt prepare` on the original route with a process a core; seconds by the clock

    python -m benchmarks.tokenizer                                    # documentation of the standard library
    python -m benchmarks.tokenizer --vocab openai --megabytes 20 books/*.txt

We and the peer take turns, and both start without memory of words in each turn. Seconds are medians of processor time
over all threads, which other work on the machine disturbs less than the clock; `ratio` is the peer's over ours.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.compare import report
from gpt.data.prepare import prepare
from gpt.data.stdlib import read_corpus
from gpt.data.store import TokenStore
from gpt.text import pipeline
from gpt.text.pipeline import Route
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference_tokenizer import ReferenceTokenizer

Encode = Callable[[Sequence[str]], list[list[int]]]


def read_texts(files: Sequence[str], megabytes: float) -> list[str]:
    """The texts of the files, or of the standard library's documentation, as far as the megabytes go."""
    whole = (Path(file).read_text(encoding="utf-8") for file in files)
    documentation = ("\n\n".join(document.paragraphs) for document in read_corpus().train) if not files else ()
    texts: list[str] = []
    left = int(megabytes * 1e6)
    for text in (*documentation, *whole):
        if left <= 0:
            break
        texts.append(text[:left])
        left -= len(text)
    return texts


def peer(tokenizer: Tokenizer) -> Encode:
    """The peer of the tokenizer's route."""
    vocabulary = tokenizer.vocabulary
    if tokenizer.route == "original":
        reference = ReferenceTokenizer(vocabulary.ids, vocabulary.merges)
        return lambda texts: [reference.encode(text) for text in texts]
    raw = pipeline.build(vocabulary, "basic")
    return lambda texts: [found.ids for found in raw.encode_batch_fast(texts, add_special_tokens=False)]


def timed(encode: Encode, texts: Sequence[str]) -> tuple[float, list[list[int]]]:
    """Seconds of processor time, and ids."""
    encode(["one word"])  # imports
    started = time.process_time()
    ids = encode(texts)
    return time.process_time() - started, ids


def measure(tokenizer: Tokenizer, texts: Sequence[str], turns: int) -> None:
    """Prints the line of one route."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(turns):
        fresh = Tokenizer(tokenizer.vocabulary, tokenizer.route)
        ours, our_ids = timed(fresh.encode_batch, texts)
        theirs, their_ids = timed(peer(fresh), texts)
        assert our_ids == their_ids
        seconds["ours"].append(ours)
        seconds["peer"].append(theirs)
    show(tokenizer.route, texts, seconds)


def measure_prepare(tokenizer: Tokenizer, texts: Sequence[str], turns: int) -> None:
    """Prints the line of `gpt prepare`, from text files to a token store."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory, f"{number}.txt") for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, encoding="utf-8")
        for turn in range(turns):
            store = Path(directory, f"store-{turn}")
            workers = os.cpu_count() or 1
            started = time.perf_counter()
            prepare([str(file) for file in files], tokenizer, store, validation_fraction=0.0, workers=workers)
            seconds["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            documents = peer(tokenizer)([file.read_text(encoding="utf-8") for file in files])
            seconds["peer"].append(time.perf_counter() - started)
            expected = np.concatenate([[*ids, tokenizer.newline_id] for ids in documents])
            np.testing.assert_array_equal(TokenStore.open(store, tokenizer).split("train"), expected)
    show("prepare", texts, seconds)


def show(name: str, texts: Sequence[str], seconds: dict[str, list[float]]) -> None:
    """Prints the line of the turns of both sides."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    sides = {}
    for side, turns in seconds.items():
        median = statistics.median(turns)
        sides[side] = {"seconds": median, "megabytes_per_second": megabytes / median}
    report(f"tokenizer, {name}", {"megabytes": round(megabytes, 2), "turns": len(seconds["ours"])}, sides)


def main() -> None:
    """Print a line for each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="text files; default the standard library's documentation"
    )
    parser.add_argument("--vocab", metavar="DIR", help="a vocabulary; default one of 4,000 ids trained on the texts")
    parser.add_argument("--megabytes", type=float, default=4.0, metavar="N", help="at most so much text; default 4")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="default 5")
    args = parser.parse_args()
    texts = read_texts(args.files, args.megabytes)

    def tokenizer_of(route: Route) -> Tokenizer:
        return Tokenizer.load(args.vocab, route) if args.vocab else train_bpe(texts, 4000, route)

    basic, original = tokenizer_of("basic"), tokenizer_of("original")
    measure(basic, texts, args.turns)
    measure(original, texts, args.turns)
    measure_prepare(original, texts, args.turns)


if __name__ == "__main__":  # the worker processes of `prepare` import this file
    main()
