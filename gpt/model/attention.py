"""Who sees whom, and the kernels that mix values without keeping probabilities: `ModelConfig.attention`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gpt.config import ModelConfig
from gpt.errors import ConfigError
from gpt.sharding import num_parts, partition

_PADDING = jnp.iinfo(jnp.int32).min
_SPLASH_BLOCK = 128
_PLATFORMS = {"cudnn": ("cuda", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}


class Visible(NamedTuple):
    """Which positions each may attend to: itself and those before it in its sequence, without padding."""

    mask: Bool[Array, "#B 1 T T"]  # the positions that are seen on the last axis
    segments: Int[Array, "B T"] | None  # the same for tokens, but for order: each sees its own segment; None: all


def find_visible(length: int, mask: Bool[Array, "B T"] | None, sequences: Int[Array, "B T"] | None) -> Visible:
    """What T = `length` positions see, where `mask` is false on padding and `sequences` share rows."""
    visible = jnp.tril(jnp.ones((1, 1, length, length), bool))
    segments = sequences
    if mask is not None:
        visible &= mask[:, None, None, :]
        # Padding sees itself: a kernel may divide by 0 where nothing is seen.
        segments = jnp.where(mask, 0 if sequences is None else sequences, _PADDING)
    if sequences is not None:
        visible &= sequences[:, None, :, None] == sequences[:, None, None, :]
    return Visible(visible, segments)


def fused_attention(
    config: ModelConfig,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    visible: Visible,
) -> Float[Array, "B T H K"]:
    """The values that each position gathers, by the kernel of `config.attention`; of padding they mean nothing."""
    if config.attention == "xla":
        return _dot_product("xla", q, k, v, visible)
    attend = _splash if config.attention == "splash" else functools.partial(_dot_product, "cudnn")
    if num_parts("batch", "heads") == 1:
        return attend(q, k, v, visible)
    # XLA does not split kernels that it did not make: each device calls its own, on its rows and heads.
    by_head = partition(("batch", None, "heads", None))
    by_row = jax.tree.map(lambda leaf: partition(("batch",) if len(leaf) == len(q) else ()), visible)
    in_specs = (by_head, by_head, by_head, by_row)
    return jax.shard_map(attend, in_specs=in_specs, out_specs=by_head, check_vma=False)(q, k, v, visible)


def _dot_product(implementation, q, k, v, visible: Visible) -> Float[Array, "B T H K"]:
    # A kernel that knows the mask to be causal skips half of the scores.
    is_causal = visible.segments is None
    mask = None if is_causal else visible.mask
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=is_causal, implementation=implementation)


def _splash(q, k, v, visible: Visible) -> Float[Array, "B T H K"]:
    # Experimental, and many modules: nobody who does not ask for it should load it.
    from jax.experimental.pallas.ops.tpu import splash_attention

    _, length, num_heads, head_dim = q.shape
    # The kernel takes whole blocks; what is added comes last, where no token sees it.
    padding = (0, -length % _SPLASH_BLOCK)
    q, k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), padding, (0, 0))) for x in (q * head_dim**-0.5, k, v))
    causal = splash_attention.CausalMask((q.shape[2], q.shape[2]))
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([causal] * num_heads), interpret=jax.default_backend() == "cpu"
    )
    segments = None
    if visible.segments is not None:
        ids = jnp.pad(visible.segments, ((0, 0), padding), constant_values=_PADDING)
        segments = splash_attention.SegmentIds(ids, ids)
    gathered: Any = jax.vmap(kernel)(q, k, v, segments)
    return gathered[:, :, :length].swapaxes(1, 2)


def check_attention(mesh: Mesh, config: ModelConfig) -> None:
    """Raises ConfigError when the devices of the mesh have not the kernel of `ModelConfig.attention`."""
    if config.attention not in _PLATFORMS or "attention" in config.absent:
        return
    name = f"ModelConfig.attention = {config.attention!r}"
    parts = num_parts("length", mesh=mesh)
    if parts > 1:
        raise ConfigError(
            f"{name} needs whole sequences, but MeshConfig.sequence splits them over {parts} devices: "
            f"set MeshConfig.sequence = 1, or ModelConfig.attention = 'plain' or 'xla'"
        )
    version, device = _PLATFORMS[config.attention]
    client = mesh.devices.flat[0].client
    if version not in f"{client.platform} {client.platform_version}".lower():
        raise ConfigError(
            f"{name} needs {device}, but the devices are of platform {client.platform!r}: "
            f"set ModelConfig.attention = 'plain' or 'xla', which run anywhere"
        )
