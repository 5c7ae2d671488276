"""The processes that make a run together: how they find each other, wait for each other, and end together.

A run of one process passes through here unchanged. The only module that knows JAX's coordination client,
which has no public name.
"""

import argparse
import atexit
import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import jax
from jax._src import clusters, distributed
from jax.experimental import multihost_utils

import gpt
from gpt.errors import ConfigError, GPTError, NotFinite, PeerLost, Preempted
from gpt.training.rendezvous import Place, come_together

_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint")
_COMPLAINTS = "gpt/complaints/"
# Reading and tokenizing may take one host longer than another. One that has died is noticed by its missing
# heartbeat long before, so the wait has an end only for completeness.
_LONGEST_WAIT_MS = 24 * 3600 * 1000
# Others may still be loading, and come to the next meeting; in the middle of training nobody comes.
_COMPLAINT_WAIT_MS = 60 * 1000
# What gloo (CPUs) and JAX's coordination service say of a process that is gone.
_PEER_ENDED = re.compile(
    r"gloo [\w-]+ failed: .*(closed by peer|reset by peer|broken pipe|connection refused)"
    r"|stopped sending heartbeats|heartbeat timeout",
    re.IGNORECASE | re.DOTALL,
)


class _Heard(ConfigError):
    """Another process has failed."""


@contextlib.contextmanager
def joined(args: argparse.Namespace, facts: Mapping[str, Any]) -> Iterator[None]:
    """Inside, this process is one of those that `args` or the cluster name, all with the same facts.

    Raises:
      ConfigError: a process is missing or differs in `facts` or in the version of a library; the same text in all.

    Another process that ends in the middle ends this one with an `error:` paragraph, by the code of PeerLost.
    """
    place = find_place(args)
    if place is None:
        yield
        return
    versions = {f"version of {package}": version(package) for package in _PACKAGES}
    facts = {name: repr(value) for name, value in facts.items()}
    come_together(place, {**versions, "version of gpt": gpt.__version__, **facts}, args.process_timeout)
    # It would take SIGTERM from us, and Orbax asks it about steps of its own, which upsets its count.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        *place,
        # Of the cluster that named our place; it also names the devices of each process there.
        cluster_detection_method="deactivate" if args.coordinator else None,
    )
    try:
        with _standard_output_is_ours():
            yield
    except (Preempted, NotFinite, _Heard):
        raise  # in all processes alike
    except BaseException as error:
        lost = lost_peer(error)
        if lost is not None:
            # At once: what JAX and threads would wait for here does not come.
            sys.stderr.write(f"error: {lost}\n")
            sys.stderr.flush()
            _end_now(lost.exit_code)
        if not _complain(error):
            # The others are in the middle of an update, and JAX's own end would wait for them.
            atexit.register(_end_now, error.exit_code if isinstance(error, GPTError) else 1)
        raise


@contextlib.contextmanager
def _standard_output_is_ours() -> Iterator[None]:
    """Inside, what libraries in other languages (gloo) write to standard output comes on standard error."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(ours, "w", encoding="utf-8", closefd=False) as file, contextlib.redirect_stdout(file):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what those have written, and kept for later
        os.dup2(ours, 1)
        os.close(ours)


def find_place(args: argparse.Namespace) -> Place | None:
    """The place of this process by flags, or by what a TPU pod, SLURM or Open MPI tells; None for a run of one.

    Raises:
      ConfigError: the flags are incomplete or do not go together.
    """
    given = {f"--{name}": getattr(args, name) for name in ("coordinator", "num_processes", "process_id")}
    missing = [flag for flag, value in given.items() if value is None]
    if args.num_processes == 1 and args.coordinator is None:
        return None
    if len(missing) == 3:
        return _place_in_cluster(args.process_timeout)
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} not given: several processes take --coordinator=HOST:PORT, --num_processes=N "
            "and --process_id=0 to N - 1; without any of them a TPU pod, SLURM or Open MPI is asked"
        )
    if not re.fullmatch(r"\S+:\d{1,5}", args.coordinator):
        raise ConfigError(f"--coordinator={args.coordinator}: expected HOST:PORT, where the host is that of process 0")
    if not 0 <= args.process_id < args.num_processes:
        raise ConfigError(
            f"--process_id={args.process_id} of --num_processes={args.num_processes}: expected 0 to "
            f"{args.num_processes - 1}"
        )
    return Place(args.coordinator, args.num_processes, args.process_id)


def _place_in_cluster(timeout: float) -> Place | None:
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout))
    except Exception as error:
        raise ConfigError(
            f"this looks like a cluster, but not like one that runs several processes together: {error}. Give "
            "--coordinator, --num_processes and --process_id, or --num_processes=1 for a run of this process alone"
        ) from error
    coordinator, num_processes, process_id, _ = found
    if coordinator is None or num_processes is None or process_id is None or num_processes == 1:
        return None
    return Place(coordinator, num_processes, process_id)


def lost_peer(error: BaseException | None) -> PeerLost | None:
    """What to say when `error` is how a library puts it that another process has ended; None for any other error.

    When process 0 ends, and JAX's coordination service with it, JAX may abort the others before an error comes here
    (exit code 134): a callback of Python, which its client would take, cannot be given the status.
    """
    # Of some operations JAX makes a ValueError.
    if not isinstance(error, jax.errors.JaxRuntimeError | ValueError) or not _PEER_ENDED.search(str(error)):
        return None
    return PeerLost(
        f"another process of this run has ended: {str(error).splitlines()[0]}. Look there for the cause; the same "
        "command on all hosts continues from the newest checkpoint"
    )


def is_first() -> bool:
    """Whether this process writes what is written once: config, metrics, results, and what people read."""
    return jax.process_index() == 0


def meet() -> None:
    """Returns once every process is here.

    Raises:
      ConfigError: another one has failed; the text says which, and why.
    """
    client = distributed.global_state.client
    if client is None:
        return
    client.wait_at_barrier("gpt/meeting", _LONGEST_WAIT_MS)
    complaints = client.key_value_dir_get(_COMPLAINTS)
    if complaints:
        name, text = min(complaints)
        raise _Heard(f"process {name.removeprefix(_COMPLAINTS)} has failed: {text}")


def first_note(name: str, own: str | None) -> str | None:
    """The first note that any process has left under this name until now; `own`, unless it is None, is left as well."""
    client = distributed.global_state.client
    if client is None:
        return own
    if own is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one
            client.key_value_set(f"gpt/notes/{name}/first", own)
    notes = client.key_value_dir_get(f"gpt/notes/{name}/")
    return notes[0][1] if notes else None


def fetch(tree: Any) -> Any:
    """The arrays of `tree` on this host, whole, wherever their parts are; called by all processes alike."""
    return multihost_utils.process_allgather(tree, tiled=True)


def _complain(error: BaseException) -> bool:
    """Tells the others at their next meeting; whether they were there."""
    state = distributed.global_state
    assert state.client is not None
    try:
        state.client.key_value_set(f"{_COMPLAINTS}{state.process_id}", f"{type(error).__name__}: {error}")
        state.client.wait_at_barrier("gpt/meeting", _COMPLAINT_WAIT_MS)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _end_now(code: int) -> None:
    sys.stdout.flush()
    os._exit(code)
