"""All processes of a run come together before JAX starts, and hear who is missing or was started differently.

JAX's own start ends a process that waits in vain with an abort that names nobody, and compares nothing. Here
process 0 listens at the address of the coordinator, which JAX's service takes over afterwards; the others send
what they were started with, and all get the same answer.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt.errors import ConfigError, DataError
from gpt.reading import parse_json

Facts = Mapping[str, str]
"""What must be the same in every process: settings and versions as text, by name."""

_READ_SECONDS = 10.0
_MAX_LINE_BYTES = 1 << 20  # whoever else finds the port may send without end
_SHOWN = 5


class Place(NamedTuple):
    """Where a process stands among all: the coordinator's HOST:PORT, how many there are, and which one it is."""

    coordinator: str
    num_processes: int
    process_id: int


class _Guest(NamedTuple):
    connection: socket.socket
    hello: dict[str, Any]


def come_together(place: Place, facts: Facts, timeout: float) -> None:
    """Returns once all processes are here with the same facts.

    Raises:
      ConfigError: some did not come within `timeout` seconds, or differ; the same text in every process.
    """
    host, _, port = place.coordinator.rpartition(":")
    hello = {"num_processes": place.num_processes, "process_id": place.process_id, "host": socket.gethostname()}
    if place.process_id == 0:
        complaint = _receive_all(int(port), {**hello, "facts": dict(facts)}, timeout)
    else:
        complaint = _report_to(host.strip("[]"), int(port), {**hello, "facts": dict(facts)}, timeout)
    if complaint:
        raise ConfigError(complaint)


def _receive_all(port: int, own: dict[str, Any], timeout: float) -> str:
    """What process 0 finds wrong with those who came until the time was over; nothing when all is well."""
    deadline = time.monotonic() + timeout
    guests: list[_Guest] = []
    expected = set(range(1, own["num_processes"]))
    complaint = ""
    with _listen(port, own["num_processes"]) as server:
        while (missing := expected - {guest.hello["process_id"] for guest in guests}) and not complaint:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                complaint = _did_not_come(missing, own["num_processes"], timeout)
                break
            guest = _admit(connection)
            if guest is not None:
                complaint = _wrong_number(own, guest.hello, guests)
                guests.append(guest)
        complaint = complaint or _different(own, [guest.hello for guest in guests])
        for guest in guests:
            _send(guest.connection, {"complaint": complaint})
            guest.connection.close()
    return complaint


def _report_to(host: str, port: int, own: dict[str, Any], timeout: float) -> str:
    """The answer of process 0 to a process with these facts."""
    coordinator, deadline = f"process 0, the coordinator at {host}:{port},", time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=min(timeout, _READ_SECONDS))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                return f"{coordinator} did not come within {timeout:g} s ({error}): {_WAY_OUT}"
            time.sleep(0.1)
    with connection:
        _send(connection, own)
        # It may have begun to wait only now, and waits as long.
        connection.settimeout(timeout + _READ_SECONDS)
        try:
            return parse_json(_read_line(connection))["complaint"]
        except (OSError, DataError, LookupError, TypeError) as error:
            return f"{coordinator} ended, or is no process of this run ({error}): read its output, or take another port"


_WAY_OUT = (
    "start every process with the same --coordinator and --num_processes and its own --process_id, look whether its "
    "host reaches the coordinator, and raise --process_timeout for hosts that start late"
)


def _did_not_come(missing: set[int], num_processes: int, timeout: float) -> str:
    who = f"process {min(missing)}" if len(missing) == 1 else f"processes {', '.join(map(str, sorted(missing)))}"
    return f"{who} of {num_processes} did not come within {timeout:g} s: {_WAY_OUT}"


def _wrong_number(own: dict[str, Any], hello: dict[str, Any], guests: list[_Guest]) -> str:
    number, total = hello["process_id"], hello["num_processes"]
    if total != own["num_processes"]:
        return (
            f"process {number} on {hello['host']} was started with --num_processes={total}, "
            f"process 0 with --num_processes={own['num_processes']}"
        )
    twins = [guest.hello["host"] for guest in guests if guest.hello["process_id"] == number]
    if number == 0 or twins:
        hosts = " and ".join([*(twins or [own["host"]]), hello["host"]])
        return f"two processes, on {hosts}, were started with --process_id={number}: each number is taken once"
    return ""


def _different(own: dict[str, Any], others: list[dict[str, Any]]) -> str:
    lines = []
    for other in sorted(others, key=lambda hello: hello["process_id"]):
        here, there = own["facts"], other["facts"]
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        lines += [
            f"process {other['process_id']} on {other['host']} has {name} {there.get(name, 'unset')}, "
            f"process 0 has {here.get(name, 'unset')}"
            for name in names
        ]
    if not lines:
        return ""
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return (
        f"the processes of a run must not differ: {'; '.join(lines[:_SHOWN])}{more}. "
        "Start all of them with the same settings, from the same environment"
    )


def _listen(port: int, backlog: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=backlog)
    except OSError as error:
        raise ConfigError(f"process 0 cannot listen at port {port} of --coordinator: {error}; choose another") from None


def _admit(connection: socket.socket) -> _Guest | None:
    """Who is at the door; None for whoever is no process of a run, such as a scan of ports."""
    connection.settimeout(_READ_SECONDS)
    try:
        hello = parse_json(_read_line(connection))
        if hello.keys() == {"num_processes", "process_id", "host", "facts"}:
            return _Guest(connection, hello)
    except (OSError, DataError, AttributeError):
        pass
    connection.close()
    return None


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # whoever has gone is missed elsewhere
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.readline(_MAX_LINE_BYTES)
