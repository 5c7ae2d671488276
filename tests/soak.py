"""A long run with kills: equal to its undisturbed twin, memory flat, file handles flat.

    python tests/soak.py --output DIR [--minutes 120] [--kill_every 180]

The twin trains for half of the time and is stopped by SIGTERM; the other run is killed every so many seconds until it
has come as far. One JSON line on standard output; exit code 1 unless they are equal.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from faults import Job, end, lines_of, make_inputs, start, wait, weights_of

from gpt.training.checkpoint_dir import saved_steps

_KEPT_EVERY = 500
_WARM_SECONDS = 600.0
"""After which memory is fitted: until then a forked process makes pages its own that it shared."""


def watch(child: int, until: float, samples: list[tuple[float, float, int]]) -> int | None:
    """Memory in MiB and open files of a child, once a second; its exit code, None when the time came first."""
    begin = time.monotonic()
    while time.monotonic() < until:
        code = wait(child, 1.0)
        if code is not None:
            return code
        pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{child}/fd"))  # noqa: PTH208 - names alone
        samples.append((time.monotonic() - begin, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files))
    return None


def main() -> int:
    """Runs both, and prints what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new directory to work in")
    parser.add_argument("--minutes", type=float, default=120.0, help="of both runs together, about")
    parser.add_argument("--kill_every", type=float, default=180.0, metavar="SECONDS")
    args = parser.parse_args()
    root = args.output.resolve()
    root.mkdir(parents=True)
    (config,) = make_inputs(root)[0].configs
    endless = dataclasses.replace(
        config, num_epochs=10**6, max_steps=10**6, log_every_steps=50, evaluate_every_steps=250,
        checkpoint=dataclasses.replace(config.checkpoint, save_every_steps=100, keep_every_steps=_KEPT_EVERY),
    )  # fmt: skip
    twin, other = (
        Job(name, (dataclasses.replace(endless, output_dir=str(root / name)),)) for name in ("twin", "killed")
    )
    log, samples = root / "log.txt", []

    child = start(twin, log)
    assert watch(child, time.monotonic() + 30 * args.minutes, samples) is None, log.read_text()[-2000:]
    os.kill(child, signal.SIGTERM)
    assert end(child, log) == 75, log.read_text()[-2000:]
    last = max(step for step in saved_steps(twin.runs[0]) if step % _KEPT_EVERY == 0)

    num_kills = 0
    while not (other.runs[0] / "checkpoints" / str(last)).exists():
        child = start(other, log)
        deadline = time.monotonic() + args.kill_every
        while time.monotonic() < deadline and not (other.runs[0] / "checkpoints" / str(last)).exists():
            assert wait(child, 0.2) is None, log.read_text()[-2000:]
        os.kill(child, signal.SIGKILL)
        wait(child)
        num_kills += 1

    expected, lines = ([line for line in lines_of(job.runs[0]) if line["step"] <= last] for job in (twin, other))
    is_equal = lines == expected and weights_of(other.runs[0], last) == weights_of(twin.runs[0], last)
    warm = np.array([sample for sample in samples if sample[0] > min(_WARM_SECONDS, samples[-1][0] / 2)])
    slope, _ = np.polyfit(warm[:, 0], warm[:, 1], 1)
    result = {
        "updates": last, "kills": num_kills, "equal": is_equal, "seconds": round(samples[-1][0]),
        "memory_mib": round(float(warm[:, 1].mean()), 1), "memory_slope_mib_per_hour": round(3600 * float(slope), 2),
        "open_files": [int(warm[:, 2].min()), int(warm[:, 2].max())],
    }  # fmt: skip
    print(json.dumps(result))
    if is_equal:
        shutil.rmtree(root / "toy")
    return int(not is_equal)


if __name__ == "__main__":
    sys.exit(main())
