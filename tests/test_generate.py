"""`gpt generate`: prompts from everywhere, models of every kind, and what cannot be continued."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from decoding import CONFIG, make_params
from foreign import make_tokenizer
from toy import Command

from gpt.generation.settings import Decoding
from gpt.generation.texts import continue_texts
from gpt.interop.weights import Model
from gpt.training.model_dir import convert, load_model

PROMPT = "the cat sat"
GREEDY = ("--temperature=0", "--max_new_tokens=8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in a directory of each kind."""
    root = tmp_path_factory.mktemp("models")
    model = Model(CONFIG, make_params(2), make_tokenizer())
    for kind in ("openai", "huggingface", "run"):
        convert(model, root / kind, kind)
    return {kind: root / kind for kind in ("openai", "huggingface", "run")}


@pytest.fixture
def generate(gpt: Callable[..., Command], models: dict[str, Path]) -> Callable[..., Command]:
    """Runs `gpt generate` here on the run."""

    def generate(*flags: str | Path) -> Command:
        return gpt("generate", f"--model={models['run']}", *flags)

    return generate


def greedy_ids(prompt: str = PROMPT) -> list[int]:
    ids = make_tokenizer().encode(prompt)
    decoding = Decoding(max_new_tokens=8, temperature=0.0)
    return continue_texts(CONFIG, make_params(2), [ids], decoding)[0][0].ids


def test_every_kind_of_directory_gives_the_same_line(gpt: Callable[..., Command], models: dict[str, Path]) -> None:
    rows = []
    for kind, directory in models.items():
        route = ("--route=basic",) if kind == "openai" else ()
        command = gpt("generate", f"--model={directory}", f"--prompt={PROMPT}", *GREEDY, *route, "--json")
        assert command.code == 0, command.err
        rows += command.rows
    assert len(rows) == 3
    assert rows[0]["ids"] == rows[1]["ids"] == rows[2]["ids"] == greedy_ids()
    assert list(rows[0]) == ["prompt", "ids", "text", "logprobs", "finish_reason"]
    assert (rows[0]["prompt"], rows[0]["finish_reason"]) == (PROMPT, "length")
    assert len(rows[0]["logprobs"]) == 8


def test_prompts_come_from_flags_files_and_standard_input(
    generate: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [PROMPT, "the dog", "The mat."]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    expected = generate(f"--prompts={tmp_path / 'prompts.txt'}", *GREEDY, "--json").rows
    assert [row["prompt"] for row in expected] == prompts
    assert [row["ids"] for row in expected] == list(map(greedy_ids, prompts))
    assert generate(f"--prompts={tmp_path / 'prompts.jsonl'}", *GREEDY, "--json").rows == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts)))
    assert generate("--prompts=-", *GREEDY, "--json").rows == expected
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n"))
    (alone,) = generate(*GREEDY, "--json").rows
    assert (alone["prompt"], alone["text"], alone["ids"]) == tuple(
        expected[0][name] for name in ("prompt", "text", "ids")
    )


def test_a_text_appears_behind_its_prompt(generate: Callable[..., Command]) -> None:
    (row,) = generate(f"--prompt={PROMPT}", *GREEDY, "--json").rows
    assert generate(f"--prompt={PROMPT}", *GREEDY).out == f"{PROMPT}{row['text']}\n"
    (raw,) = generate(f"--prompt={PROMPT}", *GREEDY, "--json", "--raw").rows
    assert PROMPT + raw["text"] == make_tokenizer().decode(make_tokenizer().encode(PROMPT) + row["ids"])


def test_many_samples_follow_each_other_and_a_seed_repeats_them(generate: Callable[..., Command]) -> None:
    flags = (f"--prompt={PROMPT}", "--max_new_tokens=8", "--num_samples=3", "--seed=5")
    rows = generate(*flags, "--json").rows
    assert len({json.dumps(row["ids"]) for row in rows}) == 3
    assert generate(*flags).out == "".join(f"{PROMPT}{row['text']}\n\n" for row in rows)


def test_banned_words_and_beams_with_their_scores(generate: Callable[..., Command]) -> None:
    flags = (f"--prompt={PROMPT}", "--max_new_tokens=8", "--num_beams=3", "--num_samples=2", "--json")
    first, second = generate(*flags, "--banned=mat", "--banned=it").rows
    assert first["score"] > second["score"]
    for row in (first, second):
        assert not {"mat", "it"} & set(row["text"].split())


def test_a_stop_string_that_is_never_met_is_said(generate: Callable[..., Command]) -> None:
    command = generate(f"--prompt={PROMPT}", *GREEDY, "--stop=@@")
    assert command.code == 0
    assert "1 of 1 texts met no stop string" in command.err
    assert generate(f"--prompt={PROMPT}", *GREEDY).err == ""


BAD: list[tuple[list[str], str]] = [
    (["--prompt="], "the prompt is empty: it needs at least one token to continue from"),
    (["--prompt=" + "the " * 24], "24 tokens and max_new_tokens = 128: together more than ModelConfig.context_length"),
    (["--prompt=東京"], "the vocabulary knows no character of the prompt '東京'"),
    (["--prompt=the", "--temperature=-1"], "temperature = -1.0: must be 0 (take the likeliest) or more"),
    (["--prompt=the", "--top_p=1.5"], "top_p = 1.5: must be above 0 and at most 1"),
    (["--prompt=the", "--max_new_tokens=4", "--num_beams=99"], "num_beams = 99: more than the 39 tokens"),
    (["--prompt=the", "--stop="], "a stop string is empty"),
    (["--prompt=the", "--stop=The"], "stop string 'The' would never be met: the vocabulary has no capitals"),
    (["--prompt=the", "--banned= "], "--banned ' ': there is no word in it"),
    (["--prompt=the", "--batch_size=0"], "--batch_size 0: must be 1 or more"),
    (["--prompts=none.txt"], "none.txt: there is no such file"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_what_cannot_be_continued_is_an_error_with_the_way_out(
    flags: list[str], message: str, generate: Callable[..., Command]
) -> None:
    command = generate(*flags)
    assert (command.code, command.out) == (2, "")
    assert message in command.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "p.jsonl has no prompts: expected one a line"),
        ('{"prompt": "the"}\n{"text": "the"}', 'line 2: {"text": "the"}: expected an object with a text as "prompt"'),
        ("the cat", "p.jsonl, line 1: not JSON"),
        ('{"prompt": "the"}\n{"prompt": ""}', "prompt 2 is empty"),
    ],
)
def test_a_bad_file_of_prompts_is_named(
    content: str, message: str, generate: Callable[..., Command], tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    command = generate(f"--prompts={tmp_path / 'p.jsonl'}", *GREEDY)
    assert (command.code, command.out) == (2, "")
    assert message in command.err


def test_a_directory_without_weights_or_without_tokenizer_is_refused(
    gpt: Callable[..., Command], models: dict[str, Path], tmp_path: Path
) -> None:
    empty = gpt("generate", f"--model={tmp_path}", "--prompt=the")
    assert empty.code == 2
    assert "holds no model: expected a run (config.gin), a Hugging Face folder" in empty.err
    model: Any = load_model(models["run"])
    convert(model, tmp_path / "huggingface", "huggingface")
    (tmp_path / "huggingface" / "model.safetensors").unlink()
    bare = gpt("generate", f"--model={tmp_path / 'huggingface'}", "--prompt=the")
    assert bare.code == 2
    assert "model.safetensors" in bare.err
