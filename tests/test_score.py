"""`gpt score`: log-probabilities of the NumPy reference, from every kind of model directory, in the order asked."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from foreign import CONFIG, make_tokenizer, make_weights, our_params, write_config, write_openai_files
from safetensors.numpy import save_file
from toy import Command, Run

from gpt.config import ModelConfig
from gpt.errors import DataError
from gpt.evaluation.token_scores import LOOKAHEAD, token_log_probs
from gpt.text.tokenizer import Tokenizer
from gpt.training.model_dir import convert, load_model

WEIGHTS = make_weights()
PARAMS = our_params(WEIGHTS)


def expected_log_probs(params: reference.Params, ids: list[int], num_heads: int = CONFIG.num_heads) -> list[Any]:
    if not ids:
        return []
    log_probs = reference.log_softmax(reference.logits(params, reference.forward(params, np.array(ids), num_heads)))
    return [None, *(log_probs[place, token] for place, token in enumerate(ids[1:]))]


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """Runs `gpt score` here on lines, each JSON or text as it is."""
    from gpt.cli.main import main

    def score(model: Path, lines: list[Any], *flags: str) -> Command:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(f"{text}\n" for text in texts).encode())))
        monkeypatch.setattr(sys, "argv", ["gpt", "score", f"--model={model}", *flags])
        code = main()
        captured = capsys.readouterr()
        return Command(code, captured.out, captured.err)

    return score


@pytest.fixture
def openai(tmp_path: Path) -> Path:
    """OpenAI's files without a vocabulary."""
    return write_openai_files(tmp_path / "openai", WEIGHTS)


@pytest.fixture
def huggingface(tmp_path: Path) -> Path:
    """A Hugging Face folder with a vocabulary."""
    directory = write_config(tmp_path / "huggingface")
    make_tokenizer().save(directory)
    save_file(WEIGHTS, directory / "model.safetensors")
    return directory


def test_every_kind_of_directory_gives_the_numbers_of_the_reference(
    openai: Path, huggingface: Path, score: Callable[..., Command], tmp_path: Path
) -> None:
    convert(load_model(huggingface), tmp_path / "run", "run")
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    for directory in (openai, huggingface, tmp_path / "run"):
        (row,) = score(directory, [{"ids": ids}], "--json").rows
        assert row["ids"] == ids
        assert row["logprobs"][0] is None
        assert row["logprobs"][1:] == pytest.approx(expected_log_probs(PARAMS, ids)[1:], abs=1e-5)


def test_a_trained_run_is_scored_by_its_latest_weights(pretrained: Run, score: Callable[..., Command]) -> None:
    tokenizer = Tokenizer.load(pretrained.path / "tokenizer")
    (row,) = score(pretrained.path, [{"text": "The cat sleeps near the house."}], "--json").rows
    assert row["ids"] == tokenizer.encode("The cat sleeps near the house.")
    params = load_model(pretrained.path).params
    assert row["logprobs"][1:] == pytest.approx(expected_log_probs(params, row["ids"])[1:], abs=1e-5)


def test_answers_come_in_the_order_of_the_questions_whatever_their_lengths() -> None:
    config = dataclasses.replace(CONFIG, context_length=40)
    params = our_params(make_weights(config))
    draw = np.random.default_rng(0)
    lengths = [*draw.integers(0, 41, LOOKAHEAD + 30), 0, 1, 2, 40]
    sequences = [draw.integers(0, 40, length).tolist() for length in lengths]
    for found, ids in zip(token_log_probs(config, params, sequences), sequences, strict=True):
        expected = expected_log_probs(params, ids)
        assert found[:1] == expected[:1]
        assert found[1:] == pytest.approx(expected[1:], abs=2e-5)


def test_no_more_lines_are_read_than_the_lookahead_before_the_first_answer() -> None:
    taken = 0

    def sequences():
        nonlocal taken
        while True:
            taken += 1
            yield [1, 2]

    next(token_log_probs(CONFIG, PARAMS, sequences()))
    assert taken == LOOKAHEAD


def test_lines_share_batches_of_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt.evaluation import token_scores

    shapes = []

    def record(_config: ModelConfig, _params: Any, tokens: np.ndarray) -> np.ndarray:
        shapes.append(tokens.shape)
        return np.zeros((len(tokens), tokens.shape[1] - 1), np.float32)

    monkeypatch.setattr(token_scores, "_token_log_probs", record)
    config = dataclasses.replace(CONFIG, context_length=64)
    list(token_log_probs(config, PARAMS, [[1] * length for length in (*range(2, 34), 64)]))
    # 15 lines of 2 to 16 tokens, 16 of up to 32, and 2 of more.
    assert shapes == [(8, 16), (8, 32), (8, 32), (8, 64), (1, 64)]


def test_special_tokens_can_be_scored(tmp_path: Path, score: Callable[..., Command]) -> None:
    weights = make_weights(dataclasses.replace(CONFIG, num_special_tokens=3))
    directory = write_openai_files(tmp_path / "openai", weights)
    make_tokenizer().save(directory, "openai")
    ids = [40, 7, 41, 8, 42]
    (row,) = score(directory, [{"ids": ids}], "--json").rows
    assert row["logprobs"][1:] == pytest.approx(expected_log_probs(our_params(weights), ids)[1:], abs=1e-5)


def test_without_json_a_line_is_a_sentence(openai: Path, score: Callable[..., Command]) -> None:
    command = score(openai, [{"ids": [1, 2, 3]}, {"ids": [1]}, {"ids": []}])
    total = sum(expected_log_probs(PARAMS, [1, 2, 3])[1:])
    first, *others = command.out.splitlines()
    assert first == f"3 tokens, log-probability {total:.6g}, perplexity {np.exp(-total / 2):.6g}"
    assert others == ["1 tokens, nothing to predict", "0 tokens, nothing to predict"]


def test_nothing_in_gives_nothing_out(openai: Path, score: Callable[..., Command]) -> None:
    assert score(openai, [], "--json")[:2] == (0, "")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"ids": [1] * 13}, "13 tokens, longer than ModelConfig.context_length = 12: cut the sequence"),
        ({"ids": [1, 40]}, "token id 40: expected 0 to 39, the rows of the token table"),
        ({"ids": [-1]}, "token id -1: expected 0 to 39"),
        ({"ids": [1.5]}, '"ids" is [1.5]: expected a list of whole numbers'),
        ({"ids": [True]}, '"ids" is [true]: expected a list of whole numbers'),
        ({"ids": "1 2"}, '"ids" is "1 2": expected a list of whole numbers'),
        ({"text": 3}, '"text" is 3: expected a string'),
        ({"text": "the cat"}, '"text" needs a tokenizer, and the model has none: give --tokenizer DIR, or "ids"'),
        ({"ids": [1], "text": "the"}, 'expected an object with either "ids" or "text"'),
        ({}, '{}: expected an object with either "ids" or "text"'),
        ("[1, 2]", 'expected an object with either "ids" or "text"'),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(
    line: Any, reason: str, openai: Path, score: Callable[..., Command]
) -> None:
    command = score(openai, [{"ids": [1, 2]}, line], "--json")
    assert command.code == 2
    assert "error: standard input, line 2: " in command.err
    assert reason in command.err


def test_a_tokenizer_from_elsewhere_can_be_named(openai: Path, score: Callable[..., Command], tmp_path: Path) -> None:
    make_tokenizer().save(tmp_path / "tokenizer")
    (row,) = score(openai, [{"text": "The cat."}], "--json", f"--tokenizer={tmp_path / 'tokenizer'}").rows
    assert row["ids"] == make_tokenizer().encode("The cat.")


def test_weights_that_are_no_numbers_are_named_and_give_no_answer(
    tmp_path: Path, score: Callable[..., Command]
) -> None:
    weights = {**WEIGHTS, "h.1.ln_2.bias": np.full(8, np.nan, np.float32)}
    command = score(write_openai_files(tmp_path, weights), [{"ids": [1, 2]}], "--json")
    assert (command.code, command.out) == (2, "")
    assert "NaN or infinity among the weights: h1/ln_2/b (8 of 8)" in command.err
    assert "the model gives probabilities that are no numbers" in command.err


@pytest.mark.parametrize("name", ["none", "."])
def test_a_directory_without_a_model_is_refused(name: str, tmp_path: Path, score: Callable[..., Command]) -> None:
    command = score(tmp_path / name, [])
    assert command.code == 2
    assert str(tmp_path / name) in command.err


def test_sequences_that_cannot_be_scored_are_refused_by_the_library_as_well() -> None:
    with pytest.raises(DataError, match="token id 99"):
        next(token_log_probs(ModelConfig(vocab_size=9), {}, [[99]]))
