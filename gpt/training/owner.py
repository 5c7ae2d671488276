"""One owner: while a run trains, no other start of it, on any machine that sees its directory, does."""

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path

from gpt.errors import ConfigError, DataError
from gpt.training.lease import LOST_AFTER_SECONDS, Attempt, claim, latest_attempt
from gpt.training.processes import is_first, meet
from gpt.training.report import warn

_POLL_SECONDS = 1.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Inside, this run, with all its processes, is the one that trains in `run_dir`.

    The lock is a lease (`gpt/training/lease.py`) with host, process number and start time. It is lost with its process;
    of a process on another machine, when no sign of life came for a while, which is waited for here.

    Raises:
      ConfigError: another start trains there.
    """
    with contextlib.ExitStack() as stack:
        if is_first():
            _claim(run_dir, stack)
        meet()
        yield


def _claim(run_dir: Path, stack: contextlib.ExitStack) -> None:
    folder = run_dir / ".owners"
    seen: tuple[Attempt, float] | None = None
    try:
        while (lease := claim(folder)) is None:
            attempt = latest_attempt(folder)
            if attempt is None or not attempt.is_live:
                continue
            touched = attempt.path.stat().st_mtime
            if attempt.is_here or (seen is not None and (attempt, touched) != seen):
                raise ConfigError(
                    f"RunConfig.output_dir = {str(run_dir)!r}: process {attempt.pid} on {attempt.host} trains there "
                    "now. Wait until it ends, or stop it (SIGTERM saves first), or set another RunConfig.output_dir"
                )
            if seen is None:
                warn(
                    f"{str(run_dir)!r} was last trained by process {attempt.pid} on {attempt.host}, which has not said "
                    f"that it ended; waiting for a sign of life, {LOST_AFTER_SECONDS:g} s at most"
                )
            seen = (attempt, touched)
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise DataError(f"cannot write to RunConfig.output_dir = {str(run_dir)!r}: {error}") from error
        warn(f"{str(run_dir)!r} is not locked, because its file system makes no hard links: {error}")
        return
    stack.enter_context(lease)
