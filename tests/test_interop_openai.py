"""OpenAI's `params_*.npy`: read by number and name, written as they were, refused when something is wrong."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign import (
    CONFIG,
    assert_same_bits,
    make_tokenizer,
    make_weights,
    openai_vector,
    our_params,
    write_openai_files,
)

from gpt.config import ModelConfig
from gpt.errors import DataError
from gpt.interop.openai import read_openai, write_openai
from gpt.interop.weights import Model

WEIGHTS = make_weights()
TOTAL = sum(array.size for array in WEIGHTS.values())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of OpenAI's files."""
    return write_openai_files(tmp_path / "openai", WEIGHTS)


def change_shapes(directory: Path, change: Callable[[list[list[int]]], object]) -> None:
    path = directory / "params_shapes.json"
    shapes = json.loads(path.read_text())
    change(shapes)
    path.write_text(json.dumps(shapes))


def error_of(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_openai(directory, None)
    return str(caught.value)


def test_every_array_lands_bit_by_bit_under_its_name(files: Path) -> None:
    model = read_openai(files, None)
    assert model.config == CONFIG
    assert model.notes == ()
    assert_same_bits(model.params, our_params(WEIGHTS))


@pytest.mark.parametrize("sizes", [[], [1] * 11, [7, 0, 1000]], ids=["one", "twelve", "uneven"])
def test_any_split_is_read_in_the_order_of_the_numbers(sizes: list[int], tmp_path: Path) -> None:
    files = write_openai_files(tmp_path, WEIGHTS, sizes)
    assert_same_bits(read_openai(files, None).params, our_params(WEIGHTS))


def test_a_model_of_one_layer_and_width_one_keeps_its_real_axes_of_one(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_layers=1, embed_dim=1, num_heads=1, mlp_dim=1, context_length=1)
    weights = make_weights(config)
    files = write_openai_files(tmp_path, weights)
    (files / "hparams.json").write_text('{"n_head": 1}')
    assert_same_bits(read_openai(files, None).params, our_params(weights))


def test_ten_shards_with_the_same_shapes_are_written_back(files: Path, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    assert write_openai(read_openai(files, None), tmp_path / "back") == ()
    assert openai_vector(tmp_path / "back").tobytes() == openai_vector(files).tobytes()
    assert len(list((tmp_path / "back").glob("params_*.npy"))) == 10
    assert (tmp_path / "back" / "params_shapes.json").read_bytes() == (files / "params_shapes.json").read_bytes()


def test_settings_that_the_shapes_do_not_tell_survive_in_a_file_beside_them(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, activation="silu", num_special_tokens=3, layer_norm_epsilon=1e-3, residual_dropout_rate=0.2,
        softmax_over_positions=True,
    )  # fmt: skip
    model = Model(config, our_params(make_weights(config)))
    write_openai(model, tmp_path)
    assert read_openai(tmp_path, None).config == config


def test_special_tokens_are_written_as_rows_and_said_to_be(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_special_tokens=3)
    (note,) = write_openai(Model(config, our_params(make_weights(config))), tmp_path)
    assert note.startswith("array 1 of params_shapes.json has 43 rows: the vocabulary and 3 special tokens")
    assert "--num_special_tokens 0 leaves them out" in note


def test_a_head_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    head = {"kernel": np.zeros((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
    model = Model(CONFIG, {**our_params(WEIGHTS), "head": head}, head="score")
    with pytest.raises(DataError, match=r"positions, tokens and blocks only: give --without_head .* huggingface"):
        write_openai(model, tmp_path)


def test_the_tokenizer_decides_which_rows_are_special(tmp_path: Path) -> None:
    weights = make_weights(dataclasses.replace(CONFIG, num_special_tokens=3))
    config = read_openai(write_openai_files(tmp_path, weights), make_tokenizer()).config
    assert (config.vocab_size, config.num_special_tokens) == (40, 3)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    weights = make_weights(dataclasses.replace(CONFIG, vocab_size=41))
    with pytest.raises(DataError, match=r"token table has 41 rows, but the tokenizer has 40 tokens.*--tokenizer DIR"):
        read_openai(write_openai_files(tmp_path, weights), make_tokenizer())


def test_without_settings_heads_have_64_channels_as_published(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, embed_dim=128, mlp_dim=512, num_layers=1)
    files = write_openai_files(tmp_path, make_weights(config))
    (files / "hparams.json").unlink()
    model = read_openai(files, None)
    assert model.config.num_heads == 2
    assert "taken as 2 heads of 64 channels" in model.notes[0]


def test_without_settings_an_odd_width_is_refused_with_what_to_write(files: Path) -> None:
    (files / "hparams.json").unlink()
    assert (
        'width 8 is no multiple of the published 64 channels a head: write hparams.json beside them, such as {"n'
        in (error_of(files))
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"n_head": 3}', "does not fit the shapes: ModelConfig.embed_dim = 8 does not divide into ModelConfig.num_h"),
        ('{"n_head": "2"}', "n_head is '2'; expected int"),
        ('{"n_head": 2, "afn": "tanh"}', "afn is 'tanh'; expected gelu or relu or silu"),
        ("[]", "expected a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(text: str, reason: str, files: Path) -> None:
    (files / "hparams.json").write_text(text)
    assert error_of(files).startswith(f"{files / 'hparams.json'}: {reason}")


def test_every_wrong_array_is_named_in_one_error(files: Path) -> None:
    def change(shapes: list[list[int]]) -> None:
        shapes[2 + 12 + 1] = [23]  # misshapen
        del shapes[2 + 24 + 6]  # missing
        shapes.append([5])  # extra

    change_shapes(files, change)
    error = error_of(files)
    assert "h1/attn/c_attn/b (array 15) is [23], expected [24]" in error
    assert "h2/mlp/c_fc/w [1, 8, 32] is missing" in error
    assert "array 37 [5] is not expected" in error


def test_tokens_in_front_of_positions_are_refused(files: Path) -> None:
    change_shapes(files, lambda shapes: shapes.__delitem__(0))
    assert "expected positions [context, width], then tokens [vocabulary, width]" in error_of(files)


def test_shards_that_hold_another_number_of_values_are_refused(files: Path) -> None:
    np.save(files / "params_9.npy", np.zeros(3, np.float32))
    assert f"but params_shapes.json describes {TOTAL:,}: a shard is damaged" in error_of(files)


def test_missing_shards_are_named(files: Path) -> None:
    for number in (3, 7):
        (files / f"params_{number}.npy").unlink()
    assert "shards are missing: params_3.npy, params_7.npy" in error_of(files)


def test_two_shards_of_one_number_are_refused(files: Path) -> None:
    (files / "params_03.npy").write_bytes((files / "params_3.npy").read_bytes())
    assert "params_03.npy and params_3.npy have the same number" in error_of(files)


def test_missing_shapes_are_named(files: Path) -> None:
    (files / "params_shapes.json").unlink()
    assert error_of(files).startswith(f"{files / 'params_shapes.json'}: no such file")


@pytest.mark.parametrize("text", ["[[1, 2], 3]", "{}", "[]", "[[-1, 2]]", '[["1", 2]]', "[[1.5, 2]]", "[[true]]"])
def test_shapes_that_are_none_are_refused(text: str, files: Path) -> None:
    (files / "params_shapes.json").write_text(text)
    assert "expected a JSON list of shapes" in error_of(files)


def test_a_truncated_shard_is_refused(files: Path) -> None:
    path = files / "params_4.npy"
    path.write_bytes(path.read_bytes()[:-5])
    assert error_of(files).startswith(f"{path}: not a whole .npy array of floats")


def test_bytes_behind_a_shard_are_refused(files: Path) -> None:
    path = files / "params_4.npy"
    path.write_bytes(path.read_bytes() + b"more")
    assert "bytes behind its array; expected a flat .npy vector" in error_of(files)


def test_pickled_objects_in_a_shard_are_refused(files: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "was_run",)

    np.save(files / "params_2.npy", np.array([Code()], object), allow_pickle=True)
    assert "Pickled objects are refused, because reading them would run code" in error_of(files)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.float32), np.float32(1)])
def test_a_shard_that_is_no_vector_is_refused(array: np.ndarray, files: Path) -> None:
    np.save(files / "params_2.npy", array)
    assert "expected a flat .npy vector" in error_of(files)


def test_half_precision_becomes_float32_and_is_said_to(files: Path) -> None:
    for path in files.glob("params_*.npy"):
        np.save(path, np.load(path).astype(np.float16))
    model = read_openai(files, None)
    expected = {name: array.astype(np.float16).astype(np.float32) for name, array in WEIGHTS.items()}
    assert_same_bits(model.params, our_params(expected))
    assert "in half precision; they become float32" in model.notes[0]


def test_double_precision_is_refused_rather_than_rounded(files: Path) -> None:
    for path in files.glob("params_*.npy"):
        np.save(path, np.load(path).astype(np.float64))
    assert "weights are float32 (float16 and bfloat16 are read, too), but shards is float64" in error_of(files)


def test_weights_that_are_no_numbers_are_named_and_kept(tmp_path: Path) -> None:
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["h.1.mlp.c_fc.bias"][3] = np.nan
    weights["positions_embed.weight"][0, :2] = np.inf
    model = read_openai(write_openai_files(tmp_path, weights), None)
    assert model.notes == (
        f"{tmp_path}: NaN or infinity among the weights: positions (2 of 96), h1/mlp/c_fc/b (1 of 32)",
    )
    assert_same_bits(model.params, our_params(weights))


@pytest.mark.slow
def test_the_published_shapes_make_the_published_model_and_come_back_byte_by_byte(assets: Path, tmp_path: Path) -> None:
    shapes_file = next(assets.rglob("params_shapes.json"))
    shapes = json.loads(shapes_file.read_text())
    flat = np.random.default_rng(0).standard_normal(sum(map(np.prod, shapes)), np.float32)
    assert flat.size == 116_534_784
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for number, shard in enumerate(np.array_split(flat, 10)):
        np.save(source / f"params_{number}.npy", shard)
    (source / "params_shapes.json").write_bytes(shapes_file.read_bytes())
    model = read_openai(source, None)
    assert (model.config, model.notes) == (ModelConfig(), ())
    write_openai(model, target)
    assert (target / "params_shapes.json").read_bytes() == shapes_file.read_bytes()
    for number in range(10):
        name = f"params_{number}.npy"
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_the_published_shapes_are_understood(assets: Path, tmp_path: Path) -> None:
    shapes = json.loads(next(assets.rglob("params_shapes.json")).read_text())
    tiny = ModelConfig(vocab_size=2, context_length=3, embed_dim=64, mlp_dim=256, num_heads=1)
    small = {512: 3, 40478: 2, 768: 64, 2304: 192, 3072: 256}
    assert [[small.get(size, size) for size in shape] for shape in shapes] == json.loads(
        (write_openai_files(tmp_path, make_weights(tiny)) / "params_shapes.json").read_text()
    )
    (tmp_path / "hparams.json").unlink()
    assert read_openai(tmp_path, None).config == tiny
