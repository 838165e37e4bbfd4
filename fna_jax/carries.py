"""Constants that may start a loop.

Under `jax.shard_map` and on explicit meshes an array's type says over which axes of the mesh it
varies, and what a loop starts with must have the type of what its body returns. A fresh
`jnp.zeros` varies over none.
"""

import jax
import jax.numpy as jnp


def full_of(function, *arguments, fill, dtype=None):
    """`fill` in the type of the array `function(*arguments)`, which is not computed."""
    return jnp.full_like(jax.eval_shape(function, *arguments), fill, dtype=dtype)


def per_token(x, fill, dtype):
    """`fill` for each token of x `[*B, N, C]`: `[*B, N]`, of x's type where they share axes."""
    return full_of(lambda x: jnp.sum(x, axis=-1), x, fill=fill, dtype=dtype)
