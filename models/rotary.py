"""Rotary positions of patches (RoPE, arXiv 2104.09864) on two axes (DINOv3, arXiv 2508.10104).

Shape letters: B batch, N tokens, H heads, D head dimension, h and w patches down and across.
"""

import jax.numpy as jnp


def rotary_angles(grid, head_dim, *, theta):
    """Angles float32 `[h·w, D/2]`: of the row for the first D/4, then of the column.

    `2π · x / theta^(4i/D)` for i = 0, …, D/4 − 1, where x in (−1, 1) is the coordinate of the
    patch's centre on an axis that spans the image whatever its size.
    """
    down, across = ((2 * jnp.arange(n, dtype=jnp.float32) + 1) / n - 1 for n in grid)
    row, column = jnp.meshgrid(down, across, indexing="ij")
    coordinates = jnp.stack([row, column], axis=-1).reshape(-1, 2, 1)
    periods = theta ** (4 * jnp.arange(head_dim // 4, dtype=jnp.float32) / head_dim)
    return (2 * jnp.pi * coordinates / periods).reshape(-1, head_dim // 2)


def rotate(states, angles, *, num_prefix):
    """States `[B, N, H, D]` with those of the patches turned, in float32.

    Channels i and i + D/2 of a patch are turned together, as a plane, by `angles[patch, i]`.

    Args:
      states: queries or keys.
      angles: `[N − num_prefix, D/2]`.
      num_prefix: tokens in front that have no position and stay as they are.
    """
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # [h·w, 1, D/2]
    prefix, patches = jnp.split(states, [num_prefix], axis=1)
    x, y = jnp.split(patches.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
    return jnp.concatenate([prefix, turned.astype(states.dtype)], axis=1)
