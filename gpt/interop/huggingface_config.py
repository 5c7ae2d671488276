"""`config.json` of Hugging Face's OpenAI GPT to our settings and back. Every key is accounted for."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from gpt.config import ModelConfig
from gpt.errors import ConfigError, DataError
from gpt.interop.weights import Head, Model, read_json

CONFIG_FILE = "config.json"

MODEL_TYPE = "openai-gpt"

ARCHITECTURES: dict[Head | None, str] = {
    None: "OpenAIGPTLMHeadModel",
    "multiple_choice": "OpenAIGPTDoubleHeadsModel",
    "score": "OpenAIGPTForSequenceClassification",
}

CARRIED = {
    "n_positions": "context_length",
    "n_embd": "embed_dim",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "resid_pdrop": "residual_dropout_rate",
    "embd_pdrop": "embed_dropout_rate",
    "attn_pdrop": "attention_dropout_rate",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "initializer_range": "init_std",
}
"""Keys with a field of the same meaning. Beside them: vocab_size, afn, summary_first_dropout, id2label."""

_ALIASES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}

# "gelu" is the tanh form in this model, though not in others of Hugging Face's.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}

_ONLY: dict[str, Any] = {"model_type": MODEL_TYPE, "tie_word_embeddings": True, "is_encoder_decoder": False}
_ONLY_FOR_CHOICE: dict[str, Any] = {
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
}
"""What our head computes: one linear layer on the hidden state of one token."""

# Of no effect on this model: read by no version, or by earlier ones, or by parts around the model.
_WITHOUT_EFFECT = frozenset(
    """
    n_ctx n_special predict_special_tokens architectures transformers_version dtype torch_dtype num_labels label2id
    _name_or_path name_or_path _commit_hash attn_implementation _attn_implementation
    _attn_implementation_autoset task_specific_params tokenizer_class prefix finetuning_task output_attentions
    output_hidden_states output_scores output_past return_dict return_dict_in_generate use_cache torchscript
    use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward is_decoder add_cross_attention
    cross_attention_hidden_size tie_encoder_decoder decoder_start_token_id sep_token_id max_length min_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens
    """.split()  # noqa: SIM905
)

# Meant for tools around the model; we have no place for them, which matters only when they are set.
_DROPPED_IF_SET = ("pad_token_id", "bos_token_id", "eos_token_id", "problem_type")


class Settings(NamedTuple):
    """What a `config.json` says: settings of ModelConfig but for the two that the tokenizer decides."""

    num_embeddings: int
    fields: dict[str, Any]
    classifier_dropout_rate: float
    notes: tuple[str, ...]

    def model_config(self, vocab_size: int, num_special_tokens: int, source: Path) -> ModelConfig:
        """The settings as ModelConfig; DataError when they do not go together."""
        try:
            return ModelConfig(
                vocab_size=vocab_size,
                num_special_tokens=num_special_tokens,
                mlp_dim=4 * self.fields["embed_dim"],
                **self.fields,
            )
        except ConfigError as error:
            raise DataError(f"{source}: {error}") from None


def read_config(path: Path, *, has_choice_head: bool) -> Settings:
    """The settings in a `config.json`, whose absent keys have the defaults of Hugging Face.

    Raises:
      DataError: it is no config of this model, or a value has another meaning than anything here.
    """
    tree = _read_object(path)
    for alias, name in _ALIASES.items():
        if alias in tree:
            value = tree.pop(alias)
            if tree.setdefault(name, value) != value:
                raise DataError(f"{path}: {name} = {tree[name]!r}, but its alias {alias} = {value!r}: remove one")
    for name, only in {**_ONLY, **(_ONLY_FOR_CHOICE if has_choice_head else {})}.items():
        if tree.get(name, only) != only:
            raise DataError(f"{path}: {name} = {tree[name]!r}: only {only!r} is supported")
    activation = tree.get("afn", "gelu")
    if activation not in list(_ACTIVATIONS):
        raise DataError(f"{path}: afn = {activation!r}: expected one of {', '.join(_ACTIVATIONS)}")

    fields: dict[str, Any] = {"activation": _ACTIVATIONS[activation]}
    for name, ours in CARRIED.items():
        fields[ours] = _number(tree, name, getattr(ModelConfig, ours), path)
    num_embeddings = _number(tree, "vocab_size", ModelConfig.vocab_size, path)
    dropout_rate = _number(tree, "summary_first_dropout", 0.1, path)
    return Settings(num_embeddings, fields, dropout_rate, _notes(tree, path))


def format_config(model: Model) -> str:
    """The `config.json` of a model, and of its head."""
    config = model.config
    tree: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model.head]],
        "model_type": MODEL_TYPE,
        "vocab_size": config.num_embeddings,
        "afn": config.activation,
        **{name: getattr(config, ours) for name, ours in CARRIED.items()},
        **_ONLY_FOR_CHOICE,
        "summary_first_dropout": model.classifier_dropout_rate,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if model.head is not None:
        labels = {str(number): f"LABEL_{number}" for number in range(model.params["head"]["bias"].shape[0])}
        tree |= {"id2label": labels, "label2id": {label: int(number) for number, label in labels.items()}}
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def _read_object(path: Path) -> dict[str, Any]:
    tree = read_json(path, "a Hugging Face folder has one beside its weights")
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected a JSON object, such as Hugging Face's OpenAIGPTConfig writes")
    return tree


def _number(tree: dict[str, Any], name: str, default: int | float, path: Path) -> Any:
    value = tree.get(name, default)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default) or (type(value) is int and value >= 1 << 31):
        raise DataError(f"{path}: {name} = {value!r:.80}: expected {type(default).__name__}")
    return value


def _notes(tree: dict[str, Any], path: Path) -> tuple[str, ...]:
    known = {*CARRIED, *_ONLY, *_ONLY_FOR_CHOICE, *_WITHOUT_EFFECT, *_DROPPED_IF_SET, "vocab_size", "afn", "id2label"}
    unknown = sorted(tree.keys() - known - {"summary_first_dropout"})
    dropped = [name for name in _DROPPED_IF_SET if tree.get(name) is not None]
    labels = tree.get("id2label") or {}
    if not isinstance(labels, dict) or labels != {number: f"LABEL_{number}" for number in labels}:
        dropped.append("id2label")
    notes = []
    if unknown:
        notes.append(f"{path}: unknown keys, without effect here: {', '.join(unknown)}")
    if dropped:
        notes.append(f"{path}: not kept: {', '.join(f'{name} = {tree[name]!r}' for name in dropped)}")
    return tuple(notes)
