"""The basic route against Hugging Face's tokenizer, from the extra `parity`."""

import random
from pathlib import Path
from typing import Any

import pytest
from random_text import random_text

from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

NUM_FUZZED = 20_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([random_text(random.Random(f"training {seed}")) for seed in range(3000)] * 2, 2400)


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed: it is in the extra `parity`")


def test_the_ids_of_random_texts_are_those_of_hugging_face(tokenizer: Tokenizer, transformers: Any) -> None:
    vocabulary = tokenizer.vocabulary
    peer = transformers.OpenAIGPTTokenizer(vocab=dict(vocabulary.ids), merges=list(vocabulary.merges))
    texts = [random_text(random.Random(seed)) for seed in range(NUM_FUZZED)]
    ids = tokenizer.encode_batch(texts)
    for text, ours, theirs in zip(texts, ids, peer(texts).input_ids, strict=True):
        assert ours == theirs, repr(text)
    assert [tokenizer.decode(ours) for ours in ids] == peer.batch_decode(ids)


def test_a_tokenizer_json_that_hugging_face_wrote_is_read_and_ours_is_read_there(
    tokenizer: Tokenizer, transformers: Any, tmp_path: Path
) -> None:
    vocabulary = tokenizer.vocabulary
    peer = transformers.OpenAIGPTTokenizer(vocab=dict(vocabulary.ids), merges=list(vocabulary.merges))
    peer.add_special_tokens({"extra_special_tokens": ["_start_", "_delimiter_", "_classify_"]})
    peer.save_pretrained(tmp_path / "theirs")
    assert Tokenizer.load(tmp_path / "theirs").sha256 == tokenizer.sha256
    tokenizer.save(tmp_path / "ours")
    text = "It's <unk> _start_ naïve."
    read = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "ours" / "tokenizer.json"))
    assert read(text).input_ids == tokenizer.encode(text)
