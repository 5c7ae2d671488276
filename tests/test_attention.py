"""Fused kernels against plain attention: hidden states and gradients, whatever is hidden from whom."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.config import MeshConfig, ModelConfig
from gpt.errors import ConfigError
from gpt.model.attention import check_attention
from gpt.model.gpt import bind, init_params
from gpt.sharding import batch_sharding, make_mesh, splitting_activations

PLAIN = ModelConfig(
    vocab_size=50, context_length=16, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=24, init_std=0.3,
    embed_dropout_rate=0.0, attention_dropout_rate=0.0, residual_dropout_rate=0.0, scan_layers=False,
)  # fmt: skip
LENGTH = 12
ONE = MeshConfig(data=1)
ON_GPU = pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
KERNELS = ["xla", "splash", pytest.param("cudnn", marks=ON_GPU)]
END_PADDING = np.arange(LENGTH) < np.array([[12], [7], [1], [9]])
INPUTS: dict[str, dict[str, np.ndarray]] = {
    "whole rows": {},
    "padding at the end": {"mask": END_PADDING},
    "padding at the beginning": {"mask": END_PADDING[:, ::-1]},
    "sequences that share rows": {
        "sequences": np.repeat([[1, 2, 3, 0]], 4, 0).repeat(3, 1),
        "positions": np.tile(np.arange(3), (4, 4)),
    },
}


def changed(attention: str) -> ModelConfig:
    dtype: Any = "bfloat16" if attention == "cudnn" else "float32"
    return ModelConfig(**{**PLAIN.__dict__, "attention": attention, "compute_dtype": dtype})


@functools.cache
def arguments() -> tuple[Any, jax.Array]:
    tokens = np.random.default_rng(0).integers(PLAIN.vocab_size, size=(4, LENGTH))
    return init_params(PLAIN, jax.random.key(0)), jnp.asarray(tokens)


@functools.cache
def states_and_gradient(attention: str, inputs: str, mesh_config: MeshConfig = ONE) -> Any:
    """The gradient of a sum over the hidden states of real tokens, and these, on the devices of a mesh."""
    mesh = make_mesh(mesh_config, jax.devices()[: mesh_config.data * mesh_config.tensor])
    params, tokens = arguments()
    tokens, given = jax.device_put((tokens, INPUTS[inputs]), batch_sharding(mesh))

    def loss(params, tokens, given):
        real = given.get("mask", given.get("sequences", jnp.ones((4, LENGTH))))[..., None] > 0
        with splitting_activations(mesh):
            hidden = bind(changed(attention), params).transformer(tokens, **given) * real
        return (hidden * jnp.cos(jnp.arange(hidden.size).reshape(hidden.shape))).sum(), hidden

    return jax.block_until_ready(jax.jit(jax.grad(loss, has_aux=True))(params, tokens, given))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("attention", KERNELS)
def test_a_kernel_equals_plain_attention(attention: str, inputs: str) -> None:
    atol = 0.1 if attention == "cudnn" else 2e-5
    found, expected = (states_and_gradient(which, inputs) for which in (attention, "plain"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), found, expected)


@pytest.mark.parametrize("attention", ["xla", "splash"])
def test_devices_that_share_rows_and_heads_equal_one(attention: str) -> None:
    found = states_and_gradient(attention, "padding at the end", MeshConfig(data=2, tensor=2))
    expected = states_and_gradient("plain", "padding at the end")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


def test_probabilities_are_there_for_who_asks_for_them() -> None:
    params, tokens = arguments()
    fused, plain = (bind(config, params).transformer.activations(tokens) for config in (changed("splash"), PLAIN))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), fused, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "xla"}, r"'xla' with ModelConfig\.attention_dropout_rate = 0\.1: none of the fused kernels has "
         r"dropout: set ModelConfig\.attention_dropout_rate = 0, or ModelConfig\.attention = 'plain'"),
        ({"attention": "cudnn", "attention_dropout_rate": 0.0}, "compute_dtype = 'float32': cuDNN's kernel computes"),
        ({"attention": "cudnn", "attention_dropout_rate": 0.0, "compute_dtype": "bfloat16", "num_heads": 3},
         "256 channels a head"),
    ],
)  # fmt: skip
def test_what_a_kernel_cannot_do_is_a_config_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize(
    ("attention", "mesh", "message"),
    [
        ("cudnn", MeshConfig(), "= 'cudnn' needs an NVIDIA GPU, but the devices are of platform 'cpu': set"),
        ("splash", MeshConfig(), "= 'splash' needs a TPU, but the devices are of platform 'cpu': set"),
        ("splash", MeshConfig(data=2, sequence=2), r"whole sequences, but MeshConfig\.sequence splits them over 2"),
    ],
)
def test_a_kernel_that_the_devices_do_not_have_is_refused(attention: str, mesh: MeshConfig, message: str) -> None:
    devices = jax.devices()[: mesh.data * mesh.sequence]
    with pytest.raises(ConfigError, match=message):
        check_attention(make_mesh(mesh, devices), changed(attention))
