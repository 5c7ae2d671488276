"""A vocabulary as a pipeline of the `tokenizers` library, and as the tokenizer.json of one.

What the pipeline has in front of the merges says which route it is:

* basic: BERT's normaliser and word splitter, as in Hugging Face's fast tokenizer for this model;
* original: nothing, because `gpt.text.original` splits the text before it comes here.
"""

import json
from typing import Any, Literal, get_args

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gpt.errors import DataError
from gpt.reading import parse_json
from gpt.text.vocabulary import UNKNOWN, WORD_END, Vocabulary, checked_ids

Route = Literal["original", "basic"]
ROUTES: tuple[Route, ...] = get_args(Route)

SPECIAL_TOKENS = ("_start_", "_delimiter_", "_classify_")
"""Names that OpenAI's code gives to the three ids behind the vocabulary, in their order."""


def build(vocabulary: Vocabulary | None, route: Route) -> Any:
    """A `tokenizers.Tokenizer` of the route; without a vocabulary it can be trained."""
    ids, merges = (dict(vocabulary.ids), list(vocabulary.merges)) if vocabulary else ({}, [])
    model = models.BPE(vocab=ids, merges=merges, unk_token=UNKNOWN, end_of_word_suffix=WORD_END)
    pipeline = tokenizers.Tokenizer(model)
    pipeline.decoder = decoders.BPEDecoder(suffix=WORD_END)
    if route == "basic":
        pipeline.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
        )
        pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if vocabulary:  # in Hugging Face's tokenizer the word <unk> is the unknown token, in OpenAI's it is text
            pipeline.add_special_tokens([UNKNOWN])
    return pipeline


def parse(content: str) -> tuple[Vocabulary, Route]:
    """Vocabulary and route of a tokenizer.json; DataError unless it does what `build` makes."""
    tree = parse_json(content)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise DataError("not a tokenizer.json: it has no `model`")
    model = tree["model"]
    route = _check_parts(tree, model)
    ids, merges = checked_ids(model.get("vocab")), model.get("merges")
    if not isinstance(merges, list):
        raise DataError("not a byte-pair encoding: `model` lacks a list of `merges`")
    vocabulary = Vocabulary(ids, [_pair(number, item) for number, item in enumerate(merges, start=1)])
    _check_added_tokens(tree.get("added_tokens") or [], vocabulary)
    return vocabulary, route


def _check_parts(tree: dict[str, Any], model: dict[str, Any]) -> Route:
    """The route that the parts in front of the merges are; DataError where one would give other ids."""
    found = {**tree, **{f"model.{key}": value for key, value in model.items()}}
    basic = json.loads(build(None, "basic").to_str())
    is_original = found.get("normalizer") is None and found.get("pre_tokenizer") is None
    for key in () if is_original else ("normalizer", "pre_tokenizer"):
        if found.get(key) != basic[key]:
            raise DataError(
                f"not a byte-pair encoding of the basic or the original route: {key} is {found.get(key)!r:.300}, "
                f"expected {basic[key]!r} for basic (original has neither normalizer nor pre_tokenizer)"
            )
    route: Route = "original" if is_original else "basic"
    # Dropout would make ids random; truncation, padding and post-processing would lose or add some.
    wanted: dict[str, tuple[Any, ...]] = {
        "decoder": (basic["decoder"],),
        "model.type": ("BPE",),
        "model.unk_token": (UNKNOWN,),
        "model.end_of_word_suffix": (WORD_END,),
        "model.continuing_subword_prefix": (None, ""),
        "post_processor": (None, _NO_TEMPLATE),
    }
    wanted |= dict.fromkeys(("truncation", "padding", "model.dropout"), (None,))
    wanted |= dict.fromkeys(("model.fuse_unk", "model.byte_fallback", "model.ignore_merges"), (None, False))
    for key, values in wanted.items():
        if found.get(key) not in values:
            raise DataError(
                f"not a byte-pair encoding of the {route} route: {key} is {found.get(key)!r:.300}, "
                f"expected {values[0]!r}"
            )
    return route


# What Hugging Face writes when it adds no token.
_NO_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def _pair(number: int, item: Any) -> tuple[str, str]:
    parts = item.split(" ") if isinstance(item, str) else item
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise DataError(f"not a byte-pair encoding: merge {number} is {item!r:.80}, expected two tokens")
    return parts[0], parts[1]


def _check_added_tokens(added: Any, vocabulary: Vocabulary) -> None:
    """DataError for added tokens but `<unk>` and the three special ones, which the model has rows for."""
    if not isinstance(added, list):
        raise DataError(f"added_tokens is {added!r:.80}, expected a list")
    expected = {UNKNOWN: vocabulary.ids[UNKNOWN]}
    expected |= {name: vocabulary.size + offset for offset, name in enumerate(SPECIAL_TOKENS)}
    for token in added:
        name, index = (token.get("content"), token.get("id")) if isinstance(token, dict) else (token, None)
        if not isinstance(name, str) or expected.get(name) != index:
            raise DataError(
                f"added_tokens holds {name!r:.80} with id {index!r:.80}: the only tokens added to a vocabulary may be "
                + ", ".join(f"{name!r} ({index})" for name, index in expected.items())
                + "; remove the others"
            )
