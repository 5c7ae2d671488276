"""Folders we write, loaded by `transformers`, and files that torch writes, read by us; needs the extra [parity]."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import CONFIG, assert_same_bits, make_tokenizer, make_weights, our_params

from gpt.interop.huggingface import read_huggingface, write_huggingface
from gpt.interop.weights import Head, Model
from gpt.model.gpt import bind
from gpt.text.tokenizer import Tokenizer
from gpt.training.model_dir import load_model

CONFIG_3 = dataclasses.replace(CONFIG, num_special_tokens=3)
IDS = np.array([[40, 5, 6, 7, 41, 8, 9, 42], [1, 2, 3, 4, 5, 6, 7, 8]])
TEXTS = ("The cat sat on the mat.", "thé DOG <unk> saw it , it saw the cat", "", " a\n\nb ", "東京 sat")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")


@pytest.fixture(scope="module")
def transformers(torch: Any) -> Any:  # noqa: ARG001 - without torch, it has no models
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[parity]'")


def our_model(head: Head | None, num_outputs: int, **changes: Any) -> Model:
    config = dataclasses.replace(CONFIG_3, **changes)
    params = our_params(make_weights(config))
    if head is not None:
        draw = np.random.default_rng(1).standard_normal
        bias = np.zeros(num_outputs) if head == "score" else draw(num_outputs)
        kernel = draw((config.embed_dim, num_outputs)).astype(np.float32)
        params |= {"head": {"kernel": kernel, "bias": bias.astype(np.float32)}}
    return Model(config, params, make_tokenizer(), head)


def logits_of(model: Model) -> np.ndarray:
    transformer = bind(model.config, jax.device_put(model.params)).transformer
    return np.asarray(transformer.logits(transformer(jnp.asarray(IDS))))


def scores_of(model: Model, ids: np.ndarray, extract: np.ndarray) -> np.ndarray:
    bound = bind(model.config, jax.device_put(model.params))
    assert bound.head is not None
    return np.asarray(bound.head(bound.transformer(jnp.asarray(ids))[None], jnp.asarray(extract)))


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_transformers_gives_the_same_logits(activation: str, transformers: Any, torch: Any, tmp_path: Path) -> None:
    model = our_model(None, 0, activation=activation)
    write_huggingface(model, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is transformers.OpenAIGPTLMHeadModel
    assert not any(report.values()), report
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits, logits_of(model), atol=1e-4)


def test_transformers_loads_the_multiple_choice_head(transformers: Any, torch: Any, tmp_path: Path) -> None:
    model = our_model("multiple_choice", 1)
    write_huggingface(model, tmp_path)
    theirs, report = transformers.OpenAIGPTDoubleHeadsModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    extract = np.array([[7, 5]])
    with torch.no_grad():
        out = theirs.eval()(torch.tensor(IDS[None]), mc_token_ids=torch.tensor(extract))
    np.testing.assert_allclose(out.mc_logits.numpy(), scores_of(model, IDS, extract)[..., 0], atol=1e-4)
    np.testing.assert_allclose(out.logits.numpy()[0], logits_of(model), atol=1e-4)


def test_transformers_loads_the_classification_head(transformers: Any, torch: Any, tmp_path: Path) -> None:
    model = our_model("score", 3)
    write_huggingface(model, tmp_path)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.config.num_labels == 3
    with torch.no_grad():
        scores = theirs.eval()(torch.tensor(IDS[:1])).logits.numpy()  # at the last position
    np.testing.assert_allclose(scores, scores_of(model, IDS[:1], np.array([[7]]))[0], atol=1e-4)


@pytest.mark.parametrize("name", ["AutoTokenizer", "OpenAIGPTTokenizer"])
def test_transformers_gives_the_same_ids(name: str, transformers: Any, tmp_path: Path) -> None:
    write_huggingface(our_model(None, 0), tmp_path)
    theirs, ours = getattr(transformers, name).from_pretrained(tmp_path), make_tokenizer()
    assert type(theirs) is transformers.OpenAIGPTTokenizer
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.encode(text), text
    ids = theirs("_start_ cat _delimiter_ sat _classify_")["input_ids"]
    assert [token for token in ids if token >= 40] == [40, 41, 42]
    assert (len(theirs), theirs.unk_token_id, theirs.model_max_length) == (43, 0, 12)


@pytest.mark.parametrize("name", ["OpenAIGPTModel", "OpenAIGPTLMHeadModel", "OpenAIGPTDoubleHeadsModel"])
def test_what_transformers_saves_comes_back_bit_by_bit(name: str, transformers: Any, tmp_path: Path) -> None:
    model = our_model("multiple_choice", 1)
    write_huggingface(model, tmp_path)
    theirs = getattr(transformers, name).from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert back.notes == ()
    assert back.config == model.config
    with_head = name == "OpenAIGPTDoubleHeadsModel"
    assert_same_bits(back.params, model.params if with_head else {"transformer": model.params["transformer"]})


def test_what_transformers_saves_in_shards_comes_back_bit_by_bit(transformers: Any, tmp_path: Path) -> None:
    model = our_model(None, 0)
    write_huggingface(model, tmp_path)
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert_same_bits(read_huggingface(tmp_path / "theirs", make_tokenizer()).params, model.params)


def save_as_bin(torch: Any, transformers: Any, directory: Path, change: Callable[[Any], Any], **options: Any) -> Model:
    """The model that we read from what torch makes of ours; the folder we wrote becomes one of torch."""
    model = our_model(None, 0)
    write_huggingface(model, directory)
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(directory)
    torch.save(change(theirs.state_dict()), directory / "pytorch_model.bin", **options)
    (directory / "model.safetensors").unlink()
    return model


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_comes_back_bit_by_bit(zipped: bool, torch: Any, transformers: Any, tmp_path: Path) -> None:
    options = {"_use_new_zipfile_serialization": zipped}
    model = save_as_bin(torch, transformers, tmp_path, lambda state: state, **options)
    assert_same_bits(read_huggingface(tmp_path, make_tokenizer()).params, model.params)


def test_views_and_parameters_that_torch_saves_are_read(torch: Any, transformers: Any, tmp_path: Path) -> None:
    def change(state: Any) -> Any:
        name = "transformer.tokens_embed.weight"
        state[name] = torch.nn.Parameter(state[name].T.contiguous().T)
        whole = torch.cat([torch.zeros(5), state["transformer.h.0.ln_1.bias"]])
        return {**state, "lm_head.weight": state[name], "transformer.h.0.ln_1.bias": whole[5:]}

    model = save_as_bin(torch, transformers, tmp_path, change)
    assert_same_bits(read_huggingface(tmp_path, make_tokenizer()).params, model.params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_that_torch_saves_becomes_float32_exactly(
    dtype: str, torch: Any, transformers: Any, tmp_path: Path
) -> None:
    def halve(state: Any) -> Any:
        return {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}

    model = save_as_bin(torch, transformers, tmp_path, halve)

    def rounded(tree: dict[str, Any]) -> dict[str, Any]:
        return {
            name: rounded(value)
            if isinstance(value, dict)
            else torch.tensor(value).to(getattr(torch, dtype)).float().numpy()
            for name, value in tree.items()
        }

    back = read_huggingface(tmp_path, make_tokenizer())
    assert_same_bits(back.params, rounded(model.params))
    assert "in half precision; they become float32" in back.notes[0]


def test_the_published_vocabulary_gives_the_ids_of_its_cases(assets: Path, transformers: Any, tmp_path: Path) -> None:
    vocabulary = next(assets.rglob("encoder_bpe_40000.json")).parent
    tokenizer = Tokenizer.load(vocabulary, "basic")
    config = dataclasses.replace(CONFIG, vocab_size=40478, num_special_tokens=3)
    write_huggingface(Model(config, our_params(make_weights(config)), tokenizer), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    cases = json.loads((vocabulary / "tokenizer_cases.json").read_text())
    texts = [case["text"] for case in cases["cases"]]
    assert len(texts) > 10
    for text in texts:
        if not any(name in text for name in ("_start_", "_delimiter_", "_classify_")):
            assert theirs(text)["input_ids"] == tokenizer.encode(text), text
