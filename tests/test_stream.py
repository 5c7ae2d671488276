"""The text of a continuation while it is written, and where it stops."""

import random

import pytest

from gpt.errors import ConfigError
from gpt.generation.stream import TextStream, check_stops
from gpt.text.detokenise import detokenise
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(['" i don \' t know , " said the cat . the dog didn \' t say " no " , did it ?'] * 3, 60)


def written(tokenizer: Tokenizer, text: str, *stops: str, prompt: str = "the cat", min_new_tokens: int = 0):
    """The stream of a text that comes token by token, finished, and all that it gave."""
    stream = TextStream(tokenizer, tokenizer.encode(prompt), stops, min_new_tokens=min_new_tokens)
    given = [stream.push([token]) for token in tokenizer.encode(text)]
    return stream, [*given, stream.finish()]


def test_what_a_stream_gives_is_the_detokenised_text_behind_the_prompt(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    for _ in range(50):
        ids = [draw.randrange(1, tokenizer.vocab_size) for _ in range(40)]
        num_prompt, size = draw.randrange(1, 20), draw.randrange(1, 6)
        whole, prompt = detokenise(tokenizer.decode(ids)), tokenizer.decode(ids[:num_prompt])
        stream = TextStream(tokenizer, ids[:num_prompt])
        given = [stream.push(ids[at : at + size]) for at in range(num_prompt, 40, size)]
        text = "".join(given) + stream.finish()
        assert whole.endswith(text)
        assert (whole.removesuffix(text) + text).replace(" ", "") == whole.replace(" ", "")
        assert whole.removesuffix(text).replace(" ", "") == prompt.replace(" ", "")
        assert (stream.text, stream.num_ids) == (text, 40 - num_prompt)


def test_raw_text_has_all_spaces(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, tokenizer.encode("the dog"), is_raw=True)
    assert stream.push(tokenizer.encode("didn't say, did it?")) == " didn ' t say , did it ?"


def test_a_text_begins_as_its_prompt_needs_it(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, "said", prompt='the cat "')[0].text == "said"
    assert written(tokenizer, ", did", prompt="the cat")[0].text == ", did"
    assert written(tokenizer, "t know", prompt="i don '")[0].text == "t know"


def test_a_text_ends_in_front_of_the_first_stop_string(tokenizer: Tokenizer) -> None:
    stream, given = written(tokenizer, "said no. the dog didn't", " dog", "the dog")
    assert (stream.text, "".join(given)) == (" said no. ", " said no. ")
    assert stream.is_stopped
    kept = tokenizer.encode("said no. the dog didn't")[: stream.num_ids]
    assert kept == tokenizer.encode("said no. the"), "the word where the text ends"
    assert stream.push(tokenizer.encode("cat")) == ""


def test_nothing_is_given_that_may_begin_a_stop_string(tokenizer: Tokenizer) -> None:
    stream, given = written(tokenizer, "said the cat. the dog", "the dog")
    assert stream.text == " said the cat. "
    assert [text for text in given if text] == [" said", " ", "the ca", "t.", " "], "cat ends as the stop string begins"
    stream, given = written(tokenizer, "said the", "the dog")
    assert "".join(given) == " said the"
    assert not stream.is_stopped


def test_a_stop_string_within_the_fewest_tokens_is_passed_over(tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode("no, no"))
    assert written(tokenizer, "no, no, no", ",", min_new_tokens=count)[0].text == " no, no"
    assert written(tokenizer, "no, no, no", ",", min_new_tokens=1)[0].text == " no"
    assert written(tokenizer, "no, no, no", ",", min_new_tokens=99)[0].text == " no, no, no"


def test_stop_strings_that_make_no_sense_are_refused() -> None:
    check_stops(["the end", "\n"])
    with pytest.raises(ConfigError, match="a stop string is empty"):
        check_stops([""])
    with pytest.raises(ConfigError, match=r"'The End' would never be met: .* write 'the end'"):
        check_stops(["The End"])
