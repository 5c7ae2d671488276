"""The tokenizer files that `transformers` loads beside weights."""

import json
from pathlib import Path

import tokenizers

from gpt.config import ModelConfig
from gpt.text.pipeline import SPECIAL_TOKENS
from gpt.text.tokenizer import Tokenizer
from gpt.text.vocabulary import FILE_NAME, UNKNOWN


def write_tokenizer(tokenizer: Tokenizer, config: ModelConfig, directory: Path) -> tuple[str, ...]:
    """Writes tokenizer.json, its settings, vocab.json and merges.txt; what a user should know of it.

    The special tokens are registered where the model has rows for them, so that text may name them.
    """
    tokenizer.save(directory, "huggingface")
    pipeline = tokenizers.Tokenizer.from_str(tokenizer.with_route("basic").to_json())
    specials = SPECIAL_TOKENS[: config.num_special_tokens]
    pipeline.add_special_tokens(list(specials))
    (directory / FILE_NAME).write_text(pipeline.to_str(pretty=True), encoding="utf-8")
    settings = {
        "tokenizer_class": "OpenAIGPTTokenizer",
        "unk_token": UNKNOWN,
        "do_lower_case": True,
        "model_max_length": config.context_length,
    }
    if specials:
        settings["additional_special_tokens"] = list(specials)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if tokenizer.route == "basic":
        return ()
    return (
        "the tokenizer takes the original route, which Hugging Face's tokenizers do not have: the files written take "
        "the basic route, with other ids for some texts; encode with `gpt tokenizer encode --route original` instead",
    )
