"""Hugging Face folders: every file they may consist of, every key of `config.json`, and nothing that runs code."""

import dataclasses
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from foreign import (
    CONFIG,
    Arrays,
    Global,
    Storage,
    assert_same_bits,
    huggingface_config,
    make_tokenizer,
    make_weights,
    our_params,
    pickle_of,
    tensor,
    write_config,
    write_torch_legacy,
    write_torch_zip,
)
from safetensors.numpy import load_file, save_file

from gpt.config import ModelConfig
from gpt.errors import DataError
from gpt.interop.huggingface import read_huggingface, write_huggingface
from gpt.interop.weights import Model

WEIGHTS = make_weights()
PREFIXED = {f"transformer.{name}": array for name, array in WEIGHTS.items()}
CHOICE_HEAD = {
    "multiple_choice_head.summary.weight": np.arange(8, dtype=np.float32).reshape(1, 8),
    "multiple_choice_head.summary.bias": np.array([0.5], np.float32),
}
SCORE_HEAD = {"score.weight": np.arange(24, dtype=np.float32).reshape(3, 8)}


def folder(directory: Path, tensors: Arrays, **config: Any) -> Path:
    """A folder of `config.json` and `model.safetensors`."""
    write_config(directory, **config)
    save_file(tensors, directory / "model.safetensors")
    return directory


def error_of(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_huggingface(directory, None)
    return str(caught.value)


def written(model: Model, directory: Path) -> Path:
    directory.mkdir()
    write_huggingface(model, directory)
    return directory


# Weights


@pytest.mark.parametrize("tensors", [WEIGHTS, PREFIXED], ids=["bare", "prefixed"])
def test_every_tensor_lands_bit_by_bit_under_its_name(tensors: Arrays, tmp_path: Path) -> None:
    model = read_huggingface(folder(tmp_path, tensors), None)
    assert (model.config, model.head, model.notes) == (CONFIG, None, ())
    assert_same_bits(model.params, our_params(WEIGHTS))


def test_buffers_that_old_files_kept_are_left_out(tmp_path: Path) -> None:
    buffers = {
        "h.0.attn.bias": np.ones((1, 1, 12, 12), np.float32),
        "h.1.attn.bias": np.ones((1, 1, 12, 12), np.uint8),
        "h.1.attn.masked_bias": np.array(-1e4, np.float32),
        "position_ids": np.arange(12).reshape(1, 12),
    }
    assert_same_bits(read_huggingface(folder(tmp_path, {**WEIGHTS, **buffers}), None).params, our_params(WEIGHTS))


@pytest.mark.parametrize("keeps_table", [True, False])
def test_the_tied_softmax_may_be_there_beside_the_table_or_in_its_place(keeps_table: bool, tmp_path: Path) -> None:
    tensors = {**PREFIXED, "lm_head.weight": WEIGHTS["tokens_embed.weight"]}
    if not keeps_table:
        del tensors["transformer.tokens_embed.weight"]  # what OpenAIGPTDoubleHeadsModel saves
    assert_same_bits(read_huggingface(folder(tmp_path, tensors), None).params, our_params(WEIGHTS))


def test_an_array_with_the_name_of_a_buffer_and_another_shape_is_none(tmp_path: Path) -> None:
    tensors = {**WEIGHTS, "h.0.attn.bias": np.zeros(24, np.float32)}
    assert "h.0.attn.bias [24] is not expected" in error_of(folder(tmp_path, tensors))


def test_weights_in_another_memory_order_are_written_by_value(tmp_path: Path) -> None:
    params = our_params({name: np.asfortranarray(array) for name, array in WEIGHTS.items()})
    params["transformer"]["blocks"]["mlp"]["up"]["kernel"] = np.asfortranarray(
        params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    )
    target = written(Model(CONFIG, params), tmp_path / "target")
    assert_same_bits(load_file(target / "model.safetensors"), PREFIXED)


def test_a_softmax_that_differs_from_the_table_is_refused(tmp_path: Path) -> None:
    tensors = {**PREFIXED, "lm_head.weight": WEIGHTS["tokens_embed.weight"] + 1}
    assert "lm_head.weight differs from tokens_embed.weight" in error_of(folder(tmp_path, tensors))


def test_a_multiple_choice_head_is_transposed_and_comes_back(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {**PREFIXED, **CHOICE_HEAD}, summary_first_dropout=0.2)
    model = read_huggingface(source, None)
    assert (model.head, model.classifier_dropout_rate) == ("multiple_choice", 0.2)
    assert model.params["head"]["kernel"].tolist() == [[float(row)] for row in range(8)]
    assert model.params["head"]["bias"].tolist() == [0.5]
    target = written(model, tmp_path / "target")
    assert_same_bits(load_file(target / "model.safetensors"), {**PREFIXED, **CHOICE_HEAD})
    config = json.loads((target / "config.json").read_text())
    assert (config["architectures"], config["summary_first_dropout"]) == (["OpenAIGPTDoubleHeadsModel"], 0.2)


def test_a_classification_head_is_transposed_and_comes_back(tmp_path: Path) -> None:
    model = read_huggingface(folder(tmp_path / "source", {**PREFIXED, **SCORE_HEAD}), None)
    assert model.head == "score"
    assert model.params["head"]["kernel"][:, 1].tolist() == list(range(8, 16))
    assert model.params["head"]["bias"].tolist() == [0.0, 0.0, 0.0]
    target = written(model, tmp_path / "target")
    assert_same_bits(load_file(target / "model.safetensors"), {**PREFIXED, **SCORE_HEAD})
    config = json.loads((target / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}


def test_a_head_for_both_orders_of_a_pair_is_refused_with_the_way_out(tmp_path: Path) -> None:
    head = {"kernel": np.ones((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
    with pytest.raises(DataError, match=r"in both orders, which no model of Hugging Face does.*--without_head"):
        write_huggingface(Model(CONFIG, {**our_params(WEIGHTS), "head": head}, head="similarity"), tmp_path)


def test_a_classification_head_with_a_bias_is_refused_with_the_way_out(tmp_path: Path) -> None:
    head = {"kernel": np.ones((8, 2), np.float32), "bias": np.ones(2, np.float32)}
    with pytest.raises(DataError, match=r"bias that is not 0.*OpenAIGPTForSequenceClassification.*--without_head"):
        write_huggingface(Model(CONFIG, {**our_params(WEIGHTS), "head": head}, head="score"), tmp_path)


def test_who_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    target = written(Model(CONFIG, our_params(WEIGHTS)), tmp_path / "target")
    modes = {path.name: path.stat().st_mode for path in target.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_every_wrong_tensor_is_named_in_one_error(tmp_path: Path) -> None:
    tensors = {**WEIGHTS, "h.3.ln_1.bias": np.zeros(8, np.float32), "h.0.attn.c_attn.bias": np.zeros(23, np.float32)}
    del tensors["h.2.mlp.c_fc.weight"]
    error = error_of(folder(tmp_path, tensors))
    assert "h.2.mlp.c_fc.weight is missing, expected [8, 32]" in error
    assert "h.3.ln_1.bias [8] is not expected" in error
    assert "h.0.attn.c_attn.bias is [23], expected [24]" in error


def test_a_name_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    tensors = {**WEIGHTS, "transformer.h.0.ln_1.bias": np.zeros(8, np.float32)}
    assert "holds h.0.ln_1.bias twice, with and without 'transformer.'" in error_of(folder(tmp_path, tensors))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32_exactly_and_is_said_to(dtype: Any, tmp_path: Path) -> None:
    halves = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    write_config(tmp_path)
    name = {"float16": "F16", "bfloat16": "BF16"}[np.dtype(dtype).name]
    write_safetensors(tmp_path / "model.safetensors", halves, name)
    model = read_huggingface(tmp_path, None)
    assert model.notes[0].endswith("38 of 38 arrays are in half precision; they become float32")
    assert_same_bits(model.params, our_params({name: half.astype(np.float32) for name, half in halves.items()}))


def write_safetensors(path: Path, tensors: Arrays, dtype: str) -> None:
    """A file by hand, because the library's NumPy writer knows no bfloat16."""
    header, content = {}, b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def test_whole_numbers_among_the_weights_are_refused(tmp_path: Path) -> None:
    tensors = {**WEIGHTS, "h.0.ln_1.bias": np.zeros(8, np.int64)}
    assert "weights are float32 (float16 and bfloat16 are read, too), but h.0.ln_1.bias is int64" in error_of(
        folder(tmp_path, tensors)
    )


def test_weights_that_are_no_numbers_are_named_and_kept(tmp_path: Path) -> None:
    tensors = {**WEIGHTS, "h.1.ln_2.bias": np.full(8, np.nan, np.float32)}
    model = read_huggingface(folder(tmp_path, tensors), None)
    assert model.notes[0].endswith("NaN or infinity among the weights: h.1.ln_2.bias (8 of 8)")
    assert_same_bits(model.params, our_params(tensors))


# Files


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with two files of weights behind an index."""
    write_config(tmp_path)
    names = list(WEIGHTS)
    files = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, part in files.items():
        save_file({name: WEIGHTS[name] for name in part}, tmp_path / file)
    write_index(tmp_path, {name: file for file, part in files.items() for name in part})
    return tmp_path


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_several_files_behind_an_index_are_one_model(sharded: Path) -> None:
    assert_same_bits(read_huggingface(sharded, None).params, our_params(WEIGHTS))


@pytest.mark.parametrize(
    "path",
    ["../model-1.safetensors", "/etc/model.safetensors", "a/../../m.safetensors", "..\\m.safetensors", "..", "", 3],
)
def test_an_index_that_reaches_outside_of_its_folder_is_refused(path: Any, sharded: Path) -> None:
    write_index(sharded, {"h.0.ln_1.bias": path})
    assert f"points to {path!r}" in error_of(sharded)
    assert "an index must not reach outside" in error_of(sharded)


def test_files_of_an_index_that_are_not_there_are_named(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    assert "names files that are not there: model-2.safetensors" in error_of(sharded)


def test_a_tensor_of_an_index_that_its_files_do_not_hold_is_named(sharded: Path) -> None:
    write_index(sharded, {**dict.fromkeys(WEIGHTS, "model-1.safetensors"), "other": "model-2.safetensors"})
    assert "names tensors that its files do not hold: other" in error_of(sharded)


def test_a_tensor_in_two_files_is_refused(sharded: Path) -> None:
    save_file(WEIGHTS, sharded / "model-1.safetensors")
    assert "in model-2.safetensors and in another file as well" in error_of(sharded)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(text: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "no index of weights" in error_of(sharded)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_header, lambda path: path.write_bytes(b"")])
def test_a_damaged_safetensors_file_is_refused(damage: Callable[[Path], object], tmp_path: Path) -> None:
    path = folder(tmp_path, WEIGHTS) / "model.safetensors"
    damage(path)
    assert error_of(tmp_path).startswith(f"{path}: not a whole .safetensors file")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "no model.safetensors or pytorch_model.bin in it" in error_of(write_config(tmp_path))


# Files of torch


@pytest.fixture(params=[write_torch_zip, write_torch_legacy], ids=["zip", "legacy"])
def write_torch(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Writes a dict of tensors as one of the two formats of torch."""
    return request.param


def bin_folder(directory: Path, write_torch: Callable[..., None], *contents: Any) -> Path:
    write_config(directory)
    write_torch(directory / "pytorch_model.bin", *contents)
    return directory


def test_files_of_torch_are_read_without_torch(write_torch: Callable[..., None], tmp_path: Path) -> None:
    buffers = {"h.0.attn.bias": np.ones((1, 1, 12, 12), np.uint8)}
    model = read_huggingface(bin_folder(tmp_path, write_torch, {**WEIGHTS, **buffers}), None)
    assert_same_bits(model.params, our_params(WEIGHTS))


def test_a_transposed_tensor_keeps_its_values(write_torch: Callable[..., None], tmp_path: Path) -> None:
    weights = {name: array.T.copy().T if array.ndim == 2 else array for name, array in WEIGHTS.items()}
    assert not weights["tokens_embed.weight"].flags.c_contiguous
    written = {name: np.asfortranarray(array) for name, array in weights.items()}
    # The bytes of a file are those of the storage, which lies in the order of the transpose.
    storage = {name: array.T if array.ndim == 2 else array for name, array in written.items()}
    transposed = {
        name: Global(
            "torch._utils", "_rebuild_tensor_v2", Storage("FloatStorage", str(number), array.size), 0, array.shape,
            tuple(stride // 4 for stride in array.strides), False, {},
        )
        for number, (name, array) in enumerate(written.items())
    }  # fmt: skip
    model = read_huggingface(bin_folder(tmp_path, write_torch, storage, transposed), None)
    assert_same_bits(model.params, our_params(WEIGHTS))


def test_a_pickle_with_code_in_it_is_refused_by_name_and_not_run(
    write_torch: Callable[..., None], tmp_path: Path
) -> None:
    witness = tmp_path / "was_run"
    code = {"h.0.ln_1.bias": Global("os", "system", f"touch {witness}")}
    error = error_of(bin_folder(tmp_path, write_torch, WEIGHTS, code))
    assert not witness.exists()
    assert "its pickle asks for 'os.system', which no tensor needs. Refused, and nothing in it was run" in error


def test_the_code_of_that_pickle_is_real(tmp_path: Path) -> None:
    pickle.loads(pickle_of(Global("os", "system", f"touch {tmp_path / 'was_run'}")))
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "name",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch", "nn.Module"),
        ("torch.FloatStorage", "__class__"),
        ("collections", "OrderedDict.__init__"),
        ("gpt.interop.torch_file", "read_torch_file"),
    ],
    ids=".".join,
)
def test_no_other_name_is_known(name: tuple[str, str], tmp_path: Path) -> None:
    error = error_of(bin_folder(tmp_path, write_torch_zip, WEIGHTS, {"x": Global(*name, "1")}))
    assert f"its pickle asks for '{'.'.join(name)}'" in error


def test_a_pickle_cannot_set_the_state_of_what_it_is_given(tmp_path: Path) -> None:
    # In Python's unpickler BUILD calls __setstate__ of whatever lies on the stack, and NumPy's types have one.
    build = b"\x80\x02ctorch\nFloatStorage\n" + pickle_of((3, ">", None, None, None, -1, -1, 0))[2:-1] + b"b."
    error = error_of(bin_folder(tmp_path, lambda path: path.write_bytes(build)))
    assert "its pickle sets the state of something that has none. Refused" in error


@pytest.mark.parametrize(
    ("content", "reason"), [([1, 2], "it holds a list"), ({"step": 3}, "it holds other things than tensors: step")]
)
def test_a_file_that_is_no_dict_of_tensors_is_refused(content: Any, reason: str, tmp_path: Path) -> None:
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, []]
    directory = bin_folder(tmp_path, lambda path: path.write_bytes(b"".join(map(pickle_of, parts))))
    assert reason in error_of(directory)


@pytest.mark.parametrize("shape", [(9,), (-1,), (2, 8)])
def test_a_tensor_beyond_its_storage_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    bad = tensor("0", np.zeros(shape if min(shape) > 0 else 1, np.float32))
    storage = Storage("FloatStorage", "0", 8)
    bad.arguments = (storage, 0, shape, bad.arguments[3], False, {})
    arrays = {"x": np.zeros(8, np.float32)}
    error = error_of(bin_folder(tmp_path, write_torch_zip, arrays, {"x": bad}))
    assert f"x {list(shape)} reaches beyond its 8 stored values" in error


@pytest.mark.parametrize("length", [0, 1, 40, 300, 5000])
def test_a_truncated_file_of_torch_is_refused(length: int, write_torch: Callable[..., None], tmp_path: Path) -> None:
    path = bin_folder(tmp_path, write_torch, WEIGHTS) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:length])
    assert error_of(tmp_path).startswith(f"{path}: not a whole file of torch.save")


def test_a_flipped_bit_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = bin_folder(tmp_path, write_torch_zip, WEIGHTS) / "pytorch_model.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert error_of(tmp_path).startswith(f"{path}: not a whole file of torch.save")


# config.json


@pytest.mark.parametrize(
    ("key", "value", "field", "ours"),
    [
        ("afn", "gelu_new", "activation", "gelu"),
        ("afn", "relu", "activation", "relu"),
        ("afn", "silu", "activation", "silu"),
        ("afn", "swish", "activation", "silu"),
        ("resid_pdrop", 0.2, "residual_dropout_rate", 0.2),
        ("embd_pdrop", 0, "embed_dropout_rate", 0.0),
        ("attn_pdrop", 0.3, "attention_dropout_rate", 0.3),
        ("layer_norm_epsilon", 1e-3, "layer_norm_epsilon", 1e-3),
        ("initializer_range", 0.05, "init_std", 0.05),
        ("n_head", 4, "num_heads", 4),
    ],
)
def test_a_setting_is_carried_over_and_back(key: str, value: Any, field: str, ours: Any, tmp_path: Path) -> None:
    model = read_huggingface(folder(tmp_path / "source", WEIGHTS, **{key: value}), None)
    assert model.config == dataclasses.replace(CONFIG, **{field: ours})
    back = json.loads((written(model, tmp_path / "target") / "config.json").read_text())
    assert back[key] == {"gelu_new": "gelu", "swish": "silu"}.get(value, value)


def test_other_names_of_the_sizes_are_understood(tmp_path: Path) -> None:
    aliases = {
        "n_positions": "max_position_embeddings", "n_embd": "hidden_size", "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    }  # fmt: skip
    tree = huggingface_config()
    renamed = {alias: tree[name] for name, alias in aliases.items()}
    assert read_huggingface(folder(tmp_path, WEIGHTS, **dict.fromkeys(aliases), **renamed), None).config == CONFIG


def test_absent_keys_have_the_published_values(tmp_path: Path) -> None:
    folder(tmp_path, WEIGHTS)
    (tmp_path / "config.json").write_text("{}")
    assert "tokens_embed.weight is [40, 8], expected [40478, 768]" in error_of(tmp_path)


HUB_CONFIG = {
    "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "openai-gpt", "n_ctx": 512, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 512, "n_special": 0, "predict_special_tokens": True,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 40478,
}  # fmt: skip


def test_the_config_of_the_published_model_is_ours_without_a_word(tmp_path: Path) -> None:
    from gpt.interop.huggingface_config import read_config

    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    settings = read_config(tmp_path / "config.json", has_choice_head=True)
    assert settings.notes == ()
    assert settings.model_config(40478, 0, tmp_path) == ModelConfig()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2': only 'openai-gpt' is supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False: only True is supported"),
        ({"afn": "tanh"}, "afn = 'tanh': expected one of gelu, gelu_new, relu, silu, swish"),
        ({"afn": ["gelu"]}, "afn = ['gelu']: expected one of"),
        ({"n_layer": "3"}, "n_layer = '3': expected int"),
        ({"n_layer": 3.0}, "n_layer = 3.0: expected int"),
        ({"resid_pdrop": True}, "resid_pdrop = True: expected float"),
        ({"resid_pdrop": 1.5}, "ModelConfig.residual_dropout_rate = 1.5: a rate is at least 0 and below 1"),
        ({"n_head": 3}, "ModelConfig.embed_dim = 8 does not divide into ModelConfig.num_heads = 3 heads"),
        ({"hidden_size": 9}, "n_embd = 8, but its alias hidden_size = 9: remove one"),
    ],
)
def test_a_setting_that_means_something_else_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert error_of(folder(tmp_path, WEIGHTS, **changes)).startswith(f"{tmp_path / 'config.json'}: {reason}")


@pytest.mark.parametrize(
    "change", [{"summary_type": "mean"}, {"summary_use_proj": False}, {"summary_activation": "tanh"}]
)
def test_another_summary_than_the_linear_one_matters_with_its_head_alone(
    change: dict[str, Any], tmp_path: Path
) -> None:
    assert read_huggingface(folder(tmp_path / "bare", WEIGHTS, **change), None).config == CONFIG
    assert "is supported" in error_of(folder(tmp_path / "head", {**PREFIXED, **CHOICE_HEAD}, **change))


def test_unknown_keys_and_what_cannot_be_kept_are_named(tmp_path: Path) -> None:
    changes = {"rope_theta": 1e4, "pad_token_id": 0, "id2label": {"0": "no", "1": "yes"}, "temperature": 0.7}
    unknown, dropped = read_huggingface(folder(tmp_path, WEIGHTS, **changes), None).notes
    assert unknown == f"{tmp_path / 'config.json'}: unknown keys, without effect here: rope_theta"
    assert dropped.endswith("not kept: pad_token_id = 0, id2label = {'0': 'no', '1': 'yes'}")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    folder(tmp_path, WEIGHTS)
    (tmp_path / "config.json").write_text(text)
    assert error_of(tmp_path).startswith(f"{tmp_path / 'config.json'}: ")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    folder(tmp_path, WEIGHTS)
    (tmp_path / "config.json").unlink()
    assert error_of(tmp_path).startswith(f"{tmp_path / 'config.json'}: no such file")


def test_the_tokenizer_decides_which_rows_are_special(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_special_tokens=3)
    source = folder(tmp_path / "source", make_weights(config), vocab_size=43)
    model = read_huggingface(source, make_tokenizer())
    assert model.config == config
    back = json.loads((written(model, tmp_path / "target") / "config.json").read_text())
    assert back["vocab_size"] == 43


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    weights = make_weights(dataclasses.replace(CONFIG, vocab_size=41))
    with pytest.raises(DataError, match=r"token table has 41 rows, but the tokenizer has 40 tokens.*--tokenizer DIR"):
        read_huggingface(folder(tmp_path, weights, vocab_size=41), make_tokenizer())


def test_a_feed_forward_width_that_hugging_face_does_not_have_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, mlp_dim=16)
    with pytest.raises(DataError, match=r"ModelConfig.mlp_dim = 16: .* 4 x ModelConfig.embed_dim = 32"):
        write_huggingface(Model(config, our_params(make_weights(config))), tmp_path)


def test_switches_that_hugging_face_does_not_have_are_named(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, softmax_over_positions=True)
    notes = write_huggingface(Model(config, our_params(WEIGHTS)), tmp_path)
    assert notes == ("ModelConfig.softmax_over_positions = True has no counterpart in Hugging Face's model",)
