"""The near field of centroid attention of a whole grid in one kernel for TPUs, of p heads.

As `fna_jax.kernels.near`, but tokens lie along the lanes of a register, as XLA lays out heads of
fewer numbers than lanes by itself: a program turns them into rows, a window after the other, and
back. So nothing is copied, in front of the kernel or behind it, where `near` reads windows of a
grid that XLA has turned.

Shape letters: B batch, N tokens, r and c windows down and across, l and l' patches of one, W = r ·
c, L = l · l', n windows near to one, F far keys, H heads, D head dimension, C = H · D, p heads that
lie beside each other in a register.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fna_jax.kernels.near import attend_window, filled, masses_of, num_logits
from fna_jax.kernels.tpu import LANES, PACKED, ROWS, output_like, vector_memory, whole

# That are worked on together: tiles of 128 × 128, and logits of windows.
_TILES, _LOGITS = 8, 2**18 + 2**16


def grid_attention(
    query,
    key,
    value,
    present,
    far_key,
    far_value,
    far_mass,
    exact,
    at_means,
    *,
    scale,
    windows,
    **how,
):
    """All tokens' attention to near and far keys, `[B, N, H, D]`.

    Args:
      query, key, value: `[B, N, H, D]`.
      present, far_key, far_value, far_mass, scale, windows: as in
        `fna_jax.near_field.window_attention`.
      exact: what the prefix gets, `[B, P, H, D]`.
      at_means: as there, or None.
      how: options of `pl.pallas_call`.
    """
    num_tokens, num_heads, head_dim = query.shape[1:]
    joined = lambda x: x.reshape(*x.shape[:-2], -1)
    lanes_last = lambda x: jnp.transpose(x, (0, 2, 3, 1)).reshape(
        x.shape[0], x.shape[2] * x.shape[3], x.shape[1]
    )
    states = [lanes_last(x) for x in (query, key, value)]  # [B, C, N]
    front = lanes_last(exact).astype(jnp.float32)
    front = jnp.pad(front, [(0, 0), (0, 0), (0, LANES - front.shape[-1])])
    far = [filled(joined(x), 1, PACKED) for x in (far_key, far_value)]
    mass = masses_of(windows.cut_up(present), far_mass, windows)
    at_means = [] if at_means is None else [joined(x).astype(jnp.float32) for x in at_means]
    size = whole(num_tokens, LANES)
    along = pl.BlockSpec((None, LANES, size), lambda image, lanes: (image, lanes, 0))
    of_lanes = lambda x: pl.BlockSpec(
        (None, x.shape[1], LANES), lambda image, lanes: (image, 0, lanes)
    )
    rows = pltpu.VMEM((windows.grid[0] * windows.grid[1], LANES), jnp.float32)
    out = pl.pallas_call(
        functools.partial(_kernel, scale=scale, head_dim=head_dim, windows=windows),
        grid=(query.shape[0], states[0].shape[1] // LANES),
        in_specs=[along, along, along, *map(of_lanes, far)]
        + [pl.BlockSpec((None, *mass.shape[1:]), lambda image, lanes: (image, 0, 0))]
        + [pl.BlockSpec((None, LANES, LANES), lambda image, lanes: (image, lanes, 0))]
        + [*map(of_lanes, at_means)],
        out_specs=along,
        out_shape=output_like(query, states[0].shape, value.dtype),
        scratch_shapes=3 * [rows],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 2, vmem_limit_bytes=vector_memory()
        ),
        **how,
    )(*states, *far, mass, front, *at_means)
    out = out.reshape(out.shape[0], num_heads, head_dim, num_tokens)
    return jnp.transpose(out, (0, 3, 1, 2))


def fits(query, key, num_far, windows):
    """Whether heads fill registers, windows and grid whole ones of tokens, and all the memory.

    Args:
      query, key: `[B, N, H, D]`, `[B, N, K, D]`.
      num_far: F.
      windows: `Windows`.
    """
    (height, width), (down, across) = windows.grid, windows.cut
    num_heads, head_dim = query.shape[-2:]
    even = height % down == 0 and width % (ROWS * across) == 0 and height * width % LANES == 0
    if not even or LANES % head_dim or num_heads * head_dim % LANES or key.shape[-2] != num_heads:
        return False
    # Rows, and what is read and written for this program and the next one.
    states = LANES * query.shape[-3] * (3 * 4 + 8 * query.dtype.itemsize)
    logits = 12 * max(_LOGITS, _logits_of_window(num_far, head_dim, windows))
    return windows.num_prefix < LANES and states + logits <= vector_memory()


def _logits_of_window(num_far, head_dim, windows):
    num_rows = math.prod(windows.grid) // math.prod(windows.cut)
    num_keys = windows.neighbours().shape[1] * num_rows + num_far
    return num_logits(num_rows, num_keys, LANES // head_dim)


def _kernel(query, key, value, far_key, far_value, mass, front, *refs, scale, head_dim, windows):
    """All windows, p heads: `[p · D, N]` into rows `[h · w, p · D]`, and back."""
    *at_means, out, queries, keys, values = refs
    (height, width), (down, across), shift = windows.grid, windows.cut, windows.num_prefix
    size = height // down, width // across
    num_tiles, lane = height * width // LANES, jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    tile_of = lambda tile: pl.ds(pl.multiple_of(tile * LANES, LANES), LANES)

    def turn(tile, carry):
        stores = []
        for ref, rows in ((query, queries), (key, keys), (value, values)):
            x = ref[:, tile_of(tile)].astype(jnp.float32)
            if shift:
                behind = ref[:, tile_of(tile + 1)].astype(jnp.float32)
                x = pltpu.roll(jnp.where(lane < shift, behind, x), LANES - shift, 1)
            stores.append((rows, tile_of(tile), jnp.swapaxes(x, 0, 1)))
        return stores, carry

    def lines(row, column):
        """Where the tokens of a window are among the rows, for each of its lines."""
        for line in range(size[0]):
            start = (row * size[0] + line) * width + column * size[1]
            yield pl.ds(pl.multiple_of(start, ROWS), size[1])

    def attend(index, carry):
        row, column, one = index // across, index % across, pl.ds(index, 1)
        steps = range(-windows.near, windows.near + 1)
        clip = lambda place, most: jnp.clip(place, 0, most - 1)  # beyond the edge are no masses
        near = [(clip(row + i, down), clip(column + j, across)) for i in steps for j in steps]

        def together(far, rows):
            near_rows = jnp.concatenate([rows[line] for place in near for line in lines(*place)])
            return jnp.concatenate([far[...], near_rows.astype(far.dtype)])

        mine = attend_window(
            jnp.concatenate([queries[line] for line in lines(row, column)]),
            together(far_key, keys),
            together(far_value, values),
            mass[one],
            [x[one] for x in at_means],
            scale=scale,
            head_dim=head_dim,
        )
        parts = jnp.split(mine, size[0])  # in place of the queries, which no other window reads
        return [(queries, line, x) for line, x in zip(lines(row, column), parts)], carry

    def turn_back(tile, before):
        x = jnp.swapaxes(queries[tile_of(tile)], 0, 1)
        x = pltpu.roll(x, shift, 1) if shift else x
        where = slice(None), tile_of(tile)
        return [(out, where, jnp.where(lane < shift, before, x).astype(out.dtype))], x

    _in_groups(turn, num_tiles, _TILES)
    most = _LOGITS // _logits_of_window(far_key.shape[0], head_dim, windows)
    _in_groups(attend, down * across, most)
    last = _in_groups(turn_back, num_tiles, _TILES, front[...])
    if shift:
        out[:, num_tiles * LANES :] = last.astype(out.dtype)


def _in_groups(part, count, most, carry=0):
    """A loop over parts, at most so many at a time, which keep the units busy together.

    Args:
      part: of an index and the carry, what it writes, (reference, place, array) each, and the next
        carry. None reads what the others of its group write.
      count: how many parts.
    """
    some = max(i for i in range(1, count + 1) if count % i == 0 and (i == 1 or i <= most))

    def group(index, carry):
        written = []
        for i in range(some):
            stores, carry = part(index * some + i, carry)
            written += stores
        for ref, place, x in written:
            ref[place] = x
        return carry

    return jax.lax.fori_loop(0, count // some, group, carry)
