"""Examples as long as those of published training splits, without the splits: random ids."""

import numpy as np

LENGTHS = {
    "cola": (4, 6, 7, 8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 12, 12, 13, 14, 15, 16, 19, 46),
    "sst2": (3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 14, 15, 17, 20, 22, 26, 32, 64),
    "rte": (13, 30, 34, 37, 41, 44, 47, 49, 51, 54, 57, 61, 64, 69, 76, 88, 106, 123, 137, 159, 290),
}
"""Tokens of an example, start, delimiter and extract included: every twentieth of the training split, by
`np.quantile`, with OpenAI's vocabulary on the basic route."""


def draw_examples(task: str, count: int, vocab_size: int) -> list[list[int]]:
    """`count` examples of which the lengths are spread as those of the task; the same at each call."""
    generator = np.random.default_rng(0)
    shares = generator.permutation((np.arange(count) + 0.5) / count)
    lengths = np.interp(shares, np.linspace(0, 1, len(LENGTHS[task])), LENGTHS[task]).round().astype(int)
    return [generator.integers(1, vocab_size, size=length).tolist() for length in lengths]
