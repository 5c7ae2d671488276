"""An end for a run that hangs: the stacks of all threads, and exit code 4."""

import faulthandler
import os
import sys
import threading
from types import TracebackType

EXIT_CODE = 4
PATIENCE = 10.0
"""What compiles, evaluates or saves may take so many times the limit of an update."""
_TICKS = 20


class Watchdog:
    """While entered, ends the process when what it `expects` takes longer than a limit.

    The time is counted in small ticks that the process lives through itself, so neither a jump of the clock nor a
    process that was stopped and goes on looks like a hang.
    """

    def __init__(self, limit: float | None):
        """`limit` in seconds for an update; None never ends the process."""
        self._limit = limit
        self._what, self._ticks_left = "", float("inf")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._limit is not None:
            self._thread.join()

    def expects(self, what: str, *, patience: float = 1.0) -> None:
        """From now on, the limit, `patience` times, is that of `what`."""
        self._what, self._ticks_left = what, _TICKS * patience

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._is_over.wait(self._limit / _TICKS):
            self._ticks_left -= 1
            if self._ticks_left < 0:
                self._end()
                return

    def _end(self) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        sys.stderr.write(
            f"error: {self._what} hangs: it has not ended within the limit that RunConfig.update_timeout_seconds = "
            f"{self._limit:g} sets ({PATIENCE:g} times as long for what compiles, evaluates or saves); above is what "
            "each thread was doing. The same command continues from the last checkpoint\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_CODE)
