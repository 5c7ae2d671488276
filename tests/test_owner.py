"""A run directory has one owner: a second start is refused, and a lock that nobody holds any more is recognised."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError, DataError
from gpt.training import lease, owner
from gpt.training.lease import claim, latest_attempt
from gpt.training.owner import owned


def elsewhere(run: Path, age: float) -> Path:
    """A lock of a process on another machine, which was touched so many seconds ago; its file."""
    held = claim(run / ".owners")
    assert held is not None
    path = held.attempt.path
    path.write_text(held.attempt._replace(host="node7", machine="another").text())
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is never waited for."""
    monkeypatch.setattr(owner.time, "sleep", lambda _: pytest.fail("waits for a sign of life"))


@pytest.mark.usefixtures("at_once")
def test_a_second_start_is_refused_while_the_first_trains_and_not_after(tmp_path: Path) -> None:
    with owned(tmp_path):
        message = rf"process {os.getpid()} on .* trains there now\. Wait until it ends"
        with pytest.raises(ConfigError, match=message), owned(tmp_path):
            pass
    with owned(tmp_path):
        attempt = latest_attempt(tmp_path / ".owners")
        assert attempt is not None
        assert (attempt.number, attempt.pid, bool(attempt.host), bool(attempt.process_start)) == (2, os.getpid(), 1, 1)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("is_reaped", [True, False])
def test_the_lock_of_a_killed_process_is_stale_at_once(is_reaped: bool, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from gpt.training.lease import claim\n"
        "print(claim(Path(sys.argv[1]) / '.owners').attempt.number, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    with pytest.raises(ConfigError, match=f"process {process.pid} on "), owned(tmp_path):
        pass
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if is_reaped else os.WNOWAIT))
    with owned(tmp_path):
        pass
    process.communicate()


@pytest.mark.usefixtures("at_once")
def test_the_lock_of_an_earlier_process_of_the_same_number_is_stale_at_once(tmp_path: Path) -> None:
    held = claim(tmp_path / ".owners")
    assert held is not None
    held.attempt.path.write_text(held.attempt._replace(process_start="1").text())
    with owned(tmp_path):
        pass


@pytest.mark.usefixtures("at_once")
def test_a_lock_of_another_machine_that_gave_no_sign_of_life_for_long_is_stale(tmp_path: Path) -> None:
    elsewhere(tmp_path, age=lease.LOST_AFTER_SECONDS + 1)
    with owned(tmp_path):
        pass


def test_a_lock_of_another_machine_is_waited_for_and_taken_over_without_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = elsewhere(tmp_path, age=lease.LOST_AFTER_SECONDS - 0.2)
    monkeypatch.setattr(owner, "_POLL_SECONDS", 0.02)
    with owned(tmp_path):
        assert time.time() - path.stat().st_mtime > lease.LOST_AFTER_SECONDS
    assert "was last trained by process" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["host", "boot_id", "pid:["])
def test_after_a_restart_or_in_another_container_a_process_number_tells_nothing(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claim(tmp_path / ".owners")
    assert held is not None
    assert held.attempt.is_here
    read_text, readlink = Path.read_text, Path.readlink
    if part == "host":
        monkeypatch.setattr(lease.socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: "another" if path.name == part else read_text(path, **how)
    )
    monkeypatch.setattr(
        Path, "readlink", lambda path: Path("pid:[1]") if part in str(readlink(path)) else readlink(path)
    )
    lease._this_machine.cache_clear()
    try:
        assert not held.attempt.is_here
    finally:
        lease._this_machine.cache_clear()


def test_a_sign_of_life_from_another_machine_refuses_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = elsewhere(tmp_path, age=100)
    monkeypatch.setattr(owner.time, "sleep", lambda _: os.utime(path))
    with pytest.raises(ConfigError, match="on node7 trains there now"), owned(tmp_path):
        pass


def test_a_lock_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".owners").touch()
    with pytest.raises(DataError, match=r"cannot write to RunConfig\.output_dir = .*File exists"), owned(tmp_path):
        pass


@pytest.mark.parametrize(("old", "new"), [("}", ""), ('"host"', '"hose"'), ('"pid": ', '"pid": 0.')])
def test_a_damaged_lock_is_named(old: str, new: str, tmp_path: Path) -> None:
    held = claim(tmp_path / ".owners")
    assert held is not None
    (tmp_path / ".owners" / "notes.json").touch()
    held.attempt.path.write_text(held.attempt.text().replace(old, new))
    with pytest.raises(DataError, match=r"0001\.json"), owned(tmp_path):
        pass


def test_a_file_system_without_hard_links_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with owned(tmp_path):
        pass
    assert "is not locked, because its file system makes no hard links" in capsys.readouterr().err
