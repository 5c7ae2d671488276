"""Batches of running text: which window of which token store is in each row of each update."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import grain
import numpy as np

from gpt.data.batches import BuiltBatches, TextBatch
from gpt.data.store import Tokens, read_windows
from gpt.errors import ConfigError, DataError


class Text(NamedTuple):
    """Token ids of a split, and the weight of their store in a mixture."""

    tokens: Tokens
    weight: float = 1.0


def pretraining_batches(
    texts: Mapping[str, Text],
    context_length: int,
    batch_size: int,
    num_epochs: int,
    seed: int,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset:
    """Batches of all epochs. A text is read in windows, reshuffled whenever all of them were read.

    Of several texts, named, each gives its weight's share of the windows, exactly over any stretch, and goes through
    its own windows at its own pace. An epoch is as many batches as the windows of all texts fill. Windows of a single
    text that fill no batch wait for another epoch.

    Args:
      rows: the rows of each batch that are built, and read at all; None: every one. The batch of a host that needs
        rows 4 to 7 is `pretraining_batches(..., rows=range(4, 8))[step]`.

    Raises:
      DataError: a text without a window, or fewer windows than one batch takes.
    """
    counts = _count_windows(texts, context_length)
    _check_counts(texts, counts, context_length, batch_size)
    plan = _Plan(texts, context_length, batch_size, seed)
    rows = range(batch_size) if rows is None else rows

    def batch_of(step: int) -> TextBatch:
        windows = plan.windows(step, rows)
        tokens = np.empty((len(rows), context_length + 1), np.int32)
        for number, text in enumerate(texts.values()):
            own = [row for row, (whose, _) in enumerate(windows) if whose == number]
            starts = [windows[row][1] * context_length for row in own]
            for row, window in zip(own, read_windows(text.tokens, starts, context_length + 1), strict=True):
                tokens[row] = window
        return TextBatch(tokens, np.ones((len(rows), context_length), np.float32))

    return grain.MapDataset.range(plan.epoch_steps * num_epochs).map(batch_of)


def pretraining_windows(
    texts: Mapping[str, Text], context_length: int, batch_size: int, seed: int, step: int
) -> dict[str, list[int]]:
    """The numbers of the windows in batch `step` of `pretraining_batches`, by the name of their text.

    Window n begins at token n * context_length.
    """
    windows = _Plan(texts, context_length, batch_size, seed).windows(step, range(batch_size))
    return {name: [window for whose, window in windows if whose == number] for number, name in enumerate(texts)}


class _Plan:
    """Which window of which text is in each row of each batch."""

    def __init__(self, texts: Mapping[str, Text], context_length: int, batch_size: int, seed: int):
        counts = _count_windows(texts, context_length)
        self.epoch_steps = sum(counts) // batch_size
        self._batch_size = batch_size
        self._epoch_windows = counts[0] if len(counts) == 1 else self.epoch_steps * batch_size
        self._shares = _shares([text.weight for text in texts.values()])
        self._orders: list[Any] = [_order(count, seed, number) for number, count in enumerate(counts)]

    def windows(self, step: int, rows: Sequence[int]) -> list[tuple[int, int]]:
        """For each of these rows of a batch, the number of its text, and that of its window in the text."""
        epoch, place = divmod(step, self.epoch_steps)
        first = epoch * self._epoch_windows + place * self._batch_size
        turns = [_turn(first + row, self._shares) for row in rows]
        return [(text, int(self._orders[text][turn])) for text, turn in turns]


def _count_windows(texts: Mapping[str, Text], context_length: int) -> list[int]:
    return [(len(text.tokens) - 1) // context_length for text in texts.values()]


def passes(texts: Mapping[str, Text], context_length: int, num_windows: int) -> dict[str, float]:
    """How often each text is read when `num_windows` windows are drawn from the mixture."""
    total = sum(text.weight for text in texts.values())
    windows = {name: (len(text.tokens) - 1) // context_length for name, text in texts.items()}
    return {name: num_windows * text.weight / total / windows[name] for name, text in texts.items()}


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The paths by their last parts, as few as tell them apart: what their scores are called."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise ConfigError(f"DataConfig.token_store: {min(paths)!r} is there twice")


def _check_counts(texts: Mapping[str, Text], counts: Sequence[int], context_length: int, batch_size: int) -> None:
    for (name, text), count in zip(texts.items(), counts, strict=True):
        if count == 0:
            raise DataError(
                f"the training split of {name} has {len(text.tokens):,} tokens, less than one window of "
                f"ModelConfig.context_length = {context_length}: prepare more text"
            )
    if sum(counts) < batch_size:
        raise DataError(
            f"the training split has {sum(len(text.tokens) for text in texts.values()):,} tokens, {sum(counts):,} "
            f"windows of ModelConfig.context_length = {context_length}; RunConfig.batch_size = {batch_size} needs at "
            "least as many: prepare more text"
        )


def _order(count: int, seed: int, number: int) -> grain.MapDataset:
    """The windows of a text in the order in which they are read, pass after pass without end."""
    if number:  # another order than that of a text of the same length
        seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return grain.MapDataset.range(count).seed(seed).shuffle()


def _shares(weights: Sequence[float]) -> list[int]:
    """The smallest integers in the proportions of the weights, which mean what they say in decimals."""
    fractions = [Fraction(str(weight)) for weight in weights]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    shares = [int(fraction * denominator) for fraction in fractions]
    return [share // math.gcd(*shares) for share in shares]


def _turn(number: int, shares: Sequence[int]) -> tuple[int, int]:
    """The text that gives a window of the mixture, and the number of those that it gave before.

    The first text has its share of the turns, evenly spread, and the texts behind it divide the others in the same
    way. So does `grain.MapDataset.mix`, but for weights that it rounds: 0.7 and 0.3 become 233 and 100.
    """
    rest = sum(shares)
    for text, share in enumerate(shares):
        left = number * (rest - share) // rest
        if (number + 1) * (rest - share) // rest == left:
            return text, number - left
        number, rest = left, rest - share
    raise AssertionError("the last text takes every turn that is left")


def held_out_text_batches(
    tokens: Tokens,
    context_length: int,
    batch_size: int,
    max_batches: int | None,
    rows: Sequence[int] | None = None,
) -> Sequence[TextBatch]:
    """Every window once and in order, the last one cut short; rows that fill the last batch have weight 0.

    `rows` are those of each batch that are built and read, None all of them.
    """
    if len(tokens) < 2:
        raise DataError("the validation split of DataConfig.token_store has fewer than 2 tokens: nothing to predict")
    rows = range(batch_size) if rows is None else rows

    def batch_of(number: int) -> TextBatch:
        batch = TextBatch(
            np.zeros((len(rows), context_length + 1), np.int32), np.zeros((len(rows), context_length), np.float32)
        )
        starts = {place: (number * batch_size + row) * context_length for place, row in enumerate(rows)}
        starts = {place: start for place, start in starts.items() if start < len(tokens) - 1}
        windows = read_windows(tokens, list(starts.values()), context_length + 1)
        for row, window in zip(starts, windows, strict=True):
            batch.tokens[row, : len(window)] = window
            batch.weights[row, : len(window) - 1] = 1
        return batch

    num_batches = math.ceil((len(tokens) - 1) / (context_length * batch_size))
    return BuiltBatches(batch_of, num_batches if max_batches is None else min(num_batches, max_batches))
