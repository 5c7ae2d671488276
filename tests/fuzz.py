"""Coverage-guided fuzzing of every reader with atheris (`pip install '.[fuzz]'`), one after another: `make fuzz`.

    python tests/fuzz.py [READER ...] [--seconds N]

What is found is kept as `build/fuzz/READER/found-*`, read again at the next start, and makes the exit code 1.
"""

import argparse
import contextlib
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # not there where lint runs

FOLDER = Path(__file__).parents[1] / "build" / "fuzz"
LIMITS = ("-timeout=20", "-rss_limit_mb=4096", "-max_len=8192")  # seconds and MiB for a file of so many bytes


def main() -> int:
    """Fuzzes each reader in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help="default all of tests/hostile.py")
    parser.add_argument("--seconds", type=int, default=10, help="for each reader (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        fuzz(args.readers[0], args.seconds)
    from hostile import READERS

    found = []
    for name in args.readers or READERS:
        command = [sys.executable, __file__, name, "--here", "--seconds", str(args.seconds)]
        process = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = process.stdout.splitlines()
        done = [line for line in lines if line.startswith("Done ")]
        print(f"{name}: {done[0] if done and not process.returncode else 'found something'}", flush=True)
        if process.returncode:
            found.append(name)
            print("\n".join(lines[-40:]), file=sys.stderr)
    return bool(found)


def fuzz(name: str, seconds: int) -> None:
    """Feeds one reader with what reaches new code, until the time is over, and ends the process."""
    with atheris.instrument_imports(include=["gpt", "gin"]):
        from hostile import READERS

        from gpt.errors import GPTError
    kept = FOLDER / name.replace(" ", "_")
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "seed").write_bytes(READERS[name].seed)
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].make(Path(folder))

        def feed(content: bytes) -> None:
            with contextlib.suppress(GPTError):
                READERS[name].feed(Path(folder), content)

        flags = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={kept}/found-"]
        atheris.Setup([__file__, *flags, str(kept)], feed)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
