import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpt import gin_io
from gpt.cli import quickstart
from gpt.config import RunConfig


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    quickstart.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("seed", [7])
def test_the_quickstart_goes_from_text_to_table_sample_and_picture(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = gin_io.load

    def load_for_two_updates(files: Sequence[Path], overrides: Sequence[str] = ()) -> RunConfig:
        short = ["RunConfig.max_steps=2", "RunConfig.evaluation_batches=2"]
        small = ["ModelConfig.num_layers=1", "ModelConfig.embed_dim=16", "ModelConfig.mlp_dim=32"]
        return load(files, [*overrides, *short, *small])

    monkeypatch.setattr(gin_io, "load", load_for_two_updates)
    args = arguments("--output", str(tmp_path), "--seed", str(seed), "--json")
    assert quickstart.run(args) == 0
    first = capsys.readouterr()
    rows = [json.loads(line) for line in first.out.splitlines()]
    scored = {(row["task"], row["init"]) for row in rows if "task" in row}
    assert scored == {(task, init) for task in quickstart.TASKS for init in ("pretrained", "random")}
    assert all(0 <= row["value"] <= 1 for row in rows if "task" in row)
    assert rows[-1]["text"].startswith("Return the name of the ")
    assert (tmp_path / f"seed-{seed}" / "loss.png").read_bytes().startswith(b"\x89PNG")

    assert quickstart.run(args) == 0
    assert capsys.readouterr().out == first.out


def test_the_vocabulary_of_the_quickstart_is_that_of_its_model() -> None:
    config = gin_io.load(
        quickstart._config_files(("run/pretrain", "model/tiny")),
        ["RunConfig.output_dir=x", "TokenizerConfig.path=x", "DataConfig.token_store=x"],
    )
    assert config.model.vocab_size == quickstart.VOCAB_SIZE
