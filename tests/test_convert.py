"""`gpt convert` as a user runs it: round trips to the last bit, and nothing left at the target when it fails."""

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from foreign import (
    CONFIG,
    assert_same_bits,
    make_tokenizer,
    make_weights,
    openai_vector,
    our_params,
    write_config,
    write_openai_files,
)
from safetensors.numpy import load_file, save_file
from toy import Command, Run, Toy, run_python

from gpt import gin_io
from gpt.config import MeshConfig
from gpt.errors import ConfigError
from gpt.model.gpt import init_params
from gpt.sharding import make_mesh
from gpt.text.tokenizer import Tokenizer
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.loop import train
from gpt.training.model_dir import convert as write
from gpt.training.model_dir import load_model
from gpt.training.state import transfer

WEIGHTS = make_weights()
WITH_SPECIALS = dataclasses.replace(CONFIG, num_special_tokens=3)
CHOICE_HEAD = {
    "multiple_choice_head.summary.weight": np.arange(8, dtype=np.float32).reshape(1, 8),
    "multiple_choice_head.summary.bias": np.array([0.5], np.float32),
}
SCORE_HEAD = {"score.weight": np.arange(8, dtype=np.float32).reshape(1, 8)}


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """Runs `gpt convert` here."""
    from gpt.cli.main import main

    def convert(source_format: str, target_format: str, source: Path, target: Path, *flags: str) -> Command:
        arguments = ["--from", source_format, "--to", target_format, str(source), str(target), *flags]
        monkeypatch.setattr(sys, "argv", ["gpt", "convert", *arguments])
        code = main()
        captured = capsys.readouterr()
        return Command(code, captured.out, captured.err)

    return convert


@pytest.fixture
def openai(tmp_path: Path) -> Path:
    """OpenAI's files with their vocabulary."""
    make_tokenizer().save(tmp_path / "openai", "openai")
    return write_openai_files(tmp_path / "openai", WEIGHTS)


@pytest.fixture
def openai_with_specials(tmp_path: Path) -> Path:
    """The same, with three more rows of tokens."""
    make_tokenizer().save(tmp_path / "specials", "openai")
    return write_openai_files(tmp_path / "specials", make_weights(WITH_SPECIALS))


def huggingface(directory: Path, head: dict[str, np.ndarray] | None = None) -> Path:
    """A Hugging Face folder with three special tokens, and a head or not."""
    write_config(directory, vocab_size=43, summary_first_dropout=0.2)
    make_tokenizer().save(directory)
    prefixed = {f"transformer.{name}": array for name, array in make_weights(WITH_SPECIALS).items()}
    save_file({**prefixed, **(head or {})}, directory / "model.safetensors")
    return directory


# Round trips


@pytest.mark.parametrize("middle", ["run", "huggingface"])
@pytest.mark.parametrize("kind", ["openai", "openai_with_specials"])
def test_openais_files_come_back_bit_by_bit(
    kind: str, middle: str, convert: Callable[..., Command], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(kind)
    assert convert("openai", middle, source, tmp_path / "middle").code == 0
    assert convert(middle, "openai", tmp_path / "middle", tmp_path / "back").code == 0
    assert openai_vector(tmp_path / "back").tobytes() == openai_vector(source).tobytes()
    for name in ("params_shapes.json", "encoder_bpe_40000.json", "vocab_40000.bpe"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert load_model(tmp_path / "back").config == load_model(source).config


@pytest.mark.parametrize("head", [None, CHOICE_HEAD, SCORE_HEAD], ids=["none", "multiple_choice", "score"])
def test_a_hugging_face_folder_comes_back_bit_by_bit(
    head: dict[str, np.ndarray] | None, convert: Callable[..., Command], tmp_path: Path
) -> None:
    source = huggingface(tmp_path / "source", head)
    assert convert("huggingface", "run", source, tmp_path / "run").code == 0
    assert convert("run", "huggingface", tmp_path / "run", tmp_path / "back").code == 0
    tensors = [load_file(folder / "model.safetensors") for folder in (tmp_path / "back", source)]
    assert_same_bits(*tensors)
    there, here = load_model(tmp_path / "back"), load_model(source)
    assert (there.config, there.head, there.classifier_dropout_rate) == (here.config, here.head, 0.2)
    assert there.tokenizer is not None
    assert here.tokenizer is not None
    assert there.tokenizer.sha256 == here.tokenizer.sha256


def test_a_run_comes_back_through_both_formats(
    pretrained: Run, convert: Callable[..., Command], tmp_path: Path
) -> None:
    # mlp_dim of the toy is no multiple that Hugging Face has, so OpenAI's files are in the middle.
    convert("run", "openai", pretrained.path, tmp_path / "openai")
    convert("openai", "run", tmp_path / "openai", tmp_path / "back", "--route=basic")
    there, here = load_model(tmp_path / "back"), load_model(pretrained.path)
    assert there.config == here.config
    assert_same_bits(there.params, here.params)
    assert there.tokenizer is not None
    assert there.tokenizer.sha256 == Tokenizer.load(pretrained.path / "tokenizer").sha256


# A converted run is a run


@pytest.fixture
def converted(pretrained: Run, convert: Callable[..., Command], tmp_path: Path) -> Path:
    """The toy run, converted to OpenAI's files and back."""
    convert("run", "openai", pretrained.path, tmp_path / "openai")
    assert convert("openai", "run", tmp_path / "openai", tmp_path / "converted", "--route=basic").code == 0
    return tmp_path / "converted"


def test_eval_scores_a_converted_run_as_the_one_it_was(toy: Toy, pretrained: Run, converted: Path) -> None:
    store = f"--gin.DataConfig.token_store={toy.store}"
    there = run_python("eval.py", f"--run={converted}", store, "--json")
    here = run_python("eval.py", f"--run={pretrained.path}", "--json")
    assert there.code == 0, there.err
    assert [row["value"] for row in there.rows] == pytest.approx([row["value"] for row in here.rows], rel=1e-5)
    assert {row["step"] for row in there.rows} == {0}


def test_eval_of_a_converted_run_asks_for_a_token_store(converted: Path) -> None:
    command = run_python("eval.py", f"--run={converted}")
    assert command.code == 2
    assert "set --gin.DataConfig.token_store to a directory that `gpt prepare` wrote" in command.err


def test_eval_of_a_converted_run_needs_no_more_text_than_it_scores(toy: Toy, converted: Path) -> None:
    flags = ("--gin.RunConfig.batch_size=1000", f"--gin.DataConfig.token_store={toy.store}", "--json")
    command = run_python("eval.py", f"--run={converted}", *flags)  # more than there are windows to train on
    assert command.code == 0, command.err


def test_fine_tuning_starts_from_a_converted_run_as_from_the_one_it_was(
    toy: Toy, finetuned: Run, converted: Path, tmp_path: Path
) -> None:
    flags = (*toy.finetune_flags(converted), f"--gin.RunConfig.output_dir={tmp_path / 'tuned'}")
    command = run_python("train.py", *flags)
    assert command.code == 0, command.err
    there = load_params(find_checkpoint(tmp_path / "tuned"), make_mesh(MeshConfig(), jax.devices()[:1]))
    here = load_params(find_checkpoint(finetuned.path), make_mesh(MeshConfig(), jax.devices()[:1]))
    assert_same_bits(jax.device_get(there), jax.device_get(here))


def test_a_converted_run_cannot_be_trained_under_its_own_config(converted: Path) -> None:
    config = gin_io.load([converted / "config.gin"])
    assert (config.max_steps, config.data.token_store, config.output_dir) == (0, None, str(converted))
    with pytest.raises(ConfigError, match=r"RunConfig.max_steps = 0 .* set RunConfig.init_from"):
        train(config)


def test_a_config_that_makes_updates_still_needs_a_token_store(converted: Path) -> None:
    with pytest.raises(ConfigError, match=r"DataConfig.token_store is not set"):
        gin_io.load([converted / "config.gin"], ["RunConfig.max_steps=1"])
    with pytest.raises(ConfigError, match=r"RunConfig.max_steps = -1: must be 0 or more"):
        gin_io.load([converted / "config.gin"], ["RunConfig.max_steps=-1"])


# Heads and special tokens


def test_eval_uses_the_head_of_a_converted_run_and_misses_none_in_silence(
    toy: Toy, finetuned: Run, convert: Callable[..., Command], tmp_path: Path
) -> None:
    run = load_model(finetuned.path)
    head = {**run.params["head"], "bias": np.zeros(2, np.float32)}  # Hugging Face has no bias
    write(dataclasses.replace(run, params={**run.params, "head": head}), tmp_path / "run", "run")
    task = ("--gin.TaskConfig.name=cola", f"--gin.TaskConfig.data_dir={toy.cola}", "--json")
    command = run_python("eval.py", f"--run={tmp_path / 'run'}", *task)
    assert command.code == 0, command.err
    assert {row["metric"] for row in command.rows} == {"lm_loss", "task_loss", "matthews"}
    convert("run", "run", tmp_path / "run", tmp_path / "headless", "--without_head")
    command = run_python("eval.py", f"--run={tmp_path / 'headless'}", *task)
    assert command.code == 2
    assert "has no head, but TaskConfig.name = 'cola' takes one of 2" in command.err


def test_a_fine_tuned_run_goes_to_openai_without_its_head_only(
    finetuned: Run, convert: Callable[..., Command], tmp_path: Path
) -> None:
    refused = convert("run", "openai", finetuned.path, tmp_path / "openai")
    assert refused.code == 2
    assert "give --without_head to leave it out" in refused.err
    flags = ("--without_head", "--num_special_tokens=0")
    assert convert("run", "openai", finetuned.path, tmp_path / "openai", *flags).code == 0
    model, run = load_model(tmp_path / "openai"), load_model(finetuned.path)
    assert model.config == dataclasses.replace(run.config, num_special_tokens=0)
    assert_same_bits(
        {"table": model.params["transformer"]["token_embedding"]},
        {"table": run.params["transformer"]["token_embedding"][:-3]},
    )


def test_a_classifier_with_a_bias_goes_to_hugging_face_without_it_only(
    convert: Callable[..., Command], tmp_path: Path
) -> None:
    source = huggingface(tmp_path / "source", {"score.weight": np.ones((2, 8), np.float32)})
    convert("huggingface", "run", source, tmp_path / "run")
    with_bias = load_model(tmp_path / "run")
    with_bias.params["head"]["bias"] = np.ones(2, np.float32)
    write(with_bias, tmp_path / "biased", "run")
    assert "has none: its scores would differ" in convert("run", "huggingface", tmp_path / "biased", tmp_path / "x").err
    assert convert("run", "huggingface", tmp_path / "biased", tmp_path / "x", "--without_head").code == 0
    assert set(load_file(tmp_path / "x" / "model.safetensors")) == {f"transformer.{n}" for n in WEIGHTS}


@pytest.mark.parametrize(("task", "head"), [("cola", "score"), ("stsb", "similarity"), ("race", "multiple_choice")])
def test_the_task_of_a_run_says_what_its_head_gives(finetuned: Run, tmp_path: Path, task: str, head: str) -> None:
    shutil.copytree(finetuned.path, tmp_path / "run")
    config = (tmp_path / "run" / "config.gin").read_text()
    (tmp_path / "run" / "config.gin").write_text(re.sub(r"(TaskConfig.name +=) 'cola'", rf"\1 '{task}'", config))
    assert load_model(tmp_path / "run").head == head


def test_new_special_tokens_keep_every_old_row_and_are_drawn_from_the_seed(
    openai: Path, convert: Callable[..., Command], tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ("--num_special_tokens=3", f"--seed={seed}")
        assert convert("openai", "run", openai, tmp_path / name, *flags).code == 0
    first, again, other = (load_model(tmp_path / name).params for name in "abc")
    assert_same_bits(first, again)
    tables = [params["transformer"]["token_embedding"] for params in (first, other)]
    assert tables[0][:40].tobytes() == tables[1][:40].tobytes() == WEIGHTS["tokens_embed.weight"].tobytes()
    assert not np.array_equal(tables[0][40:], tables[1][40:])
    assert np.std([table[40:] for table in tables]) == pytest.approx(CONFIG.init_std, rel=0.4)
    convert("run", "openai", tmp_path / "a", tmp_path / "back", "--num_special_tokens=0")
    assert openai_vector(tmp_path / "back").tobytes() == openai_vector(openai).tobytes()


def test_starting_a_fine_tuning_keeps_every_old_row_bit_by_bit() -> None:
    fresh = init_params(WITH_SPECIALS, jax.random.key(0), 2)
    started = jax.device_get(transfer(fresh, our_params(WEIGHTS)))
    table = started["transformer"]["token_embedding"]
    assert table[:40].tobytes() == WEIGHTS["tokens_embed.weight"].tobytes()
    assert table[40:].tobytes() == np.asarray(fresh["transformer"]["token_embedding"][40:]).tobytes()


# Tokenizers


def test_openais_weights_take_the_original_route_unless_told(
    openai: Path, convert: Callable[..., Command], tmp_path: Path
) -> None:
    convert("openai", "run", openai, tmp_path / "original")
    convert("openai", "run", openai, tmp_path / "basic", "--route=basic")
    assert Tokenizer.load(tmp_path / "original" / "tokenizer").route == "original"
    assert Tokenizer.load(tmp_path / "basic" / "tokenizer").route == "basic"
    command = convert("run", "huggingface", tmp_path / "original", tmp_path / "huggingface")
    assert "the original route, which Hugging Face's tokenizers do not have" in command.err
    assert Tokenizer.load(tmp_path / "huggingface").route == "basic"


def test_without_a_tokenizer_files_are_converted_with_a_word_and_runs_are_refused(
    convert: Callable[..., Command], tmp_path: Path
) -> None:
    source = write_openai_files(tmp_path / "openai", WEIGHTS)
    command = convert("openai", "huggingface", source, tmp_path / "huggingface")
    assert command.code == 0
    assert f"warning: {source}: no tokenizer in it; --tokenizer DIR names the one" in command.err
    assert sorted(path.name for path in (tmp_path / "huggingface").iterdir()) == ["config.json", "model.safetensors"]
    refused = convert("openai", "run", source, tmp_path / "run")
    assert (refused.code, (tmp_path / "run").exists()) == (2, False)
    assert "a run needs its tokenizer" in refused.err
    make_tokenizer().save(tmp_path / "tokenizer")
    assert convert("openai", "run", source, tmp_path / "run", f"--tokenizer={tmp_path / 'tokenizer'}").code == 0


def test_a_tokenizer_that_is_named_must_be_there(openai: Path, convert: Callable[..., Command], tmp_path: Path) -> None:
    command = convert("openai", "run", openai, tmp_path / "run", f"--tokenizer={tmp_path / 'none'}")
    assert command.code == 2
    assert f"--tokenizer {tmp_path / 'none'}: no tokenizer in it; expected tokenizer.json or" in command.err


def test_a_tokenizer_of_another_size_is_refused(convert: Callable[..., Command], toy: Toy, openai: Path) -> None:
    command = convert("openai", "run", openai, openai.with_name("run"), f"--tokenizer={toy.tokenizer}")
    assert command.code == 2
    assert "the token table has 40 rows, but the tokenizer has" in command.err


def test_a_run_with_a_tokenizer_of_another_size_is_refused(
    convert: Callable[..., Command], pretrained: Run, tmp_path: Path
) -> None:
    make_tokenizer().save(tmp_path / "tokenizer")
    flags = (f"--tokenizer={tmp_path / 'tokenizer'}",)
    command = convert("run", "openai", pretrained.path, tmp_path / "target", *flags)
    assert "but the tokenizer has 40 tokens: give the tokenizer of these weights" in command.err


# What is written, and what is not


def test_what_was_written_is_said_in_words_and_in_json(
    openai: Path, convert: Callable[..., Command], tmp_path: Path
) -> None:
    target, count = tmp_path / "huggingface", sum(array.size for array in WEIGHTS.values())
    command = convert("openai", "huggingface", openai, target, "--json")
    assert command.rows == [{"output": str(target), "format": "huggingface", "parameters": count}]
    assert f"{target}: {count:,} parameters as huggingface" in command.err


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("mine")], ids=["dir", "file"])
@pytest.mark.parametrize("target_format", ["openai", "huggingface", "run"])
def test_a_target_that_exists_is_refused_and_left_alone(
    make: Callable[[Path], object], target_format: str, openai: Path, convert: Callable[..., Command], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    make(target)
    command = convert("openai", target_format, openai, target)
    assert command.code == 2
    assert command.err == (
        f"error: {str(target)!r} exists already, and nothing is overwritten: choose another target\n"
    )
    assert list(target.iterdir()) == [] if target.is_dir() else target.read_text() == "mine"


@pytest.mark.parametrize("target_format", ["openai", "huggingface", "run"])
def test_a_failure_half_way_leaves_nothing_behind(
    target_format: str, openai: Path, convert: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt.text.tokenizer.Tokenizer.save", full)
    before = sorted(tmp_path.iterdir())
    command = convert("openai", target_format, openai, tmp_path / "target")
    assert (command.code, sorted(tmp_path.iterdir())) == (2, before)
    assert "cannot be written: [Errno 28] No space left on device" in command.err


def test_weights_that_are_no_numbers_are_converted_with_a_warning(
    convert: Callable[..., Command], tmp_path: Path
) -> None:
    weights = {**WEIGHTS, "h.1.ln_2.bias": np.full(8, np.nan, np.float32)}
    source = write_openai_files(tmp_path / "openai", weights)
    command = convert("openai", "huggingface", source, tmp_path / "huggingface")
    assert command.code == 0
    assert "NaN or infinity among the weights: h1/ln_2/b (8 of 8)" in command.err
    command = convert("huggingface", "openai", tmp_path / "huggingface", tmp_path / "back")
    assert "NaN or infinity among the weights: h.1.ln_2.bias (8 of 8)" in command.err
    assert openai_vector(tmp_path / "back").tobytes() == openai_vector(source).tobytes()


def test_a_source_that_is_no_directory_is_refused(convert: Callable[..., Command], tmp_path: Path) -> None:
    command = convert("openai", "run", tmp_path / "none", tmp_path / "run")
    assert (command.code, command.err) == (2, f"error: {str(tmp_path / 'none')!r} is no directory\n")


@pytest.mark.parametrize("source_format", ["openai", "huggingface", "run"])
def test_a_source_of_another_kind_is_refused(
    source_format: str, convert: Callable[..., Command], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    command = convert(source_format, "openai", tmp_path / "empty", tmp_path / "target")
    assert command.code == 2
    assert str(tmp_path / "empty") in command.err
    assert not (tmp_path / "target").exists()
