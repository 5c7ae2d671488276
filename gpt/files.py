"""Files that are whole or absent, and hints for names that are nearly right."""

import contextlib
import difflib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A new file under a temporary name, which takes the place of `path` once it is whole and on disk.

    When anything goes wrong, `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with temporary.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            sync(file)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A new directory under a temporary name, which becomes `path` once all in it is written; or there is neither."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file at `path` by one holding `text`, or leaves it as it was."""
    with replacing(path) as file:
        file.write(text)


def create(path: Path, text: str) -> bool:
    """Whether this call made the file at `path`, whole; False when it was there, and then it is as it was.

    Of several processes that try at once, also on several machines that share the directory, one gets True.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_atomically(temporary, text)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            # NFS may have made the link and lost the answer.
            return temporary.stat().st_nlink == 2
        return True
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: IO[Any]) -> None:
    """Puts what was written so far on the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Puts the names in a directory on the disk itself, as a rename or a new file left them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_url(where: str) -> bool:
    """Whether it is a URL and not a path."""
    return "://" in where


def did_you_mean(name: str, choices: Collection[str]) -> str:
    """`; did you mean ...?` for the choice most like `name`, or nothing when none is."""
    close = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
