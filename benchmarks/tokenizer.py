"""Speed of both tokenizer routes, one JSON line each, against a peer in the same run.

basic     the same pipeline of the `tokenizers` library, called without our code on whole texts
original  the plain Python form of the algorithm in tests/reference_tokenizer.py, on whole texts

    python benchmarks/tokenizer.py                                    # documentation of the standard library
    python benchmarks/tokenizer.py --vocab openai --megabytes 20 books/*.txt

We and the peer take turns, and both start without memory of words in each turn. Seconds are medians of processor time
over all threads, which other work on the machine disturbs less than the clock; `ratio` is the peer's over ours.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt.data.stdlib import read_corpus
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


def measure(tokenizer: Tokenizer, texts: Sequence[str], turns: int) -> dict[str, object]:
    """The line of one route."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(turns):
        fresh = Tokenizer(tokenizer.vocabulary, tokenizer.route)
        ours, our_ids = timed(fresh.encode_batch, texts)
        theirs, their_ids = timed(peer(fresh), texts)
        assert our_ids == their_ids
        seconds["ours"].append(ours)
        seconds["peer"].append(theirs)
    ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "peer"))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    return {
        "route": tokenizer.route,
        "megabytes": round(megabytes, 2),
        "turns": turns,
        "seconds": round(ours, 3),
        "peer_seconds": round(theirs, 3),
        "megabytes_per_second": round(megabytes / ours, 2),
        "ratio": round(theirs / ours, 3),
    }


def main() -> None:
    """Print a line for each route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="text files; default the standard library's documentation"
    )
    parser.add_argument("--vocab", metavar="DIR", help="a vocabulary; default one of 8,000 ids trained on the texts")
    parser.add_argument("--megabytes", type=float, default=4.0, metavar="N", help="at most so much text; default 4")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="default 5")
    args = parser.parse_args()
    texts = read_texts(args.files, args.megabytes)
    routes: tuple[Route, ...] = ("basic", "original")
    for route in routes:
        tokenizer = Tokenizer.load(args.vocab, route) if args.vocab else train_bpe(texts, 8000, route)
        print(json.dumps(measure(tokenizer, texts, args.turns)), flush=True)


if __name__ == "__main__":
    main()
