"""Spaces where people put them: by example, and measured on books."""

import random
import re
import tarfile
from pathlib import Path

import pytest
from random_text import MARKS, WORDS

from gpt.text.detokenise import detokenise
from gpt.text.pipeline import build
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

BASIC = {
    '" i don \' t know , " he said . " wait ! "': '"i don\'t know," he said. "wait!"',
    "“ it ’ s john ’ s , ” she said ; “ isn ’ t it ? ”": "“it’s john’s,” she said; “isn’t it?”",
    "the boys ' hats ( both ) were well - known .": "the boys' hats (both) were well-known.",
    "he paused - - and went on . . . at 3 . 5 % , or $ 1 , 000": "he paused--and went on... at 3.5%, or $1,000",
    "at 10 : 30 o ' clock , i . e . before noon , ' tis said": "at 10:30 o'clock, i.e. before noon, 'tis said",
    "he called it ' a thing ' , you see": "he called it 'a thing', you see",
    'a " good " man said " no': 'a "good" man said "no',
    "either / or [ sic ]": "either/or [sic]",
    "it was _ very _ cold": "it was _very_ cold",
}
ORIGINAL = {
    "i do n't know what they 're gon na do , she 's late .": "i don't know what they're gonna do, she's late.",
    'he said : " no ! " \n " why ? " ...': 'he said: "no!"\n"why?"...',
}


@pytest.mark.parametrize("raw", [*BASIC, *ORIGINAL])
def test_spaces_are_taken_out_where_nobody_writes_them(raw: str) -> None:
    assert detokenise(raw) == {**BASIC, **ORIGINAL}[raw]


def test_a_new_line_forgets_a_quote_that_was_left_open() -> None:
    assert detokenise('" he went on \n " and on " , he said') == '"he went on\n"and on", he said'


def test_a_quote_left_open_long_ago_does_not_turn_the_next_one_around() -> None:
    words = "one two three four five six seven eight nine"
    assert detokenise(f'" {words} he said " yes , " and left') == f'"{words} he said "yes," and left'


def test_nothing_but_spaces_changes_and_a_new_reading_gives_the_same_ids() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices([*WORDS, *MARKS], k=30)).lower() for _ in range(200)]
    tokenizer = train_bpe(texts, 450)
    for text in texts:
        ids = tokenizer.encode(text)
        readable = detokenise(tokenizer.decode(ids))
        assert readable.replace(" ", "") == tokenizer.decode(ids).replace(" ", "")
        if "<unk>" not in readable:
            assert tokenizer.encode(readable) == ids


def paragraphs(assets: Path) -> list[str]:
    """Paragraphs of the first eight books, from their middle."""
    found = []
    with tarfile.open(assets / "data" / "books-gutenberg.tar.xz", "r|xz") as archive:
        for member in archive:
            if not member.name.endswith(".txt"):
                continue
            file = archive.extractfile(member)
            assert file is not None
            text = file.read().decode("utf-8", "replace")[20_000:50_000]
            found += [" ".join(paragraph.split()) for paragraph in text.split("\n\n")][1:-1]
            if len(found) > 1500:
                break
    return [paragraph for paragraph in found if paragraph]


def space_places(text: str) -> set[int]:
    """Where the spaces are, counted in other characters."""
    return {len(text[: match.start()].replace(" ", "")) for match in re.finditer(" +", text)}


def test_the_spaces_of_books_come_back(assets: Path) -> None:
    tokenizer = Tokenizer.load(assets / "gpt1", "basic")
    normalise = build(None, "basic").normalizer.normalize_str
    wrong = num_spaces = num_whole = num_read = raw_wrong = 0
    for paragraph in paragraphs(assets):
        written = normalise(paragraph)
        ids = tokenizer.encode(written)
        raw = tokenizer.decode(ids)
        if "<unk>" in raw:
            continue
        found = detokenise(raw)
        assert tokenizer.encode(found) == ids
        wrong += len(space_places(found) ^ space_places(written))
        raw_wrong += len(space_places(raw) ^ space_places(written))
        num_spaces += len(space_places(written))
        num_whole += space_places(found) == space_places(written)
        num_read += 1
    print(f"{num_read} paragraphs, {num_spaces} spaces: {raw_wrong} wrong raw, {wrong} wrong after; {num_whole} whole")
    assert num_spaces > 20_000
    assert raw_wrong / num_spaces > 0.1
    assert wrong / num_spaces < 0.005
    assert num_whole / num_read > 0.95
