"""eval.py as a user runs it, its numbers against the NumPy reference; `gpt plot`, and the help of every command."""

import dataclasses
import json
import math
import re
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from sklearn.metrics import matthews_corrcoef
from toy import Command, Run, Toy, run_python

from gpt import gin_io
from gpt.cli.start import COMMANDS
from gpt.config import SECTIONS, MeshConfig
from gpt.data.store import TokenStore
from gpt.generation.settings import Decoding
from gpt.sharding import make_mesh
from gpt.text.tokenizer import Tokenizer
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.evaluate import evaluate as evaluate_with
from gpt.training.problem import load_problem
from gpt.training.steps import Evaluation

NUM_HEADS, CONTEXT_LENGTH = 2, 16


def params_of(run: Run, step: int | None = None) -> reference.Params:
    return load_params(find_checkpoint(run.path, step), make_mesh(MeshConfig(), jax.devices()[:1]))


def expected_text_loss(params: reference.Params, tokens: np.ndarray) -> float:
    """Mean loss over all tokens but the first, window by window, each with the context that its window gives."""
    losses = []
    for start in range(0, len(tokens) - 1, CONTEXT_LENGTH):
        window = np.asarray(tokens[start : start + CONTEXT_LENGTH + 1], np.int64)
        hidden = reference.forward(params, window[None, :-1], NUM_HEADS)
        log_probs = reference.log_softmax(reference.logits(params, hidden))[0]
        losses.append(-log_probs[np.arange(len(window) - 1), window[1:]])
    return float(np.concatenate(losses).mean())


def expected_task_scores(params: reference.Params, toy: Toy) -> dict[str, float]:
    """Scores of the toy `cola`, example by example."""
    tokenizer = Tokenizer.load(toy.tokenizer)
    rows = [json.loads(line) for line in (toy.cola / "validation.jsonl").read_text().splitlines()]
    lm_losses, task_losses, predictions = [], [], []
    for row in rows:
        ids = np.array([[[tokenizer.start_id, *tokenizer.encode(row["text"]), tokenizer.extract_id]]])
        hidden = reference.forward(params, ids, NUM_HEADS)
        scores = reference.task_scores(params, hidden, np.array([[ids.shape[-1] - 1]]))
        log_probs = reference.token_log_probs(params, hidden, ids)
        lm_losses.append(reference.lm_losses(log_probs, np.ones(ids.shape)).item())
        task_losses.append(reference.task_losses(scores, np.array([row["label"]])).item())
        predictions.append(scores.argmax())
    matthews = float(matthews_corrcoef([row["label"] for row in rows], predictions))
    return {"lm_loss": float(np.mean(lm_losses)), "task_loss": float(np.mean(task_losses)), "matthews": matthews}


def test_the_perplexity_of_a_run_is_that_of_the_reference_over_every_held_out_token(toy: Toy, pretrained: Run) -> None:
    tokens = TokenStore.open(toy.store).split("validation")
    assert (len(tokens) - 1) % CONTEXT_LENGTH  # the last window is shorter,
    assert math.ceil((len(tokens) - 1) / CONTEXT_LENGTH) % 8  # and the last batch not full
    command = run_python("eval.py", f"--run={pretrained.path}", "--json")
    assert command.code == 0
    loss = expected_text_loss(params_of(pretrained), tokens)
    assert [{**row, "value": 0} for row in command.rows] == [
        {"task": "language_modeling", "metric": metric, "value": 0, "n": len(tokens) - 1, "step": 24}
        for metric in ("lm_loss", "perplexity")
    ]
    assert [row["value"] for row in command.rows] == pytest.approx([loss, math.exp(loss)], rel=1e-5)


def test_the_scores_of_a_fine_tuned_run_are_those_of_the_reference(
    toy: Toy, finetuned: Run, evaluate: Callable[..., Command]
) -> None:
    command = evaluate(f"--run={finetuned.path}", "--json")
    assert command.code == 0
    assert {(row["task"], row["n"], row["step"]) for row in command.rows} == {("cola", 29, 15)}
    expected = expected_task_scores(params_of(finetuned), toy)
    assert {row["metric"]: row["value"] for row in command.rows} == pytest.approx(expected, rel=1e-5)


def test_an_earlier_checkpoint_can_be_scored_in_words_for_people(
    toy: Toy, pretrained: Run, evaluate: Callable[..., Command]
) -> None:
    loss = expected_text_loss(params_of(pretrained, 20), TokenStore.open(toy.store).split("validation"))
    command = evaluate(f"--run={pretrained.path}", "--step=20")
    line = re.match(r"language_modeling: lm_loss (\S+) over 408 at step 20\n", command.out)
    assert line is not None
    assert float(line[1]) == pytest.approx(loss, rel=1e-5)


def test_another_store_can_be_scored_by_an_override(
    toy: Toy, pretrained: Run, tmp_path: Path, evaluate: Callable[..., Command]
) -> None:
    store = shutil.copytree(toy.store, tmp_path / "store")
    index = json.loads((store / "index.json").read_text())
    index["splits"] = {
        "train": index["splits"]["train"],
        "validation": {**index["splits"]["validation"], "tokens": 101},
    }
    (store / "index.json").write_text(json.dumps(index))
    (store / "validation.bin").write_bytes((store / "validation.bin").read_bytes()[:202])
    command = evaluate(f"--run={pretrained.path}", "--json", f"--gin.DataConfig.token_store={store}")
    assert [row["n"] for row in command.rows] == [100, 100]


def test_several_stores_are_scored_each_by_itself_and_all_together(
    toy: Toy, pretrained: Run, tmp_path: Path, evaluate: Callable[..., Command]
) -> None:
    parts = []
    for name, size in (("my_books", 101), ("wiki", 331)):
        store = shutil.copytree(toy.store, tmp_path / name)
        index = json.loads((store / "index.json").read_text())
        index["splits"]["validation"]["tokens"] = size
        (store / "index.json").write_text(json.dumps(index))
        (store / "validation.bin").write_bytes((store / "validation.bin").read_bytes()[: 2 * size])
        parts.append(TokenStore.open(store).split("validation"))
    stores = f"{{'{tmp_path}/wiki': 0.9, '{tmp_path}/my_books': 0.1}}"
    command = evaluate(f"--run={pretrained.path}", "--json", f"--gin.DataConfig.token_store={stores}")
    params = params_of(pretrained)
    books, wiki = (expected_text_loss(params, tokens) for tokens in parts)
    joint = (100 * books + 330 * wiki) / 430
    assert {row["metric"]: row["n"] for row in command.rows} == {
        "lm_loss": 430, "perplexity": 430, "lm_loss_my_books": 100, "perplexity_my_books": 100,
        "lm_loss_wiki": 330, "perplexity_wiki": 330,
    }  # fmt: skip
    assert [row["value"] for row in command.rows] == pytest.approx(
        [joint, math.exp(joint), books, math.exp(books), wiki, math.exp(wiki)], rel=1e-5
    )


def test_a_run_is_scored_with_its_own_vocabulary_wherever_the_first_one_has_gone(
    pretrained: Run, tmp_path: Path, evaluate: Callable[..., Command]
) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    config = (run / "config.gin").read_text()
    (run / "config.gin").write_text(config.replace("/tokenizer'", "/nowhere'"))
    assert "/nowhere'" in (run / "config.gin").read_text()
    assert evaluate(f"--run={run}")[0] == 0


def test_an_unknown_step_is_refused_with_the_steps_there_are(pretrained: Run, evaluate: Callable[..., Command]) -> None:
    code, out, error = evaluate(f"--run={pretrained.path}", "--step=7", "--json")
    assert (code, out) == (2, "")
    assert error.endswith("does not hold the checkpoint of step 7; there are steps 20, 24\n")


def test_a_run_without_checkpoints_is_refused(
    pretrained: Run, tmp_path: Path, evaluate: Callable[..., Command]
) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    code, _, error = evaluate(f"--run={run}")
    assert code == 2
    assert "does not hold a checkpoint: train there first" in error


@pytest.mark.parametrize("name", ["none", "."])
def test_a_directory_that_is_no_run_is_refused(name: str, tmp_path: Path, evaluate: Callable[..., Command]) -> None:
    code, out, error = evaluate(f"--run={tmp_path / name}")
    assert (code, out) == (2, "")
    assert error == f"error: {str(tmp_path / name)!r} is not a run directory: there is no config.gin in it\n"


def test_examples_with_different_numbers_of_candidates_are_scored_together(toy: Toy, finetuned: Run) -> None:
    config = gin_io.load(
        [finetuned.path / "config.gin"], ["TaskConfig.name=stdlib_next", f"TaskConfig.data_dir={toy.choices}"]
    )
    problem = load_problem(config, Tokenizer.load(toy.tokenizer))
    num_candidates = np.concatenate([batch.weights.max(-1).sum(-1) for batch in problem.held_out.batches()])
    assert set(num_candidates[:19]) == {2, 3}

    def knows_all(_: reference.Params, batch: Any) -> Evaluation:
        count = {"task_loss": batch.example_weights.sum()}
        return Evaluation(count, count, jnp.eye(batch.tokens.shape[1])[batch.labels])

    scores = evaluate_with(knows_all, {}, problem, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert scores["accuracy"] == (1.0, 19)


# gpt plot


def test_the_loss_curves_of_runs_become_a_png(
    pretrained: Run, finetuned: Run, tmp_path: Path, gpt: Callable[..., Command]
) -> None:
    picture = tmp_path / "new" / "loss.png"
    code, out, _ = gpt("plot", pretrained.path, finetuned.path, "--output", picture, "--json")
    assert (code, json.loads(out)) == (0, {"output": str(picture)})
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (8 * 150, 5 * 150)  # inches x dots an inch
    gpt("plot", pretrained.path, "--output", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() != content


def test_a_directory_without_metrics_cannot_be_drawn(tmp_path: Path, gpt: Callable[..., Command]) -> None:
    code, _, error = gpt("plot", tmp_path, "--output", tmp_path / "loss.png")
    assert code == 2
    assert error == f"error: {str(tmp_path)!r} has no metrics.jsonl with log lines: give run directories\n"
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_a_clear_error(
    pretrained: Run, tmp_path: Path, gpt: Callable[..., Command]
) -> None:
    (tmp_path / "file").write_text("mine")
    code, _, error = gpt("plot", pretrained.path, "--output", tmp_path / "file" / "loss.png")
    assert code == 2
    assert error.startswith(f"error: --output {str(tmp_path / 'file' / 'loss.png')!r} cannot be written")


# Help


def help_of(*command: str | Path) -> str:
    done = run_python(*command, "--help")
    assert (done.code, done.err) == (0, "")
    return done.out


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_the_help_of_the_scripts_lists_every_command_and_every_setting_with_its_meaning(script: str) -> None:
    text = help_of(script)
    assert all(command in text for command in (*(f"gpt {name}" for name in COMMANDS), "train.py", "eval.py"))
    for section in SECTIONS:
        for field in dataclasses.fields(section):
            if "help" in field.metadata:
                assert f"{section.__name__}.{field.name}: " in text
                assert field.metadata["help"] in text


def test_the_console_script_and_the_module_list_every_command() -> None:
    module = help_of("-m", "gpt")
    assert all(re.search(rf"\n +{name}\s", module) for name in COMMANDS)
    assert help_of(Path(sys.executable).with_name("gpt")) == module


FLAGS = {
    "prepare": {
        "--input",
        "--tokenizer",
        "--output",
        "--validation",
        "--text_field",
        "--workers",
        "--shard",
        "--join",
        "--json",
    },
    "pack": {"--max_mib", "--unpack", "--json"},
    "tokenizer": {"train", "encode", "decode"},
    "convert": {
        "--from",
        "--to",
        "--tokenizer",
        "--route",
        "--without_head",
        "--num_special_tokens",
        "--seed",
        "--json",
    },
    "replay": {"--steps", "--json"},
    "verify": {"--sign", "--json"},
    "generate": {
        "--model",
        "--tokenizer",
        "--route",
        "--prompt",
        "--prompts",
        "--stop",
        "--end_at_newline",
        "--banned",
        "--raw",
        "--batch_size",
        "--json",
        *(f"--{field.name}" for field in dataclasses.fields(Decoding) if field.name not in ("banned", "end_ids")),
    },
    "score": {"--model", "--tokenizer", "--route", "--json"},
    "serve": {"--model", "--name", "--port", "--host", "--token_file", "--slots", "--queue", "--requests_per_minute"},
    "plot": {"--output", "--json"},
    "tables": {"--runs", "--table", "--format", "--output", "--json"},
    "transfer": {"--runs", "--output", "--json"},
    "sweep": {"--gin_file", "--output", "--data_root", "--shard", "--population", "--status", "--json"},
    "submit": {"--runs", "--check", "--output", "--allow_partial", "--json"},
    "zeroshot": {"--model", "--task", "--data", "--threshold_data", "--checkpoints", "--output", "--json"},
    "plan": {"--topology", "--slices", "--gin_file", "--search", "--compile", "--estimate", "--json"},
    "launch": {"--processes", "--devices_per_process"},
    "quickstart": {"--output", "--seed", "--json"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_flags(
    command: str, gpt: Callable[..., Command], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        gpt(command, "--help")
    assert stop.value.code == 0
    assert set(capsys.readouterr().out.replace(",", " ").split()) >= FLAGS[command]
