"""The cells of a sweep: axes in gin files, names, and what is refused before anything runs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from toy import write

from gpt import gin_io
from gpt.errors import ConfigError
from gpt.sweeps.grid import Cell, group_cells, make_cells, take_shard

NEEDED = ("TokenizerConfig.path=tok", "RunConfig.init_from=None", "ModelConfig.num_special_tokens=3")
TASK = "TaskConfig.name = 'cola'\n"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cells_of(text: str, *overrides: str, data_root: Path | None = None, files: Sequence[str] = ()) -> list[Cell]:
    settings = gin_io.load_sweep([write("a.gin", text), *files], [*NEEDED, *overrides])
    return make_cells(settings, Path("out"), data_root)


def error_of(text: str, *overrides: str, files: Sequence[str] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        cells_of(text, *overrides, files=files)
    return str(caught.value)


# Cells


def test_cells_are_every_combination_and_the_last_axis_varies_fastest() -> None:
    cells = cells_of(f"{TASK}sweep/RunConfig.seed = [7, 8]\nsweep/TaskConfig.lm_coef = [0, 0.5]")
    assert [(cell.config.seed, cell.config.task.lm_coef) for cell in cells] == [(7, 0), (7, 0.5), (8, 0), (8, 0.5)]
    assert cells[0].name == "seed=7-lm_coef=0.0"
    assert [cell.config.output_dir for cell in cells] == [f"out/{cell.name}" for cell in cells]


def test_a_block_of_axes_is_as_good_as_lines() -> None:
    assert len(cells_of(f"{TASK}sweep/RunConfig:\n  seed = [1, 2]\n  num_epochs = [1, 2]")) == 4


def test_an_axis_of_files_is_named_by_their_stems_and_found_beside_the_file_that_has_it() -> None:
    write("leaf.gin", "RunConfig.num_epochs = 9\nTaskConfig.lm_coef = 0.25")
    write("task/rte.gin", "include '../leaf.gin'\nTaskConfig.name = 'rte'")
    write("task/qnli.gin", "TaskConfig.name = 'qnli'")
    write("sweep/slice.gin", "TaskConfig.max_train_examples = 100")
    write(
        "sweep/s.gin",
        "sweep/RunConfig.seed = [1]\nsweep/gin_file.task = ['../task/rte.gin', ['../task/qnli.gin', 'slice.gin']]",
    )
    rte, qnli = make_cells(gin_io.load_sweep(["sweep/s.gin"], NEEDED), Path("out"))
    assert (rte.name, qnli.name) == ("rte-seed=1", "qnli+slice-seed=1")
    assert (rte.config.task.name, rte.config.num_epochs, rte.config.task.lm_coef) == ("rte", 9, 0.25)
    assert (qnli.config.task.name, qnli.config.task.max_train_examples) == ("qnli", 100)


def test_lines_beside_an_axis_of_files_win_over_what_its_files_include() -> None:
    write("leaf.gin", "RunConfig.num_epochs = 9\nRunConfig.batch_size = 9")
    write("rte.gin", "include 'leaf.gin'\nTaskConfig.name = 'rte'")
    (cell,) = cells_of("RunConfig.num_epochs = 1\nsweep/gin_file.task = ['rte.gin']\nsweep/RunConfig.batch_size = [2]")
    assert (cell.config.num_epochs, cell.config.batch_size) == (1, 2)


def test_a_macro_of_an_axis_file_holds_in_its_cells() -> None:
    write("low.gin", "lr = 1e-5")
    write("high.gin", "lr = 1e-3")
    cells = cells_of(f"{TASK}OptimizerConfig.learning_rate = %lr\nsweep/gin_file.rate = ['low.gin', 'high.gin']")
    assert [cell.config.optimizer.learning_rate for cell in cells] == [1e-5, 1e-3]


def test_a_macro_may_be_used_by_some_cells_alone_but_not_by_none() -> None:
    write("full.gin", "TaskConfig.data_dir = %pretrained")
    write("none.gin", "TaskConfig.data_dir = None")
    axis = f"{TASK}sweep/gin_file.ablation = ['full.gin', 'none.gin']"
    assert [cell.config.task.data_dir for cell in cells_of(axis, "pretrained=runs/x")] == ["runs/x", None]
    assert "macro `pretraned` is defined and never used" in error_of(axis, "pretraned=runs/x", "pretrained=runs/x")


def test_a_later_axis_replaces_an_earlier_one_of_its_key_in_its_place() -> None:
    text = f"{TASK}sweep/RunConfig.seed = [1, 2]\nsweep/RunConfig.num_epochs = [1, 2]"
    cells = cells_of(text, "sweep/RunConfig.seed=[5]")
    assert [cell.name for cell in cells] == ["seed=5-num_epochs=1", "seed=5-num_epochs=2"]


def test_names_hold_the_last_part_of_a_path_where_that_is_enough() -> None:
    axis = TASK + "sweep/TaskConfig.data_dir = [{}]\n"
    assert [cell.name for cell in cells_of(axis.format("'a/one', 'a/o n'"))] == ["data_dir=one", "data_dir=o_n"]
    assert [cell.name for cell in cells_of(axis.format("'a/x', 'b/x'"))] == ["data_dir=a_x", "data_dir=b_x"]


def test_a_task_reads_its_folder_of_the_data_root_unless_it_names_its_own() -> None:
    text = "sweep/TaskConfig.name = ['cola', 'rte']\n"
    folders = [cell.config.task.data_dir for cell in cells_of(text, data_root=Path("data"))]
    assert folders == ["data/cola", "data/rte"]
    own = cells_of(f"{text}TaskConfig.data_dir = 'mine'", data_root=Path("data"))
    assert [cell.config.task.data_dir for cell in own] == ["mine", "mine"]


def test_a_folder_of_the_data_root_may_have_the_published_spelling_of_its_task() -> None:
    for name in ("SST-2", "cola", "CoLA"):
        Path("data", name).mkdir(parents=True)
    text = "sweep/TaskConfig.name = ['sst2', 'cola', 'rte']\n"
    folders = [cell.config.task.data_dir for cell in cells_of(text, data_root=Path("data"))]
    assert folders == ["data/SST-2", "data/cola", "data/rte"]
    Path("data", "sst_2").mkdir()
    with pytest.raises(ConfigError, match="'data' has several folders for the task 'sst2': SST-2, sst_2"):
        cells_of(text, data_root=Path("data"))


def test_cells_of_one_key_are_a_group_of_limited_size() -> None:
    cells = cells_of(f"{TASK}sweep/RunConfig.seed = [1, 2, 3]\nsweep/RunConfig.num_epochs = [1, 2]")
    groups = group_cells(cells, lambda config: config.num_epochs, None)
    assert [[cell.name for cell in group] for group in groups] == [
        ["seed=1-num_epochs=1", "seed=2-num_epochs=1", "seed=3-num_epochs=1"],
        ["seed=1-num_epochs=2", "seed=2-num_epochs=2", "seed=3-num_epochs=2"],
    ]
    assert list(map(len, group_cells(cells, lambda config: config.num_epochs, 2))) == [2, 1, 2, 1]


def test_shards_part_the_cells_among_them() -> None:
    cells = [[cell] for cell in cells_of(f"{TASK}sweep/RunConfig.seed = [0, 1, 2, 3, 4, 5, 6]")]
    assert [cell.config.seed for (cell,) in take_shard(cells, "1/3")] == [0, 3, 6]
    parts = [take_shard(cells, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(cell.name for part in parts for (cell,) in part) == [cell.name for (cell,) in cells]
    assert take_shard(cells, "9/9") == []


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0", "1/3/5", ""])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(ConfigError, match="expected i/n, i from 1 to n, such as 1/4"):
        take_shard([[]], shard)


# Refusals


def test_axes_are_for_gpt_sweep_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        gin_io.load([write("a.gin", "sweep/RunConfig.seed = [1]")], NEEDED)
    assert str(caught.value) == (
        "a.gin:1: `sweep/RunConfig.seed` is an axis of a sweep, and this is one run: use `gpt sweep`, "
        "or delete the axis"
    )


def test_a_sweep_without_an_axis_is_refused() -> None:
    assert "there is no axis to sweep over: add one to a gin file, such as sweep/RunConfig.seed" in error_of(TASK)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("RunConfig.seed = []", "sweep/RunConfig.seed is empty: give it at least one value, or delete the axis"),
        ("gin_file.task = []", "sweep/gin_file.task is empty: give it at least one value"),
        ("RunConfig.seed = 3", "sweep/RunConfig.seed = 3: an axis takes a list of values, such as [3]"),
        ("gin_file.task = 'a.gin'", "sweep/gin_file.task = 'a.gin': an axis takes a list of values"),
        ("RunConfig.seed = [3, 4, 3]", "sweep/RunConfig.seed has 3 twice"),
        ("TaskConfig.lm_coef = [1, 1.0]", "sweep/TaskConfig.lm_coef has 1.0 twice"),
        ("gin_file.task = ['b.gin', 'b.gin']", "sweep/gin_file.task has b.gin twice"),
        ("RunConfig.seed = [1, 'two']", "RunConfig.seed = 'two': expected int"),
        ("RunConfig.seed = [%many]", "sweep/RunConfig.seed = [%many]: a macro is not taken here: write the values"),
        ("gin_file.task = [3]", "gin_file.task: 3: expected the name of a gin file, or a list of names"),
        ("gin_file.task = [[]]", "gin_file.task: []: expected the name of a gin file, or a list of names"),
        ("RunConfig.sed = [3]", "RunConfig has no field `sed`; did you mean `seed`?"),
        ("RunConfg.seed = [3]", "unknown section `RunConfg`; did you mean `RunConfig`?"),
        ("seed = [3]", "`sweep/seed` is no axis: expected sweep/Section.field or sweep/gin_file.NAME"),
        ("RunConfig.output_dir = ['x']", "RunConfig.output_dir: each cell has its own directory under --output"),
    ],
)
def test_a_wrong_axis_is_refused_with_its_line(axis: str, message: str) -> None:
    error = error_of(f"{TASK}sweep/{axis}")
    assert error.startswith("a.gin:2: ")
    assert message in error


def test_a_directory_of_its_own_for_a_cell_is_refused() -> None:
    assert "--gin.RunConfig.output_dir=x: RunConfig.output_dir: each cell has its own directory" in error_of(
        f"{TASK}sweep/RunConfig.seed = [1]", "RunConfig.output_dir=x"
    )


def test_two_axes_of_one_setting_are_refused() -> None:
    text = f"{TASK}sweep/RunConfig.seed = [1]\nsweep/RunConfig.seed = [2]"
    assert error_of(text) == "a.gin:3: `RunConfig.seed` is set twice in this file, first at a.gin:2"


def test_a_setting_that_is_an_axis_and_fixed_in_one_file_is_refused() -> None:
    text = f"{TASK}sweep/RunConfig.seed = [1]\nRunConfig.seed = 2"
    assert error_of(text).endswith(
        "set twice in this file, first at a.gin:2, once as an axis of a sweep and once fixed"
    )


def test_a_setting_that_is_an_axis_and_fixed_later_is_refused() -> None:
    text = f"{TASK}sweep/RunConfig.seed = [1]"
    expected = "`RunConfig.seed` is set by the axis sweep/RunConfig.seed, and once more by {}, which would win"
    assert expected.format("--gin.RunConfig.seed=2") in error_of(text, "RunConfig.seed=2")
    assert expected.format("b.gin:1") in error_of(text, files=[write("b.gin", "RunConfig.seed = 2")])


def test_what_an_axis_file_itself_says_cannot_be_undone() -> None:
    write("full.gin", "TaskConfig.lm_coef = 0.5")
    write("no_lm.gin", "TaskConfig.lm_coef = 0.0")
    text = f"{TASK}sweep/gin_file.ablation = ['full.gin', 'no_lm.gin']\n"
    undone = "full.gin:1: `TaskConfig.lm_coef` is set by the axis sweep/gin_file.ablation, and once more by "
    assert f"{undone}a.gin:3, which" in error_of(f"{text}TaskConfig.lm_coef = 0.3")
    assert f"{undone}the axis sweep/TaskConfig.lm_coef, a.gin:3, which" in error_of(
        f"{text}sweep/TaskConfig.lm_coef = [0.3]"
    )


def test_what_an_axis_file_says_may_be_said_again() -> None:
    write("race.gin", f"{TASK}TaskConfig.truncate = True")
    write("mnli.gin", TASK.replace("cola", "mnli"))
    cells = cells_of("sweep/gin_file.task = ['race.gin', 'mnli.gin']\nTaskConfig.truncate = True")
    assert [cell.config.task.truncate for cell in cells] == [True, True]


def test_a_file_of_an_axis_has_no_axes_and_no_directory() -> None:
    write("b.gin", "sweep/RunConfig.seed = [1]")
    assert "b.gin is itself a value of an axis, and has none" in error_of(f"{TASK}sweep/gin_file.x = ['b.gin']")
    write("b.gin", "RunConfig.output_dir = 'x'")
    assert "each cell has its own directory" in error_of(f"{TASK}sweep/gin_file.x = ['b.gin']")


def test_a_missing_file_of_an_axis_is_named() -> None:
    write("cola.gin", "")
    assert error_of(f"{TASK}sweep/gin_file.x = ['coal.gin']") == "coal.gin: no such file; did you mean `cola.gin`?"


def test_a_cell_that_cannot_run_is_named() -> None:
    error = error_of(f"{TASK}sweep/RunConfig.batch_size = [4, 6]\nRunConfig.accumulation_steps = 4")
    assert error.startswith("cell batch_size=6: RunConfig.batch_size = 6 does not divide into")


def test_two_cells_of_one_name_or_of_one_config_are_refused() -> None:
    write("a/x.gin", "RunConfig.seed = 1")
    write("b/x.gin", "RunConfig.seed = 2")
    write("b/y.gin", "RunConfig.seed = 2")
    axis = TASK + "sweep/gin_file.seed = ['{}', '{}']"
    assert "two cells are called 'x': rename one of the files" in error_of(axis.format("a/x.gin", "b/x.gin"))
    assert "cells x and y are the same run" in error_of(axis.format("b/x.gin", "b/y.gin"))
