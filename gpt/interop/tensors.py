"""Named tensors of a Hugging Face folder, in one file or several behind an index."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from gpt.errors import DataError
from gpt.interop.torch_file import read_torch_file
from gpt.interop.torch_pickle import BFLOAT16, MAX_AXES
from gpt.interop.weights import Arrays, read_json
from gpt.reading import require_file

SAFETENSORS = "model.safetensors"
_CANDIDATES = (
    SAFETENSORS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Looked for in this order, which is that of `transformers`."""

_DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def find_weights(directory: Path) -> Path | None:
    """The file of a folder that holds its weights, or the index of those that do."""
    return next((directory / name for name in _CANDIDATES if (directory / name).exists()), None)


def read_tensors(path: Path) -> Arrays:
    """All tensors by name.

    Raises:
      DataError: a file is missing or damaged, an index points outside of its folder, or two files
        hold the same name.
    """
    if path.suffix != ".json":
        return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    weight_map = _read_index(path)
    missing = sorted({file for file in weight_map.values() if not (path.parent / file).exists()})
    if missing:
        raise DataError(f"{path}: names files that are not there: {', '.join(missing)}; copy them, too")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(weight_map.values())):
        here = read_tensors(path.parent / file)
        twice = tensors.keys() & here.keys()
        if twice:
            raise DataError(f"{path}: {', '.join(sorted(twice))}: in {file} and in another file as well")
        tensors |= here
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise DataError(f"{path}: names tensors that its files do not hold: {', '.join(absent)}")
    return tensors


def read_safetensors(path: Path) -> Arrays:
    """The tensors of one file."""
    require_file(path)
    try:
        entries: Any = safetensors.deserialize(path.read_bytes())
    except (OSError, MemoryError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not a whole .safetensors file ({error}); copy it again") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise DataError(f"{path}: {name} is {entry['dtype']}; expected float32, float16 or bfloat16: cast it first")
        if len(entry["shape"]) > MAX_AXES:
            raise DataError(f"{path}: {name} has {len(entry['shape'])} axes; expected at most {MAX_AXES}")
        tensors[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    tree = read_json(path, "it names the file of each tensor")
    weight_map = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(weight_map, dict):
        raise DataError(f"{path}: no index of weights; expected a JSON object with weight_map, tensor names to files")
    for name in weight_map.values():
        plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0:")
        if not plain or not name.endswith((".safetensors", ".bin")):
            raise DataError(
                f"{path}: points to {name!r}; expected the name of a .safetensors or .bin file in the same folder. "
                "Refused: an index must not reach outside"
            )
    return weight_map
