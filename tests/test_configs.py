"""Every shipped config: it is read, says what it said before, and holds the published numbers.

After an intended change, `GPT_UPDATE_GOLDEN=1 pytest tests/test_configs.py` writes the golden texts anew.
"""

import dataclasses
import os
from pathlib import Path

import pytest

from gpt import gin_io
from gpt.config import ModelConfig, RunConfig
from gpt.errors import ConfigError
from gpt.paper.runs import kind_of, setting_of
from gpt.sweeps.grid import make_cells
from gpt.tasks.registry import TASKS

CONFIGS = Path(__file__).parents[1] / "configs"
GOLDEN = Path(__file__).parent / "golden" / "configs"
PRETRAIN = CONFIGS / "run" / "pretrain.gin"
SWEEPS = sorted((CONFIGS / "sweep").glob("*.gin"))
FILES = sorted(set(CONFIGS.rglob("*.gin")) - set(SWEEPS))

BASIC = ("RunConfig.output_dir=runs/new", "TokenizerConfig.path=tokenizer")
PRETRAINING = (*BASIC, "DataConfig.token_store=tokens")
FINE_TUNING = (*BASIC, "RunConfig.init_from=runs/pretrained")


def golden_name(file: Path) -> str:
    """`task-cola.txt` for configs/task/cola.gin."""
    return "-".join(file.relative_to(CONFIGS).with_suffix(".txt").parts)


def load(file: Path) -> RunConfig:
    """The config of one file as it is meant to be used, with its required settings filled."""
    if file.parent.name in ("model", "mesh"):
        return gin_io.load([PRETRAIN, file], PRETRAINING)
    if file.stem == "adapt":
        return gin_io.load([file], [*PRETRAINING, "RunConfig.init_from=runs/pretrained"])
    if file == PRETRAIN:
        return gin_io.load([file], PRETRAINING)
    if file.stem == "quickstart_pretrain":
        return gin_io.load([PRETRAIN, CONFIGS / "model" / "tiny.gin", file], PRETRAINING)
    if file.stem == "quickstart_finetune":
        return gin_io.load([CONFIGS / "task" / "stdlib_area.gin", CONFIGS / "model" / "tiny.gin", file], FINE_TUNING)
    if file.parent.name == "paper":
        names = [name for name in ("pretrained", "pretrained_lstm") if f"%{name}\n" in file.read_text()]
        macros = [f"{name}=runs/{name}" for name in names]
        return gin_io.load([CONFIGS / "task" / "cola.gin", file], [*BASIC, *macros])
    if file.stem == "openai_code":
        return gin_io.load([CONFIGS / "task" / "cola.gin", file], FINE_TUNING)
    if file.stem == "finetune":
        return gin_io.load([file], [*FINE_TUNING, "TaskConfig.name=cola"])
    return gin_io.load([file], FINE_TUNING)


@pytest.mark.parametrize("file", FILES, ids=golden_name)
def test_a_config_resolves_to_its_golden_text(file: Path) -> None:
    golden = GOLDEN / golden_name(file)
    text = gin_io.format_config(load(file))
    if os.environ.get("GPT_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), f"{file.name} has changed: read the head of this file"


def test_every_golden_text_belongs_to_a_config() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(map(golden_name, FILES))


@pytest.mark.parametrize("file", FILES, ids=golden_name)
def test_the_text_of_a_config_is_read_back_to_an_equal_config(file: Path, tmp_path: Path) -> None:
    config = load(file)
    saved = tmp_path / "config.gin"
    saved.write_text(gin_io.format_config(config))
    assert gin_io.load([saved]) == config


@pytest.mark.parametrize(("file", "count"), [("figure2_left", 78), ("glue", 24), ("seeds", 18), ("table5", 96)])
def test_every_sweep_has_the_cells_that_its_head_says(file: str, count: int) -> None:
    assert {path.stem for path in SWEEPS} == {"figure2_left", "glue", "seeds", "table5"}
    base = [CONFIGS / "task" / "cola.gin"] if file == "seeds" else []
    given = {
        "table5": ["pretrained=runs/a", "pretrained_lstm=runs/b"],
        "figure2_left": ["pretrained=runs/a"],
    }.get(file, ["RunConfig.init_from=runs/a"])
    settings = gin_io.load_sweep([*base, CONFIGS / "sweep" / f"{file}.gin"], ["TokenizerConfig.path=tok", *given])
    cells = make_cells(settings, Path("runs"), Path("data"))
    assert len(cells) == count
    assert all(cell.config.task.data_dir == f"data/{cell.config.task.name}" for cell in cells)


def test_the_sweep_of_figure_2_left_gives_the_point_without_pre_training_the_same_settings() -> None:
    sweep, given = CONFIGS / "sweep" / "figure2_left.gin", ["pretrained=runs/a", "TokenizerConfig.path=tok"]
    layers = make_cells(gin_io.load_sweep([sweep], given), Path("layers"), Path("data"))
    without = [*given, "sweep/RunConfig.num_transferred_layers=[None]"]
    files = [sweep, CONFIGS / "paper" / "no_pretraining.gin"]
    none = make_cells(gin_io.load_sweep(files, without), Path("none"), Path("data"))
    assert [cell.config.num_transferred_layers for cell in layers[::3]] == [*range(13), *range(13)]
    assert len(none) == 6
    for cell in none:
        (full,) = [c for c in layers if c.name == cell.name.replace("=None", "=12")]
        assert dataclasses.replace(setting_of(full.config), init_from=None) == setting_of(cell.config)


def test_gpt1_is_the_default_and_sets_every_number_of_the_architecture() -> None:
    assert load(CONFIGS / "model" / "gpt1.gin").model == ModelConfig()
    text = (CONFIGS / "model" / "gpt1.gin").read_text()
    left_open = {field for field in vars(ModelConfig()) if f"ModelConfig.{field} =" not in text}
    quirks = {"embedding_table_dropout", "softmax_over_positions"}
    lstm = {"architecture", "lstm_dim"}
    assert left_open == {"num_special_tokens", "compute_dtype", "scan_layers", "remat", "attention"} | quirks | lstm


def test_a_model_file_leaves_the_special_tokens_to_the_run() -> None:
    files = [CONFIGS / "task" / "cola.gin", CONFIGS / "model" / "gpt1_small.gin"]
    model = gin_io.load(files, FINE_TUNING).model
    assert (model.num_layers, model.num_special_tokens) == (6, 3)


def test_pretraining_follows_the_paper() -> None:
    config = load(PRETRAIN)
    assert config.is_pretraining
    assert (config.batch_size, config.num_epochs) == (64, 100)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps) == (2.5e-4, "cosine", 2000)
    assert (optimizer.name, optimizer.weight_decay) == ("openai_adam", 0.01)


TASK_NAMES = sorted(set(TASKS) - {"stdlib_area", "stdlib_next"})


@pytest.mark.parametrize("name", TASK_NAMES)
def test_fine_tuning_follows_the_paper(name: str) -> None:
    config = load(CONFIGS / "task" / f"{name}.gin")
    assert (config.task.name, config.task.lm_coef, config.task.classifier_dropout_rate) == (name, 0.5, 0.1)
    assert (config.batch_size, config.num_epochs, config.model.num_special_tokens) == (32, 3, 3)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (6.25e-5, "linear")
    assert (optimizer.warmup_steps, optimizer.warmup_fraction) == (None, 0.002)


ABLATIONS = ("full", "no_pretraining", "no_aux_lm", "lstm")


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_makes_a_task_a_run_of_its_row_of_table_5_and_changes_nothing_else(name: str) -> None:
    ablation = load(CONFIGS / "paper" / f"{name}.gin")
    assert kind_of(ablation) == name
    full = load(CONFIGS / "paper" / "full.gin")
    changed = {
        "full": set(),
        "no_pretraining": {"RunConfig.init_from"},
        "no_aux_lm": {"TaskConfig.lm_coef"},
        "lstm": {"RunConfig.init_from", "ModelConfig.architecture"},
    }
    assert {line.split(":")[0] for line in gin_io.differences(full, ablation)} == changed[name]


@pytest.mark.parametrize("size", ["gpt1", "gpt1_small", "tiny"])
def test_the_lstm_is_pretrained_in_the_widths_of_any_size_with_2048_units(size: str) -> None:
    files = [CONFIGS / "model" / f"{name}.gin" for name in (size, "lstm")]
    model = gin_io.load([PRETRAIN, *files], PRETRAINING).model
    transformer = load(CONFIGS / "model" / f"{size}.gin").model
    assert (model.architecture, model.lstm_dim) == ("lstm", 2048)
    assert dataclasses.replace(model, architecture="transformer") == transformer


def test_a_task_asks_for_the_weights_to_start_from_and_none_is_an_answer() -> None:
    task = CONFIGS / "task" / "cola.gin"
    with pytest.raises(ConfigError, match=r"RunConfig\.init_from \(REQUIRED in .*finetune\.gin:\d+\)"):
        gin_io.load([task], BASIC)
    assert gin_io.load([task], [*BASIC, "RunConfig.init_from=None"]).init_from is None
