import importlib.util
import itertools
import json
import random
import sys
from pathlib import Path

import ftfy
import pytest
from random_text import random_text
from reference_tokenizer import ReferenceTokenizer, standardise

from gpt.data.prepare import prepare
from gpt.data.store import TokenStore
from gpt.errors import DataError
from gpt.text import original
from gpt.text.standardise import PLAIN
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

NUM_FUZZED = 20_000

LINES = [
    *["plain words here", "“Quoted — and dashed,” he said…"] * 4,
    "",
    "  \t ",
    "    indented",
    "see <b>this</b> &amp; that",
    "Tom &amp; Jerry &lt;3",
    "schÃ¶n &eacute;",
    "\x00\x07",
    "\x1b[0m",
]


def random_document(seed: int) -> str:
    """Lines that are plain, blank, vanish in ftfy, or are in need of it."""
    random_ = random.Random(seed)
    return "\n".join(
        random_text(random_) if random_.random() < 0.3 else random_.choice(LINES) for _ in range(random_.randint(1, 12))
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small vocabulary in which emoticons, entities and contractions have letters to be told apart by."""
    texts = [random_text(random.Random(f"training {seed}")) for seed in range(3000)]
    return train_bpe([*texts, "this is the thing that the others said it's"] * 2, 2400, "original")


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer) -> ReferenceTokenizer:
    return ReferenceTokenizer(tokenizer.vocabulary.ids, tokenizer.vocabulary.merges)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words that the route makes of a text, as lower-cased slices of the standardised text."""
    encoding = tokenizer.encode_with_offsets(text)
    spans: list[list[int]] = []
    tokens = {index: token for token, index in tokenizer.vocabulary.ids.items()}
    inside = False
    for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if inside:
            spans[-1][1] = end
        else:
            spans.append([start, end])
        inside = not tokens[index].endswith("</w>") and index != 0
    return [encoding.text[start:end].lower() for start, end in spans]


# Against the algorithm in its plain form


def test_the_ids_of_random_texts_are_those_of_the_plain_algorithm(
    tokenizer: Tokenizer, reference: ReferenceTokenizer
) -> None:
    texts = [random_text(random.Random(seed)) for seed in range(NUM_FUZZED)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids == reference.encode(text), repr(text)


def test_the_standardised_text_of_random_texts_is_that_of_the_plain_algorithm(tokenizer: Tokenizer) -> None:
    for seed in range(1000):
        text = random_document(seed)
        assert tokenizer.encode_with_offsets(text).text == standardise(ftfy.fix_text(text)), repr(text)


def test_a_document_cut_anywhere_has_the_ids_of_the_whole(tokenizer: Tokenizer, reference: ReferenceTokenizer) -> None:
    cuts = 0
    for seed in range(1000):
        text = random_document(seed)
        for length in (1, 25):
            pieces = list(tokenizer.cut(text, length))
            cuts += len(pieces) - 1
            assert "".join(piece.text for piece in pieces) == text
            assert list(itertools.chain(*tokenizer.encode_pieces(pieces))) == reference.encode(text), repr(text)
    assert cuts > 1000


def test_a_long_text_is_cut_on_the_way_and_has_the_same_ids(
    tokenizer: Tokenizer, reference: ReferenceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(random_document(seed) for seed in range(50))
    monkeypatch.setattr(original.OriginalRoute, "piece_length", 50)
    assert tokenizer.encode(text) == reference.encode(text)


def test_forgetting_what_was_learnt_changes_no_ids(
    tokenizer: Tokenizer, reference: ReferenceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(original, "_MAX_REMEMBERED", 100)
    for seed in range(20):
        text = random_document(seed)
        assert tokenizer.encode(text) == reference.encode(text)


def test_text_of_plain_characters_alone_is_only_straightened_by_ftfy() -> None:
    characters = [chr(point) for point in range(0x3000) if PLAIN.fullmatch(chr(point))]
    assert {"a", "~", "\t", "“", "…"} < set(characters)
    assert not {"&", "\r", "\x00", "\x1b", "é", "\x85"} & set(characters)
    straight = str.maketrans("‘’“”", "''\"\"")
    for pair in itertools.product(characters, repeat=2):
        text = "".join(pair)
        assert ftfy.fix_text(text) == text.translate(straight)
    random_ = random.Random(0)
    for _ in range(5000):
        text = "".join(random_.choices(characters, k=12))
        assert ftfy.fix_text(text) == text.translate(straight)


# One rule at a time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Can't we? It's John's!", ["ca", "n't", "we", "?", "it", "'s", "john", "'s", "!"]),
        ("Mr. Smith, Ph.D.", ["mr.", "smith", ",", "ph.d."]),
        ("wait --- what...", ["wait", "---", "what", "..."]),
        ("“Smart — quotes…”", ['"', "smart", "-", "quotes", "...", '"']),
        ("one.\n\n \n two\n", ["one", ".", "\n", "two"]),
        (" \n one", ["one"]),
        ("c\\d [\\x]", ["c\\d", "[", "\\x", "]"]),
        ("_start_", ["_", "start", "_"]),
        ("a<unk>b", ["a", "<", "unk", ">", "b"]),
        ("Tom &amp; Jerry", ["tom", "&", "jerry"]),
        ("<i>Tom &amp; Jerry", ["<", "i", ">", "tom", "&", "amp", ";", "jerry"]),
        ("schÃ¶n", ["schön"]),
    ],
)
def test_words_are_split_as_openai_split_them(tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    assert words(tokenizer, text) == expected


def test_a_line_break_between_words_is_the_newline_token(tokenizer: Tokenizer) -> None:
    one, two = tokenizer.encode("one"), tokenizer.encode("two")
    for text in ("one\ntwo", "\none\r\n\n\n two\n\n", "one\u2028two"):
        assert tokenizer.encode(text) == [*one, tokenizer.newline_id, *two]
    assert tokenizer.encode("") == tokenizer.encode(" \n \n") == []


def test_an_entity_below_markup_stays_when_the_text_is_cut_between(tokenizer: Tokenizer) -> None:
    text = "a < b\nplain\nplain\nTom &amp; Jerry"
    pieces = list(tokenizer.cut(text, 1))
    assert len(pieces) == 3
    assert pieces[-1].after_markup
    assert list(itertools.chain(*tokenizer.encode_pieces(pieces))) == tokenizer.encode(text)
    assert tokenizer.encode(text)[-len(tokenizer.encode("Tom & Jerry")) :] != tokenizer.encode("Tom & Jerry")


def test_a_special_case_that_overlaps_what_looks_like_one_across_a_space_is_not_taken_apart_alone(
    tokenizer: Tokenizer, reference: ReferenceTokenizer
) -> None:
    # `o )` looks like the end of `:o)`, so spaCy leaves the `:o` in front of it in two tokens.
    assert words(tokenizer, "</3:o)") == ["<", "/", "3", ":", "o", ")"]
    assert words(tokenizer, "</3:o") == ["<", "/", "3", ":o"]
    assert tokenizer.encode("</3:o)") == reference.encode("</3:o)")


def test_offsets_are_spans_of_the_standardised_text(tokenizer: Tokenizer) -> None:
    ids, offsets, text = tokenizer.encode_with_offsets("“Can't!”\nİ  said")
    assert ids == tokenizer.encode("“Can't!”\nİ  said")
    assert text == '" Can\'t ! " \n İ said'
    spans = [text[start:end] for start, end in offsets]
    assert "".join(spans).replace("İİ", "İ") == '"Can\'t!"\nİsaid'  # its lower case is two symbols of one character


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="half of a surrogate pair"):
        tokenizer.encode("cat \ud800")
    with pytest.raises(DataError, match="half of a surrogate pair"):
        tokenizer.encode_with_offsets("cat \udc00")


def test_a_vocabulary_without_the_newline_cannot_encode_line_breaks(tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.to_json())
    del tree["model"]["vocab"]["\n</w>"]
    without = Tokenizer.from_json(json.dumps(tree))
    assert without.encode("the cat") == tokenizer.encode("the cat")
    for encode in (without.encode, without.encode_with_offsets):
        with pytest.raises(DataError, match=r"no newline token .* which the original route makes of line breaks"):
            encode("the\ncat")


# The packages


@pytest.mark.parametrize(("module", "package"), [("ftfy", "ftfy"), ("spacy.lang.en", "spacy")])
def test_without_a_package_the_extra_and_the_other_route_are_named(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    fresh = Tokenizer.from_json(tokenizer.to_json())
    assert fresh.decode([1]) == tokenizer.decode([1])
    with pytest.raises(DataError, match=rf"needs {package}, .*pip install '\.\[original\]'.*--route basic"):
        fresh.encode("the cat")
    with pytest.raises(DataError, match=rf"needs {package}, "):
        train_bpe(["the cat"], 100, "original")


def test_the_packages_are_not_imported_before_they_are_needed() -> None:
    import subprocess

    program = "import sys; import gpt.cli.tokenizer; sys.exit(bool({'spacy', 'ftfy'} & sys.modules.keys()))"
    assert importlib.util.find_spec("spacy")
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Training and preparing


def test_training_sees_the_words_of_the_route_and_not_the_line_breaks() -> None:
    trained = train_bpe(["Can't it's\ncan't it's " * 10], 21, "original")
    merges = ["".join(pair) for pair in trained.vocabulary.merges]
    assert trained.route == "original"
    assert {"n't</w>", "'s</w>", "ca</w>"} <= set(merges)
    assert [token for token, index in trained.vocabulary.ids.items() if index in (0, 20)] == ["<unk>", "\n</w>"]
    assert "\n" not in trained.vocabulary.ids


def test_training_does_not_depend_on_the_order_of_texts(tokenizer: Tokenizer) -> None:
    texts = [random_text(random.Random(f"training {seed}")) for seed in range(3000)]
    again = train_bpe(["this is the thing that the others said it's", *reversed(texts)] * 2, 2400, "original")
    assert again.to_json() == tokenizer.to_json()


def test_a_prepared_store_holds_the_ids_of_whole_documents(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt.data.parts._PART_LENGTH", 200)  # cuts documents
    documents = ["\n".join(random_document(seed) for seed in range(first, first + 30)) for first in (0, 30)]
    rows = [json.dumps({"text": text}) + "\n" for text in documents]
    (tmp_path / "a.jsonl").write_text("".join(rows), encoding="utf-8")
    prepare([str(tmp_path / "a.jsonl")], tokenizer, tmp_path / "store", validation_fraction=0.0, workers=2)
    expected = [[*ids, tokenizer.newline_id] for ids in tokenizer.encode_batch(documents)]
    assert TokenStore.open(tmp_path / "store", tokenizer).split("train").tolist() == list(itertools.chain(*expected))
