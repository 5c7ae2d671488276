"""The LSTM of table 5 against the NumPy reference, and through training, fine-tuning and scoring."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from toy import Run, Toy, run_python, train_to

from gpt.config import MeshConfig, ModelConfig
from gpt.errors import ConfigError, DataError
from gpt.evaluation.token_scores import token_log_probs
from gpt.model.gpt import bind, init_params, param_shapes, path_shapes
from gpt.paper.runs import collect_runs
from gpt.sharding import check_divisible, logical_axes, make_mesh, state_shardings
from gpt.training.checkpoint import find_checkpoint, load_params
from gpt.training.meter import training_flops_per_token
from gpt.training.model_dir import convert, load_model, with_special_tokens
from gpt.training.optimizer import decay_mask
from gpt.training.state import transfer

CONFIG = ModelConfig(
    architecture="lstm", vocab_size=30, num_special_tokens=3, context_length=9, num_heads=2, embed_dim=12, lstm_dim=20
)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def params() -> Any:
    """Parameters with every bias away from its start, so that none can be forgotten."""
    draw = np.random.default_rng(0)
    fresh = init_params(CONFIG, jax.random.key(0), 2)
    return jax.tree.map(lambda leaf: leaf + draw.normal(0, 0.4, leaf.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(CONFIG.num_embeddings, size=(4, CONFIG.context_length))


@functools.partial(jax.jit, static_argnums=0)
def run_model(config: ModelConfig, params, tokens, key=None):
    body = bind(config, params).body
    hidden = body(tokens, key)
    return hidden, body.logits(hidden, key)


OTHER_VALUES = {
    "num_layers": 3, "num_heads": 5, "mlp_dim": 7, "lstm_dim": 7, "activation": "relu", "attention_dropout_rate": 0.5,
    "layer_norm_epsilon": 0.5, "embedding_table_dropout": True, "softmax_over_positions": True, "scan_layers": True,
    "attention": "xla",
}  # fmt: skip


@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_settings_that_an_architecture_does_not_have_change_nothing_and_those_it_has_do(architecture: Any) -> None:
    config = dataclasses.replace(CONFIG, architecture=architecture)

    def program(config: ModelConfig) -> str:
        tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
        return str(jax.make_jaxpr(functools.partial(run_model, config))(param_shapes(config), tokens, KEY))

    for name, value in OTHER_VALUES.items():
        if name in config.absent:
            other = dataclasses.replace(config)
            object.__setattr__(other, name, value)  # also what the architecture refuses
            assert program(other) == program(config), name
        elif name not in ("num_heads", "attention"):  # which must divide, and be without dropout
            assert program(dataclasses.replace(config, **{name: value})) != program(config), name
    assert config.absent <= OTHER_VALUES.keys()


def test_hidden_states_and_logits_equal_the_reference(params: Any, tokens: np.ndarray) -> None:
    hidden, logits = run_model(CONFIG, params, tokens)
    expected = reference.lstm_forward(params, tokens)
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, reference.logits(params, expected), rtol=0, atol=1e-4)


def test_gradients_reach_back_in_time_as_those_of_the_reference(params: Any, tokens: np.ndarray) -> None:
    def loss(params):
        return (bind(CONFIG, params).body(jnp.asarray(tokens))[:, -1] ** 2).sum()

    found = jax.jit(jax.grad(loss))(params)["lstm"]
    for path in ("recurrent/kernel", "recurrent/bias", "input/kernel", "out/kernel"):
        module, name = path.split("/")

        def loss_at(array, module=module, name=name):
            lstm = {**params["lstm"], module: {**params["lstm"][module], name: array}}
            return float((reference.lstm_forward({"lstm": lstm}, tokens)[:, -1] ** 2).sum())

        entries = [(1,) if name == "bias" else (3, 5), (-2,) if name == "bias" else (-1, -4)]
        expected = reference.numerical_gradient(loss_at, params["lstm"][module][name], entries)
        np.testing.assert_allclose([found[module][name][entry] for entry in entries], expected, rtol=1e-3, atol=1e-5)


def test_a_later_token_changes_nothing_before_it(params: Any, tokens: np.ndarray) -> None:
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % CONFIG.num_embeddings
    before, after = (run_model(CONFIG, params, ids, KEY)[0] for ids in (tokens, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.abs(before - after)[:, 5:].max(-1) > 1e-5)


@pytest.mark.parametrize("name", ["embed_dropout_rate", "residual_dropout_rate"])
def test_each_dropout_rate_of_the_lstm_has_an_effect(params: Any, tokens: np.ndarray, name: str) -> None:
    silent = dataclasses.replace(CONFIG, embed_dropout_rate=0.0, residual_dropout_rate=0.0)
    plain = run_model(silent, params, tokens)[0]
    np.testing.assert_array_equal(run_model(silent, params, tokens, KEY)[0], plain)
    loud: Any = {name: 0.3}
    assert np.abs(run_model(dataclasses.replace(silent, **loud), params, tokens, KEY)[0] - plain).max() > 1e-2


def test_bfloat16_keeps_logits_in_float32(params: Any, tokens: np.ndarray) -> None:
    hidden, logits = run_model(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), params, tokens)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert 1e-5 < np.abs(hidden.astype(np.float32) - run_model(CONFIG, params, tokens)[0]).mean() < 0.05


def test_a_text_longer_than_the_context_is_refused(params: Any) -> None:
    with pytest.raises(ValueError, match=r"10 tokens do not fit into ModelConfig\.context_length = 9"):
        run_model(CONFIG, params, np.zeros((1, 10), np.int32))


def test_the_published_width_has_this_many_parameters() -> None:
    shapes = path_shapes(param_shapes(ModelConfig(architecture="lstm")))
    assert {path: shape for path, shape in shapes.items() if "bias" not in path} == {
        "lstm/token_embedding": (40478, 768),
        "lstm/input/kernel": (768, 8192),
        "lstm/recurrent/kernel": (2048, 8192),
        "lstm/out/kernel": (2048, 768),
    }
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 55_737_600


def test_the_forget_gate_starts_open_and_all_other_biases_at_0() -> None:
    fresh = init_params(CONFIG, KEY)["lstm"]
    np.testing.assert_array_equal(fresh["recurrent"]["bias"], np.repeat([0, 1, 0, 0], 20))
    np.testing.assert_array_equal(fresh["out"]["bias"], 0)


def test_weights_decay_and_biases_do_not(params: Any) -> None:
    decays = reference.flatten(decay_mask(params))
    assert {path for path, yes in decays.items() if not yes} == {"lstm/recurrent/bias", "lstm/out/bias", "head/bias"}


def test_flops_are_six_a_weight_that_is_multiplied() -> None:
    shapes = path_shapes(param_shapes(CONFIG))
    weights = sum(int(np.prod(shape)) for path, shape in shapes.items() if "bias" not in path)
    assert training_flops_per_token(CONFIG, 9) == 6 * weights


def test_pretrained_weights_are_taken_over_and_new_tokens_keep_their_rows(params: Any) -> None:
    fresh = init_params(CONFIG, jax.random.key(5), 2)
    pretrained = {"lstm": {**params["lstm"], "token_embedding": params["lstm"]["token_embedding"][:30]}}
    found = transfer(fresh, pretrained)
    np.testing.assert_array_equal(found["lstm"]["recurrent"]["kernel"], params["lstm"]["recurrent"]["kernel"])
    np.testing.assert_array_equal(found["lstm"]["token_embedding"][30:], fresh["lstm"]["token_embedding"][30:])
    with pytest.raises(ValueError, match=r"the pretrained model has no lstm, as ModelConfig\.architecture asks"):
        transfer(fresh, {"transformer": {}})


def test_every_parameter_of_the_lstm_has_a_place_and_computes_the_same_there(params: Any, tokens: np.ndarray) -> None:
    for path, shape in path_shapes(params).items():
        assert len(logical_axes(path)) == len(shape)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    placed = jax.device_put(params, state_shardings(mesh, params))
    assert len(placed["lstm"]["recurrent"]["kernel"].addressable_shards[0].data[0]) == 40
    hidden, _ = run_model(CONFIG, placed, tokens)
    np.testing.assert_allclose(hidden, run_model(CONFIG, params, tokens)[0], rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match=r"ModelConfig\.lstm_dim = 21 does not divide over the 2 devices"):
        check_divisible(mesh, dataclasses.replace(CONFIG, lstm_dim=21), 8, 1)


@pytest.mark.parametrize("name", ["embedding_table_dropout", "softmax_over_positions"])
def test_what_only_the_transformer_has_is_refused(name: str) -> None:
    settings: Any = {name: True}
    with pytest.raises(ConfigError, match=rf"ModelConfig\.{name} = True is for the transformer alone"):
        ModelConfig(architecture="lstm", **settings)


# Through the commands


@pytest.fixture(scope="module")
def lstm_runs(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A pretrained LSTM, and one fine-tuned from it."""
    root = tmp_path_factory.mktemp("lstm")
    lstm = ("--gin.ModelConfig.architecture=lstm", "--gin.ModelConfig.lstm_dim=24")
    pretrained = train_to(root / "pretrained", (*toy.pretrain_flags, *lstm))
    return pretrained, train_to(root / "finetuned", (*toy.finetune_flags(pretrained.path), *lstm))


def test_train_py_pretrains_and_fine_tunes_it(lstm_runs: tuple[Run, Run], tmp_path: Path) -> None:
    pretrained, finetuned = lstm_runs
    losses = [float(line.split("lm_loss ")[1].split(",")[0]) for line in pretrained.command.err.splitlines()
              if "validation: lm_loss" in line]  # fmt: skip
    assert losses[-1] < losses[0]
    assert list(collect_runs(finetuned.path).scores) == [("cola", "lstm")]
    assert "head" in load_params(find_checkpoint(finetuned.path), make_mesh(MeshConfig(), jax.devices()[:1]))
    model = load_model(pretrained.path)
    (found,) = token_log_probs(model.config, model.params, [[5, 3, 8, 3]])
    hidden = reference.lstm_forward(model.params, np.array([5, 3, 8, 3]))
    assert found[1:] == pytest.approx(reference.token_log_probs(model.params, hidden, np.array([5, 3, 8, 3])), abs=1e-5)
    assert len(with_special_tokens(model, 3, 0).params["lstm"]["token_embedding"]) == model.config.vocab_size + 3
    for target in ("openai", "huggingface"):
        with pytest.raises(DataError, match="only runs have a place for an LSTM"):
            convert(model, tmp_path / target, target)


def test_a_transformer_does_not_start_from_an_lstm(lstm_runs: tuple[Run, Run], toy: Toy, tmp_path: Path) -> None:
    flags = (*toy.finetune_flags(lstm_runs[0].path), f"--gin.RunConfig.output_dir={tmp_path / 'run'}")
    command = run_python("train.py", *flags)
    assert command.code == 2
    assert "is another architecture: ModelConfig.architecture: 'lstm' there, 'transformer' here" in command.err
