"""OpenAI's released files: `params_0.npy` ... `params_9.npy`, cut by `params_shapes.json`.

The shards, concatenated in the order of their numbers, are one flat vector. Positions come first,
then tokens, then twelve arrays a block; the matrices of a block have a leading axis of 1, that of a
convolution. The format holds no head and no settings: `hparams.json` beside them, which we write and
OpenAI did not, keeps the settings that the shapes do not tell.
"""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.errors import DataError
from gpt.interop.openai_config import SETTINGS_FILE, SHAPES_FILE, config_of, format_settings
from gpt.interop.weights import (
    BLOCK_ARRAYS,
    BLOCKS,
    POSITIONS,
    TOKENS,
    Arrays,
    Model,
    Shapes,
    as_float32,
    expected_shapes,
    flatten,
    not_finite,
    read_json,
    stack_blocks,
    unflatten,
)
from gpt.reading import require_file
from gpt.text.tokenizer import Tokenizer

NUM_SHARDS = 10
_MAX_SHAPES = 2 + 12 * 200  # of 200 blocks; the published model has 12


def read_openai(directory: Path, tokenizer: Tokenizer | None) -> Model:
    """The model in a folder of OpenAI's files.

    Raises:
      DataError: a file is missing or damaged, or the shapes are not those of the model; names them all.
    """
    source = str(directory / SHAPES_FILE)
    shapes = _read_shapes(directory / SHAPES_FILE)
    flat, notes = as_float32({"shards": _read_shards(directory)}, str(directory))
    config, more_notes = config_of(directory, shapes, tokenizer)
    expected = _openai_shapes(config)
    names = list(expected)
    _check_sequence(shapes, expected, source)
    total = sum(map(math.prod, shapes))
    if flat["shards"].size != total:
        raise DataError(
            f"{directory}: the shards hold {flat['shards'].size:,} values, but {SHAPES_FILE} describes {total:,}: "
            "a shard is damaged, or belongs to another model"
        )
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(flat["shards"], ends[:-1])
    arrays = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
    layers = [
        {row.path: _without_conv_axis(row.path, arrays[f"h{layer}/{row.openai}"]) for row in BLOCK_ARRAYS}
        for layer in range(config.num_layers)
    ]
    params = unflatten({TOKENS: arrays["tokens"], POSITIONS: arrays["positions"], **stack_blocks(layers)})
    notes = (*notes, *more_notes, *not_finite(arrays, str(directory)))
    return Model(config, params, tokenizer, notes=notes)


def write_openai(model: Model, directory: Path) -> tuple[str, ...]:
    """Writes ten shards, their shapes, the settings and the vocabulary; what a user should know of it.

    Raises:
      DataError: the model has a head, for which the format has no place.
    """
    if "head" in model.params:
        raise DataError(
            "the weights have a classifier, and OpenAI's files hold positions, tokens and blocks only: give "
            "--without_head to leave it out, or convert to huggingface, which keeps it"
        )
    flat = flatten(model.params)
    arrays: Arrays = {"positions": flat[POSITIONS], "tokens": flat[TOKENS]}
    for layer in range(model.config.num_layers):
        for row in BLOCK_ARRAYS:
            array = np.asarray(flat[BLOCKS + row.path][layer])
            arrays[f"h{layer}/{row.openai}"] = array[None] if row.path.endswith("kernel") else array
    vector = np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays.values()])
    for number, shard in enumerate(np.array_split(vector, NUM_SHARDS)):
        np.save(directory / f"params_{number}.npy", shard)
    (directory / SHAPES_FILE).write_text(json.dumps([list(array.shape) for array in arrays.values()]))
    (directory / SETTINGS_FILE).write_text(format_settings(model.config))
    if model.tokenizer is not None:
        model.tokenizer.save(directory, "openai")
    if not model.config.num_special_tokens:
        return ()
    return (
        f"array 1 of {SHAPES_FILE} has {model.config.num_embeddings:,} rows: the vocabulary and "
        f"{model.config.num_special_tokens} special tokens. OpenAI's own files have the vocabulary alone, and its code "
        "draws the others; --num_special_tokens 0 leaves them out",
    )


def is_openai(directory: Path) -> bool:
    """Whether a directory holds OpenAI's files."""
    return (directory / SHAPES_FILE).exists() or any(directory.glob("params_*.npy"))


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    tree = read_json(path, "it says how params_*.npy are cut into arrays")
    sizes = [size for shape in tree for size in shape] if _is_list_of_lists(tree) else [None]
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes) or len(tree) < 3:
        raise DataError(f"{path}: expected a JSON list of shapes, such as [[512, 768], [40478, 768], ...]")
    return [tuple(shape) for shape in tree]


def _is_list_of_lists(tree: Any) -> bool:
    return isinstance(tree, list) and all(isinstance(shape, list) for shape in tree)


def _read_shards(directory: Path) -> np.ndarray:
    """The flat vector of all weights."""
    paths: dict[int, Path] = {}
    for path in sorted(directory.glob("params_*.npy")):
        if match := re.fullmatch(r"params_(\d+)\.npy", path.name):
            earlier = paths.setdefault(int(match[1]), path)
            if earlier is not path:
                raise DataError(f"{directory}: {earlier.name} and {path.name} have the same number: remove one")
    missing = [number for number in range(max(paths, default=0) + 1) if number not in paths]
    if missing:
        names = ", ".join(f"params_{number}.npy" for number in missing)
        raise DataError(f"{directory}: shards are missing: {names}. All of them make one vector; copy the rest")
    # By number: in the order of names, params_10 would come before params_2.
    shards = [_read_shard(paths[number]) for number in sorted(paths)]
    dtypes = {shard.dtype.name for shard in shards}
    if len(dtypes) > 1:
        raise DataError(f"{directory}: the shards are of several types, {', '.join(sorted(dtypes))}: expected float32")
    return np.concatenate(shards)


def _read_shard(path: Path) -> np.ndarray:
    require_file(path)
    try:
        # Mapped, so that what the header claims takes no memory before it is held against the size of the file.
        array = np.lib.format.open_memmap(path, mode="r")
        rest = path.stat().st_size - array.offset - array.nbytes
    # NumPy's reader of headers leaves open what it raises. A pickle it refuses to map.
    except Exception as error:
        raise DataError(
            f"{path}: not a whole .npy array of floats ({str(error).partition(chr(10))[0]}); expected one of OpenAI's "
            "shards, copy it again. Pickled objects are refused, because reading them would run code"
        ) from None
    if rest or array.ndim != 1:
        what = "bytes behind its array" if rest else f"{array.ndim} axes"
        raise DataError(f"{path}: {what}; expected a flat .npy vector, as OpenAI's shards are")
    return array


def _openai_shapes(config: ModelConfig) -> Shapes:
    """The shape of each array by its name, in the order of the files."""
    ours = expected_shapes(config)
    shapes = {"positions": ours[POSITIONS], "tokens": ours[TOKENS]}
    for layer in range(config.num_layers):
        for row in BLOCK_ARRAYS:
            axis = (1,) if row.path.endswith("kernel") else ()
            shapes[f"h{layer}/{row.openai}"] = (*axis, *ours[BLOCKS + row.path][1:])
    return shapes


def _check_sequence(shapes: list[tuple[int, ...]], expected: Shapes, source: str) -> None:
    """Raises one DataError that names every array that is missing, misshapen, or too much."""
    if len(shapes) > _MAX_SHAPES:
        raise DataError(f"{source}: {len(shapes):,} shapes; expected at most {_MAX_SHAPES:,}")
    names = list(expected)
    problems = []
    for place, here in _align(list(expected.values()), shapes):
        wanted = None if place is None else f"{list(expected[names[place]])}"
        there = None if here is None else f"{list(shapes[here])}"
        if place is None:
            problems.append(f"array {here} {there} is not expected")
        elif here is None:
            problems.append(f"{names[place]} {wanted} is missing")
        elif wanted != there:
            problems.append(f"{names[place]} (array {here}) is {there}, expected {wanted}")
    if problems:
        raise DataError(
            f"{source}: {len(shapes)} shapes, not those of the model: {'; '.join(problems)}. "
            "Expected positions, tokens, then twelve arrays a block: 146 for the published model"
        )


def _align(expected: list[Any], found: list[Any]) -> list[tuple[int | None, int | None]]:
    """Places in `expected` and in `found` that belong together, None for none, with the fewest differences.

    Behind one missing shape, every later one would be wrong if they were compared place by place.
    """
    costs = {(i, len(found)): len(expected) - i for i in range(len(expected) + 1)}
    costs |= {(len(expected), j): len(found) - j for j in range(len(found) + 1)}
    for i, j in itertools.product(reversed(range(len(expected))), reversed(range(len(found)))):
        same = costs[i + 1, j + 1] + (expected[i] != found[j])
        costs[i, j] = min(same, 1 + costs[i + 1, j], 1 + costs[i, j + 1])
    pairs, i, j = [], 0, 0
    while i < len(expected) or j < len(found):
        both = i < len(expected) and j < len(found)
        if both and costs[i, j] == costs[i + 1, j + 1] + (expected[i] != found[j]):
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif i < len(expected) and costs[i, j] == 1 + costs[i + 1, j]:
            pairs.append((i, None))
            i += 1
        else:
            pairs.append((None, j))
            j += 1
    return pairs


def _without_conv_axis(path: str, array: np.ndarray) -> np.ndarray:
    # By name: a blind squeeze would take real axes of 1 as well.
    return array[0] if path.endswith("kernel") else array
