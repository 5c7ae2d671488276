"""How every command starts and ends: flags, compilation cache, errors, exit codes."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt import gin_io
from gpt.errors import ConfigError, GPTError
from gpt.planning.libtpu import set_libtpu_environment

COMMANDS = (
    "prepare",
    "pack",
    "tokenizer",
    "convert",
    "verify",
    "replay",
    "score",
    "generate",
    "serve",
    "plot",
    "tables",
    "transfer",
    "sweep",
    "submit",
    "zeroshot",
    "plan",
    "launch",
    "quickstart",
)

_GIN_FLAG = "--gin."


def set_cache_environment() -> None:
    """Programs compiled once start at once in the next process; to be set before JAX is imported."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "gpt-jax"))


def run_guarded(main: Callable[[], int]) -> int:
    """The exit code of `main`; what the user can mend is one `error:` paragraph on standard error.

    Codes: 0 done, 2 a setting or file cannot be used, 3 too many updates not finite, 4 a hang, 5 another
    process of the run has ended, 75 stopped by a signal with everything saved, 130 Ctrl-C.
    """
    set_cache_environment()
    set_libtpu_environment()
    try:
        return main()
    except GPTError as error:
        # In one piece: `print` writes the end of the line by itself, and other processes may write in between.
        with contextlib.suppress(OSError):  # a log on a full disk; the code still tells
            sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left: not an error, but Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a run of several processes; no settings, because they differ by process."""
    flags = parser.add_argument_group("several processes", "found without flags on a TPU pod, and by SLURM or Open MPI")
    flags.add_argument("--coordinator", metavar="HOST:PORT", help="host of process 0, and a port that is free there")
    flags.add_argument("--num_processes", type=int, metavar="N", help="how many; 1 asks no cluster for others")
    flags.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")
    flags.add_argument(
        "--process_timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for the others at the start (default: %(default)g)",
    )


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags that `parser` knows, and every `--gin.KEY=VALUE` as `KEY=VALUE`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "--gin.Section.field=value sets one field, or --gin.name=value a macro; they win over all files.\n\n"
        f"{gin_io.describe_fields()}\n"
        f"Other commands, each with --help: {', '.join(f'gpt {name}' for name in COMMANDS)}, train.py, eval.py"
    )
    args, rest = parser.parse_known_args(argv)
    return args, read_settings(rest)


def read_settings(flags: Sequence[str]) -> list[str]:
    """Every `--gin.KEY=VALUE` as `KEY=VALUE`; ConfigError for any other flag."""
    overrides = []
    for flag in flags:
        if not flag.startswith(_GIN_FLAG) or "=" not in flag:
            raise ConfigError(f"flag {flag!r} is not known: settings are given as {_GIN_FLAG}Section.field=value")
        overrides.append(flag.removeprefix(_GIN_FLAG))
    return overrides
