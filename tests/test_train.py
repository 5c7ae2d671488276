"""train.py as a user runs it, on a toy language: what a run leaves behind, resuming, fine-tuning, and refusals."""

import dataclasses
import gzip
import json
import re
import runpy
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_population import use_devices
from toy import ROOT, Run, Toy, run_python, run_until, toy_sentences, train_to

from gpt import gin_io
from gpt.cli.start import run_guarded
from gpt.config import CheckpointConfig, MeshConfig, ModelConfig
from gpt.data.store import TokenStore
from gpt.errors import ConfigError, DataError
from gpt.model.gpt import Params, param_shapes
from gpt.sharding import make_mesh
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe
from gpt.training.checkpoint import Checkpoints, find_checkpoint, load_params
from gpt.training.goodput import PARTS
from gpt.training.loop import check_pretrained, load_pretrained, starting_state, train
from gpt.training.problem import load_problem
from gpt.training.run_dir import load_config, open_run, read_metrics
from gpt.training.state import TrainState, transfer

SPEED = {"tokens_per_second", "step_seconds", "mfu_measured", "measured_tflops", "peak_process_gib"}


def final_params(run_dir: Path) -> Params:
    return load_params(find_checkpoint(run_dir), make_mesh(MeshConfig(), jax.devices()[:1]))


def assert_bit_equal(one: Params, other: Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def metrics_without_speed(run_dir: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_metrics(run_dir) if line["kind"] != "time"]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in lines]


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs train.py here on flags that it must refuse; returns its error, after a look that nothing was made."""
    main = runpy.run_path(str(ROOT / "train.py"))["main"]
    monkeypatch.chdir(ROOT)

    def refusal(*flags: str, output: Path = tmp_path / "run") -> str:
        existed = output.exists()
        assert run_guarded(lambda: main([*flags, f"--gin.RunConfig.output_dir={output}"])) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert output.exists() == existed
        return captured.err

    return refusal


# What a run leaves behind


def test_a_mixture_of_stores_says_how_often_each_is_read(toy: Toy, tmp_path: Path) -> None:
    stores = {str(shutil.copytree(toy.store, tmp_path / name)): weight for name, weight in (("a", 1.0), ("b", 3.0))}
    flags = [flag for flag in toy.pretrain_flags if "token_store" not in flag]
    overrides = [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]
    overrides += [f"DataConfig.token_store={stores}", f"RunConfig.output_dir={tmp_path / 'run'}"]
    config = gin_io.load([ROOT / "configs" / "run" / "pretrain.gin"], overrides)
    problem = load_problem(config, Tokenizer.load(toy.tokenizer))
    tokens = len(TokenStore.open(toy.store).split("train"))
    windows = (tokens - 1) // 16
    assert problem.facts["train_tokens"] == 2 * tokens
    assert problem.facts["a_passes"] == round(24 * 8 / 4 / windows, 2)
    assert problem.facts["b_passes"] == round(24 * 8 * 3 / 4 / windows, 2)
    assert list(problem.held_outs) == ["validation_a", "validation_b"]


def test_the_loss_falls_and_the_last_line_holds_run_step_and_final_losses(pretrained: Run) -> None:
    (result,) = pretrained.command.rows
    assert (result["run"], result["step"]) == (str(pretrained.path), 24)
    lines = read_metrics(pretrained.path)
    assert lines[0]["lm_loss"] == pytest.approx(np.log(100), rel=0.1)
    assert result["train"]["lm_loss"] < 0.7 * lines[0]["lm_loss"]
    assert result["validation"]["perplexity"] == pytest.approx(np.exp(result["validation"]["lm_loss"]))
    assert (result["train"], result["validation"]) == (lines[-3], lines[-2])


def test_the_metrics_file_is_complete_and_ascending(pretrained: Run) -> None:
    lines = read_metrics(pretrained.path)
    steps = {kind: [line["step"] for line in lines if line["kind"] == kind] for kind in ("train", "validation", "time")}
    assert steps == {"train": list(range(1, 25)), "validation": [8, 16, 24], "time": [10, 20, 24]}
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert lines[-3].keys() == {"step", "kind", "loss", "lm_loss", "gradient_norm", "learning_rate"} | SPEED


def test_the_time_is_accounted_for(pretrained: Run) -> None:
    (result,) = pretrained.command.rows
    for time in [line for line in read_metrics(pretrained.path) if line["kind"] == "time"] + [result["time"]]:
        assert sum(time[part] for part in PARTS) == pytest.approx(1)
        assert all(time[part] >= 0 for part in PARTS)
        assert min(time["update"], time["save"]) > 0
    lines = [line for line in read_metrics(pretrained.path) if line["kind"] == "time"]
    assert result["time"]["seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    assert lines[0]["compile"] > 0
    assert (lines[1]["compile"], lines[1]["evaluate"] > 0) == (0, True)


def test_events_for_tensorboard_are_written(pretrained: Run) -> None:
    (events,) = (pretrained.path / "events").glob("events.out.tfevents.*")
    assert b"validation/perplexity" in events.read_bytes()


def test_progress_is_plain_lines_when_there_is_no_terminal(pretrained: Run) -> None:
    lines = pretrained.command.err.splitlines()
    assert len(lines) == 1 + 24 + 3 + 3
    assert lines[-2].startswith("step 24/24 validation: lm_loss ")
    assert re.match(r"step 24/24 time: [\d.]+ s, compile [\d.]+%, data wait .*, other [\d.]+%", lines[-1])
    assert re.search(
        r"tokens/s, [\d.]+% of a measured matrix product, that of .*GiB at most in this process", lines[-3]
    )
    assert pretrained.command.err.isascii()
    assert "\x1b" not in pretrained.command.err
    assert "\r" not in pretrained.command.err


def test_the_newest_checkpoints_are_kept_and_no_others(pretrained: Run) -> None:
    assert sorted(int(path.name) for path in (pretrained.path / "checkpoints").iterdir()) == [20, 24]


def test_fine_tuning_learns_the_task(finetuned: Run) -> None:
    (result,) = finetuned.command.rows
    assert result["validation"].keys() == {"step", "kind", "task_loss", "lm_loss", "matthews"}
    assert result["validation"]["task_loss"] < 0.65 < np.log(2)
    assert (result["train_examples"], result["validation_examples"], result["train_cut"]) == (43, 29, 0)


def test_repeating_a_finished_command_prints_the_same_and_changes_nothing(pretrained: Run) -> None:
    before = contents(pretrained.path)
    again = run_python("train.py", *pretrained.flags)
    assert (again.code, again.rows) == (0, pretrained.command.rows)
    assert again.err == ""
    assert {path: content for path, content in contents(pretrained.path).items() if content != before.get(path)} == {}


def test_a_run_may_be_resumed_on_another_mesh_which_its_config_then_names(pretrained: Run, tmp_path: Path) -> None:
    config = dataclasses.replace(load_config(pretrained.path), output_dir=str(tmp_path / "run"))
    tokenizer = Tokenizer.load(config.tokenizer.path)
    open_run(config, tokenizer)
    assert load_config(tmp_path / "run") == config
    elsewhere = dataclasses.replace(config, mesh=MeshConfig(data=1, tensor=2))
    open_run(elsewhere, tokenizer)
    assert load_config(tmp_path / "run") == elsewhere


def test_another_config_in_the_directory_of_a_run_is_refused_with_the_differing_settings(
    pretrained: Run, refusal: Callable[..., str]
) -> None:
    before = contents(pretrained.path)
    flags = [flag for flag in pretrained.flags if "output_dir" not in flag and "learning_rate" not in flag]
    error = refusal(*flags, "--gin.OptimizerConfig.learning_rate=0.5", "--gin.RunConfig.seed=1", output=pretrained.path)
    assert "holds a run of another config" in error
    assert "RunConfig.seed: 42 there, 1 here" in error
    assert "OptimizerConfig.learning_rate: 0.01 there, 0.5 here" in error
    assert "batch_size" not in error
    assert contents(pretrained.path) == before


# Resuming


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_a_run_stopped_by_sigterm_and_repeated_equals_an_undisturbed_one(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    undisturbed: Run = request.getfixturevalue(kind)
    last = 24 if kind == "pretrained" else 15
    stop = 7  # in the middle of an epoch, and of the way to the next checkpoint
    flags = (*undisturbed.flags[:-1], f"--gin.RunConfig.output_dir={tmp_path / 'run'}")
    stopped = run_until(signal.SIGTERM, stop, flags)
    assert (stopped.code, stopped.out) == (75, "")
    assert stopped.err.endswith(f"error: SIGTERM: saved step {stop} of {last}; the same command continues from there\n")
    resumed = train_to(tmp_path / "run", undisturbed.flags[:-1])
    assert f"step {stop}/" not in resumed.command.err
    assert next(line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "time") <= stop
    assert_bit_equal(final_params(tmp_path / "run"), final_params(undisturbed.path))
    assert metrics_without_speed(tmp_path / "run") == metrics_without_speed(undisturbed.path)


def test_a_killed_run_repeated_equals_an_undisturbed_one(pretrained: Run, tmp_path: Path) -> None:
    flags = (*pretrained.flags[:-1], f"--gin.RunConfig.output_dir={tmp_path / 'run'}")
    assert run_until(signal.SIGKILL, 22, flags).code == -signal.SIGKILL
    assert metrics_without_speed(tmp_path / "run")[-1]["step"] == 21
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 22, "ki')  # as a crash of the machine may leave it
    resumed = train_to(tmp_path / "run", pretrained.flags[:-1])
    # The save of step 20 may be lost, but it waited for that of step 10.
    assert "step 10/" not in resumed.command.err
    assert_bit_equal(final_params(tmp_path / "run"), final_params(pretrained.path))
    assert metrics_without_speed(tmp_path / "run") == metrics_without_speed(pretrained.path)


def test_a_run_stopped_between_log_lines_logs_the_means_of_an_undisturbed_one(
    pretrained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    config = dataclasses.replace(load_config(pretrained.path), output_dir=str(tmp_path / "run"), log_every_steps=3)
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(save_every_steps=2))
    for until in (4, 6):
        train(config, until=until)
    three = [line for line in read_metrics(pretrained.path) if line["kind"] == "train" and 4 <= line["step"] <= 6]
    (line,) = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train" and line["step"] == 6]
    for name in ("loss", "gradient_norm"):
        assert line[name] == pytest.approx(np.mean([update[name] for update in three]), abs=1e-5)


@pytest.fixture
def other_tokenizer(tmp_path: Path) -> Path:
    """A vocabulary of the size of the toy language's, of other text."""
    train_bpe([*toy_sentences(0, 120), "zebra zebra"], 100).save(tmp_path / "other")
    return tmp_path / "other"


def state_of(width: int, dtype: Any = jnp.float32) -> TrainState:
    params = {"transformer": {"token_embedding": jnp.zeros((3, width), dtype)}}
    return TrainState(jnp.array(5, jnp.int32), params, (jnp.array(5, jnp.int32), params))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (state_of(3), r"step 5: .*token_embedding is \(\(3, 2\), 'float32'\) there, but \(\(3, 3\), 'float32'\) in"),
        (state_of(2, jnp.bfloat16), r"'float32'\) there, but \(\(3, 2\), 'bfloat16'\) in this config"),
        (state_of(2)._replace(optimizer_state=()), r"optimizer/.* there, but absent in this config; use the config"),
    ],
    ids=["shape", "dtype", "structure"],
)
def test_a_checkpoint_of_other_arrays_is_refused(tmp_path: Path, like: TrainState, message: str) -> None:
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.begin_save(state_of(2))
        checkpoints.publish()
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.newest_verified() == 5
        assert_bit_equal(checkpoints.restore(5, state_of(2)).params, state_of(2).params)
        with pytest.raises(DataError, match=message):
            checkpoints.restore(5, like)


# Profiling


def test_profiled_updates_leave_a_trace_and_the_config_as_it_was(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    flags = [flag for flag in toy.pretrain_flags if "max_steps" not in flag]
    flags += ["--gin.RunConfig.max_steps=3", f"--gin.RunConfig.output_dir={tmp_path / 'run'}", "--profile_steps=2:3"]
    main = runpy.run_path(str(ROOT / "train.py"))["main"]
    assert main(flags) == 0
    (trace,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    updates = {event["args"]["step_num"] for event in events if event.get("name") == "update"}
    assert updates == {"2", "3"}
    assert "profile_steps" not in (tmp_path / "run" / "config.gin").read_text()
    capsys.readouterr()
    assert run_guarded(lambda: main(flags)) == 2
    assert "is finished; set another RunConfig.output_dir" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["10", "10-13", "0:3", "13:10", "a:b", "-1:3", ""])
def test_a_malformed_range_to_profile_is_refused(toy: Toy, refusal: Callable[..., str], text: str) -> None:
    error = refusal(*toy.pretrain_flags, f"--profile_steps={text}")
    assert f"--profile_steps {text!r}: expected FIRST:LAST with 1 <= FIRST <= LAST, such as 10:13" in error


def test_a_range_to_profile_beyond_the_run_is_refused(toy: Toy, refusal: Callable[..., str]) -> None:
    error = refusal(*toy.pretrain_flags, "--profile_steps=20:25")
    assert "--profile_steps 20:25: this run is to make the updates 1 to 24: give a range within them" in error


# From pretrained weights


def fresh_params(config: ModelConfig) -> Params:
    return jax.tree.map(lambda shape: jnp.full(shape.shape, 7.0), param_shapes(config, 2))


def test_fine_tuning_starts_from_the_pretrained_transformer_and_fresh_special_rows_and_head(
    pretrained: Run, finetuned: Run, tmp_path: Path
) -> None:
    config, fresh = load_config(finetuned.path), fresh_params(load_config(finetuned.path).model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with Checkpoints(tmp_path, CheckpointConfig()) as none_yet:
        state = starting_state(
            config, TrainState(jnp.array(0), fresh, ()), none_yet, None, load_pretrained(config, mesh)
        )
    there, here = final_params(pretrained.path)["transformer"], dict(state.params["transformer"])
    table = here.pop("token_embedding")
    np.testing.assert_array_equal(table[:-3], there.pop("token_embedding"))
    np.testing.assert_array_equal(table[-3:], fresh["transformer"]["token_embedding"][-3:])
    assert_bit_equal(here, there)
    assert_bit_equal(state.params["head"], fresh["head"])


def test_a_transformer_of_another_shape_is_not_transferred(pretrained: Run) -> None:
    deeper = dataclasses.replace(load_config(pretrained.path).model, num_layers=3, num_special_tokens=3)
    with pytest.raises(ValueError, match="another shape than ModelConfig describes"):
        transfer(fresh_params(deeper), final_params(pretrained.path))


def test_another_architecture_than_the_pretrained_one_is_refused(
    toy: Toy, pretrained: Run, refusal: Callable[..., str]
) -> None:
    flags = [flag for flag in toy.finetune_flags(pretrained.path) if "mlp_dim" not in flag]
    error = refusal(*flags, "--gin.ModelConfig.mlp_dim=64", "--gin.ModelConfig.residual_dropout_rate=0.0")
    assert error.endswith("is another architecture: ModelConfig.mlp_dim: 32 there, 64 here\n")


def test_settings_that_the_weights_do_not_depend_on_are_free(pretrained: Run) -> None:
    saved = load_config(pretrained.path)
    tokenizer = Tokenizer.load(saved.tokenizer.path)
    other = dataclasses.replace(saved.model, lstm_dim=7, attention_dropout_rate=0.3, init_std=0.1, num_special_tokens=3)
    config = dataclasses.replace(saved, model=other, init_from=str(pretrained.path))
    check_pretrained(config, tokenizer)
    changed = dataclasses.replace(config, model=dataclasses.replace(other, activation="relu"))
    with pytest.raises(ConfigError, match=r"ModelConfig\.activation: 'gelu' there, 'relu' here"):
        check_pretrained(changed, tokenizer)


def test_another_vocabulary_of_the_same_size_than_the_pretrained_one_is_refused(
    toy: Toy, pretrained: Run, other_tokenizer: Path, refusal: Callable[..., str]
) -> None:
    flags = [flag for flag in toy.finetune_flags(pretrained.path) if "TokenizerConfig" not in flag]
    error = refusal(*flags, f"--gin.TokenizerConfig.path={other_tokenizer}")
    assert "is not the vocabulary that RunConfig.init_from" in error
    assert f"set it to '{pretrained.path / 'tokenizer'}'" in error


def test_a_pretrained_run_that_is_not_there_is_refused(toy: Toy, tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "none' is not a run directory: there is no config.gin" in refusal(*toy.finetune_flags(tmp_path / "none"))


# Bad input


def test_a_store_of_another_tokenizer_is_refused(toy: Toy, other_tokenizer: Path, refusal: Callable[..., str]) -> None:
    flags = [flag for flag in toy.pretrain_flags if "TokenizerConfig" not in flag]
    error = refusal(*flags, f"--gin.TokenizerConfig.path={other_tokenizer}")
    assert "was prepared with another tokenizer" in error


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-3], "tokens take 3,072; the token store is damaged"),
        (lambda content: content[:100] + b"\xff\xff" + content[102:], "holds token id 65535, beyond the vocabulary of"),
    ],
    ids=["truncated", "id beyond the vocabulary"],
)
def test_a_damaged_store_is_refused(
    toy: Toy, tmp_path: Path, refusal: Callable[..., str], damage: Callable[[bytes], bytes], message: str
) -> None:
    store = shutil.copytree(toy.store, tmp_path / "store")
    (store / "train.bin").write_bytes(damage((store / "train.bin").read_bytes()))
    flags = [flag for flag in toy.pretrain_flags if "token_store" not in flag]
    error = refusal(*flags, f"--gin.DataConfig.token_store={store}")
    assert f"{store / 'train.bin'}: " in error
    assert message in error


def test_a_vocabulary_of_another_size_than_the_model_is_refused(toy: Toy, refusal: Callable[..., str]) -> None:
    flags = [flag for flag in toy.pretrain_flags if "vocab_size" not in flag]
    error = refusal(*flags, "--gin.ModelConfig.vocab_size=101")
    assert "ModelConfig.vocab_size = 101, but the tokenizer in TokenizerConfig.path" in error
    assert "has 100 tokens: set it to that number" in error


def test_a_directory_with_files_of_others_is_refused_and_left_alone(
    toy: Toy, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    error = refusal(*toy.pretrain_flags, output=tmp_path / "mine")
    assert "exists and is not a run directory: set a new path" in error
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_directory_is_refused(toy: Toy, tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is not a run directory" in refusal(*toy.pretrain_flags, output=tmp_path / "file")
    assert "cannot write to RunConfig.output_dir" in refusal(*toy.pretrain_flags, output=tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can make a directory")
def test_a_directory_that_cannot_be_made_is_refused(toy: Toy, refusal: Callable[..., str]) -> None:
    assert "cannot write to RunConfig.output_dir = '/proc/run'" in refusal(
        *toy.pretrain_flags, output=Path("/proc/run")
    )


def test_unset_settings_are_listed_all_at_once_before_jax_is_imported() -> None:
    script = (
        "import runpy, sys; from gpt.cli.start import run_guarded; "
        "main = runpy.run_path('train.py')['main']; "
        "code = run_guarded(lambda: main(['--gin_file=configs/task/cola.gin'])); "
        "print(code, sorted({'jax', 'grain', 'datasets'} & sys.modules.keys()))"
    )
    command = run_python("-c", script)
    assert command.out == "2 []\n"
    for name in ("RunConfig.output_dir", "RunConfig.init_from", "TokenizerConfig.path"):
        assert f"\n  {name} (" in command.err


def test_refusals_of_the_command_itself_have_exit_code_2_and_no_traceback() -> None:
    command = run_python("train.py", "--gin_file=configs/none.gin")
    assert (command.code, command.out) == (2, "")
    assert command.err.startswith("error: configs/none.gin: no such file")
    assert "Traceback" not in command.err
    unknown = run_python("train.py", "--learning_rate=1")
    assert (unknown.code, unknown.out) == (2, "")
    assert "flag '--learning_rate=1' is not known: settings are given as --gin.Section.field=value" in unknown.err
