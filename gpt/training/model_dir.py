"""A directory with a model of any kind, read and written: a run, a Hugging Face folder, OpenAI's files."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from gpt import gin_io
from gpt.config import MeshConfig, RunConfig, TaskConfig, TokenizerConfig
from gpt.errors import DataError
from gpt.files import appearing
from gpt.interop.huggingface import is_huggingface, read_huggingface, write_huggingface
from gpt.interop.openai import is_openai, read_openai, write_openai
from gpt.interop.weights import Head, Model, flatten, not_finite
from gpt.model.gpt import body_name
from gpt.sharding import make_mesh
from gpt.tasks.registry import find_task
from gpt.tasks.transforms import SIMILARITY
from gpt.text.pipeline import Route
from gpt.text.tokenizer import Tokenizer
from gpt.text.vocabulary import FILE_NAME, PAIRS
from gpt.training.checkpoint import find_checkpoint, load_params, save_params
from gpt.training.run_dir import load_config, read_result, write_result

Format = Literal["openai", "huggingface", "run"]

FORMATS: tuple[Format, ...] = ("openai", "huggingface", "run")

# Of no other use to weights that make no update; the published 64 would take 5 GB of logits.
_EVALUATION_BATCH_SIZE = 8

_TOKENIZER_FILES = (FILE_NAME, *(vocab for vocab, _ in PAIRS.values()))


def detect_format(directory: Path) -> Format:
    """What kind of model a directory holds, by its content; DataError when it holds none."""
    if (directory / "config.gin").exists():
        return "run"
    if is_huggingface(directory):
        return "huggingface"
    if is_openai(directory):
        return "openai"
    problem = "holds no model" if directory.is_dir() else "is no directory"
    raise DataError(
        f"{str(directory)!r} {problem}: expected a run (config.gin), a Hugging Face folder (config.json with "
        "model.safetensors or pytorch_model.bin), or OpenAI's files (params_*.npy with params_shapes.json)"
    )


def load_model(
    directory: Path,
    model_format: Format | None = None,
    tokenizer_dir: Path | None = None,
    route: Route | None = None,
) -> Model:
    """The model in a directory, its weights in memory; the format is detected unless given.

    The tokenizer is that of `tokenizer_dir`, or the one beside the weights, or none. `route` None is
    the route that its files state or, for files that state none, the one of the format.

    Raises:
      DataError: a file is missing or damaged, or does not go with the others.
    """
    if not directory.is_dir():
        raise DataError(f"{str(directory)!r} is no directory")
    model_format = model_format or detect_format(directory)
    beside = directory / "tokenizer" if model_format == "run" else directory
    tokenizer = _load_tokenizer(tokenizer_dir or beside, model_format, route)
    if tokenizer is None and tokenizer_dir is not None:
        raise DataError(f"--tokenizer {tokenizer_dir}: no tokenizer in it; expected {' or '.join(_TOKENIZER_FILES)}")
    if model_format == "openai":
        model = read_openai(directory, tokenizer)
    elif model_format == "huggingface":
        model = read_huggingface(directory, tokenizer)
    else:
        model = _read_run(directory, tokenizer)
    if tokenizer is None:
        note = f"{directory}: no tokenizer in it; --tokenizer DIR names the one of these weights"
        model = dataclasses.replace(model, notes=(*model.notes, note))
    return model


def convert(model: Model, target: Path, model_format: Format) -> tuple[str, ...]:
    """Writes a model to a new directory, whole or not at all; what a user should know of it.

    Raises:
      DataError: the directory exists or cannot be written, or the format has no place for something.
    """
    if model.config.architecture == "lstm" and model_format != "run":
        raise DataError("ModelConfig.architecture = 'lstm': only runs have a place for an LSTM; convert it --to run")
    if os.path.lexists(target):
        raise DataError(f"{str(target)!r} exists already, and nothing is overwritten: choose another target")
    try:
        with appearing(target) as temporary:
            if model_format == "run":
                return _write_run(model, temporary, target)
            write = write_openai if model_format == "openai" else write_huggingface
            return write(model, temporary)
    except OSError as error:
        raise DataError(f"{str(target)!r} cannot be written: {error}") from error


def without_head(model: Model) -> Model:
    """The language model alone."""
    params = {name: tree for name, tree in model.params.items() if name != "head"}
    return dataclasses.replace(model, params=params, head=None)


def with_special_tokens(model: Model, num_special_tokens: int, seed: int) -> Model:
    """The model with that many rows behind the vocabulary: cut off, or new ones drawn from N(0, init_std)."""
    config = dataclasses.replace(model.config, num_special_tokens=num_special_tokens)
    body = model.params[name := body_name(model.params)]
    table = body["token_embedding"]
    new = max(0, config.num_embeddings - len(table))
    drawn = config.init_std * np.random.default_rng(seed).standard_normal((new, config.embed_dim))
    table = np.concatenate([table[: config.num_embeddings], drawn.astype(np.float32)])
    params = {**model.params, name: {**body, "token_embedding": table}}
    return dataclasses.replace(model, config=config, params=params)


def _load_tokenizer(directory: Path, model_format: Format, route: Route | None) -> Tokenizer | None:
    if not any((directory / name).exists() for name in _TOKENIZER_FILES):
        return None
    if not (directory / FILE_NAME).exists() and route is None:
        route = "original" if model_format == "openai" else "basic"  # as the weights were trained, or are used
    return Tokenizer.load(directory, route)


def _read_run(run_dir: Path, tokenizer: Tokenizer | None) -> Model:
    config = load_config(run_dir)
    checkpoint = find_checkpoint(run_dir)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.device_get(load_params(checkpoint, mesh))
    if tokenizer is not None and tokenizer.vocab_size != config.model.vocab_size:
        raise DataError(
            f"{run_dir}: ModelConfig.vocab_size = {config.model.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens: give the tokenizer of these weights with --tokenizer DIR"
        )
    head: Head | None = None
    if "head" in params:
        head = (read_result(run_dir) or {}).get("head") or _head_of(config.task.name)
    notes = not_finite(flatten(params), str(checkpoint))
    # This machine may lack the kernel that the weights were trained with.
    model = dataclasses.replace(config.model, attention="plain")
    return Model(model, params, tokenizer, head, config.task.classifier_dropout_rate, notes)


def _head_of(task_name: str | None) -> Head:
    """What the classifier of a run of `train.py` gives."""
    assert task_name is not None
    task = find_task(task_name)
    if task.transform is SIMILARITY:
        return "similarity"
    return "score" if task.labels else "multiple_choice"


def _write_run(model: Model, directory: Path, target: Path) -> tuple[str, ...]:
    """A finished run of no updates, in `directory`, that will be known as `target`."""
    if model.tokenizer is None:
        raise DataError("a run needs its tokenizer, and the source has none: name its directory with --tokenizer")
    config = RunConfig(
        output_dir=str(target),
        max_steps=0,
        batch_size=_EVALUATION_BATCH_SIZE,
        tokenizer=TokenizerConfig(path=str(target / "tokenizer")),
        model=model.config,
        task=TaskConfig(classifier_dropout_rate=model.classifier_dropout_rate),
    )
    (directory / "config.gin").write_text(gin_io.format_config(config), encoding="utf-8")
    model.tokenizer.save(directory / "tokenizer")
    save_params(directory, model.params)
    head = {} if model.head is None else {"head": model.head}
    write_result(directory, {"run": str(target), "step": 0, "converted": True, **head})
    return ()
