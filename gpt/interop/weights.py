"""What all formats share: a model with its weights in memory, and the table of parameter names.

Readers turn named arrays into the nested dict of `gpt.model` and name every array that is missing,
unexpected or of another shape, all in one error. Values are never changed: float32 stays as it is.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from gpt import reading
from gpt.config import ModelConfig
from gpt.errors import DataError
from gpt.model.gpt import Params, param_shapes
from gpt.text.tokenizer import Tokenizer

Head = Literal["multiple_choice", "score", "similarity"]
"""What a classifier gives: a score for each candidate, for each class, or for a pair of texts in both orders."""

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

TOKENS, POSITIONS = "transformer/token_embedding", "transformer/position_embedding"
BLOCKS = "transformer/blocks/"
HEAD_KERNEL, HEAD_BIAS = "head/kernel", "head/bias"


class BlockArray(NamedTuple):
    """One parameter of a block: its path here, and its name in both formats."""

    path: str
    openai: str
    huggingface: str


BLOCK_ARRAYS = (
    BlockArray("attention/qkv/kernel", "attn/c_attn/w", "attn.c_attn.weight"),
    BlockArray("attention/qkv/bias", "attn/c_attn/b", "attn.c_attn.bias"),
    BlockArray("attention/out/kernel", "attn/c_proj/w", "attn.c_proj.weight"),
    BlockArray("attention/out/bias", "attn/c_proj/b", "attn.c_proj.bias"),
    BlockArray("attention_norm/scale", "ln_1/g", "ln_1.weight"),
    BlockArray("attention_norm/bias", "ln_1/b", "ln_1.bias"),
    BlockArray("mlp/up/kernel", "mlp/c_fc/w", "mlp.c_fc.weight"),
    BlockArray("mlp/up/bias", "mlp/c_fc/b", "mlp.c_fc.bias"),
    BlockArray("mlp/down/kernel", "mlp/c_proj/w", "mlp.c_proj.weight"),
    BlockArray("mlp/down/bias", "mlp/c_proj/b", "mlp.c_proj.bias"),
    BlockArray("mlp_norm/scale", "ln_2/g", "ln_2.weight"),
    BlockArray("mlp_norm/bias", "ln_2/b", "ln_2.bias"),
)
"""The parameters of a block, in the order of OpenAI's files."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model outside of any run: its settings, its weights as NumPy arrays, and what travels with them."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None = None
    head: Head | None = None
    classifier_dropout_rate: float = 0.1
    notes: tuple[str, ...] = ()
    """What the reader of the files should tell its user: a line each."""


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """The leaves of a parameter dict by their paths."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The parameter dict that `flatten` took apart."""
    tree: Params = {}
    for path, array in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return tree


def expected_shapes(config: ModelConfig, num_outputs: int | None = None) -> Shapes:
    """The shape of each parameter by its path, those of the blocks with their leading layer axis."""
    return {path: leaf.shape for path, leaf in flatten(param_shapes(config, num_outputs)).items()}


def stack_blocks(layers: Iterable[Mapping[str, np.ndarray]]) -> Arrays:
    """The arrays of all blocks by path, stacked on a leading axis, from those of each."""
    layers = list(layers)
    return {BLOCKS + row.path: np.stack([layer[row.path] for layer in layers]) for row in BLOCK_ARRAYS}


def check_shapes(found: Shapes, expected: Shapes, source: str, way_out: str) -> None:
    """Raises one DataError that names every array of `source` that is missing, unexpected or misshapen."""
    problems = [f"{name} is missing, expected {_text(shape)}" for name, shape in expected.items() if name not in found]
    problems += [f"{name} {_text(shape)} is not expected" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name} is {_text(found[name])}, expected {_text(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise DataError(f"{source}: these are not the weights of the model: {'; '.join(problems)}. {way_out}")


def _text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def read_json(path: Path, purpose: str) -> Any:
    """The value in a JSON file; DataError, which says what the file is for, when there is none."""
    if not path.exists():
        raise DataError(f"{path}: no such file; {purpose}")
    return reading.read_json(path)


def as_float32(arrays: Mapping[str, np.ndarray], source: str) -> tuple[Arrays, tuple[str, ...]]:
    """The arrays in float32, and a note when some were stored in half precision.

    Raises:
      DataError: an array holds something else than float32 or half-precision floats.
    """
    halves = (np.float16, np.dtype(jnp.bfloat16))
    half = [name for name, array in arrays.items() if array.dtype in halves]
    odd = [f"{name} is {a.dtype.name}" for name, a in arrays.items() if a.dtype not in (np.float32, *halves)]
    if odd:
        raise DataError(
            f"{source}: weights are float32 (float16 and bfloat16 are read, too), but {'; '.join(odd)}: cast them first"
        )
    notes = (f"{source}: {len(half)} of {len(arrays)} arrays are in half precision; they become float32",)
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}, notes if half else ()


def not_finite(arrays: Mapping[str, np.ndarray], source: str) -> tuple[str, ...]:
    """A note that names the arrays with NaN or infinity in them, if there are any."""
    counts = {name: int(array.size - np.isfinite(array).sum()) for name, array in arrays.items()}
    named = [f"{name} ({count} of {arrays[name].size})" for name, count in counts.items() if count]
    return (f"{source}: NaN or infinity among the weights: {', '.join(named)}",) if named else ()


def split_vocabulary(num_embeddings: int, tokenizer: Tokenizer | None, source: str) -> tuple[int, int]:
    """How many rows of a token table belong to the vocabulary, and how many to the special tokens.

    Without a tokenizer, all of them to the vocabulary.

    Raises:
      DataError: the table is of another vocabulary than the tokenizer.
    """
    if tokenizer is None:
        return num_embeddings, 0
    extra = num_embeddings - tokenizer.vocab_size
    if extra not in (0, 3):
        raise DataError(
            f"{source}: the token table has {num_embeddings} rows, but the tokenizer has {tokenizer.vocab_size} "
            "tokens: expected as many rows, or 3 more for the special tokens. Give the tokenizer of these weights "
            "with --tokenizer DIR"
        )
    return tokenizer.vocab_size, extra
