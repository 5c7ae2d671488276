"""Ctrl-C and SIGTERM as a request to stop after an update, in all processes after the same one."""

import signal
from types import FrameType, TracebackType

import jax

from gpt.training.processes import first_note


class StopSignals:
    """While entered, the first SIGTERM or SIGINT is a request to stop; a second one ends the process at once.

    A process that gets the signal after update n tells all to stop after n + 2. Update n + 1 does not begin there
    before that is told, and no other process ends n + 2 before n + 1 is done everywhere (`Meter.add` waits for it):
    so all have read it in time.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """The signal, and of several processes the one that got it."""
        self._signal: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - what signal() gave us

    def stop_after(self, update: int) -> bool:
        """Whether to stop after this update; asked after each."""
        own = self._signal
        if own and jax.process_count() > 1:
            own = f"{update + 2} {own} to process {jax.process_index()}"
        elif own:
            own = f"{update} {own}"
        note = first_note("stop", own)
        if note is None:
            return False
        last, self.reason = note.split(" ", 1)
        return update >= int(last)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = signal.Signals(number).name
