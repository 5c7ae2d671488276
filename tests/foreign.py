"""Tiny models in the formats of others, written by hand from the names and shapes of their originals."""

import io
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reference

from gpt.config import ModelConfig
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

CONFIG = ModelConfig(
    vocab_size=40, context_length=12, num_layers=3, num_heads=2, embed_dim=8, mlp_dim=32, init_std=0.3,
)  # fmt: skip

Arrays = dict[str, np.ndarray]


def make_tokenizer() -> Tokenizer:
    """A vocabulary of CONFIG's size."""
    return train_bpe(["the cat sat on the mat and the dog saw it ."] * 5, CONFIG.vocab_size)


def make_weights(config: ModelConfig = CONFIG, seed: int = 0) -> Arrays:
    """Random arrays by the names of Hugging Face, without prefix, in the order of OpenAI's files."""
    width, mlp = config.embed_dim, config.mlp_dim
    shapes: dict[str, tuple[int, ...]] = {
        "positions_embed.weight": (config.context_length, width),
        "tokens_embed.weight": (config.num_embeddings, width),
    }
    for layer in range(config.num_layers):
        shapes |= {
            f"h.{layer}.attn.c_attn.weight": (width, 3 * width),
            f"h.{layer}.attn.c_attn.bias": (3 * width,),
            f"h.{layer}.attn.c_proj.weight": (width, width),
            f"h.{layer}.attn.c_proj.bias": (width,),
            f"h.{layer}.ln_1.weight": (width,),
            f"h.{layer}.ln_1.bias": (width,),
            f"h.{layer}.mlp.c_fc.weight": (width, mlp),
            f"h.{layer}.mlp.c_fc.bias": (mlp,),
            f"h.{layer}.mlp.c_proj.weight": (mlp, width),
            f"h.{layer}.mlp.c_proj.bias": (width,),
            f"h.{layer}.ln_2.weight": (width,),
            f"h.{layer}.ln_2.bias": (width,),
        }
    draw = np.random.default_rng(seed).standard_normal
    return {name: (0.3 * draw(shape) + name.endswith(".weight") * ("ln" in name)).astype(np.float32)
            for name, shape in shapes.items()}  # fmt: skip


def our_params(weights: Arrays) -> reference.Params:
    """The same weights as `gpt.model` names them."""

    def stack(name: str) -> np.ndarray:
        layers = sum(key.endswith(".attn.c_attn.bias") for key in weights)
        return np.stack([weights[f"h.{layer}.{name}"] for layer in range(layers)])

    def linear(name: str) -> dict[str, np.ndarray]:
        return {"kernel": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}

    blocks = {
        "attention": {"qkv": linear("attn.c_attn"), "out": linear("attn.c_proj")},
        "attention_norm": norm("ln_1"),
        "mlp": {"up": linear("mlp.c_fc"), "down": linear("mlp.c_proj")},
        "mlp_norm": norm("ln_2"),
    }
    return {
        "transformer": {
            "token_embedding": weights["tokens_embed.weight"],
            "position_embedding": weights["positions_embed.weight"],
            "blocks": blocks,
        }
    }


def assert_same_bits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Nested dicts of arrays are equal to the last bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Mapping):
            assert_same_bits(found[name], value)
        else:
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
            assert np.asarray(found[name]).tobytes() == value.tobytes(), name


# OpenAI


def write_openai_files(directory: Path, weights: Arrays, sizes: Sequence[int] | None = None) -> Path:
    """`params_*.npy` in shards of `sizes` values (None: ten of about the same), shapes, and the number of heads."""
    directory.mkdir(parents=True, exist_ok=True)
    is_matrix = {name: name.endswith(".weight") and ".c_" in name for name in weights}
    shapes = [[1, *array.shape] if is_matrix[name] else [*array.shape] for name, array in weights.items()]
    flat = np.concatenate([array.ravel() for array in weights.values()])
    shards = np.array_split(flat, 10) if sizes is None else np.split(flat, np.cumsum(sizes))
    for number, shard in enumerate(shards):
        np.save(directory / f"params_{number}.npy", shard)
    (directory / "params_shapes.json").write_text(json.dumps(shapes))
    (directory / "hparams.json").write_text(json.dumps({"n_head": CONFIG.num_heads, "init_std": CONFIG.init_std}))
    return directory


def openai_vector(directory: Path) -> np.ndarray:
    """The shards of a folder as one vector, concatenated by number."""
    paths = sorted(directory.glob("params_*.npy"), key=lambda path: int(path.stem.removeprefix("params_")))
    return np.concatenate([np.load(path) for path in paths])


# Hugging Face


def huggingface_config(config: ModelConfig = CONFIG, **changes: Any) -> dict[str, Any]:
    """The keys of a `config.json` of this model; one that is None in `changes` is left out."""
    tree = {
        "model_type": "openai-gpt",
        "afn": "gelu",
        "vocab_size": config.num_embeddings,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.embed_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "initializer_range": config.init_std,
        **changes,
    }
    return {name: value for name, value in tree.items() if value is not None}


def write_config(directory: Path, **changes: Any) -> Path:
    """A folder with `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(huggingface_config(**changes)))
    return directory


class Global:
    """A name that a pickle asks for, and what it would be called with."""

    def __init__(self, module: str, name: str, *arguments: Any):
        self.module, self.name, self.arguments = module, name, arguments


_PythonPickler: Any = pickle._Pickler  # pyright: ignore[reportAttributeAccessIssue] - takes opcodes by hand


class _Pickler(_PythonPickler):
    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, Storage):
            self.save(("storage", Global("torch", obj.kind), obj.key, "cpu", obj.length), False)
            self.write(pickle.BINPERSID)
        elif isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            if obj.arguments:
                self.save(obj.arguments, False)
                self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


class Storage:
    """What stands for a run of values in a pickle of torch."""

    def __init__(self, kind: str, key: str, length: int):
        self.kind, self.key, self.length = kind, key, length


KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "uint8": "ByteStorage"}


def pickle_of(tree: Any) -> bytes:
    """A pickle in the protocol that torch uses."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(tree)
    return stream.getvalue()


def tensor(key: str, array: np.ndarray, kind: str | None = None) -> Global:
    """The call that rebuilds a contiguous tensor of the storage `key`."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    storage = Storage(kind or KINDS[array.dtype.name], key, array.size)
    return Global("torch._utils", "_rebuild_tensor_v2", storage, 0, array.shape, strides, False, {})


def write_torch_zip(path: Path, arrays: Arrays, extra: Mapping[str, Any] | None = None) -> None:
    """What `torch.save` writes since 1.6."""
    tree = {name: tensor(str(number), array) for number, (name, array) in enumerate(arrays.items())}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_of({**tree, **(extra or {})}))
        for number, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{number}", array.tobytes())


def write_torch_legacy(path: Path, arrays: Arrays, extra: Mapping[str, Any] | None = None) -> None:
    """What `torch.save` wrote before."""
    tree = {name: tensor(str(number), array) for number, (name, array) in enumerate(arrays.items())}
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    parts += [{**tree, **(extra or {})}, [str(number) for number in range(len(arrays))]]
    content = b"".join(map(pickle_of, parts))
    for array in arrays.values():
        content += array.size.to_bytes(8, "little") + array.tobytes()
    path.write_bytes(content)
