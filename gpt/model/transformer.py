"""The decoder of Radford et al. 2018, section 3.1: post-LN blocks on learned positions, tied softmax."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt16

from gpt.config import ModelConfig

# What a score becomes where a position may not look: far enough from any real score to underflow
# to exactly 0 in the softmax, the constant of OpenAI's code.
MASKED_SCORE = -1e9


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """`x` with each entry zeroed at `rate` and the others scaled by 1 / (1 - rate); `x` itself without a key.

    The rate is rounded to a multiple of 2**-16.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    keep = _random_uint16(key, x.shape) >= threshold
    return jnp.where(keep, x / (1 - threshold / 2**16), 0)


def _random_uint16(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt16[Array, "*shape"]:
    # Two numbers from each 32-bit word. Asking JAX for 16 bits would make and discard the other
    # half, and on CPU the random bits of a step cost as much as its matrix products.
    *rest, last = shape
    words = jax.random.bits(key, (*rest, (last + 1) // 2), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*rest, -1)[..., :last]


def _linear(config: ModelConfig, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.initializers.normal(config.init_std),
        dtype=config.compute_dtype,
        rngs=rngs,
    )


def _layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.embed_dim,
        epsilon=config.layer_norm_epsilon,
        # The fast variance, E[x^2] - E[x]^2, loses the digits that parity with the original needs.
        use_fast_variance=False,
        dtype=config.compute_dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Masked multi-head self-attention with one fused q|k|v projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.qkv = _linear(config, config.embed_dim, 3 * config.embed_dim, rngs)
        self.out = _linear(config, config.embed_dim, config.embed_dim, rngs)

    def __call__(self, x: Float[Array, "B T D"], key: Key[Array, ""] | None) -> Float[Array, "B T D"]:
        """What each position gathers from itself and those before it."""
        heads = (*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        q, k, v = (third.reshape(heads) for third in jnp.split(self.qkv(x), 3, axis=-1))

        scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32)
        scores = scores * self.config.head_dim**-0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        probabilities = jax.nn.softmax(jnp.where(causal, scores, MASKED_SCORE)).astype(x.dtype)
        probabilities = dropout(probabilities, self.config.attention_dropout_rate, key)

        return self.out(jnp.einsum("bhqs,bshk->bqhk", probabilities, v).reshape(x.shape))


class MLP(nnx.Module):
    """Position-wise feed-forward layer with the tanh form of GELU."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.up = _linear(config, config.embed_dim, config.mlp_dim, rngs)
        self.down = _linear(config, config.mlp_dim, config.embed_dim, rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The layer's output for each position by itself."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Block(nnx.Module):
    """One layer: each sub-layer's output is dropped out, added to its input, and the sum normalised."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, rngs)
        self.attention_norm = _layer_norm(config, rngs)
        self.mlp = MLP(config, rngs)
        self.mlp_norm = _layer_norm(config, rngs)

    def __call__(self, x: Float[Array, "B T D"], key: Key[Array, ""] | None) -> Float[Array, "B T D"]:
        """The residual stream after this layer."""
        rate = self.config.residual_dropout_rate
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        x = self.attention_norm(x + dropout(self.attention(x, keys[0]), rate, keys[1]))
        return self.mlp_norm(x + dropout(self.mlp(x), rate, keys[2]))


class Transformer(nnx.Module):
    """Embeddings and blocks. The parameters of all blocks are stacked on a leading axis L."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(config.init_std)
        self.token_embedding = nnx.Param(normal(rngs.params(), (config.num_embeddings, config.embed_dim)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.context_length, config.embed_dim)))
        self.blocks = _stack_blocks(config, rngs)

    def __call__(self, tokens: Int[Array, "B T"], key: Key[Array, ""] | None = None) -> Float[Array, "B T D"]:
        """Hidden states of the last block; dropout is on when a key is given."""
        length = tokens.shape[-1]
        if length > self.config.context_length:
            raise ValueError(
                f"{length} tokens do not fit into ModelConfig.context_length = {self.config.context_length}"
            )
        embed_key, block_keys = None, None
        if key is not None:
            embed_key, *rest = jax.random.split(key, 1 + self.config.num_layers)
            block_keys = jnp.stack(rest)

        x = self.token_embedding[...][tokens] + self.position_embedding[...][:length]
        x = dropout(x.astype(self.config.compute_dtype), self.config.embed_dropout_rate, embed_key)
        return self._apply_blocks(x, block_keys)

    def _apply_blocks(self, x: Float[Array, "B T D"], keys: Key[Array, "L"] | None) -> Float[Array, "B T D"]:
        graph, stacked = nnx.split(self.blocks)

        def apply_block(x, layer):
            params, key = layer
            return nnx.merge(graph, params)(x, key), None

        scan = self.config.scan_layers
        if scan is None:
            scan = jax.default_backend() != "cpu"
        if scan:
            return jax.lax.scan(apply_block, x, (stacked, keys))[0]
        for layer in _unstack((stacked, keys), self.config.num_layers):
            x, _ = apply_block(x, layer)
        return x

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every token, in float32, by the transposed token table (eq. 2)."""
        table = self.token_embedding[...].astype(hidden.dtype)
        return jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)


def _stack_blocks(config: ModelConfig, rngs: nnx.Rngs) -> Block:
    def block_params(key):
        return nnx.state(Block(config, nnx.Rngs(params=key)))

    keys = jax.random.split(rngs.params(), config.num_layers)
    template = nnx.graphdef(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))
    return nnx.merge(template, jax.vmap(block_params)(keys))


def _unstack(tree, length: int) -> list:
    # `split` transposes to one concatenation; indexing would transpose to `length` padded copies.
    def unstack_leaf(leaf):
        return [part[0] for part in jnp.split(leaf, length)]

    leaves, treedef = jax.tree.flatten(tree)
    return [treedef.unflatten(layer) for layer in zip(*map(unstack_leaf, leaves), strict=True)]
