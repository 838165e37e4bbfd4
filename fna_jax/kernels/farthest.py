"""Farthest point sampling with one kernel a step for NVIDIA GPUs, instead of three or more.

Each program first finds the farthest point among the farthest of all blocks, which the programs of
the step before left, and then measures its own block of tokens anew.

Shape letters: N tokens, C features, S samples.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_ROWS, _LANES = 64, 64  # tokens of a block, features at a time
_UNROLL = 8  # steps in the body of the loop, whose counter and copies are launches, too


def farthest_points(points, distance, *, num_samples, interpret=False):
    """`fna_jax.landmarks.farthest_point_sampling` from given distances, int32 `[S]`.

    Args:
      points: `[N, C]`, of float32 or half precision.
      distance: float32 `[N]`: inf for points that may be taken, −∞ for others.
      num_samples: S.
      interpret: run on any device, slowly.
    """
    num_points = points.shape[0]
    blocks = pl.next_power_of_2(pl.cdiv(num_points, _ROWS))  # as many as are read at a time
    fill = (0, blocks * _ROWS - num_points)
    distance = jnp.pad(distance, [fill], constant_values=-jnp.inf).reshape(blocks, _ROWS)
    where = jnp.argmax(distance, axis=1).astype(jnp.int32) + _ROWS * jnp.arange(blocks)
    start = distance, jnp.max(distance, axis=1), where.astype(jnp.int32)

    of_block = pl.BlockSpec((None, _ROWS), lambda block: (block, 0))
    whole = lambda x: pl.BlockSpec(x.shape, lambda block: (0,) * x.ndim)
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    step = pl.pallas_call(
        _step,
        grid=(blocks,),
        in_specs=[whole(points), of_block, whole(start[1]), whole(start[2])],
        out_specs=[of_block, whole(start[1]), whole(start[2]), whole(one)],
        out_shape=[*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in start), one],
        input_output_aliases={1: 0},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )

    def take_farthest(state, _):
        *state, index = step(points, *state)
        return tuple(state), index[0]

    return jax.lax.scan(take_farthest, start, length=num_samples, unroll=_UNROLL)[1]


def _step(points, distance, peaks, wheres, new_distance, new_peaks, new_wheres, taken):
    num_points, width = points.shape
    top = jnp.max(peaks[...])
    index = jnp.min(jnp.where(peaks[...] == top, wheres[...], num_points - 1))  # lowest of a tie

    block = pl.program_id(0)
    rows = block * _ROWS + jnp.arange(_ROWS)

    def add(part, total):
        some = pl.ds(part * _LANES, _LANES)
        known = part * _LANES + jnp.arange(_LANES) < width
        there = (rows < num_points)[:, None] & known[None]
        mine = triton.load(points.at[pl.ds(block * _ROWS, _ROWS), some], mask=there, other=0)
        point = triton.load(points.at[index, some], mask=known, other=0)
        apart = mine.astype(jnp.float32) - point.astype(jnp.float32)[None]
        return total + jnp.sum(apart * apart, axis=1)

    to_index = jax.lax.fori_loop(0, pl.cdiv(width, _LANES), add, jnp.zeros(_ROWS, jnp.float32))
    nearest = distance[...]
    nearest = jnp.where(to_index < nearest, to_index, nearest)  # not where it is NaN
    nearest = jnp.where(rows == index, -jnp.inf, nearest)
    peak = jnp.max(nearest)
    new_distance[...] = nearest
    new_peaks[block] = peak
    new_wheres[block] = jnp.min(jnp.where(nearest == peak, rows, num_points)).astype(jnp.int32)

    @pl.when(block == 0)
    def _():
        taken[0] = jnp.where(top > -jnp.inf, index, -1).astype(jnp.int32)
