import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.config import ModelConfig
from gpt.generation.sampling import UNKNOWN_ID, sample
from gpt.model.gpt import bind, init_params

CONFIG = ModelConfig(
    vocab_size=20,
    num_special_tokens=3,
    context_length=24,
    num_layers=1,
    num_heads=2,
    embed_dim=16,
    mlp_dim=32,
    init_std=0.3,
)
NUM_TOKENS = 20


@pytest.fixture(scope="module")
def params() -> Any:
    return init_params(CONFIG, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config: ModelConfig, params, tokens):
    model = bind(config, params).transformer
    return model.logits(model(tokens))


def biased(params: Any, preferences: dict[int, float]) -> Any:
    """Parameters whose logits are the given numbers wherever they stand, and -30 for all other ids."""
    blocks = params["transformer"]["blocks"]
    norm = {"scale": jnp.zeros((1, 16)), "bias": jnp.eye(1, 16)}
    table = jnp.full((CONFIG.num_embeddings, 16), -30.0)
    table = table.at[jnp.array([*preferences])].set(jnp.array([*preferences.values()])[:, None])
    return {"transformer": {**params["transformer"], "token_embedding": table, "blocks": {**blocks, "mlp_norm": norm}}}


def test_the_prompt_comes_back_with_as_many_tokens_more_as_asked(params: Any) -> None:
    text = sample(CONFIG, params, [5, 3, 9], num_tokens=NUM_TOKENS, temperature=1.0, seed=0)
    assert text[:3] == [5, 3, 9]
    assert len(text) == 3 + NUM_TOKENS
    assert {type(token) for token in text} == {int}


def test_the_unknown_and_special_tokens_are_never_drawn(params: Any) -> None:
    forbidden = [UNKNOWN_ID, 20, 21, 22]
    wishful = biased(params, dict.fromkeys(forbidden, 50.0) | {4: 0.0, 19: 0.0})
    assert logits_of(CONFIG, wishful, jnp.array([[1, 2]]))[0, -1].argmax() in forbidden
    text = sample(CONFIG, wishful, [1, 2, 3], NUM_TOKENS, temperature=1.0, seed=0)
    assert set(text[3:]) == {4, 19}


def test_a_temperature_near_zero_takes_the_likeliest_token_of_a_full_forward(params: Any) -> None:
    text = sample(CONFIG, params, [5, 3, 9, 1], NUM_TOKENS, temperature=1e-4, seed=0)
    logits = np.array(logits_of(CONFIG, params, jnp.array([text])))[0]
    logits[:, [UNKNOWN_ID, 20, 21, 22]] = -np.inf
    assert text[4:] == logits[3:-1].argmax(-1).tolist()
    assert len(set(text[4:])) > 2, "a constant text would prove little"


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.75), (0.5, 0.9)])
def test_tokens_are_drawn_from_the_softmax_of_logits_over_temperature(
    params: Any, temperature: float, share: float
) -> None:
    preferring = biased(params, {7: np.log(3.0), 8: 0.0})
    drawn = [t for seed in range(20) for t in sample(CONFIG, preferring, [1, 2, 3], NUM_TOKENS, temperature, seed)[3:]]
    assert set(drawn) == {7, 8}
    assert drawn.count(7) / len(drawn) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(drawn)))


def test_the_seed_governs_the_text(params: Any) -> None:
    first, again, other = (sample(CONFIG, params, [5, 3, 9], NUM_TOKENS, 1.0, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("prompt", "num_tokens"), [([], 4), ([1] * 20, 5)], ids=["no prompt", "too long"])
def test_an_empty_prompt_or_a_text_beyond_the_context_is_refused(
    params: Any, prompt: list[int], num_tokens: int
) -> None:
    message = f"a prompt of {len(prompt)} tokens and {num_tokens} more: .* at most ModelConfig.context_length = 24"
    with pytest.raises(ValueError, match=message):
        sample(CONFIG, params, prompt, num_tokens, temperature=1.0, seed=0)
