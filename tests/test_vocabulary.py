import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import DataError
from gpt.text.pipeline import SPECIAL_TOKENS
from gpt.text.tokenizer import FileKind, Tokenizer
from gpt.text.training import train_bpe
from gpt.text.vocabulary import PAIRS, Vocabulary

TEXT = "the cat sat on the mat . the dog sat on the log , and the cât and the dog saw a frog .\n" * 20
VOCAB, MERGES = "vocab.json", "merges.txt"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], 48)


@pytest.fixture
def pair(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A directory with vocab.json and merges.txt."""
    tokenizer.save(tmp_path, "huggingface")
    return tmp_path


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def save_tree(tokenizer: Tokenizer, directory: Path, **changes: Any) -> None:
    tree = json.loads(tokenizer.to_json())
    (directory / "tokenizer.json").write_text(json.dumps({**tree, **changes}))


def added(name: str, index: int) -> dict[str, Any]:
    """A token as Hugging Face lists it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": name, **flags, "special": True}


# What is read and written


@pytest.mark.parametrize("kind", ["tokenizer", "openai", "huggingface"])
def test_each_kind_of_files_gives_back_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path, kind: FileKind) -> None:
    tokenizer.save(tmp_path, kind)
    assert Tokenizer.load(tmp_path, "basic").sha256 == tokenizer.sha256


def test_openai_escapes_what_is_not_ascii_and_hugging_face_sorts_and_indents(tmp_path: Path) -> None:
    vocabulary = Vocabulary({"é": 1, "<unk>": 0, "a": 2, "é</w>": 3, "aé</w>": 4}, [("a", "é</w>")])
    tokenizer = Tokenizer(vocabulary, "basic")
    tokenizer.save(tmp_path, "openai")
    tokenizer.save(tmp_path, "huggingface")
    contents = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    merges = "#version: 0.2\na é</w>\n"
    assert contents == {
        "encoder_bpe_40000.json": r'{"\u00e9": 1, "<unk>": 0, "a": 2, "\u00e9</w>": 3, "a\u00e9</w>": 4}',
        "vocab_40000.bpe": merges,
        "vocab.json": '{\n  "<unk>": 0,\n  "a": 2,\n  "aé</w>": 4,\n  "é": 1,\n  "é</w>": 3\n}\n',
        "merges.txt": merges,
    }


def test_the_published_files_come_back_byte_for_byte(assets: Path, tmp_path: Path) -> None:
    published = Tokenizer.load(assets / "gpt1", "original")
    published.save(tmp_path, "openai")
    published.save(tmp_path, "huggingface")
    for name in PAIRS["openai"]:
        assert (tmp_path / name).read_bytes() == (assets / "gpt1" / name).read_bytes()
    assert (tmp_path / MERGES).read_bytes() == (assets / "gpt1" / PAIRS["openai"][1]).read_bytes()
    assert (tmp_path / VOCAB).stat().st_size == 895_485  # as Hugging Face's own


def test_a_pair_of_files_does_not_record_the_route_and_asks_for_it(pair: Path) -> None:
    with pytest.raises(DataError, match=r"vocab\.json and merges\.txt do not say which route .* say it with --route"):
        Tokenizer.load(pair)


def test_the_recorded_route_yields_to_one_that_is_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.with_route("original").save(tmp_path)
    assert Tokenizer.load(tmp_path).route == "original"
    assert Tokenizer.load(tmp_path, "basic").sha256 == tokenizer.sha256


def test_tokenizer_json_comes_before_a_pair_beside_it(tokenizer: Tokenizer, pair: Path) -> None:
    tokenizer.save(pair)
    assert Tokenizer.load(pair).route == "basic"


def test_what_hugging_face_adds_to_tokenizer_json_is_accepted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pieces = [{"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB")]
    template = {"type": "TemplateProcessing", "single": pieces[:1], "pair": pieces, "special_tokens": {}}
    names = [added("<unk>", 0), *(added(name, 48 + place) for place, name in enumerate(SPECIAL_TOKENS))]
    model = json.loads(tokenizer.to_json())["model"]
    model |= {"continuing_subword_prefix": "", "merges": [" ".join(pair) for pair in model["merges"]]}
    save_tree(tokenizer, tmp_path, added_tokens=names, post_processor=template, model=model)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode("_start_ the cat") == tokenizer.encode("_start_ the cat")


# What is refused


@pytest.mark.parametrize(("name", "index"), [("_start_", 49), ("_pad_", 48), ("<unk>", 48)])
def test_another_added_token_is_refused(tokenizer: Tokenizer, tmp_path: Path, name: str, index: int) -> None:
    save_tree(tokenizer, tmp_path, added_tokens=[added(name, index)])
    with pytest.raises(DataError, match=rf"added_tokens holds '{name}' with id {index}: the only .* '_start_' \(48\)"):
        Tokenizer.load(tmp_path)


def test_a_template_that_adds_tokens_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tree(tokenizer, tmp_path, post_processor={"type": "BertProcessing", "sep": ["</w>", 1], "cls": ["</w>", 1]})
    with pytest.raises(DataError, match=r"post_processor is .*BertProcessing.*, expected None"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", [VOCAB, MERGES])
def test_half_of_a_pair_is_refused(pair: Path, name: str) -> None:
    (pair / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: there is no such file"):
        Tokenizer.load(pair, "basic")


@pytest.mark.parametrize("name", [VOCAB, MERGES])
def test_a_file_that_is_not_utf_8_is_refused(pair: Path, name: str) -> None:
    (pair / name).write_bytes(b"\xff")
    with pytest.raises(DataError, match=rf"{name}: not UTF-8 text"):
        Tokenizer.load(pair, "basic")


def test_merges_without_the_header_are_refused(pair: Path) -> None:
    rewrite(pair / MERGES, lambda text: text.removeprefix("#version: 0.2\n"))
    with pytest.raises(DataError, match=r"the first line is 'h e</w>', expected '#version: 0\.2'.*would be lost"):
        Tokenizer.load(pair, "basic")


def test_merges_without_the_last_line_end_are_whole(tokenizer: Tokenizer, pair: Path) -> None:
    rewrite(pair / MERGES, lambda text: text.removesuffix("\n"))
    assert Tokenizer.load(pair, "basic").sha256 == tokenizer.sha256


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nt he</w>\n", "\nthe</w>\n", "line 3: expected two tokens parted by one space, found 'the</w>'"),
        ("\nt he</w>\n", "\nt  he</w>\n", "line 3: expected two tokens"),
        ("\nt he</w>\n", "\n\n", "line 3: expected two tokens"),
        ("\nt he</w>\n", "\nt he</w>\nt he</w>\n", "merge 3, 't' 'he</w>', is a duplicate"),
        ("\nt he</w>\n", "\nt q\n", "do not belong together: merge 2 is 't' 'q', and the vocabulary has no 'q'"),
        ("\nt he</w>\n", "\nh t\n", "do not belong together: merge 2 is 'h' 't', and the vocabulary has no 'ht'"),
        ("\nt he</w>\n", "\n", "do not belong together: no merge makes 'the</w>', nor 0 other tokens"),
    ],
)
def test_merges_that_cannot_be_right_are_refused(pair: Path, old: str, new: str, message: str) -> None:
    rewrite(pair / MERGES, lambda text: text.replace(old, new))
    with pytest.raises(DataError, match=message):
        Tokenizer.load(pair, "basic")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"a": ', '"t": ', "the entry 't' is there twice; remove one of them"),
        ('"a": 3', '"a": 4', "the ids of the 48 vocabulary entries are not 0 to 47, each once"),
        ('"a": 3', '"a": 3.5', r"the id of 'a' is 3\.5, expected a whole number"),
        ('"<unk>"', '"<UNK>"', "lacks '<unk>', which stands for every unknown character"),
        ("{", "", "not JSON"),
    ],
)
def test_a_vocabulary_that_cannot_be_right_is_refused(pair: Path, old: str, new: str, message: str) -> None:
    rewrite(pair / VOCAB, lambda text: text.replace(old, new, 1))
    with pytest.raises(DataError, match=rf"vocab\.json.*{message}"):
        Tokenizer.load(pair, "basic")


def test_another_file_under_the_name_of_a_vocabulary_is_refused(tokenizer: Tokenizer, pair: Path) -> None:
    (pair / VOCAB).write_text("[1, 2]")
    with pytest.raises(DataError, match=r"vocab\.json.*expected one JSON object of tokens and ids, found \[1, 2\]"):
        Tokenizer.load(pair, "basic")
    (pair / VOCAB).write_text(tokenizer.to_json())
    with pytest.raises(DataError, match=r"the id of 'version' is \"1\.0\", expected a whole number"):
        Tokenizer.load(pair, "basic")


@pytest.mark.parametrize("kind", ["openai", "huggingface"])
def test_saving_a_pair_never_replaces_half_of_one(tokenizer: Tokenizer, tmp_path: Path, kind: FileKind) -> None:
    merges = PAIRS[kind][1]
    (tmp_path / merges).write_text("precious")
    with pytest.raises(DataError, match=rf"{merges} exists already"):
        tokenizer.save(tmp_path, kind)
    assert [path.name for path in tmp_path.iterdir()] == [merges]
    assert (tmp_path / merges).read_text() == "precious"
