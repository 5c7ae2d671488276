"""How the processes of a run come together, in threads of this one: who is missing, who differs, who is no guest."""

import argparse
import socket
import threading
from collections.abc import Callable, Mapping

import pytest

from gpt.errors import ConfigError
from gpt.training.processes import find_place
from gpt.training.rendezvous import Place, come_together

SETTINGS = {"version of jax": "0.10.2", "RunConfig.seed": "42", "RunConfig.batch_size": "64"}


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def errors(port: int) -> Callable[..., dict[int, str]]:
    """What each of these processes hears, by number; "" when all is well."""

    def errors(facts: Mapping[int, dict[str, str]], num_processes: int, timeout: float = 20.0) -> dict[int, str]:
        heard = {}

        def come(number: int) -> None:
            try:
                come_together(Place(f"127.0.0.1:{port}", num_processes, number), facts[number], timeout)
                heard[number] = ""
            except ConfigError as error:
                heard[number] = str(error)

        threads = [threading.Thread(target=come, args=(number,)) for number in facts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return heard

    return errors


def test_processes_with_the_same_settings_come_together(errors: Callable[..., dict[int, str]]) -> None:
    assert errors(dict.fromkeys(range(5), SETTINGS), 5) == dict.fromkeys(range(5), "")


def test_processes_that_do_not_come_are_named_to_all_others(errors: Callable[..., dict[int, str]]) -> None:
    heard = errors(dict.fromkeys((0, 1, 4), SETTINGS), 5, timeout=0.5)
    assert heard[0] == heard[1] == heard[4]
    assert heard[0].startswith("processes 2, 3 of 5 did not come within 0.5 s: start every process with the same")
    assert "raise --process_timeout" in heard[0]


def test_a_missing_coordinator_is_named_with_its_address(errors: Callable[..., dict[int, str]], port: int) -> None:
    assert (
        f"process 0, the coordinator at 127.0.0.1:{port}, did not come within 0.2 s"
        in errors({1: SETTINGS}, 2, timeout=0.2)[1]
    )


def test_other_settings_and_versions_are_named_with_their_process_to_all(errors: Callable[..., dict[int, str]]) -> None:
    other = {**SETTINGS, "version of jax": "0.11.0", "RunConfig.seed": "1"}
    heard = errors({0: SETTINGS, 1: SETTINGS, 2: other}, 3)
    assert heard[0] == heard[1] == heard[2]
    host = socket.gethostname()
    assert f"process 2 on {host} has version of jax 0.11.0, process 0 has 0.10.2" in heard[0]
    assert f"process 2 on {host} has RunConfig.seed 1, process 0 has 42" in heard[0]
    assert "batch_size" not in heard[0]
    assert heard[0].endswith("Start all of them with the same settings, from the same environment")


def test_a_setting_that_only_one_process_knows_differs_too(errors: Callable[..., dict[int, str]]) -> None:
    heard = errors({0: SETTINGS, 1: {**SETTINGS, "RunConfig.new": "1"}}, 2)
    assert "has RunConfig.new 1, process 0 has unset" in heard[1]


def test_many_differences_are_counted(errors: Callable[..., dict[int, str]]) -> None:
    heard = errors({0: {f"x{i}": "0" for i in range(9)}, 1: {f"x{i}": "1" for i in range(9)}}, 2)
    assert heard[0].count("process 0 has 0") == 5
    assert "; and 4 more. Start" in heard[0]


def visit(port: int, message: bytes) -> None:
    """Somebody at the coordinator's door who is not asked for."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(message)
                return
        except OSError:
            continue


@pytest.mark.parametrize("message", [b"GET / HTTP/1.1\n", b"[1]\n", b'{"process_id": 1}\n', b""])
def test_a_visitor_that_is_no_process_of_a_run_is_ignored(
    message: bytes, errors: Callable[..., dict[int, str]], port: int
) -> None:
    visitor = threading.Thread(target=visit, args=(port, message))
    visitor.start()
    heard = errors({0: SETTINGS}, 2, timeout=1.0)
    visitor.join()
    assert heard[0].startswith("process 1 of 2 did not come")


def join_as(port: int, num_processes: int, number: int) -> str:
    with pytest.raises(ConfigError) as caught:
        come_together(Place(f"localhost:{port}", num_processes, number), SETTINGS, 20.0)
    return str(caught.value)


def test_another_number_of_processes_is_refused(errors: Callable[..., dict[int, str]], port: int) -> None:
    heard: list[str] = []
    other = threading.Thread(target=lambda: heard.append(join_as(port, 4, 1)))
    other.start()
    assert "was started with --num_processes=4, process 0 with --num_processes=2" in errors({0: SETTINGS}, 2)[0]
    other.join()
    assert "--num_processes=4" in heard[0]


def test_a_number_that_is_taken_twice_is_refused(errors: Callable[..., dict[int, str]], port: int) -> None:
    twins = [threading.Thread(target=join_as, args=(port, 3, 1)) for _ in range(2)]
    for twin in twins:
        twin.start()
    assert "were started with --process_id=1: each number is taken once" in errors({0: SETTINGS}, 3)[0]
    for twin in twins:
        twin.join()


def test_a_port_that_is_taken_is_named(errors: Callable[..., dict[int, str]], port: int) -> None:
    with socket.create_server(("", port)):
        assert f"process 0 cannot listen at port {port} of --coordinator: " in errors({0: SETTINGS}, 2)[0]


# Flags


def flags(**given: object) -> argparse.Namespace:
    unset = {"coordinator": None, "num_processes": None, "process_id": None, "process_timeout": 5.0}
    return argparse.Namespace(**{**unset, **given})


def test_a_place_is_taken_from_the_flags() -> None:
    assert find_place(flags(coordinator="host:8476", num_processes=3, process_id=2)) == Place("host:8476", 3, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host:1"}, r"^--num_processes and --process_id not given: several processes take"),
        ({"num_processes": 2, "process_id": 0}, r"^--coordinator not given: "),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, r"--coordinator=host: expected HOST:PORT"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, r"--process_id=2 of .*: expected 0 to 1$"),
    ],
)
def test_flags_that_do_not_tell_a_place_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_place(flags(**given))


def test_slurm_tells_the_place_without_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "JOB_ID": "77", "STEP_NODELIST": "node[003-004]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert find_place(flags()) == Place("node003:61517", 2, 1)
    assert find_place(flags(num_processes=1)) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_place(flags()) is None


def test_open_mpi_tells_the_place_without_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    for name, value in {"SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    place = find_place(flags())
    assert place is not None
    assert place.coordinator.startswith("10.96.0.1:")
    assert place[1:] == (4, 3)


def test_a_machine_of_its_own_is_a_run_of_one_process() -> None:
    assert find_place(flags()) is None
