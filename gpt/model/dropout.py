"""Dropout whose random bits are computed where they are used.

The bits are those of `jax.random.bits`, the same on every platform and every mesh: a function of the key
and of the entry's place. Written out, the generator becomes one elementwise program with the comparison and
the product that follow, where JAX's own calls a loop on CPU, or a kernel, that fills an array of bits first.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MOST_WORDS = 2**32
"""What one counter of 32 bits can number."""


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """`x` with each entry zeroed at `rate` and the others scaled by 1 / (1 - rate); `x` itself without a key.

    The rate is rounded to a multiple of 2**-16.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    return jnp.where(_keeps(key, x.shape, threshold), x / (1 - threshold / 2**16), 0)


def _keeps(key: Key[Array, ""], shape: tuple[int, ...], threshold: int) -> Bool[Array, "*shape"]:
    # Two numbers from each 32-bit word, which halves the work.
    *rest, last = shape
    words = random_words(key, (*rest, (last + 1) // 2))
    numbers = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return (numbers >= threshold).reshape(*rest, -1)[..., :last]


def random_words(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """`jax.random.bits(key, shape)` of a threefry key; of 2**32 words and more, other bits as good.

    Threefry 2x32 with 20 rounds: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    first, second = jax.random.key_data(key)
    keys = (first, second, first ^ second ^ jnp.uint32(_PARITY))
    x, y = (counter + part for counter, part in zip(_counters(shape), keys[:2], strict=True))
    for turn in range(5):
        for distance in _ROTATIONS[turn % 2]:
            x = x + y
            y = x ^ (y << jnp.uint32(distance) | y >> jnp.uint32(32 - distance))
        x = x + keys[(turn + 1) % 3]
        y = y + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x ^ y


def _counters(shape: tuple[int, ...]) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """The number of each entry in two words. Only from indices along each axis: so XLA can split it over devices."""
    high = jnp.zeros(shape, jnp.uint32)
    counted = range(len(shape))
    if math.prod(shape) >= _MOST_WORDS:
        high = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
        counted = counted[1:]
    low = jnp.zeros(shape, jnp.uint32)
    for axis in counted:
        low = low + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1 :]))
    return high, low
