"""Hugging Face folders of OpenAI GPT: `config.json` and `model.safetensors` or `pytorch_model.bin`.

Matrices of blocks are stored [in, out], as ours; those of heads [out, in]. The softmax is tied to
the token table, which a file may hold under either name or under both.
"""

import re
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gpt.config import ModelConfig
from gpt.errors import DataError
from gpt.interop.huggingface_config import CONFIG_FILE, format_config, read_config
from gpt.interop.huggingface_tokenizer import write_tokenizer
from gpt.interop.tensors import SAFETENSORS, find_weights, read_tensors
from gpt.interop.weights import (
    BLOCK_ARRAYS,
    BLOCKS,
    HEAD_BIAS,
    HEAD_KERNEL,
    POSITIONS,
    TOKENS,
    Arrays,
    Head,
    Model,
    Shapes,
    as_float32,
    check_shapes,
    expected_shapes,
    flatten,
    not_finite,
    split_vocabulary,
    stack_blocks,
    unflatten,
)
from gpt.text.tokenizer import Tokenizer

_PREFIX = "transformer."
_TABLE, _POSITIONS, _TIED = "tokens_embed.weight", "positions_embed.weight", "lm_head.weight"
_CHOICE_KERNEL, _CHOICE_BIAS = "multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"
_SCORE = "score.weight"


def read_huggingface(directory: Path, tokenizer: Tokenizer | None) -> Model:
    """The model in a Hugging Face folder.

    Raises:
      DataError: a file is missing or damaged, or arrays are not those that `config.json` describes;
        names them all.
    """
    path = find_weights(directory)
    if path is None:
        raise DataError(f"{directory}: no model.safetensors or pytorch_model.bin in it, nor the index of several")
    arrays, notes = as_float32(_without_buffers(read_tensors(path), path), str(path))
    _untie(arrays, path)
    head = _head_of(arrays)
    settings = read_config(directory / CONFIG_FILE, has_choice_head=head == "multiple_choice")
    sizes = split_vocabulary(settings.num_embeddings, tokenizer, str(directory / CONFIG_FILE))
    config = settings.model_config(*sizes, directory / CONFIG_FILE)
    if config.num_layers > len(arrays):
        raise DataError(
            f"{directory / CONFIG_FILE}: n_layer = {config.num_layers:,}, but {path.name} holds {len(arrays)} arrays, "
            f"of which each block takes {len(BLOCK_ARRAYS)}"
        )
    check_shapes(
        {name: array.shape for name, array in arrays.items()},
        _shapes(config, head, arrays[_SCORE].shape[0] if head == "score" else 1),
        str(path),
        f"Expected what {CONFIG_FILE} in the same folder describes",
    )
    layers = [
        {row.path: arrays[f"h.{layer}.{row.huggingface}"] for row in BLOCK_ARRAYS} for layer in range(config.num_layers)
    ]
    params = {TOKENS: arrays[_TABLE], POSITIONS: arrays[_POSITIONS], **stack_blocks(layers)}
    if head == "multiple_choice":
        params |= {HEAD_KERNEL: arrays[_CHOICE_KERNEL].T.copy(), HEAD_BIAS: arrays[_CHOICE_BIAS]}
    elif head == "score":
        kernel = arrays[_SCORE].T.copy()
        params |= {HEAD_KERNEL: kernel, HEAD_BIAS: np.zeros(kernel.shape[1], np.float32)}
    notes = (*notes, *settings.notes, *not_finite(arrays, str(path)))
    return Model(config, unflatten(params), tokenizer, head, settings.classifier_dropout_rate, notes)


def write_huggingface(model: Model, directory: Path) -> tuple[str, ...]:
    """Writes `config.json`, `model.safetensors` and the tokenizer; what a user should know of it.

    Raises:
      DataError: Hugging Face's model has no place for something of ours.
    """
    config = model.config
    if config.mlp_dim != 4 * config.embed_dim:
        raise DataError(
            f"ModelConfig.mlp_dim = {config.mlp_dim}: Hugging Face's OpenAI GPT has none but 4 x "
            f"ModelConfig.embed_dim = {4 * config.embed_dim}; convert to openai or run instead"
        )
    flat = {path: np.asarray(array, np.float32) for path, array in flatten(model.params).items()}
    if model.head == "similarity":
        raise DataError(
            "the classifier reads a pair of texts in both orders, which no model of Hugging Face does. "
            "Give --without_head to write the language model alone"
        )
    if model.head == "score" and flat[HEAD_BIAS].any():
        raise DataError(
            "the classifier has a bias that is not 0, and Hugging Face's OpenAIGPTForSequenceClassification has none: "
            "its scores would differ. Give --without_head to write the language model alone"
        )
    arrays = {_TABLE: flat[TOKENS], _POSITIONS: flat[POSITIONS]}
    for layer in range(config.num_layers):
        arrays |= {f"h.{layer}.{row.huggingface}": flat[BLOCKS + row.path][layer] for row in BLOCK_ARRAYS}
    arrays = {_PREFIX + name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if model.head == "multiple_choice":
        arrays |= {_CHOICE_KERNEL: flat[HEAD_KERNEL].T.copy(), _CHOICE_BIAS: flat[HEAD_BIAS]}
    elif model.head == "score":
        arrays[_SCORE] = flat[HEAD_KERNEL].T.copy()
    (directory / CONFIG_FILE).write_text(format_config(model), encoding="utf-8")
    save_file(arrays, directory / SAFETENSORS, metadata={"format": "pt"})
    shutil.copymode(directory / CONFIG_FILE, directory / SAFETENSORS)  # the library makes it readable by us alone
    notes = () if model.tokenizer is None else write_tokenizer(model.tokenizer, config, directory)
    unknown = [name for name in ("embedding_table_dropout", "softmax_over_positions") if getattr(config, name)]
    return (*notes, *(f"ModelConfig.{name} = True has no counterpart in Hugging Face's model" for name in unknown))


def is_huggingface(directory: Path) -> bool:
    """Whether a directory holds weights in one of Hugging Face's formats."""
    return find_weights(directory) is not None


def _without_buffers(tensors: Arrays, path: Path) -> Arrays:
    """The parameters, without prefix; causal masks and position numbers that old files kept are left out."""
    kept = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(_PREFIX)
        is_mask = re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name) and tensor.ndim in (0, 4)
        if is_mask or name == "position_ids":
            continue
        if name in kept:
            raise DataError(f"{path}: holds {name} twice, with and without {_PREFIX!r}: remove one of them")
        kept[name] = tensor
    return kept


def _untie(arrays: Arrays, path: Path) -> None:
    """Leaves the token table once, under its own name."""
    tied = arrays.pop(_TIED, None)
    if tied is None:
        return
    table = arrays.setdefault(_TABLE, tied)
    if table.tobytes() != tied.tobytes():
        raise DataError(
            f"{path}: {_TIED} differs from {_TABLE}; expected the same values, because the softmax of this model is "
            f"tied to its token table. Remove {_TIED} if it is stale"
        )


def _head_of(arrays: Arrays) -> Head | None:
    if _SCORE in arrays and arrays[_SCORE].ndim == 2:
        return "score"
    return "multiple_choice" if _CHOICE_KERNEL in arrays or _CHOICE_BIAS in arrays else None


def _shapes(config: ModelConfig, head: Head | None, num_outputs: int) -> Shapes:
    """The shape of each array of a file by its name, without prefix."""
    ours = expected_shapes(config)
    shapes = {_TABLE: ours[TOKENS], _POSITIONS: ours[POSITIONS]}
    for layer in range(config.num_layers):
        shapes |= {f"h.{layer}.{row.huggingface}": ours[BLOCKS + row.path][1:] for row in BLOCK_ARRAYS}
    if head == "multiple_choice":
        shapes |= {_CHOICE_KERNEL: (1, config.embed_dim), _CHOICE_BIAS: (1,)}
    elif head == "score":
        shapes[_SCORE] = (num_outputs, config.embed_dim)
    return shapes
