"""Token ids behind a URL, of which only what is asked for is fetched."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.data.place import Place
from gpt.errors import DataError

_KEPT_BYTES = 64 << 20


class RemoteTokens:
    """A split that is read by ranges, all ranges of a batch at once.

    The last 64 MiB are kept, so that a small split, such as held-out text, is fetched once.
    """

    def __init__(self, place: Place, size: int, dtype: np.dtype[Any], vocab_size: int) -> None:
        self._place, self._size, self.dtype, self._vocab_size = place, size, dtype, vocab_size
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()  # batches are made by several threads

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(self._size)
        return self.read([(start, stop)])[0]

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """The ids of each range; DataError when the store cannot be reached, or holds what it should not."""
        ranges = [(start, min(stop, self._size)) for start, stop in ranges]
        with self._lock:
            found = {key: self._kept[key] for key in ranges if key in self._kept}
        missing = sorted(set(ranges) - found.keys())
        fetched = dict(zip(missing, self._fetch(missing), strict=True))
        with self._lock:
            for key, ids in (found | fetched).items():
                self._kept_bytes += 0 if key in self._kept else ids.nbytes
                self._kept[key] = ids
                self._kept.move_to_end(key)
            while self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return [found[key] if key in found else fetched[key] for key in ranges]

    def _fetch(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        width = self.dtype.itemsize
        try:
            chunks = self._place.read_ranges([(start * width, stop * width) for start, stop in ranges])
        except OSError as error:
            raise DataError(
                f"{self._place}: cannot be read: {error.strerror or error}; when it can, the same command continues"
            ) from error
        for (start, stop), chunk in zip(ranges, chunks, strict=True):
            if len(chunk) != (stop - start) * width:
                raise DataError(f"{self._place}: ends before token {stop:,}: it was changed while it was in use")
        arrays = [np.frombuffer(chunk, self.dtype) for chunk in chunks]
        largest = max((int(ids.max(initial=0)) for ids in arrays), default=0)
        if largest >= self._vocab_size:
            raise DataError(
                f"{self._place}: holds token id {largest}, beyond the vocabulary of {self._vocab_size}; the token "
                "store is damaged: run `gpt prepare` again"
            )
        return arrays
