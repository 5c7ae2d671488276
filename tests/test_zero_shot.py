"""`gpt zeroshot`: the heuristics of section 5 against the NumPy reference, thresholds, checkpoints, and bad rows."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import reference
from foreign import make_weights, write_openai_files
from sklearn.metrics import matthews_corrcoef
from toy import Command, Run, toy_sentences, write_rows

from gpt.config import MeshConfig
from gpt.errors import DataError
from gpt.evaluation.zero_shot import best_threshold
from gpt.evaluation.zero_shot_questions import Candidate, _around_pronoun, read_questions
from gpt.paper.zero_shot import draw_zero_shot
from gpt.sharding import make_mesh
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.checkpoint_dir import saved_steps

NUM_HEADS, CONTEXT_LENGTH = 2, 16

# Different ones, so that no score lies on the median.
SENTENCES = sorted({" ".join(text.split()[: 4 + n % 4]) for n, text in enumerate(toy_sentences(3, 60))})[:12]
COLA = [{"text": text, "label": n % 3 % 2} for n, text in enumerate(SENTENCES)]
SST2 = [{"text": text, "label": n % 2} for n, text in enumerate(("the cat", "a frog", "near the house", "winter ."))]
WINOGRAD = [
    {"text": "the cat saw the dog and it runs .", "pronoun": "it", "choices": ["the cat", "the dog"], "label": 1},
    {"text": "the frog saw the horse and it jumps", "pronoun": "it", "choices": ["the frog", "the horse"], "label": 0},
]
RACE = [
    {
        "article": "the cat sleeps",
        "questions": ["where is _ ?", "who sleeps ?"],
        "options": [["near the house", "river"], ["the dog", "the cat", "night"]],
        "answers": ["A", "B"],
    },
    {
        "article": " ".join(["the horse waits ."] * 9),
        "questions": ["who ?"],
        "options": [["horse", "cat"]],
        "answers": ["A"],
    },
]
ROWS = {"cola": COLA, "sst2": SST2, "winograd": WINOGRAD, "race": RACE}


def params_of(run: Run, step: int | None = None) -> reference.Params:
    return load_params(find_checkpoint(run.path, step), make_mesh(MeshConfig(), jax.devices()[:1]))


def expected_log_probs(params: reference.Params, context: list[int], continuation: list[int]) -> np.ndarray:
    """Log-probability of each token of the continuation, behind as much context as the model holds."""
    ids = np.array((context + continuation)[-CONTEXT_LENGTH:])
    hidden = reference.forward(params, ids, NUM_HEADS)
    return reference.token_log_probs(params, hidden, ids)[-len(continuation) :]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file of rows for each task."""
    paths = {task: tmp_path / f"{task}.jsonl" for task in ROWS}
    for task, path in paths.items():
        write_rows(path, ROWS[task])
    return paths


@pytest.fixture
def zeroshot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """Runs `gpt zeroshot` here."""
    from gpt.cli.main import main

    def zeroshot(*flags: str | Path) -> Command:
        monkeypatch.setattr(sys, "argv", ["gpt", "zeroshot", *map(str, flags)])
        code = main()
        captured = capsys.readouterr()
        return Command(code, captured.out, captured.err)

    return zeroshot


def row_of(command: Command) -> dict[str, Any]:
    assert command.code == 0, command.err
    (row,) = command.rows
    return row


# The heuristics


def test_cola_is_the_mean_log_probability_against_the_median(
    pretrained: Run, files: dict[str, Path], zeroshot: Callable[..., Command]
) -> None:
    row = row_of(zeroshot("--model", pretrained.path, "--task", "cola", "--data", files["cola"], "--json"))
    tokenizer, params = Tokenizer.load(pretrained.path / "tokenizer"), params_of(pretrained)
    encoded = [tokenizer.encode(text) for text in SENTENCES]
    scores = [expected_log_probs(params, ids[:1], ids[1:]).mean() for ids in encoded]
    value = matthews_corrcoef([row["label"] for row in COLA], scores > np.median(scores))
    assert row == {
        **{"model": str(pretrained.path), "step": 24, "task": "cola", "metric": "matthews", "n": 12, "num_cut": 0},
        **{"threshold": pytest.approx(np.median(scores), abs=1e-5), "threshold_from": "median of the scores"},
        **{"value": pytest.approx(value), "normalised": pytest.approx(value / 0.35)},
        **{"best": 35.0, "best_is": "the best earlier result"},
    }


def test_a_threshold_is_chosen_on_other_rows(
    pretrained: Run, files: dict[str, Path], tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    write_rows(tmp_path / "train.jsonl", COLA[3:])
    flags = ("--threshold_data", tmp_path / "train.jsonl", "--json")
    row = row_of(zeroshot("--model", pretrained.path, "--task", "cola", "--data", files["cola"], *flags))
    tokenizer, params = Tokenizer.load(pretrained.path / "tokenizer"), params_of(pretrained)
    encoded = [tokenizer.encode(text) for text in SENTENCES]
    scores = np.array([expected_log_probs(params, ids[:1], ids[1:]).mean() for ids in encoded])
    labels = np.array([row["label"] for row in COLA])
    assert row["threshold"] == pytest.approx(best_threshold(scores[3:], labels[3:]), abs=1e-5)
    assert row["threshold_from"] == "best Matthews correlation on --threshold_data"
    assert row["value"] == pytest.approx(matthews_corrcoef(labels, scores > row["threshold"]))


def test_the_best_threshold_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(15):
        scores = draw.integers(0, 12, 15).astype(float)
        labels = draw.permutation([0, 1, *draw.integers(0, 2, 13)])
        best = max(matthews_corrcoef(labels, scores > cut) for cut in np.arange(-0.5, 12.5))
        found = matthews_corrcoef(labels, scores > best_threshold(scores, labels))
        assert found == pytest.approx(best, abs=1e-9)


def test_sst2_compares_the_words_behind_very(
    pretrained: Run, files: dict[str, Path], zeroshot: Callable[..., Command]
) -> None:
    row = row_of(zeroshot("--model", pretrained.path, "--task", "sst2", "--data", files["sst2"], "--json"))
    tokenizer, params = Tokenizer.load(pretrained.path / "tokenizer"), params_of(pretrained)
    words = [tokenizer.encode(word) for word in ("negative", "positive")]
    hits = 0
    for example in SST2:
        context = tokenizer.encode(f"{example['text']} very")
        negative, positive = (expected_log_probs(params, context, word).sum() for word in words)
        hits += (positive > negative) == example["label"]
    assert (row["metric"], row["value"], row["n"], row["num_ties"]) == ("accuracy", hits / 4, 4, 0)
    assert row["normalised"] == pytest.approx((100 * hits / 4 - 50) / 43.2)
    assert "not every word is one token here (very: " in row["notes"][0]


def test_words_of_one_token_need_no_remark(files: dict[str, Path]) -> None:
    tokenizer = train_bpe(["the cat is very positive . the frog is very negative ."] * 20, 56)
    questions = read_questions("sst2", files["sst2"], tokenizer)
    assert questions.notes == ()
    context = tokenizer.encode("the cat very")
    words = [tokenizer.encode(word) for word in ("negative", "positive")]
    assert questions.items[0] == ([Candidate(context, words[0]), Candidate(context, words[1])], 0)


def test_winograd_compares_what_follows_each_candidate(
    pretrained: Run, files: dict[str, Path], zeroshot: Callable[..., Command]
) -> None:
    row = row_of(zeroshot("--model", pretrained.path, "--task", "winograd", "--data", files["winograd"], "--json"))
    tokenizer, params = Tokenizer.load(pretrained.path / "tokenizer"), params_of(pretrained)
    hits = 0
    for example, rest in zip(WINOGRAD, ("runs .", "jumps"), strict=True):
        start = example["text"].split(" it ")[0]
        scores = [
            expected_log_probs(params, tokenizer.encode(f"{start} {choice}"), tokenizer.encode(rest)).mean()
            for choice in example["choices"]
        ]
        hits += int(np.argmax(scores)) == example["label"]
    assert (row["metric"], row["value"], row["n"]) == ("accuracy", hits / 2, 2)
    assert (row["normalised"], row["best_is"]) == (2 * (hits / 2) - 1, "all answers right")


def test_race_takes_the_likeliest_answer_behind_passage_and_question_and_counts_what_was_cut(
    pretrained: Run, files: dict[str, Path], zeroshot: Callable[..., Command]
) -> None:
    row = row_of(zeroshot("--model", pretrained.path, "--task", "race", "--data", files["race"], "--json"))
    tokenizer, params = Tokenizer.load(pretrained.path / "tokenizer"), params_of(pretrained)
    hits, cut = [], 0
    for passage in RACE:
        for question, options, answer in zip(*(passage[k] for k in ("questions", "options", "answers")), strict=True):
            context = tokenizer.encode(passage["article"]) + tokenizer.encode(question)
            answers = [tokenizer.encode(option) for option in options]
            cut += sum(len(context) + len(ids) > CONTEXT_LENGTH for ids in answers)
            best = int(np.argmax([expected_log_probs(params, context, ids).mean() for ids in answers]))
            hits.append("ABC"[best] == answer)
    assert cut > 0
    assert (row["value"], row["n"], row["num_cut"]) == (np.mean(hits), 3, cut)


@pytest.mark.parametrize(
    ("text", "pronoun", "choices", "split"),
    [
        ("Bill hit Bob because he was rude.", "he", ["Bill", "Bob"], ("Bill hit Bob because ", " was rude.")),
        ("A chicken saw a bug and it ate it.", "it", ["A chicken", "a bug"], ("A chicken saw a bug and ", " ate it.")),
        ("X says they beat Y, but they lie.", "they", ["X", "Y"], ("X says they beat Y, but ", " lie.")),
        ("Lo saw her dad, so her day began.", "her", ["Lo", "her dad"], ("Lo saw her dad, so ", " day began.")),
        ("When he won, Bill thanked Bob.", "he", ["Bill", "Bob"], ("When ", " won, Bill thanked Bob.")),
        ("Theo helped Ann, then he slept.", "he", ["theo", "ann"], ("Theo helped Ann, then ", " slept.")),
    ],
)  # fmt: skip
def test_the_definite_pronoun_is_the_first_word_behind_both_candidates_or_the_last_of_all(
    text: str, pronoun: str, choices: list[str], split: tuple[str, str]
) -> None:
    assert _around_pronoun(text, pronoun, choices, "here") == split


def test_nothing_behind_the_pronoun_is_a_tie_and_the_first_is_chosen(
    pretrained: Run, tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    row = {"text": "the cat saw the dog and it", "pronoun": "it", "choices": ["the cat", "the dog"]}
    write_rows(tmp_path / "rows.jsonl", [{**row, "label": 0}, {**row, "label": 1}, {**row, "label": 1}])
    command = zeroshot("--model", pretrained.path, "--task", "winograd", "--data", tmp_path / "rows.jsonl")
    assert command.out == (
        "winograd: accuracy 0.3333 over 3 at step 24; -0.333 between random guess (0) and all answers right (1); "
        "3 ties, the first chosen\n"
    )


def test_one_class_has_no_correlation_and_the_row_says_so(
    pretrained: Run, tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "label": 1} for row in COLA])
    row = row_of(zeroshot("--model", pretrained.path, "--task", "cola", "--data", tmp_path / "rows.jsonl", "--json"))
    assert row["value"] == 0
    assert row["notes"] == ["all labels are the same: the correlation is 0 by definition"]


# Checkpoints and the picture


def test_every_kept_checkpoint_is_scored_by_its_own_weights(
    pretrained: Run, files: dict[str, Path], tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    picture = tmp_path / "new" / "zero_shot.png"
    pairs = ("--task", "cola", "race", "--data", files["cola"], files["race"])
    command = zeroshot("--model", pretrained.path, *pairs, "--json", "--checkpoints", "--output", picture)
    assert saved_steps(pretrained.path) == [20, 24]
    assert [(row["step"], row["task"]) for row in command.rows] == [
        (20, "cola"), (20, "race"), (24, "cola"), (24, "race"),
    ]  # fmt: skip
    tokenizer = Tokenizer.load(pretrained.path / "tokenizer")
    for row in command.rows[::2]:
        params = params_of(pretrained, row["step"])
        encoded = [tokenizer.encode(text) for text in SENTENCES]
        scores = [expected_log_probs(params, ids[:1], ids[1:]).mean() for ids in encoded]
        assert row["threshold"] == pytest.approx(np.median(scores), abs=1e-5)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_all_tasks_are_lines_of_one_picture_over_updates_on_a_log_axis_in_a_style_for_each_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("gpt.paper.zero_shot.save_figure", lambda figure, _: drawn.append(figure))
    rows = [
        {"model": model, "step": step, "task": task, "normalised": step / 1000 + color}
        for model in ("transformer", "lstm")
        for step in (100, 10, 0)
        for color, task in enumerate(ROWS)
    ]
    draw_zero_shot(rows, Path("x.png"))
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and "(1 is " in str(line.get_label())]
    assert len(lines) == 8
    assert lines[0].get_label() == "cola (1 is 35), transformer"
    assert (list(lines[0].get_xdata()), list(lines[0].get_ydata())) == ([10, 100], pytest.approx([0.01, 0.1]))
    assert [line.get_linestyle() for line in lines] == ["-", "--"] * 4
    assert [line.get_color() for line in lines[::2]] == [line.get_color() for line in lines[1::2]]
    assert len({line.get_color() for line in lines}) == 4


def test_several_models_are_asked_one_after_the_other(
    pretrained: Run, finetuned: Run, files: dict[str, Path], zeroshot: Callable[..., Command]
) -> None:
    models = ("--model", pretrained.path, finetuned.path)
    command = zeroshot(*models, "--task", "winograd", "--data", files["winograd"], "--json")
    assert [(row["model"], row["step"]) for row in command.rows] == [
        (str(pretrained.path), 24), (str(finetuned.path), 15),
    ]  # fmt: skip


def test_a_picture_that_cannot_be_written_is_a_clear_error(
    pretrained: Run, files: dict[str, Path], tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    (tmp_path / "file").write_text("mine")
    flags = ("--task", "winograd", "--data", files["winograd"], "--output", tmp_path / "file" / "x.png")
    command = zeroshot("--model", pretrained.path, *flags)
    assert command.code == 2
    assert "cannot be written" in command.err


# Bad input


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("cola", {"text": "the cat"}, "no label; --task cola takes columns text, label, found text"),
        ("cola", {"text": "the cat sleeps", "label": 2}, "label 2 is not in the set: expected 0 to 1"),
        ("cola", {"text": " ", "label": 1}, "text is ' ': expected a string with at least one token"),
        ("cola", {"text": ["a"], "label": 1}, "text is ['a']: expected a string"),
        ("cola", {"text": ".", "label": 1}, "'.' is one token, and the first is never predicted; remove the row"),
        ("sst2", {"text": "the cat", "label": "good"}, "label 'good' is not in the set"),
        ("winograd", {**WINOGRAD[0], "pronoun": "she"}, "the pronoun 'she' is not a word of the text"),
        ("winograd", {**WINOGRAD[0], "choices": ["the cat"]}, "expected a list of two or more texts to choose from"),
        ("winograd", {**WINOGRAD[0], "label": 2}, "label 2 is not in the set: expected 0 to 1"),
        (
            "race",
            {**RACE[0], "answers": ["A", "D"]},
            "question 2: answer 'D' is not in the set: expected one of A, B, C",
        ),
        ("race", {**RACE[0], "answers": ["A"]}, "must be lists of the same length"),
        ("race", {**RACE[0], "article": ""}, "article is '': expected a string with at least one token"),
    ],
)
def test_a_row_that_cannot_be_asked_is_an_error_with_its_line(
    task: str, row: Any, reason: str, pretrained: Run, tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [ROWS[task][0], row])
    command = zeroshot("--model", pretrained.path, "--task", task, "--data", path)
    assert (command.code, command.out) == (2, "")
    assert command.err.startswith(f"error: {path}, line 2")
    assert reason in command.err


@pytest.mark.parametrize(("content", "reason"), [("", "the file is empty"), ("\n\n", "no rows; expected columns text")])
def test_a_file_without_rows_is_refused(
    content: str, reason: str, pretrained: Run, tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    command = zeroshot("--model", pretrained.path, "--task", "cola", "--data", tmp_path / "rows.jsonl")
    assert command.code == 2
    assert reason in command.err


def test_a_threshold_needs_both_kinds_of_sentences(
    pretrained: Run, files: dict[str, Path], tmp_path: Path, zeroshot: Callable[..., Command]
) -> None:
    write_rows(tmp_path / "train.jsonl", [{**row, "label": 1} for row in COLA])
    flags = ("--task", "cola", "--data", files["cola"], "--threshold_data", tmp_path / "train.jsonl")
    command = zeroshot("--model", pretrained.path, *flags)
    assert command.code == 2
    assert "--threshold_data: all labels are 1; a threshold needs sentences of both kinds" in command.err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            ("--task", "cola", "sst2", "--data", "x"),
            "2 names behind --task and 1 files behind --data: they go in pairs",
        ),
        (("--task", "cola", "cola", "--data", "x", "y"), "each task once"),
        (("--task", "race", "--data", "x", "--threshold_data", "y"), "--threshold_data is for --task cola alone"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: tuple[str, ...], reason: str, zeroshot: Callable[..., Command]
) -> None:
    command = zeroshot("--model", "none", *flags)
    assert command.code == 2
    assert reason in command.err


def test_weights_that_are_no_run_have_no_checkpoints_and_need_a_tokenizer(
    files: dict[str, Path], tmp_path: Path, zeroshot: Callable[..., Command], pretrained: Run
) -> None:
    directory = write_openai_files(tmp_path / "openai", make_weights())
    question = ("--model", directory, "--task", "winograd", "--data", files["winograd"])
    assert "has no tokenizer beside it: give one with --tokenizer DIR" in zeroshot(*question).err
    command = zeroshot(*question, "--checkpoints", "--tokenizer", pretrained.path / "tokenizer")
    assert command.code == 2


def test_scores_without_a_step_cannot_be_drawn(tmp_path: Path) -> None:
    row = {"model": "m", "task": "race", "metric": "accuracy", "value": 0.5}
    with pytest.raises(DataError, match="no scores to draw against updates"):
        draw_zero_shot([row, {**row, "step": 0}], tmp_path / "x.png")
