"""Each benchmark at a tiny size: that it runs, measures, and compares like with like. No speed is judged."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import run_python

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import __main__ as page
from benchmarks import compare, growth, lengths, ours, pipeline, runs

MODEL = {
    "vocab_size": 50, "context_length": 32, "num_layers": 1, "num_heads": 2, "embed_dim": 8, "mlp_dim": 32,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "training": {"batch": 4, "length": 8},
    "finetuning": {"task": "cola", "examples": 8, "batch": 4, "batches": 1},
    "scoring": {"batch": 2, "length": 8},
    "generation": {"batch": 2, "prompt": 4, "new": 3},
}
PEERS = [("training", {}), ("training", {"bf16": True}), *((work, {}) for work in CASES if work != "training")]


def slow_but_first(cases: list[Any]) -> list[Any]:
    """One case in the default suite, because each compiles a model; the others with `-m slow`."""
    first, *others = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*first), *(pytest.param(*case, marks=pytest.mark.slow) for case in others)]


@pytest.mark.parametrize("work", slow_but_first(list(CASES)))
def test_our_side_measures_every_turn(work: str) -> None:
    turn = getattr(ours, work)(**CASES[work], model=MODEL)
    assert turn()["seconds"] > 0
    assert turn()["seconds"] > 0


@pytest.mark.slow
def test_our_side_packs_the_examples_of_a_batch_when_asked() -> None:
    turn = ours.finetuning(**CASES["finetuning"], model=MODEL, packed=True)
    assert turn()["seconds"] > 0


def require_peer() -> None:
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[parity]'")


@pytest.mark.parametrize(("work", "options"), slow_but_first(PEERS), ids=str)
def test_the_peer_measures_every_turn(work: str, options: dict[str, bool]) -> None:
    require_peer()
    from benchmarks import huggingface

    turn = getattr(huggingface, work)(**CASES[work], **options, model={**MODEL, "context_length": 64})
    assert turn()["seconds"] > 0


def test_sides_take_turns_and_the_first_of_each_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str, seconds: list[float]) -> compare.Turn:
        values = iter(seconds)

        def turn() -> dict[str, float]:
            calls.append(name)
            return {"seconds": next(values)}

        return turn

    medians = compare.alternate({"ours": side("ours", [9, 1, 5, 3]), "peer": side("peer", [9, 6, 7, 8])}, 3)
    assert calls == ["ours", "peer"] * 4
    assert medians == {"ours": {"seconds": 3}, "peer": {"seconds": 7}}


def test_what_a_side_does_first_after_another_does_not_count() -> None:
    seconds = iter([9.0, 1.0, 2.0])

    def turn() -> dict[str, float]:
        return {"seconds": next(seconds)}

    assert compare.after_another(turn)() == {"seconds": 1.0}
    done: list[str] = []
    assert compare.after_another(turn, lambda: done.append("a batch"))() == {"seconds": 2.0}
    assert done == ["a batch"]


def test_a_line_has_the_ratio_of_each_peer_and_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/speed.py", "--turns", "3"])
    sides = {"ours": {"seconds": 2.0, "peak_gib": 3.0}, "eager": {"seconds": 6.0, "peak_gib": 4.0}}
    compare.report("training", {"batch": 4}, sides)
    line = json.loads(capsys.readouterr().out)
    assert line["ratio_eager"] == 3
    assert line["memory_eager"] == 0.75
    assert line["command"] == "python -m benchmarks.speed --turns 3"


def test_a_side_answers_from_a_process_of_its_own() -> None:
    with compare.Side("unittest.mock.Mock", {"return_value": {"seconds": 0.5}}) as side:
        first, second = side.turn(), side.turn()
    assert first["seconds"] == second["seconds"] == 0.5
    assert first["peak_gib"] > 0


def test_a_side_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(RuntimeError, match=r"lengths\.draw_examples ended with exit code 1"),
        compare.Side("benchmarks.lengths.draw_examples", {"task": "no such"}),
    ):
        pass
    assert "TypeError" in capfd.readouterr().err


def test_drawn_examples_are_as_long_as_those_of_the_task() -> None:
    drawn = [len(ids) for ids in lengths.draw_examples("rte", 1000, 50)]
    quantiles = np.quantile(drawn, np.linspace(0, 1, 21))
    np.testing.assert_allclose(quantiles, lengths.LENGTHS["rte"], rtol=0.05, atol=1)


def test_the_page_has_a_row_for_each_side_of_each_line() -> None:
    section = page.Section("Speed", ("tasks", "scoring"), "Goal: 2.")
    sides = {"ours": {"seconds": 2.0}, "eager": {"seconds": 5.0}}
    text = page.describe(
        section, [{"benchmark": "scoring", "batch": 4, "ratio_eager": 2.5, "sides": sides}], "it broke"
    )
    assert "```bash\npython -m benchmarks.tasks scoring\n```" in text
    assert "| scoring batch 4 | ours | seconds 2.0 |  |  |" in text
    assert "| scoring batch 4 | eager | seconds 5.0 | 2.5 |  |" in text
    assert text.endswith("Not complete: it broke.")


def test_every_section_of_the_page_is_a_benchmark() -> None:
    for section in page.SECTIONS:
        assert importlib.util.find_spec(f"benchmarks.{section.arguments[0]}"), section.title


def test_growth_is_measured_beside_the_formulas_and_drawn(tmp_path: Path) -> None:
    sizes = {"batch": 1, "length": 8, "num_layers": 1, "embed_dim": 64, "vocab_size": 64}
    point = growth.measure(sizes, 8, steps=1, flops=1e9)
    assert min(point) > 0
    growth.draw({"length": [point, point._replace(size=16)]}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_the_made_up_task_can_be_trained_on(tmp_path: Path) -> None:
    from gpt import gin_io
    from gpt.training.loop import load_inputs

    flags = runs.make_task(tmp_path, examples=32)
    files = [flag.removeprefix("--gin_file=") for flag in flags if flag.startswith("--gin_file=")]
    settings = [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]
    config = gin_io.load(files, [*settings, f"RunConfig.output_dir={tmp_path / 'run'}"])
    assert load_inputs(config)[1].num_steps == 1


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_at_a_tiny_size_without_one() -> None:
    require_peer()
    done = run_python("-m", "benchmarks.gpu", "--smoke", "--peers", "--skip_population")
    assert done.code == 0, done.err
    assert "| cpu | tokens/s | MFU |" in done.out
    for row in ("training, ours", "generation, ours, batch 64", "generation, eager, batch 64"):
        assert f"| {row}" in done.out


def test_both_pipelines_give_batches_of_the_same_tokens() -> None:
    sides = pipeline.make_sides(np.arange(400, dtype=np.uint16), batch=4, length=8, steps=5)
    for turn in sides.values():
        assert turn()["tokens_per_second"] > 0
