"""The decoder of Radford et al. 2018, section 3.1: post-LN blocks on learned positions, tied softmax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from gpt.config import ModelConfig
from gpt.model.attention import Visible, find_visible, fused_attention
from gpt.model.dropout import dropout
from gpt.model.layers import rematerialise, tied_logits
from gpt.sharding import constrain

# What a score becomes where a position may not look: far enough from any real score to underflow
# to exactly 0 in the softmax, the constant of OpenAI's code.
MASKED_SCORE = -1e9

ACTIVATIONS = {"gelu": nnx.gelu, "relu": nnx.relu, "silu": nnx.silu}
"""By `ModelConfig.activation`; `nnx.gelu` is the tanh form."""


STREAM = ("batch", "stream_length", None)
"""Logical axes of the residual stream between blocks."""


class Activations(NamedTuple):
    """All that the network computed on the way to its hidden states."""

    hidden: Float[Array, "L+1 B T D"]  # the embedding, then the output of each block
    attentions: Float[Array, "L B H T T"]  # probabilities, dropout included; rows of padding mean nothing


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

    def __call__(
        self, x: Float[Array, "B T D"], visible: Visible, key: Key[Array, ""] | None, keep: bool = False
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H T T"] | None]:
        """What each position gathers from those that are visible to it; in which proportions, at least if `keep`."""
        q, k, v = self.project(x)
        if self.config.attention == "plain" or keep:
            return self.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible.mask, key)
        return self._mix(fused_attention(self.config, q, k, v, visible)), None

    def project(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T H K"]]:
        """Queries, keys and values."""
        thirds = (3, self.config.num_heads, self.config.head_dim)
        # Split by heads before the product: the halves of q|k|v would hold all heads of one and half of another.
        kernel = constrain(self.qkv.kernel[...].reshape(-1, *thirds), None, None, "heads", None)
        assert self.qkv.bias is not None
        bias = constrain(self.qkv.bias[...].reshape(thirds), None, "heads", None)
        qkv = jnp.einsum("btd,dchk->btchk", x, kernel.astype(x.dtype)) + bias.astype(x.dtype)
        q, k, v = (constrain(qkv, "batch", "length", None, "heads", None)[:, :, third] for third in range(3))
        # Each device answers its own positions, from all of them.
        return [q, constrain(k, "batch", None, "heads", None), constrain(v, "batch", None, "heads", None)]

    def attend(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B H S K"],
        v: Float[Array, "B H S K"],
        visible: Bool[Array, "#B 1 T S"],
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S"]]:
        """As above, of T positions that look at S, which may be more."""
        scores = jnp.einsum("bqhk,bhsk->bhqs", q, k, preferred_element_type=jnp.float32)
        scores = scores * self.config.head_dim**-0.5
        probabilities = jax.nn.softmax(jnp.where(visible, scores, MASKED_SCORE)).astype(q.dtype)
        probabilities = dropout(probabilities, self.config.attention_dropout_rate, key)

        return self._mix(jnp.einsum("bhqs,bhsk->bqhk", probabilities, v)), probabilities

    def _mix(self, gathered: Float[Array, "B T H K"]) -> Float[Array, "B T D"]:
        return self.out(constrain(gathered.reshape(*gathered.shape[:2], -1), "batch", "length", "heads"))


class MLP(nnx.Module):
    """Position-wise feed-forward layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[config.activation]
        self.up = _linear(config, config.embed_dim, config.mlp_dim, rngs)
        self.down = _linear(config, config.mlp_dim, config.embed_dim, rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The layer's output for each position by itself."""
        return self.down(self.activation(constrain(self.up(x), "batch", "length", "mlp")))


class Block(nnx.Module):
    """One layer: each sub-layer's output is dropped out, added to its input, and the sum normalised."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, rngs)
        self.attention_norm = _layer_norm(config, rngs)
        self.mlp = MLP(config, rngs)
        self.mlp_norm = _layer_norm(config, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], visible: Visible, key: Key[Array, ""] | None, keep: bool = False
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H T T"] | None]:
        """The residual stream after this layer, and the layer's attention probabilities, at least if `keep`."""
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        gathered, probabilities = self.attention(x, visible, keys[0], keep)
        return self.add(x, gathered, keys[1], keys[2]), probabilities

    def add(
        self,
        x: Float[Array, "B T D"],
        gathered: Float[Array, "B T D"],
        gathered_key: Key[Array, ""] | None = None,
        mlp_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """The residual stream after this layer, from what its attention gathered."""
        rate = self.config.residual_dropout_rate
        x = self.attention_norm(x + dropout(gathered, rate, gathered_key))
        return self.mlp_norm(x + dropout(self.mlp(x), rate, mlp_key))


class Transformer(nnx.Module):
    """Embeddings and blocks. The parameters of all blocks are stacked on a leading axis L.

    Every method takes the same arguments:

    inputs: token ids, or embeddings in place of the tokens'.
    key: turns dropout on. One key is one pass: give `logits` the key that its hidden states came from.
    mask: true on real tokens, where some are padding on either side; padding is never attended to.
    positions: by default tokens are counted from 0, padding left out.
    segments: token ids whose embeddings are added. The original has no segments; Hugging Face's port
      embeds its `token_type_ids` so, by the token table.
    sequences: numbers that tell apart the sequences that share a row: none sees another. Give their `positions` too.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(config.init_std)
        self.token_embedding = nnx.Param(normal(rngs.params(), (config.num_embeddings, config.embed_dim)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.context_length, config.embed_dim)))
        self.blocks = _stack_blocks(config, rngs)

    def __call__(
        self,
        inputs: Int[Array, "B T"] | Float[Array, "B T D"],
        key: Key[Array, ""] | None = None,
        *,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        sequences: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states of the last block."""
        x, keys = self._embed(inputs, key, mask, positions, segments)
        return self._apply_blocks(x, find_visible(x.shape[1], mask, sequences), keys)[0]

    def activations(
        self,
        inputs: Int[Array, "B T"] | Float[Array, "B T D"],
        key: Key[Array, ""] | None = None,
        *,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        sequences: Int[Array, "B T"] | None = None,
    ) -> Activations:
        """Hidden states of every depth, and all attention probabilities."""
        x, keys = self._embed(inputs, key, mask, positions, segments)
        _, (hidden, attentions) = self._apply_blocks(x, find_visible(x.shape[1], mask, sequences), keys, keep=True)
        return Activations(jnp.concatenate([x[None], hidden]), attentions)

    def logits(self, hidden: Float[Array, "B T D"], key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        """Scores of every token, in float32, by the transposed token table (eq. 2)."""
        return tied_logits(hidden, self.softmax_table(key))

    def softmax_table(self, key: Key[Array, ""] | None = None) -> Float[Array, "V D"]:
        """What hidden states are multiplied with for scores: the token table, and positions where they compete."""
        table, positions = self._tables(_pass_keys(self.config, key)[0])
        return jnp.concatenate([table, positions]) if self.config.softmax_over_positions else table

    def embed(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What the first block reads, dropout off."""
        return self._embed(tokens, None, None, positions, None)[0]

    def layers(self) -> list[Any]:
        """The parameters of each block by itself."""
        return _unstack(nnx.state(self.blocks), self.config.num_layers)

    def unstacked_blocks(self, layers: list[Any] | None = None) -> list[Block]:
        """The blocks one by one; of the parameters that `layers` gave, if they are at hand."""
        graph = nnx.graphdef(self.blocks)
        return [nnx.merge(graph, layer) for layer in layers or self.layers()]

    def _tables(self, key: Key[Array, ""] | None) -> tuple[Float[Array, "V D"], Float[Array, "P D"]]:
        """Token and position embeddings as this pass sees them."""
        tokens, positions = constrain(self.token_embedding[...], "vocab", "lookup"), self.position_embedding[...]
        if key is not None and self.config.embedding_table_dropout:
            tokens_key, positions_key = jax.random.split(key)
            rate = self.config.embed_dropout_rate
            tokens, positions = dropout(tokens, rate, tokens_key), dropout(positions, rate, positions_key)
        return tokens, positions

    def _embed(self, inputs, key, mask, positions, segments) -> tuple[Float[Array, "B T D"], Key[Array, "L"] | None]:
        """The embedded sequences, and the key of each block."""
        length, limit = inputs.shape[1], self.config.context_length
        if length > limit:
            raise ValueError(f"{length} tokens do not fit into ModelConfig.context_length = {limit}")
        embed_key, block_keys = _pass_keys(self.config, key)
        token_table, position_table = self._tables(embed_key)
        if positions is None and mask is not None:
            positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
        x = position_table[:length] if positions is None else position_table[positions]
        if jnp.issubdtype(inputs.dtype, jnp.integer):
            inputs = constrain(token_table[inputs], "batch", "length", "lookup")
        x = inputs + x
        if segments is not None:
            x = x + token_table[segments]
        x = x.astype(self.config.compute_dtype)
        if not self.config.embedding_table_dropout:
            x = dropout(x, self.config.embed_dropout_rate, embed_key)
        return constrain(x, *STREAM), block_keys

    def _apply_blocks(
        self, x: Float[Array, "B T D"], visible: Visible, keys: Key[Array, "L"] | None, keep: bool = False
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The output of the last block, and what each block gave if `keep`, stacked."""
        graph, stacked = nnx.split(self.blocks)

        def apply_block(x, layer):
            params, key = layer
            x, probabilities = nnx.merge(graph, params)(x, visible, key, keep)
            x = constrain(x, *STREAM)
            return x, (x, probabilities) if keep else None

        scan = self.config.scan_layers
        if scan is None:
            scan = jax.default_backend() != "cpu"
        apply_block = rematerialise(self.config, apply_block, in_scan=scan)
        if scan:
            return jax.lax.scan(apply_block, x, (stacked, keys))
        kept = []
        for layer in _unstack((stacked, keys), self.config.num_layers):
            x, outputs = apply_block(x, layer)
            kept.append(outputs)
        return x, jax.tree.map(lambda *layers: jnp.stack(layers), *kept)


def _pass_keys(config: ModelConfig, key: Key[Array, ""] | None) -> tuple[Key[Array, ""] | None, Key[Array, "L"] | None]:
    """The keys of one pass: of the embedding, and of each block."""
    if key is None:
        return None, None
    embed_key, *block_keys = jax.random.split(key, 1 + config.num_layers)
    return embed_key, jnp.stack(block_keys)


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
