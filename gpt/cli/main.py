"""The `gpt` command: one subcommand a module of `gpt.cli`."""

import argparse
import importlib
import sys

from gpt.cli.start import COMMANDS, read_settings, run_guarded


def main() -> int:
    """Parses the command line and runs the subcommand."""
    return run_guarded(_main)


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="gpt",
        description="Tools around train.py and eval.py, the reference implementation of OpenAI GPT in JAX.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {name: importlib.import_module(f"gpt.cli.{name}") for name in COMMANDS}
    for name, module in modules.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=module.__doc__))
    args, rest = parser.parse_known_args()
    command = modules[args.command]
    if getattr(command, "TAKES_SETTINGS", False):
        args.overrides = read_settings(rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return command.run(args)


if __name__ == "__main__":
    sys.exit(main())
