"""Tensors of files that `torch.save` wrote, without torch and without running what is in them.

Such a file is a pickle, which is a program. It is read by an unpickler that knows the few names that
rebuild tensors and gives back descriptions instead of calling anything; every other name is refused.

zip format (torch 1.6 and later)   NAME/data.pkl, and one entry NAME/data/KEY a storage
legacy format                      four pickles (magic number, version, system, tensors), the list of
                                   storage keys, then each storage: its length in 8 bytes, its values
"""

import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gpt.errors import DataError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

BFLOAT16 = np.dtype(jnp.bfloat16)  # which NumPy by itself does not have

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Refused(Exception):
    """The file asks for something that a tensor file does not need."""


class _Storage(NamedTuple):
    """A run of values in the file, by its key."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict by name.

    Raises:
      DataError: the file is damaged, is no state dict, or asks to run code.
    """
    try:
        with path.open("rb") as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            entries, storages = read(file)
    except _Refused as error:
        raise DataError(f"{path}: {error}. Refused, and nothing in it was run: expected a dict of tensors") from None
    # What a damaged pickle raises is open-ended; nothing of it comes from code in the file.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a whole file of torch.save ({reason}); copy it again") from None
    return {name: _materialise(tensor, storages[tensor.storage.key], name, path) for name, tensor in entries.items()}


def _read_zip(file: io.BufferedIOBase) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise _Refused("its values are big-endian")
        entries, seen = _load_entries(io.BytesIO(archive.read(pickled)))
        return entries, {key: np.frombuffer(archive.read(f"{root}data/{key}"), s.dtype) for key, s in seen.items()}


def _read_legacy(file: io.BufferedIOBase) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    magic, version, system = (_Unpickler(file).load() for _ in range(3))
    if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION or not system["little_endian"]:
        raise _Refused("it is no little-endian file of torch.save, version 1001")
    entries, seen = _load_entries(file)
    storages = {}
    for key in _Unpickler(file).load():
        (length,) = struct.unpack("<q", file.read(8))
        storage = seen[key]
        if length != storage.length:
            raise ValueError(f"storage {key} has {length} values, expected {storage.length}")
        storages[key] = np.frombuffer(file.read(length * storage.dtype.itemsize), storage.dtype)
    return entries, {key: storages[key] for key in seen}


def _load_entries(stream: io.BufferedIOBase) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
    """The tensors that the pickle describes by name, and the storages that they are views of."""
    unpickler = _Unpickler(stream)
    tree = unpickler.load()
    if not isinstance(tree, dict):
        raise _Refused(f"it holds a {type(tree).__name__}")
    wrong = [str(name) for name, value in tree.items() if not isinstance(value, _Tensor) or not isinstance(name, str)]
    if wrong:
        raise _Refused(f"it holds other things than tensors: {', '.join(wrong[:5])}")
    return dict(tree), unpickler.storages


class _Entries(dict):
    """In place of OrderedDict; what torch attaches to it (versions of modules) is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _unwrap(tensor: Any, *_: Any) -> Any:
    return tensor


# Types of storage come as their names: text has no methods that a pickle could call.
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": _Entries,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": _unwrap,
    **{f"torch.{name}": name for name in _STORAGES},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names that rebuild tensors, each as a description; refuses all others."""

    def __init__(self, stream: io.BufferedIOBase):
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in _KNOWN:
            raise _Refused(f"its pickle asks for {name!r}, which no tensor needs")
        return _KNOWN[name]

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, storage_type, key, _device, length, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise _Refused(f"it holds a {kind!r} that is not a plain storage; save it again with a current torch")
        storage = _Storage(str(key), _STORAGES[storage_type], int(length))
        return self.storages.setdefault(storage.key, storage)


def _materialise(tensor: _Tensor, values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """The array of a view, which must lie inside its storage."""
    _, offset, shape, strides = tensor
    whole = len(shape) == len(strides) and min((offset, *shape, *strides), default=0) >= 0
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))
    if not whole or (math.prod(shape) and last >= len(values)):
        raise DataError(
            f"{path}: {name} {list(shape)} reaches beyond its {len(values)} stored values: "
            "the file is damaged; copy it again"
        )
    if not math.prod(shape):
        return np.zeros(shape, values.dtype)
    bytes_of = tuple(stride * values.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, bytes_of).copy()
