"""Files and directories here and behind URLs such as gs://bucket/store and s3://bucket/store, through fsspec."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from fsspec.utils import merge_offset_ranges

from gpt.errors import DataError
from gpt.files import is_url, replacing

_EXTRAS = {"gcsfs": "gcs", "s3fs": "s3"}


class Place:
    """A file or directory, by its path or URL. What hinders to reach it is an OSError."""

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.where = os.fspath(where).rstrip("/") or "/"
        self._fs, self._path = _file_system(self.where)

    def __str__(self) -> str:
        return self.where

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.where}/{name}")

    @property
    def local(self) -> Path | None:
        """The path on this machine; None behind a URL."""
        return Path(self._path) if isinstance(self._fs, LocalFileSystem) else None

    @property
    def real(self) -> str:
        """The path without links, or the URL as its driver writes it: the same for the same file."""
        return os.path.realpath(self._path) if self.local else str(self._fs.unstrip_protocol(self._path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.where.rpartition("/")[2]

    def size(self) -> int:
        """Bytes of the file; FileNotFoundError when there is nothing, IsADirectoryError when it is a directory.

        OSError for what has no size, such as a pipe, or an answer of a server that does not tell it.
        """
        with _os_errors():
            found = self._fs.info(self._path)
        if found["type"] == "directory":
            raise IsADirectoryError(self.where)
        if found["type"] != "file" or found["size"] is None:
            raise OSError("it has no size that is known beforehand; expected a file")
        return found["size"]

    def exists(self) -> bool:
        """Whether there is a file or a directory."""
        if self.local is not None:
            return os.path.lexists(self.local)
        with _os_errors():
            return self._fs.exists(self._path)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file or directory in the directory, by its name; nothing when it is not there."""
        try:
            with _os_errors():
                found = self._fs.ls(self._path, detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in found}

    def matches(self) -> list["Place"]:
        """The files behind a URL with `*` in its path, by name."""
        with _os_errors():
            found = self._fs.glob(self._path)
        return [Place(str(self._fs.unstrip_protocol(path))) for path in sorted(map(str, found))]

    def make_directory(self) -> None:
        """Makes the directory, and those above it, where there are directories at all: a bucket has none."""
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Removes the directory with all that is in it."""
        with _os_errors():
            self._fs.rm(self._path, recursive=True)

    def read(self, size: int | None = None) -> bytes:
        """The content of the file, or its first `size` bytes and no more of it in memory."""
        with _os_errors():
            if size is None:
                return bytes(self._fs.cat_file(self._path))  # pyright: ignore[reportArgumentType] - never text
            with self._fs.open(self._path, "rb") as file:
                return bytes(file.read(size))  # pyright: ignore[reportArgumentType]

    def sha256(self) -> str:
        """The digest of the file's content, in hexadecimal digits."""
        digest = hashlib.sha256()
        with self.open() as file, _os_errors():
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range, from its start to before its end; ranges that touch are fetched as one."""
        if not ranges:
            return []
        starts: list[int | None] = [start for start, _ in ranges]
        ends: list[int | None] = [end for _, end in ranges]
        paths, first, last = merge_offset_ranges([self._path] * len(starts), starts, ends)
        with _os_errors():
            chunks = self._fs.cat_ranges(paths, first, last, on_error="raise")
        found = []
        for start, end in ranges:
            number = next(k for k, offset in enumerate(first) if offset <= start and end <= (last[k] or 0))
            found.append(chunks[number][start - first[number] : end - first[number]])
        return found

    def open(self, mode: str = "rb") -> Any:
        """The file, opened for bytes; a new one behind a URL is there when it is closed."""
        with _os_errors():
            return self._fs.open(self._path, mode)

    def write(self, content: bytes) -> None:
        """Makes or replaces the file, which is whole or as it was."""
        if self.local is None:
            with _os_errors():
                self._fs.pipe_file(self._path, content)
            return
        with replacing(self.local, "wb") as file:
            file.write(content)


def _file_system(where: str) -> tuple[AbstractFileSystem, str]:
    if not is_url(where):
        return LocalFileSystem(), where
    protocol = where.partition("://")[0]
    try:
        # Without a cache of listings: other hosts write there, too.
        return url_to_fs(where, use_listings_cache=False)
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        extra = f" (`pip install '.[{_EXTRAS[package]}]'` takes a fitting version)" if package in _EXTRAS else ""
        raise DataError(
            f"{where}: {protocol}:// needs the package {package}: `pip install {package}`{extra}; {error}"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{where}: {protocol}:// is not known ({error}); such as gs://, s3://, file:// or a path are"
        ) from error
    except Exception as error:  # whatever the driver raises, for want of credentials for instance
        raise DataError(f"{where}: cannot be reached: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Errors of drivers, which raise what they like, as OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
