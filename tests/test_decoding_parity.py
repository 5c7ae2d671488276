"""Greedy and beam search write what `transformers` writes, with every rule that both have.

The default tests compare with golden/decoding.json; `pip install -e '.[parity]'` adds the live comparison.
"""

import json
from typing import Any

import decoding
import pytest

from gpt.generation.texts import Continuation


def compare(ours: list[list[Continuation]], theirs: decoding.Texts) -> None:
    for found, expected in zip(ours, theirs, strict=True):
        assert [text.ids for text in found] == [text["ids"] for text in expected]
        for text, score in zip(found, (text["score"] for text in expected), strict=True):
            assert text.score == (score if score is None else pytest.approx(score, abs=1e-4))
            assert len(text.log_probs) == len(text.ids)


@pytest.fixture(scope="module")
def golden() -> dict[str, decoding.Texts]:
    return json.loads(decoding.GOLDEN.read_text())


@pytest.mark.parametrize("name", decoding.SETTINGS)
def test_texts_equal_the_recorded_ones(name: str, golden: dict[str, decoding.Texts]) -> None:
    compare(decoding.our_texts(decoding.SEED, decoding.SETTINGS[name]), golden[name])


def test_every_rule_changes_the_record(golden: dict[str, decoding.Texts]) -> None:
    assert golden.keys() == decoding.SETTINGS.keys()
    assert len({json.dumps(texts) for texts in golden.values()}) == len(golden)


@pytest.mark.slow
@pytest.mark.parametrize("name", decoding.SETTINGS | decoding.MORE_SETTINGS)
def test_texts_equal_those_of_a_live_run(name: str) -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[parity]'")
    settings: dict[str, Any] = {**decoding.SETTINGS, **decoding.MORE_SETTINGS}[name]
    for seed in (6, 7):
        compare(decoding.our_texts(seed, settings), decoding.huggingface_texts(seed, settings))
