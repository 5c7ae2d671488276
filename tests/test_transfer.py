"""How many pretrained layers a run starts from, and `gpt transfer`: scores against that number."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_tables import MODEL, make_config, write_run
from toy import Command, Run

from gpt.config import CheckpointConfig, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TaskConfig
from gpt.errors import ConfigError
from gpt.model.gpt import Params, init_params
from gpt.sharding import make_mesh
from gpt.training.checkpoint import Checkpoints, find_checkpoint, load_params
from gpt.training.loop import load_pretrained, starting_state
from gpt.training.optimizer import make_optimizer
from gpt.training.run_dir import load_config
from gpt.training.state import Keys, create_state, transfer

CONFIG = ModelConfig(
    vocab_size=20, num_special_tokens=3, context_length=8, num_layers=4, num_heads=2, embed_dim=16, mlp_dim=24
)


@pytest.fixture(scope="module")
def weights() -> tuple[Params, Params]:
    """Fresh parameters of a model with a head, and those of a pretrained one, which has no special tokens."""
    pretrained = init_params(dataclasses.replace(CONFIG, num_special_tokens=0), jax.random.key(1))
    # Biases and gains all start alike, and could not be told apart.
    pretrained = jax.tree.map(lambda leaf: leaf + 0.5, pretrained)
    return init_params(CONFIG, jax.random.key(2), 2), pretrained


# The weights


@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_blocks_below_the_number_are_the_pretrained_ones_and_those_above_keep_their_fresh_values(
    number: int, weights: tuple[Params, Params]
) -> None:
    fresh, pretrained = weights
    found = transfer(fresh, pretrained, number)

    def check(block: jax.Array, old: jax.Array, new: jax.Array) -> None:
        np.testing.assert_array_equal(block[:number], old[:number])
        np.testing.assert_array_equal(block[number:], new[number:])
        are_pretrained = [np.array_equal(one, other) for one, other in zip(block, old, strict=True)]
        assert are_pretrained == [layer < number for layer in range(4)]

    jax.tree.map(check, *(tree["transformer"]["blocks"] for tree in (found, pretrained, fresh)))


@pytest.mark.parametrize("number", [0, 2, None])
def test_embeddings_are_always_the_pretrained_ones_and_special_rows_and_head_fresh(
    number: int | None, weights: tuple[Params, Params]
) -> None:
    fresh, pretrained = weights
    found = transfer(fresh, pretrained, number)
    here, there = found["transformer"], pretrained["transformer"]
    np.testing.assert_array_equal(here["token_embedding"][:-3], there["token_embedding"])
    np.testing.assert_array_equal(here["token_embedding"][-3:], fresh["transformer"]["token_embedding"][-3:])
    np.testing.assert_array_equal(here["position_embedding"], there["position_embedding"])
    jax.tree.map(np.testing.assert_array_equal, found["head"], fresh["head"])


def test_all_layers_by_their_number_are_the_same_as_none(weights: tuple[Params, Params]) -> None:
    jax.tree.map(np.testing.assert_array_equal, transfer(*weights, 4), transfer(*weights))


def test_the_weights_lie_on_four_devices_as_before_with_the_values_of_one(weights: tuple[Params, Params]) -> None:
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), num_steps=4)
    found = {}
    for name, mesh_config, num_devices in (("four", MeshConfig(data=1, fsdp=2, tensor=2), 4), ("one", MeshConfig(), 1)):
        mesh = make_mesh(mesh_config, jax.devices()[:num_devices])
        state, shardings = create_state(CONFIG, 2, optimizer, Keys(*3 * [jax.random.key(3)]), mesh)
        found[name] = transfer(state.params, weights[1], 2)
        assert jax.tree.map(lambda leaf: leaf.sharding, found[name]) == shardings.params
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(params) for params in found.values()))


def test_a_run_starts_from_as_many_blocks_as_its_config_says_and_an_optimizer_that_knows_nothing(
    pretrained: Run, finetuned: Run, tmp_path: Path
) -> None:
    config = dataclasses.replace(load_config(finetuned.path), num_transferred_layers=1)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    fresh, _ = create_state(config.model, 2, make_optimizer(config.optimizer, 15), Keys(*3 * [jax.random.key(0)]), mesh)
    with Checkpoints(tmp_path, CheckpointConfig()) as none_yet:
        state = starting_state(config, fresh, none_yet, None, load_pretrained(config, mesh))
    blocks, there, before = (
        params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
        for params in (state.params, load_params(find_checkpoint(pretrained.path), mesh), fresh.params)
    )
    np.testing.assert_array_equal(blocks[0], there[0])
    np.testing.assert_array_equal(blocks[1], before[1])
    assert not np.array_equal(blocks[1], there[1])
    assert state.optimizer_state is fresh.optimizer_state
    assert int(state.step) == 0


# The setting


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_transferred_layers": 13}, r"= 13: must be from 0 \(embeddings alone\) to ModelConfig.num_layers = 12"),
        ({"num_transferred_layers": -1}, "= -1: must be from 0"),
        ({"num_transferred_layers": 3, "init_from": None}, "= 3 needs pretrained blocks to take over, and RunConfig.i"),
        (
            {"num_transferred_layers": 3, "model": dataclasses.replace(MODEL, architecture="lstm")},
            "= 3 counts transformer blocks, and ModelConfig.architecture is 'lstm': set it to None",
        ),
    ],
)
def test_a_number_that_means_nothing_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"RunConfig\.num_transferred_layers {reason}"):
        make_config(**settings)


def test_it_is_no_setting_of_pretraining() -> None:
    with pytest.raises(ConfigError, match=r"= 3 is for fine-tuning, and TaskConfig.name is not set: set it to None"):
        dataclasses.replace(
            make_config(), task=TaskConfig(), data=DataConfig(token_store="store"), num_transferred_layers=3
        )


# The figure


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """CoLA of a model with two layers: one layer with three seeds, none and all with one, without pre-training two."""
    model = dataclasses.replace(MODEL, num_layers=2)
    for name, seeds, settings in (
        ("random", {1: 0.0, 2: 0.02}, {"init_from": None}),
        ("embeddings", {1: 0.05}, {"num_transferred_layers": 0}),
        ("one", {1: 0.1, 2: 0.4, 3: 0.2}, {"num_transferred_layers": 1}),
        ("all", {1: 0.5}, {"num_transferred_layers": None}),
        ("all-by-number", {2: 0.7}, {"num_transferred_layers": 2}),
    ):
        for seed, value in seeds.items():
            path = tmp_path / "runs" / name / str(seed)
            write_run(path, {"matthews": value}, seed=seed, model=model, **settings)
    return tmp_path / "runs"


def test_a_point_has_the_statistics_of_its_seeds(runs: Path, gpt: Callable[..., Command]) -> None:
    command = gpt("transfer", "--runs", runs, "--json")
    assert (command.code, command.err) == (0, "")
    none, embeddings, one, both = command.rows
    assert one == {
        **{"task": "cola", "metric": "matthews", "pretrained": True, "num_transferred_layers": 1, "num_layers": 2},
        **{"split": "validation", "n": 3, "seeds": [1, 2, 3], "median": 20.0, "min": 10.0, "max": 40.0},
        **{"mean": pytest.approx(70 / 3), "std": pytest.approx(15.275252)},
    }
    assert (none["pretrained"], none["num_transferred_layers"], none["median"]) == (False, None, 1.0)
    assert (embeddings["num_transferred_layers"], embeddings["n"], embeddings["std"]) == (0, 1, None)
    assert (both["num_transferred_layers"], both["seeds"], both["median"]) == (2, [1, 2], pytest.approx(60.0))


def test_points_without_runs_are_said_and_empty(tmp_path: Path, gpt: Callable[..., Command]) -> None:
    write_run(tmp_path / "runs" / "a", {"accuracy": 0.5}, task="rte", num_transferred_layers=7)
    command = gpt("transfer", "--runs", tmp_path / "runs", "--json")
    assert command.err == "note: rte: no runs for no pre-training, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12\n"
    assert [row["n"] for row in command.rows] == [0] * 8 + [1] + [0] * 5
    assert command.rows[0]["median"] is None
    assert gpt("transfer", "--runs", tmp_path / "runs").out == (
        "rte, 7 of 12 layers transferred: accuracy median 50.0, 50.0 to 50.0, seeds 42\n"
    )


def test_a_curve_is_of_one_setting_and_notes_name_what_others_change(runs: Path, gpt: Callable[..., Command]) -> None:
    model = dataclasses.replace(MODEL, num_layers=2)
    other: dict[str, Any] = {"model": model, "seed": 9}
    write_run(runs / "0", {"matthews": 0.9}, num_transferred_layers=1, learning_rate=1e-3, **other)
    write_run(runs / "1", {"matthews": 0.9}, num_transferred_layers=1, init_from="elsewhere", **other)
    write_run(runs / "2", {"matthews": 0.9}, init_from=None, learning_rate=1e-3, **other)
    write_run(runs / "3", {"accuracy": 0.9}, task="rte")
    write_run(runs / "4", None, num_transferred_layers=1, **other)
    command = gpt("transfer", "--runs", runs, "--json")
    assert all(9 not in row["seeds"] and row["task"] == "cola" for row in command.rows)
    for note in (
        "cola: 1 runs of other settings left out (OptimizerConfig.learning_rate: 0.001 there, 6.25e-05 here)",
        "cola: 1 runs of other settings left out (RunConfig.init_from: 'elsewhere' there, 'pretrained' here)",
        "rte: left out, no run takes over some layers only",
        "1 runs of a task are not finished",
    ):
        assert f"note: {note}" in command.err


def test_the_figure_is_a_png_with_a_line_a_task(
    runs: Path, gpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr("gpt.paper.transfer.save_figure", lambda figure, _: drawn.append(figure))
    for number in (0, 12):
        write_run(runs / f"rte{number}", {"accuracy": 0.5}, task="rte", num_transferred_layers=number)
    gpt("transfer", "--runs", runs, "--output", "x.png")
    axes: Any = drawn[0].axes[0]
    lines = [container.lines[0] for container in axes.containers]
    assert [list(line.get_xdata()) for line in lines] == [[0, 1, 2], [-1], [0, 12]]
    assert list(lines[0].get_ydata()) == pytest.approx([5.0, 20.0, 60.0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cola, matthews", "rte, accuracy"]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert bars[1].tolist() == pytest.approx(np.array([[1, 10], [1, 40]]))
    assert axes.get_xticklabels()[0].get_text() == "no pre-\ntraining"


def test_the_picture_is_written_and_one_that_cannot_be_is_an_error(runs: Path, gpt: Callable[..., Command]) -> None:
    picture = runs.parent / "new" / "layers.png"
    command = gpt("transfer", "--runs", runs, "--output", picture)
    assert (command.code, command.err) == (0, f"wrote {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    (runs.parent / "file").write_text("mine")
    command = gpt("transfer", "--runs", runs, "--output", runs.parent / "file" / "x.png")
    assert command.code == 2
    assert "cannot be written" in command.err


def test_runs_that_all_take_over_every_layer_have_no_figure(tmp_path: Path, gpt: Callable[..., Command]) -> None:
    write_run(tmp_path / "runs" / "a", {"matthews": 0.3})
    command = gpt("transfer", "--runs", tmp_path / "runs")
    assert (command.code, command.out) == (2, "")
    assert "holds no finished run that takes over some layers only: fine-tune with" in command.err
    assert "is no directory" in gpt("transfer", "--runs", tmp_path / "none").err
