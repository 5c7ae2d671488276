"""The same prompts continued by `transformers` and by us, without and with every rule that both have.

`huggingface_texts` needs `transformers` and `torch`. `python tests/decoding.py` writes what it gives for `SEED` to
golden/decoding.json, so that the other tests need neither.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import parity

from gpt.config import ModelConfig
from gpt.generation.settings import Decoding
from gpt.generation.texts import Continuation, continue_texts
from gpt.model.gpt import param_shapes

GOLDEN = Path(__file__).parent / "golden" / "decoding.json"
CONFIG = ModelConfig(vocab_size=40, context_length=24, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=64)
SEED = 2
PROMPTS = ([5, 3, 9, 1], [7, 2, 2, 4, 11, 6, 1, 8, 3], [4])
NUM_NEW = 12

_ENDS: dict[str, Any] = {"end_ids": (6, 11)}
_BEAMS: dict[str, Any] = {"num_beams": 4, "num_samples": 3}
_ALL: dict[str, Any] = {
    "repetition_penalty": 1.2,
    "no_repeat_ngram": 2,
    "banned": ((12,), (3, 7), (15, 20)),
    "end_ids": (6,),
    "min_new_tokens": 5,
}
# Those with the same rules share a compiled program.
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, all rules": _ALL,
    "beams, ends": {**_BEAMS, **_ENDS},
    "beams, ends, long texts": {**_BEAMS, **_ENDS, "length_penalty": 2.0},
    "beams, ends, short texts": {**_BEAMS, **_ENDS, "length_penalty": -0.5},
    "beams, ends not before the fifth token": {**_BEAMS, **_ENDS, "min_new_tokens": 4},
    "beams, all rules": {**_BEAMS, **_ALL},
}
MORE_SETTINGS: dict[str, dict[str, Any]] = {
    "greedy, repetition penalised": {"repetition_penalty": 1.2},
    "greedy, no pair twice": {"no_repeat_ngram": 2},
    "greedy, banned": {"banned": ((12,), (3, 7), (15, 20))},
    "greedy, ends": _ENDS,
    "beams": _BEAMS,
    "two beams, one text": {"num_beams": 2},
    "beams, no pair twice": {**_BEAMS, "no_repeat_ngram": 2},
}


def make_params(seed: int) -> Any:
    """Weights so large that texts have many different tokens."""
    draw = np.random.default_rng(seed).normal

    def make(path: Any, leaf: Any) -> np.ndarray:
        constants = {"scale": np.ones, "bias": np.zeros}
        return constants.get(path[-1].key, lambda shape: draw(0, 0.4, shape))(leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(make, param_shapes(CONFIG))


Texts = list[list[dict[str, Any]]]
"""For each prompt its texts, best first: ids, and of beam search the score."""


def huggingface_texts(seed: int, settings: dict[str, Any]) -> Texts:
    """What `transformers` writes."""
    import torch  # pyright: ignore[reportMissingImports]

    case = parity.Case(CONFIG, num_outputs=1, seed=seed)
    theirs = parity.build_huggingface(case, "OpenAIGPTLMHeadModel", make_params(seed), "lm")
    names = {
        "num_samples": "num_return_sequences",
        "no_repeat_ngram": "no_repeat_ngram_size",
        "banned": "bad_words_ids",
        "end_ids": "eos_token_id",
    }
    options = {names.get(name, name): value for name, value in settings.items()}
    options = {name: [*map(_listed, value)] if isinstance(value, tuple) else value for name, value in options.items()}
    texts = []
    for prompt in PROMPTS:
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=NUM_NEW, do_sample=False,
            suppress_tokens=[0], pad_token_id=0, return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        rows = [_cut(ids, settings.get("end_ids", ())) for ids in out.sequences[:, len(prompt) :].tolist()]
        scores = out.sequences_scores.tolist() if "num_beams" in settings else [None] * len(rows)
        texts.append([{"ids": ids, "score": score} for ids, score in zip(rows, scores, strict=True)])
    return texts


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cut(ids: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """Up to the first end; what follows is padding."""
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in end_ids), ids)


def our_texts(seed: int, settings: dict[str, Any]) -> list[list[Continuation]]:
    """What this project writes, all prompts in one batch."""
    decoding = Decoding(max_new_tokens=NUM_NEW, temperature=0.0, **settings)
    return continue_texts(CONFIG, make_params(seed), PROMPTS, decoding)


if __name__ == "__main__":
    golden = {name: huggingface_texts(SEED, settings) for name, settings in SETTINGS.items()}
    lines = (f"{json.dumps(name)}: {json.dumps(texts)}" for name, texts in golden.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
