"""`train.py --profile_steps FIRST:LAST`: a trace of a few updates, by `jax.profiler`, in RUN/profile."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from gpt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """Updates `first` to `last`, both included, counted from 1 as log lines count them."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "ProfileSteps":
        """The range that `--profile_steps` gives; ConfigError when it is none."""
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--profile_steps {text!r}: expected FIRST:LAST with 1 <= FIRST <= LAST, such as 10:13 for the "
                "updates 10 to 13"
            )
        return cls(int(match[1]), int(match[2]))

    def require_within(self, first: int, last: int) -> None:
        """Raises ConfigError unless all these updates are among `first` to `last`, which are to be made."""
        if self.first < first or self.last > last:
            raise ConfigError(
                f"--profile_steps {self.first}:{self.last}: this run is to make the updates {first} to {last}: "
                "give a range within them, or leave --profile_steps out"
            )


class Profiler:
    """Traces the updates of `steps` into `directory`; nothing without `steps`."""

    def __init__(self, steps: ProfileSteps | None, directory: Path):
        self._steps, self._directory = steps, directory
        self._is_tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()  # where the run stops within the range

    @contextlib.contextmanager
    def update(self, step: int, wait: Callable[[], None]) -> Iterator[None]:
        """Traces update `step`, which is made inside, if it is one of `steps`; `wait` waits until it is done."""
        import jax

        if self._steps is None or not self._steps.first <= step <= self._steps.last:
            yield
            return
        if step == self._steps.first:
            # Perfetto's format opens in a browser; the other one needs `pip install xprof`.
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._is_tracing = True
        with jax.profiler.StepTraceAnnotation("update", step_num=step):
            yield
        if step == self._steps.last:
            wait()
            self._stop()

    def _stop(self) -> None:
        import jax

        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
