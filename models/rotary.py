"""Rotary positions of patches (RoPE, arXiv 2104.09864) on two axes (DINOv3, Qwen3-VL) or three.

Shape letters: B batch, N tokens, H heads, D head dimension, h and w patches down and across.
"""

import jax
import jax.numpy as jnp
import numpy as np


def patch_coordinates(grid) -> np.ndarray:
    """float32 `[h·w, 2]` in (−1, 1): row and column of each patch's centre, on axes that span the
    image whatever its size; of a video's grid (t, h, w) `[t·h·w, 3]`."""
    axes = ((2 * np.arange(n, dtype=np.float32) + 1) / np.float32(n) - 1 for n in grid)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(grid))


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

    def turn(patches):
        x, y = jnp.split(patches, 2, axis=-1)
        return jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)

    return _of_patches(turn, states, num_prefix)


def tubelet_angles(coordinates, head_dim):
    """Angles float32 `[…, D]` of tubelets at coordinates `[…, 3]`: for each channel its own.

    V-JEPA 2's: of the time for the first d = 2 ⌊D/6⌋ channels, of the row for the next d, of the
    column for the d after these, and 0 for what is left. In a part channel j has
    `x / 10000^(2 (j mod d/2) / d)`.
    """
    half = head_dim // 6
    periods = 10000 ** (jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(coordinates, jnp.float32)[..., None] / periods  # […, 3, d/2]
    angles = jnp.concatenate([angles, angles], axis=-1)
    angles = angles.reshape(*angles.shape[:-2], 6 * half)
    return jnp.pad(angles, [*[(0, 0)] * (angles.ndim - 1), (0, head_dim - 6 * half)])


def rotate_neighbours(states, angles, *, num_prefix):
    """States `[B, N, H, D]` with channels 2i and 2i + 1 of the patches as planes, in float32.

    `x' = x cos a − y sin a`, `y' = y cos b + x sin b`, where a and b are the angles of the two
    channels: a rotation only where these are the same, which `tubelet_angles` are not.

    Args:
      states, num_prefix: as in `rotate`.
      angles: `[N − num_prefix, D]`, or `[B, N − num_prefix, D]` for each image its own.
    """
    cos, sin = (f(angles)[..., None, :] for f in (jnp.cos, jnp.sin))

    def turn(patches):
        x, y = jnp.moveaxis(patches.reshape(*patches.shape[:-1], -1, 2), -1, 0)
        return patches * cos + jnp.stack([-y, x], axis=-1).reshape(patches.shape) * sin

    return _of_patches(turn, states, num_prefix)


def _of_patches(turn, states, num_prefix):
    """States `[B, N, H, D]` with `turn` of those of the patches, in float32."""
    prefix, patches = jnp.split(states, [num_prefix], axis=1)
    turned = turn(patches.astype(jnp.float32))
    return jnp.concatenate([prefix, turned.astype(states.dtype)], axis=1)
