import io
import json
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from gpt.cli import tokenizer as command
from gpt.errors import DataError
from gpt.text.pieces import split_at_breaks
from gpt.text.pipeline import Route
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

TEXT = "the cat sat on the mat . the dog sat on the log , and the cat and the dog saw a frog .\n" * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], 48)


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    vocab = json.loads(tokenizer.to_json())["model"]["vocab"]
    return sorted(vocab, key=vocab.__getitem__)


def save_changed(tokenizer: Tokenizer, directory: Path, path: list[str], value: object) -> None:
    tree = json.loads(tokenizer.to_json())
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (directory / "tokenizer.json").write_text(json.dumps(tree))


def run(*words: str) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def test_the_vocabulary_is_laid_out_like_the_original(tokenizer: Tokenizer) -> None:
    tokens = vocabulary(tokenizer)
    characters = sorted(set(TEXT) - {" ", "\n"})
    ends = [character + "</w>" for character in characters]
    assert len(tokens) == tokenizer.vocab_size == 48
    assert tokens[: 1 + len(characters) + len(ends)] == ["<unk>", *characters, *ends]
    merges = ["".join(pair) for pair in json.loads(tokenizer.to_json())["model"]["merges"]]
    assert tokens[1 + 2 * len(characters) :] == [*merges, "\n</w>"]
    assert merges[:2] == ["he</w>", "the</w>"]


def test_the_newline_is_the_last_id_and_special_tokens_follow(tokenizer: Tokenizer) -> None:
    assert tokenizer.newline_id == 47
    assert (tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id) == (48, 49, 50)


def test_text_never_gives_the_newline_or_a_special_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the\n</w> cat\r\n\n\n</w> <unk> \u2028 sat " + TEXT)
    assert max(ids) < tokenizer.newline_id


def test_encoding_lowers_case_drops_accents_and_splits_punctuation(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("The  CÁT\tsat,on\nthe mat.")) == "the cat sat , on the mat ."


def test_the_word_for_the_unknown_token_is_the_unknown_token_as_for_hugging_face(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("the <unk> cat") == [*tokenizer.encode("the"), 0, *tokenizer.encode("cat")]
    assert tokenizer.encode("the<unk>cat") == tokenizer.encode("the <unk> cat")


def test_a_character_outside_the_alphabet_becomes_unknown(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("ж") == [0]


def test_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == tokenizer.encode(" \n ") == []


def test_a_long_text_encodes_as_its_words_do(tokenizer: Tokenizer) -> None:
    words = ["cat", "frog", "x" * 500, "the-dog,", "sat\n"] * 200
    assert tokenizer.encode(" ".join(words)) == [token for ids in tokenizer.encode_batch(words) for token in ids]


def test_the_published_vocabulary_gives_the_ids_of_both_references(assets: Path) -> None:
    cases = json.loads((assets / "gpt1" / "tokenizer_cases.json").read_text())["cases"]
    references: dict[Route, str] = {"original": "original_modern", "basic": "hf_v5"}
    for route, reference in references.items():
        published = Tokenizer.load(assets / "gpt1", route)
        assert (published.vocab_size, published.newline_id) == (40_478, 40_477)
        assert {case["name"]: published.encode(case["text"]) for case in cases} == {
            case["name"]: case["ids"][reference] for case in cases
        }


def test_offsets_are_spans_of_the_text_itself(tokenizer: Tokenizer) -> None:
    text = "  The CÁT\tsat,\nthe  mat" + " x" * 5000  # longer than what is encoded at once
    ids, offsets, same_text = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert same_text == text
    assert [text[start:end] for start, end in offsets[:6]] == ["The", "CÁT", "sat", ",", "the", "m"]
    assert offsets[-1] == (len(text) - 1, len(text))


def test_pieces_of_a_text_join_to_the_text_and_start_at_breaks() -> None:
    pieces = list(split_at_breaks("one two\nthree  four", 4))
    assert "".join(pieces) == "one two\nthree  four"
    assert pieces == ["one two", "\nthree", "  four"]


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets):
        with pytest.raises(DataError, match="half of a surrogate pair"):
            encode("cat \ud800")


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        ("left", [[5, 6, 7], [0, 0, 8], [0, 0, 0]], [[1, 1, 1], [0, 0, 1], [0, 0, 0]]),
    ],
)
def test_sequences_are_padded_on_either_side(
    side: Literal["left", "right"], ids: list[list[int]], mask: list[list[int]]
) -> None:
    padded = Tokenizer.pad([[5, 6, 7], [8], []], side=side)
    assert padded.ids.tolist() == ids
    assert padded.mask.tolist() == mask
    assert (padded.ids.dtype, padded.mask.dtype) == (np.int32, bool)


def test_sequences_are_padded_to_a_length_and_never_cut() -> None:
    assert Tokenizer.pad([[5, 6]], length=4).ids.tolist() == [[5, 6, 0, 0]]
    assert Tokenizer.pad([], length=4).ids.shape == (0, 4)
    with pytest.raises(DataError, match="length 1: a sequence has 2 tokens; cut it, or pad to a greater length"):
        Tokenizer.pad([[5, 6]], length=1)


@pytest.mark.parametrize("token", [-1, 48])
def test_decoding_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(DataError, match=f"token id {token}: the vocabulary has ids from 0 to 47"):
        tokenizer.decode([1, token])


def test_training_does_not_depend_on_the_order_of_texts(tokenizer: Tokenizer) -> None:
    assert train_bpe(reversed(TEXT.splitlines()), 48).to_json() == tokenizer.to_json()


def test_training_keeps_the_most_frequent_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt.text.training._MAX_CHARACTERS", 3)
    assert vocabulary(train_bpe(["dddd ccc bb a dcb dcb"], 9))[1:4] == ["b", "c", "d"]


def test_too_little_text_says_how_far_it_reached_and_that_size_works() -> None:
    with pytest.raises(DataError, match=r"--vocab_size 500: the text is too small, it reached 52; lower --vocab_size"):
        train_bpe([TEXT], 500)
    assert train_bpe([TEXT], 52).vocab_size == 52


def test_a_vocabulary_smaller_than_the_alphabet_is_refused() -> None:
    with pytest.raises(DataError, match="--vocab_size 7: the 3 characters of the text alone take 8 ids"):
        train_bpe(["abc"], 7)


def test_a_saved_tokenizer_loads_as_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "vocab")
    loaded = Tokenizer.load(tmp_path / "new" / "vocab")
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert os.listdir(tmp_path / "new" / "vocab") == ["tokenizer.json"]  # noqa: PTH208 - and nothing hidden


def test_the_digest_ignores_white_space_but_no_merge(tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.to_json())
    assert Tokenizer.from_json(json.dumps(tree, indent=7)).sha256 == tokenizer.sha256
    tree["model"]["merges"].pop()
    assert Tokenizer.from_json(json.dumps(tree)).sha256 != tokenizer.sha256


def test_the_digest_depends_on_the_route(tokenizer: Tokenizer) -> None:
    assert tokenizer.with_route("original").sha256 != tokenizer.sha256
    assert tokenizer.with_route("original").with_route("basic").sha256 == tokenizer.sha256


def test_saving_never_replaces_a_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("precious")
    with pytest.raises(DataError, match="exists already"):
        tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "precious"


def test_saving_where_a_file_is_in_the_way_is_a_clear_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be written: File exists"):
        tokenizer.save(tmp_path / "file")


def test_loading_from_a_missing_directory_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such directory; `gpt tokenizer train` makes one"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"there is no tokenizer\.json in it"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"tokenizer\.json: not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not UTF-8 text"),
        (b"[]", "it has no `model`"),
        (b'{"model": {}}', "not a byte-pair encoding of the original route: decoder is None, expected"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model", "type"], "WordPiece", "model.type is 'WordPiece', expected 'BPE'"),
        (["model", "dropout"], 0.1, "model.dropout is 0.1, expected None"),
        (["normalizer", "lowercase"], False, "normalizer is .*'lowercase': False"),
        (["model", "vocab", "th"], 1000, "vocabulary entries are not 0 to 48, each once"),
        (
            ["model", "merges"],
            [["z", "z"]],
            "do not belong together: merge 1 is 'z' 'z', and the vocabulary has no 'z'",
        ),
        (["model", "vocab"], {"<unk>": 0}, "do not belong together: merge 1 is"),
        (["model", "merges"], {}, "`model` lacks a list of `merges`"),
        (["model", "merges"], [["t"]], r"merge 1 is \['t'\], expected two tokens"),
        (["model", "ignore_merges"], True, "model.ignore_merges is True, expected None"),
        (["truncation"], {"max_length": 5}, "truncation is .*, expected None"),
        (["model", "vocab"], [], r"expected one JSON object of tokens and ids, found \[\]"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, path: list[str], value: object, message: str
) -> None:
    save_changed(tokenizer, tmp_path, path, value)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_the_newline_is_refused_only_where_it_is_needed(tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.to_json())
    del tree["model"]["vocab"]["\n</w>"]
    without = Tokenizer.from_json(json.dumps(tree))
    assert without.encode("the cat\nsat") == tokenizer.encode("the cat sat")
    with pytest.raises(DataError, match=r"no newline token .* documents are separated by; use OpenAI's vocabulary"):
        _ = without.newline_id


def test_the_train_command_writes_a_tokenizer_and_refuses_a_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    words = ("train", "--input", str(tmp_path / "a.txt"), "--vocab_size", "48", "--output", str(tmp_path / "vocab"))
    assert run(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["vocab_size"] == 48
    assert report["sha256"] == Tokenizer.load(tmp_path / "vocab").sha256
    with pytest.raises(DataError, match="holds a tokenizer already"):
        run(*words)


def test_the_train_command_takes_the_route_and_records_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    words = ("train", "--input", str(tmp_path / "a.txt"), "--vocab_size", "48", "--output", str(tmp_path / "vocab"))
    assert run(*words, "--route", "original") == 0
    assert Tokenizer.load(tmp_path / "vocab").route == "original"


def test_encode_reads_published_files_with_the_route_that_is_asked_for(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path, "openai")
    for route, expected in (("basic", "the cat"), ("original", "the\ncat")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'"the\\ncat"\n')))
        assert run("encode", "--vocab", str(tmp_path), "--route", route) == 0
        ids = json.loads(capsys.readouterr().out)
        assert tokenizer.decode(ids).split(" ") == expected.replace("\n", " \n ").split(" ")
    with pytest.raises(DataError, match="say it with --route"):
        run("encode", "--vocab", str(tmp_path))


def test_decode_gives_back_what_encode_printed(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'"The cat"\n"the\\n dog"\n')))
    run("encode", "--vocab", str(tmp_path))
    lines = capsys.readouterr().out
    assert [json.loads(line) for line in lines.splitlines()] == tokenizer.encode_batch(["the cat", "the dog"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    run("decode", "--vocab", str(tmp_path))
    assert capsys.readouterr().out == '"the cat"\n"the dog"\n'


@pytest.mark.parametrize(
    ("action", "line", "message"),
    [
        ("encode", b"[1]", "line 2: expected a JSON string, found "),
        ("encode", b"\xff", "line 2: not JSON"),
        ("decode", b"[true]", "line 2: expected a JSON list of ids, found "),
        ("encode", b'"\\ud800"', "line 2: a text holds half of a surrogate pair"),
        ("decode", b"{", "line 2: not JSON"),
        ("decode", b"[1, 48]", "line 2: token id 48: the vocabulary has ids from 0 to 47"),
        ("decode", b"[-1]", "line 2: token id -1"),
    ],
)
def test_a_bad_line_of_standard_input_is_named(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, line: bytes, message: str
) -> None:
    tokenizer.save(tmp_path)
    good = b'"a"\n' if action == "encode" else b"[1]\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(good + line)))
    with pytest.raises(DataError, match=message):
        run(action, "--vocab", str(tmp_path))
