"""A run ends when its held-out score has not got better for a while, and stands for its best checkpoint."""

from pathlib import Path

import pytest
from toy import ROOT, Run, Toy

from gpt import gin_io
from gpt.config import RunConfig
from gpt.errors import ConfigError
from gpt.training.checkpoint import find_checkpoint
from gpt.training.loop import train
from gpt.training.population import train_population
from gpt.training.run_dir import read_metrics


def adapting(toy: Toy, pretrained: Run, output_dir: Path, **settings: object) -> RunConfig:
    """configs/run/adapt.gin on the toy language, with an evaluation every second update."""
    flags = [flag.removeprefix("--gin.") for flag in toy.pretrain_flags if flag.startswith("--gin.Model")]
    given = {
        "TokenizerConfig.path": toy.tokenizer,
        "DataConfig.token_store": toy.store,
        "RunConfig.init_from": pretrained.path,
        "RunConfig.output_dir": output_dir,
        "RunConfig.evaluate_every_steps": 2,
        "CheckpointConfig.save_every_steps": 2,
        "RunConfig.patience": 2,
        **{name.replace("_", ".", 1): value for name, value in settings.items()},
    }
    overrides = [f"{name}={value}" for name, value in given.items()]
    return gin_io.load([ROOT / "configs" / "run" / "adapt.gin"], [*flags, *overrides])


def test_training_ends_when_patience_does_and_the_best_checkpoint_is_the_result(
    toy: Toy, pretrained: Run, tmp_path: Path
) -> None:
    # Steps so wide that nothing learned before is left: the first evaluation stays the best of all.
    config = adapting(toy, pretrained, tmp_path / "run", OptimizerConfig_learning_rate=1.0)
    result = train(config)
    losses = [line["lm_loss"] for line in read_metrics(tmp_path / "run") if line["kind"] == "validation"]
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == 2
    assert result["step"] == 2 * len(losses) < 80
    assert (result["best"]["step"], result["best"]["lm_loss"]) == (2 * (best + 1), min(losses))
    assert find_checkpoint(tmp_path / "run").name == str(2 * (best + 1))
    assert train(config) == result

    (tmp_path / "run" / "result.json").unlink()  # as if it was killed before its last word
    assert find_checkpoint(tmp_path / "run").name == str(result["step"])
    assert train(config) == result


def test_patience_asks_for_the_checkpoints_it_goes_back_to(toy: Toy, pretrained: Run, tmp_path: Path) -> None:
    for settings in ({"CheckpointConfig_keep_best": False}, {"RunConfig_evaluate_every_steps": 1}):
        with pytest.raises(ConfigError, match=r"RunConfig.patience = 2 goes back to the best checkpoint: set Ch"):
            adapting(toy, pretrained, tmp_path, **settings)
    with pytest.raises(ConfigError, match=r"RunConfig.patience = 2: members of a population end together"):
        train_population([adapting(toy, pretrained, tmp_path)])
