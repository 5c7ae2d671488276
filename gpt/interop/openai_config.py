"""The settings of a model in OpenAI's format: most are in the shapes, the others in `hparams.json` beside them.

OpenAI's code takes them as flags and published no such file: without it, its own settings are meant.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from gpt.config import ModelConfig
from gpt.errors import ConfigError, DataError
from gpt.interop.weights import BLOCK_ARRAYS, read_json, split_vocabulary
from gpt.text.tokenizer import Tokenizer

SHAPES_FILE = "params_shapes.json"
SETTINGS_FILE = "hparams.json"
PUBLISHED_HEAD_DIM = 64

# The first by their names as flags of OpenAI's code; the others are constants there, or have no name.
_SETTINGS = {
    "n_head": "num_heads",
    "afn": "activation",
    "embd_pdrop": "embed_dropout_rate",
    "attn_pdrop": "attention_dropout_rate",
    "resid_pdrop": "residual_dropout_rate",
    "n_special": "num_special_tokens",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "init_std": "init_std",
    "embedding_table_dropout": "embedding_table_dropout",
    "softmax_over_positions": "softmax_over_positions",
}


def config_of(
    directory: Path, shapes: list[tuple[int, ...]], tokenizer: Tokenizer | None
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The settings that the shapes and `hparams.json` give, the published ones where both are silent; and notes.

    Raises:
      DataError: they do not go together, or leave the number of heads open.
    """
    source = str(directory / SHAPES_FILE)
    positions, tokens = shapes[:2]
    if len(positions) != 2 or len(tokens) != 2:
        raise DataError(
            f"{source}: the first two shapes are {list(positions)} and {list(tokens)}; expected positions "
            "[context, width], then tokens [vocabulary, width]"
        )
    settings, notes = _read_settings(directory / SETTINGS_FILE), ()
    width = positions[1]
    if "num_heads" not in settings:
        if width % PUBLISHED_HEAD_DIM:
            raise DataError(
                f"{directory}: the files do not tell the number of attention heads, and width {width} is no multiple "
                f"of the published {PUBLISHED_HEAD_DIM} channels a head: write {SETTINGS_FILE} beside them, such as "
                '{"n_head": 4}'
            )
        settings["num_heads"] = width // PUBLISHED_HEAD_DIM
        if width != ModelConfig.embed_dim:
            notes = (f"{directory}: no {SETTINGS_FILE}; taken as {settings['num_heads']} heads of 64 channels",)
    specials = settings.pop("num_special_tokens", 0)
    if tokenizer is None:
        vocab_size = tokens[0] - specials
    else:
        vocab_size, specials = split_vocabulary(tokens[0], tokenizer, source)
    up = shapes[2 + 6] if len(shapes) > 8 else ()
    try:
        config = ModelConfig(
            vocab_size=vocab_size,
            num_special_tokens=specials,
            context_length=positions[0],
            num_layers=max(1, round((len(shapes) - 2) / len(BLOCK_ARRAYS))),
            embed_dim=width,
            mlp_dim=up[2] if len(up) == 3 else 4 * width,  # of damaged files, the published proportion
            **settings,
        )
    except (ConfigError, TypeError) as error:
        raise DataError(f"{directory / SETTINGS_FILE}: does not fit the shapes: {error}") from None
    return config, notes


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    tree = read_json(path, "settings")
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected a JSON object with {', '.join(_SETTINGS)}")
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    settings = {}
    for name, ours in _SETTINGS.items():
        if name not in tree:
            continue
        wanted = str if name == "afn" else type(fields[ours].default)
        value = float(tree[name]) if wanted is float and type(tree[name]) is int else tree[name]
        options = get_args(fields[ours].type)
        if type(value) is not wanted or (options and value not in options):
            expected = " or ".join(options) or wanted.__name__
            raise DataError(f"{path}: {name} is {value!r}; expected {expected}")
        settings[ours] = value
    return settings


def format_settings(config: ModelConfig) -> str:
    """The text of `hparams.json`."""
    return json.dumps({name: getattr(config, ours) for name, ours in _SETTINGS.items()}, indent=2) + "\n"
