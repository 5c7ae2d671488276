"""The judge: GPT-1 in plain NumPy and float64, written from Radford et al. 2018 and OpenAI's released code.

It shares nothing with `gpt` but the layout of the parameters and the axis letters of `gpt.model`;
`...` stands for any leading axes. Parameters may be arrays of any kind and precision. There is no
dropout, and no automatic differentiation: `numerical_gradient` asks for no formula.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray
Params = dict[str, Any]
"""Nested dict of arrays: `transformer` or `lstm`, and `head` when there is a classifier."""

FlatParams = dict[str, Array]
"""Arrays by path, such as `transformer/blocks/mlp/up/kernel`."""

Moments = dict[str, tuple[Array, Array]]
"""Adam's running means of gradient and squared gradient by path."""


def flatten(tree: Params, prefix: str = "") -> FlatParams:
    """The float64 leaves of a nested dict by their paths."""
    flat: FlatParams = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: _float64(value)}
    return flat


def unflatten(flat: FlatParams) -> Params:
    """The nested dict that `flatten` took apart."""
    tree: Params = {}
    for path, array in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return tree


def _float64(array: Any) -> Array:
    return np.asarray(array, np.float64)


# Network: section 3.1 of the paper, eq. 2.


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU in the tanh form of Hendrycks and Gimpel 2016."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x: Float[Array, "... D"], params: Params) -> Float[Array, "... D"]:
    """`x` with mean 0 and biased variance 1 along its last axis, then scaled and shifted."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * _float64(params["scale"]) + _float64(params["bias"])


def linear(x: Float[Array, "... I"], params: Params) -> Float[Array, "... O"]:
    """`x W + b`."""
    return x @ _float64(params["kernel"]) + _float64(params["bias"])


def log_softmax(scores: Float[Array, "... N"]) -> Float[Array, "... N"]:
    """Log-probabilities along the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def attention(x: Float[Array, "... T D"], params: Params, num_heads: int) -> Float[Array, "... T D"]:
    """Causal self-attention; each head owns a contiguous run of the channels of q, k and v."""
    *batch, length, width = x.shape
    q, k, v = (
        third.reshape(*batch, length, num_heads, width // num_heads).swapaxes(-2, -3)
        for third in np.split(linear(x, params["qkv"]), 3, axis=-1)
    )
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(width // num_heads)
    scores = np.where(np.tri(length, dtype=bool), scores, -1e9)
    heads = np.exp(log_softmax(scores)) @ v
    return linear(heads.swapaxes(-2, -3).reshape(x.shape), params["out"])


def block(x: Float[Array, "... T D"], params: Params, num_heads: int) -> Float[Array, "... T D"]:
    """One layer; normalisation comes after each residual sum."""
    x = layer_norm(x + attention(x, params["attention"], num_heads), params["attention_norm"])
    mlp = linear(gelu(linear(x, params["mlp"]["up"])), params["mlp"]["down"])
    return layer_norm(x + mlp, params["mlp_norm"])


def forward(params: Params, tokens: Int[Array, "... T"], num_heads: int) -> Float[Array, "... T D"]:
    """Hidden states of the last block."""
    transformer = params["transformer"]
    positions = _float64(transformer["position_embedding"])[: tokens.shape[-1]]
    x = _float64(transformer["token_embedding"])[tokens] + positions
    stacked = flatten(transformer["blocks"])
    for layer in range(len(stacked["mlp/up/bias"])):
        x = block(x, unflatten({path: array[layer] for path, array in stacked.items()}), num_heads)
    return x


def lstm_forward(params: Params, tokens: Int[Array, "... T"]) -> Float[Array, "... T D"]:
    """Hidden states of the LSTM of table 5, one position after the other."""
    lstm = params["lstm"]
    embedded = _float64(lstm["token_embedding"])[tokens]
    bias = _float64(lstm["recurrent"]["bias"])
    state = cell = np.zeros((*tokens.shape[:-1], len(bias) // 4))
    outputs = []
    for t in range(tokens.shape[-1]):
        gates = embedded[..., t, :] @ _float64(lstm["input"]["kernel"]) + linear(state, lstm["recurrent"])
        write, keep, candidate, read = np.split(gates, 4, axis=-1)
        cell = cell / (1 + np.exp(-keep)) + np.tanh(candidate) / (1 + np.exp(-write))
        state = np.tanh(cell) / (1 + np.exp(-read))
        outputs.append(linear(state, lstm["out"]))
    return np.stack(outputs, axis=-2)


def logits(params: Params, hidden: Float[Array, "... D"], *, position_rows: bool = False) -> Float[Array, "... V"]:
    """Scores of the next token by the transposed token table.

    `position_rows` lets the positions compete as further classes: OpenAI's code keeps both in one table.
    """
    table = _float64(params["lstm" if "lstm" in params else "transformer"]["token_embedding"])
    if position_rows:
        table = np.concatenate([table, _float64(params["transformer"]["position_embedding"])])
    return hidden @ table.T


# Objectives: eqs. 1, 4 and 5, averaged as in OpenAI's train.py.


def token_log_probs(
    params: Params, hidden: Float[Array, "... T D"], tokens: Int[Array, "... T"], *, position_rows: bool = False
) -> Float[Array, "... T-1"]:
    """Log-probability of each token but the first, given those before it."""
    log_probs = log_softmax(logits(params, hidden[..., :-1, :], position_rows=position_rows))
    return np.take_along_axis(log_probs, tokens[..., 1:, None], axis=-1)[..., 0]


def lm_losses(log_probs: Float[Array, "... T-1"], weights: Float[Array, "... T"]) -> Float[Array, "..."]:
    """Mean loss of each sequence over the predicted tokens of weight 1; padding has weight 0."""
    weights = weights[..., 1:]
    return -(log_probs * weights).sum(-1) / weights.sum(-1)


def task_scores(params: Params, hidden: Float[Array, "B C T D"], extract: Int[Array, "B C"]) -> Float[Array, "B C N"]:
    """The classifier's outputs at the extract token, whose position in each candidate is `extract`."""
    pooled = np.take_along_axis(hidden, extract[..., None, None], axis=-2)[..., 0, :]
    return linear(pooled, params["head"])


def task_losses(scores: Float[Array, "B C N"], labels: Int[Array, "B"]) -> Float[Array, "B"]:
    """Cross-entropy of each example over N classes (C = 1), or over C candidates of one output (N = 1)."""
    log_probs = log_softmax(scores.reshape(len(scores), -1))
    return -log_probs[np.arange(len(labels)), labels]


def combined_loss(
    params: Params,
    tokens: Int[Array, "B C T"],
    weights: Float[Array, "B C T"],
    extract: Int[Array, "B C"],
    labels: Int[Array, "B"],
    *,
    num_heads: int,
    lm_coef: float,
    position_rows: bool = False,
) -> float:
    """L3 = L2 + lambda L1: mean over the examples plus lambda times the mean over all their sequences."""
    hidden = forward(params, tokens, num_heads)
    task = task_losses(task_scores(params, hidden, extract), labels)
    lm = lm_losses(token_log_probs(params, hidden, tokens, position_rows=position_rows), weights)
    return float(task.mean() + lm_coef * lm.mean())


# Training: schedules and optimizer of OpenAI's opt.py; update n of T, from 1, is at `fraction` n / T.


def linear_schedule(fraction: float, warmup: float) -> float:
    """Warm-up times decay: the factor 1 - fraction is there from the first update on."""
    return (fraction / warmup if fraction <= warmup else 1.0) * (1 - fraction)


def cosine_schedule(fraction: float, warmup: float) -> float:
    """Warm-up, then the rest of a cosine that began with the first update."""
    return fraction / warmup if fraction <= warmup else 0.5 * (1 + math.cos(math.pi * fraction))


def constant_schedule(fraction: float, warmup: float) -> float:
    """Warm-up, then 1."""
    return fraction / warmup if fraction <= warmup else 1.0


def global_norm(gradients: FlatParams) -> float:
    """Euclidean norm of all gradients as one vector."""
    return math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))


def openai_adam(
    params: FlatParams,
    gradients: FlatParams,
    moments: Moments,
    step: int,
    *,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    max_grad_norm: float | None = None,
) -> tuple[FlatParams, Moments]:
    """Parameters and moments after update `step`, counted from 1; before it the moments are `{}`.

    `learning_rate` is that of this update, schedule included. Kernels and embeddings decay, by a rate
    that carries the bias correction too; biases and gains do not, whatever rank stacking gives them.
    """
    clip = 1.0 if max_grad_norm is None else max_grad_norm / max(global_norm(gradients), max_grad_norm)
    rate = learning_rate * math.sqrt(1 - b2**step) / (1 - b1**step)
    new_params: FlatParams = {}
    new_moments: Moments = {}
    for path, param in params.items():
        mean, square = moments.get(path, (np.zeros_like(param), np.zeros_like(param)))
        gradient = clip * gradients[path]
        mean = b1 * mean + (1 - b1) * gradient
        square = b2 * square + (1 - b2) * gradient**2
        decay = weight_decay if path.endswith(("kernel", "embedding")) else 0.0
        new_params[path] = param - rate * (mean / (np.sqrt(square) + epsilon) + decay * param)
        new_moments[path] = mean, square
    return new_params, new_moments


def numerical_gradient(
    f: Callable[[Array], float], array: Array, entries: Iterable[Any], step: float = 1e-5
) -> Float[Array, "E"]:
    """Central differences of `f(array)` along each of `entries`, indices of `array`."""
    array = np.array(array, np.float64)
    slopes = []
    for entry in entries:
        value = array[entry]
        array[entry] = value + step
        above = f(array)
        array[entry] = value - step
        below = f(array)
        array[entry] = value
        slopes.append((above - below) / (2 * step))
    return np.array(slopes)
