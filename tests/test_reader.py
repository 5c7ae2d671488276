"""Reading piece by piece gives what reading at once gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.config import ModelConfig
from gpt.model.gpt import bind, init_params
from gpt.model.reader import make_reader

TRANSFORMER = ModelConfig(
    vocab_size=20, context_length=12, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=32, lstm_dim=24, init_std=0.3
)
LSTM = dataclasses.replace(TRANSFORMER, architecture="lstm")
BODIES = pytest.mark.parametrize("config", [TRANSFORMER, LSTM], ids=lambda config: config.architecture)


@functools.partial(jax.jit, static_argnums=(0, 4))
def read_in_pieces(config, params, tokens, mask, pieces: tuple[int, ...]):
    reader = make_reader(bind(config, params).body)
    memory, hidden, first = reader.start(tokens.shape[0], tokens.shape[1]), [], 0
    for length in pieces:
        window = slice(first, first + length)
        states, memory = reader.read(memory, tokens[:, window], mask[:, window])
        hidden.append(states)
        first += length
    return jnp.concatenate(hidden, axis=1)


@BODIES
@pytest.mark.parametrize("pieces", [(12,), (5, 7), (4, 1, 1, 1, 5), (1,) * 12])
def test_a_text_read_in_pieces_has_the_hidden_states_of_the_whole(config: ModelConfig, pieces) -> None:
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 12), 0, 20)
    whole = jax.jit(lambda params, tokens: bind(config, params).body(tokens))(params, tokens)
    hidden = read_in_pieces(config, params, tokens, jnp.ones((3, 12), bool), pieces)
    np.testing.assert_allclose(hidden, whole, atol=1e-5)
    assert np.abs(np.diff(np.array(whole), axis=1)).max() > 0.1, "equal states would prove little"


@BODIES
@pytest.mark.parametrize("pieces", [(6, 6), (8, 1, 1, 1, 1)])
def test_padding_on_the_left_changes_nothing(config: ModelConfig, pieces) -> None:
    params = init_params(config, jax.random.key(0))
    lengths = [12, 9, 7]
    texts = np.array(jax.random.randint(jax.random.key(2), (3, 12), 1, 20))
    tokens, mask = np.full((3, 12), 7, np.int32), np.zeros((3, 12), bool)
    for row, length in enumerate(lengths):
        tokens[row, 12 - length :], mask[row, 12 - length :] = texts[row, :length], True
    hidden = np.array(read_in_pieces(config, params, jnp.array(tokens), jnp.array(mask), pieces))
    alone = jax.jit(lambda params, tokens: bind(config, params).body(tokens))
    for row, length in enumerate(lengths):
        expected = alone(params, jnp.array(texts[row : row + 1, :length]))
        np.testing.assert_allclose(hidden[row, 12 - length :], expected[0], atol=1e-5)


@BODIES
def test_what_is_read_next_takes_the_place_of_padding_on_the_right(config: ModelConfig) -> None:
    params = init_params(config, jax.random.key(0))
    text = np.array(jax.random.randint(jax.random.key(3), (1, 9), 1, 20))

    @jax.jit
    def read(params):
        reader = make_reader(bind(config, params).body)
        padded, mask = np.full((1, 8), 7, np.int32), np.arange(8)[None] < 5
        padded[:, :5] = text[:, :5]
        first, memory = reader.read(reader.start(1, 9), jnp.array(padded), jnp.array(mask))
        second, _ = reader.read(memory, jnp.array(text[:, 5:]), jnp.ones((1, 4), bool))
        return jnp.concatenate([first[:, :5], second], axis=1)

    whole = jax.jit(lambda params, tokens: bind(config, params).body(tokens))(params, jnp.array(text))
    np.testing.assert_allclose(read(params), whole, atol=1e-5)
