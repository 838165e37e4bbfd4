"""Rotary positions of patches (RoPE, arXiv 2104.09864) on two axes (DINOv3, Qwen3-VL).

Shape letters: B batch, N tokens, H heads, D head dimension, h and w patches down and across.
"""

import jax
import jax.numpy as jnp
import numpy as np


def patch_coordinates(grid) -> np.ndarray:
    """float32 `[h·w, 2]` in (−1, 1): row and column of each patch's centre, on axes that span the
    image whatever its size."""
    down, across = ((2 * np.arange(n, dtype=np.float32) + 1) / np.float32(n) - 1 for n in grid)
    return np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2)


def rotary_angles(coordinates, head_dim, *, theta, turn=2 * np.pi, rounded="float32"):
    """Angles float32 `[…, D/2]` of patches at coordinates `[…, 2]`: of the row for the first D/4,
    then of the column, each `turn · x / theta^(4i/D)` for i = 0, …, D/4 − 1. The powers, which are
    the periods, are `rounded` to the dtype of that name.
    """
    dtype = jnp.finfo(rounded)
    periods = theta ** (4 * jnp.arange(head_dim // 4, dtype=jnp.float32) / head_dim)
    periods = jax.lax.reduce_precision(periods, dtype.nexp, dtype.nmant)  # XLA drops casts
    periods = jnp.expand_dims(periods, range(coordinates.ndim))
    angles = turn * jnp.asarray(coordinates, jnp.float32)[..., None] / periods
    return angles.reshape(*coordinates.shape[:-1], head_dim // 2)


def rotate(states, angles, *, num_prefix):
    """States `[B, N, H, D]` with those of the patches turned, in float32.

    Channels i and i + D/2 of a patch are turned together, as a plane, by `angles[patch, i]`.

    Args:
      states: queries or keys.
      angles: `[N − num_prefix, D/2]`, or `[B, N − num_prefix, D/2]` for each image its own.
      num_prefix: tokens in front that have no position and stay as they are.
    """
    cos, sin = (f(angles)[..., None, :] for f in (jnp.cos, jnp.sin))  # […, h·w, 1, D/2]
    prefix, patches = jnp.split(states, [num_prefix], axis=1)
    x, y = jnp.split(patches.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
    return jnp.concatenate([prefix, turned.astype(states.dtype)], axis=1)
