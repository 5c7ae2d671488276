"""Tensors of files that `torch.save` wrote, without torch and without running what is in them.

zip format (torch 1.6 and later)   NAME/data.pkl, and one entry NAME/data/KEY a storage
legacy format                      four pickles (magic number, version, system, tensors), the list of
                                   storage keys, then each storage: its length in 8 bytes, its values
"""

import io
import math
import struct
import zipfile
from pathlib import Path

import numpy as np

from gpt.errors import DataError
from gpt.interop.torch_pickle import Refused, Storage, Tensor, read_pickle
from gpt.reading import require_file

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MAX_SHARING = 4
"""How often all that is stored may be named: tied weights are named twice."""


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict by name.

    Raises:
      DataError: the file is damaged, is no state dict, or asks to run code.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            entries, storages = read(file)
        _refuse_too_many(entries, storages)
        return {name: _view(tensor, storages[tensor.storage.key], name) for name, tensor in entries.items()}
    except Refused as error:
        raise DataError(f"{path}: {error}. Refused, and nothing in it was run: expected a dict of tensors") from None
    # What a damaged pickle raises is open-ended; nothing of it comes from code in the file.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a whole file of torch.save ({reason:.200}); copy it again") from None


def _read_zip(file: io.BufferedIOBase) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        sizes = [entry.file_size for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
        if len(sizes) < len(archive.infolist()) or sum(sizes) > file.seek(0, io.SEEK_END):
            raise Refused("its parts are compressed or lie over one another, as those of torch do not")
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise Refused("its values are big-endian")
        entries, seen = _load_entries(io.BytesIO(archive.read(pickled)))
        return entries, {key: np.frombuffer(archive.read(f"{root}data/{key}"), s.dtype) for key, s in seen.items()}


def _read_legacy(file: io.BufferedIOBase) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    magic, version, system = (read_pickle(file) for _ in range(3))
    if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION or not system["little_endian"]:
        raise Refused("it is no little-endian file of torch.save, version 1001")
    entries, seen = _load_entries(file)
    storages = {}
    for key in read_pickle(file):
        (length,) = struct.unpack("<q", file.read(8))
        storage = seen[key]
        if length != storage.length:
            raise ValueError(f"storage {key} has {length} values, expected {storage.length}")
        storages[key] = np.frombuffer(file.read(length * storage.dtype.itemsize), storage.dtype)
    return entries, {key: storages[key] for key in seen}


def _load_entries(stream: io.BufferedIOBase) -> tuple[dict[str, Tensor], dict[str, Storage]]:
    """The tensors that the pickle describes by name, and the storages that they are views of."""
    tree = read_pickle(stream)
    if not isinstance(tree, dict):
        raise Refused(f"it holds a {type(tree).__name__}")
    wrong = [name for name, value in tree.items() if not isinstance(value, Tensor)]
    if wrong:
        raise Refused(f"it holds other things than tensors: {', '.join(wrong[:5]):.300}")
    storages = {tensor.storage.key: tensor.storage for tensor in tree.values()}
    if any(tensor.storage != storages[tensor.storage.key] for tensor in tree.values()):
        raise ValueError("one storage has two types or lengths")
    return tree, storages


def _refuse_too_many(entries: dict[str, Tensor], storages: dict[str, np.ndarray]) -> None:
    stored = sum(values.size for values in storages.values())
    if sum(math.prod(tensor.shape) for tensor in entries.values()) > _MAX_SHARING * stored:
        raise Refused(f"its tensors would have more than {_MAX_SHARING} times the {stored:,} values that it stores")


def _view(tensor: Tensor, values: np.ndarray, name: str) -> np.ndarray:
    """The array of a view, which must lie inside its storage."""
    _, offset, shape, strides = tensor
    whole = len(shape) == len(strides) and min((offset, *shape, *strides), default=0) >= 0
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))
    if not whole or (math.prod(shape) and last >= len(values)):
        raise ValueError(f"{name} {list(shape)} reaches beyond its {len(values)} stored values")
    if not math.prod(shape):
        return np.zeros(shape, values.dtype)
    bytes_of = tuple(stride * values.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, bytes_of).copy()
