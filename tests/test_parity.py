"""Hugging Face's OpenAI GPT and ours: every output, every loss, every gradient, padding on both sides.

The default tests compare with golden/huggingface.npz; `pip install -e '.[parity]'` adds the live comparison.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from gpt.config import ModelConfig, OptimizerConfig
from gpt.model.gpt import bind
from gpt.objectives import token_losses
from gpt.training.optimizer import decay_mask, make_optimizer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def live() -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[parity]'")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(parity.GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def ours() -> dict[str, np.ndarray]:
    return parity.our_outputs(parity.CASE)


def test_every_output_loss_and_gradient_equals_the_recorded_ones(
    ours: dict[str, np.ndarray], golden: dict[str, np.ndarray]
) -> None:
    parity.compare(ours, golden, parity.CASE, tolerance=1e-5)


def test_nothing_in_the_record_is_empty(golden: dict[str, np.ndarray]) -> None:
    # A key bias has no gradient, the bias of a head with one candidate neither; all else must have one.
    for name, array in golden.items():
        silent = name.endswith("multiple_choice_head.summary.bias")
        assert silent or np.abs(array).max() > 1e-3, name


def test_padding_on_the_left_gives_what_padding_on_the_right_gives(ours: dict[str, np.ndarray]) -> None:
    left = parity.CASE._replace(side="left")
    outputs = parity.our_outputs(left)
    by_position = {"hidden", "attentions", "from_embeddings"}
    for name, expected in ours.items():
        if name == "logits":
            masks = (case.tokens_and_mask()[1][:, 0] for case in (left, parity.CASE))
            found, expected = (array[mask] for array, mask in zip((outputs[name], expected), masks, strict=True))
        elif name in by_position:
            continue
        else:
            found = outputs[name]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_output_loss_and_gradient_equals_a_live_run(live: None, side: str, seed: int) -> None:
    del live
    config = ModelConfig(vocab_size=101, context_length=24, num_layers=3, num_heads=4, embed_dim=32, mlp_dim=128)
    case = parity.Case(config, num_outputs=3, seed=seed, candidates=2 + seed, side=side)
    parity.compare(parity.our_outputs(case), parity.huggingface_outputs(case), case, TOLERANCE)


def test_the_published_size_gives_the_logits_of_a_live_run(live: None) -> None:
    del live
    import torch  # pyright: ignore[reportMissingImports]

    config = ModelConfig(num_layers=2)
    case = parity.Case(config, num_outputs=1, seed=5)
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf * np.float32(0.02 / 0.3), case.params(1))
    tokens = generator.integers(config.vocab_size, size=(1, 512))
    theirs = parity.build_huggingface(case, "OpenAIGPTLMHeadModel", params, "lm")
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    ours = jax.jit(lambda params, tokens: (model := bind(config, params).transformer).logits(model(tokens)))
    np.testing.assert_allclose(ours(params, tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_five_updates_of_adamw_equal_those_of_torch(live: None, clip: float | None) -> None:
    del live
    import torch  # pyright: ignore[reportMissingImports]

    case = parity.CASE._replace(
        config=dataclasses.replace(
            parity.CASE.config, embed_dropout_rate=0.0, attention_dropout_rate=0.0, residual_dropout_rate=0.0
        )
    )
    tokens = case.tokens_and_mask()[0][:, 0]
    inputs = jnp.asarray(tokens)
    params = {"transformer": case.params(1)["transformer"]}
    model = parity.build_huggingface(case, "OpenAIGPTLMHeadModel", params, "lm")
    # Epsilon well above rounding noise, which Adam would scale up to a whole step where the gradient is 0.
    settings: dict[str, Any] = {"learning_rate": 0.01, "epsilon": 1e-4, "weight_decay": 0.1, "b2": 0.99}

    mask = jax.tree.map(lambda decays, leaf: np.full(leaf.shape, decays), decay_mask(params), params)
    decayed = {name for name, decays in parity.state_dict(mask).items() if decays.any()}
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        groups[name.removeprefix("transformer.") not in decayed]["params"].append(parameter)
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99), eps=1e-4)
    config = OptimizerConfig(name="adamw", schedule="constant", warmup_steps=0, max_grad_norm=clip, **settings)
    optimizer = make_optimizer(config, num_steps=5)

    @jax.jit
    def update(params: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            transformer = bind(case.config, params).transformer
            return token_losses(transformer.logits(transformer(inputs))[:, :-1], inputs[:, 1:]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    state = optimizer.init(params)
    for _ in range(5):
        params, state = update(params, state)
        theirs.zero_grad()
        model(torch.tensor(tokens), labels=torch.tensor(tokens)).loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        theirs.step()

    expected = {name.removeprefix("transformer."): p.detach().numpy() for name, p in model.named_parameters()}
    found = parity.state_dict(params)
    initial = parity.state_dict(case.params(1))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
        assert np.abs(array - initial[name]).max() > 1e-3, name
