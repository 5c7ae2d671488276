"""The errors a user can cause and mend. Every other exception is a defect of this project."""


class GPTError(Exception):
    """Something the user gave cannot be used.

    The text says what came, what was expected, which setting it is, and the way out.
    Commands print it as one `error:` paragraph and exit with `exit_code`.
    """

    exit_code = 2


class ConfigError(GPTError):
    """A setting is unknown, unset, of the wrong type, or does not go with another one."""


class DataError(GPTError):
    """A file, token store, data set or run directory is missing, damaged, or of the wrong kind."""


class SweepError(GPTError):
    """Cells of a sweep could not be run; all others were."""


class NotFinite(GPTError):
    """Training stopped because too many updates in a row had a loss or gradient that is not finite (exit code 3)."""

    exit_code = 3


class PeerLost(GPTError):
    """Another process of this run has ended, and the others cannot go on without it (exit code 5: repeat)."""

    exit_code = 5


class Preempted(GPTError):
    """Training stopped at a signal, with everything saved (exit code 75: try again)."""

    exit_code = 75
