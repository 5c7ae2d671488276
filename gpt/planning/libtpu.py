"""The environment of libtpu, the TPU compiler, on machines without a TPU."""

import os
from pathlib import Path

_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # asks no cloud what machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile; there is no chip to share
}


def set_libtpu_environment() -> None:
    """Keeps libtpu from looking for a TPU and from complaining about it, where there is none.

    JAX loads libtpu with its other backends wherever it is installed. Must come before that.
    """
    if not has_tpu():
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)


def has_tpu() -> bool:
    """Whether TPU chips are attached, by their device files, as JAX looks for them."""
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
