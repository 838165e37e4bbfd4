"""The near field of centroid attention in one kernel for TPUs: one softmax for each window.

A program has the queries of a window, the keys near to it and those far away at hand, so few that
their logits need not leave the chip, nor the softmax run over blocks of them. It reads and writes
windows where they lie in the grid.

Shape letters: B batch, r and c windows down and across, l and l' patches of one (l' whole
registers), W = r · c, L = l · l', n windows near to one, F far keys, H heads, D head dimension,
C = H · D, p heads that lie beside each other in a register.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from fna_jax.kernels.tpu import LANES, PACKED, ROWS, output_like, product, whole
from fna_jax.windows import take_windows

_WIDTH = 1024  # lanes of a program, at most
_VMEM = 14 * 2**20  # bytes of a program, of the 16 MiB that it may have
_UNROLLED = 2**17  # logits of p heads; a step of more keeps the units busy by itself
_NONE = -1e30  # in place of −∞, of which differences are NaN


def window_attention(
    query, key, value, present, far_key, far_value, far_mass, at_means, *, scale, windows, **how
):
    """As `fna_jax.near_field.window_attention`, `[B, h·w, C]`.

    Args:
      how: options of `pl.pallas_call`.
    """
    head_dim, shared = far_key.shape[-1], query.shape[-1] // key.shape[-1]
    num_heads = query.shape[-1] // head_dim
    width = program_width(num_heads, head_dim, far_key.shape[1], query.dtype, windows)
    joined = lambda x: x.reshape(*x.shape[:-2], -1)
    of_all = lambda x: joined(jnp.repeat(x.reshape(*x.shape[:2], -1, head_dim), shared, axis=2))
    of_grid = lambda x: filled(windows.cut_up(x), 4, ROWS)  # [B, r, l, c, l', C]
    query, key, value = of_grid(query), of_grid(of_all(key)), of_grid(of_all(value))
    far_key, far_value = (filled(of_all(x), 1, PACKED) for x in (far_key, far_value))
    mass = masses_of(of_grid(present), far_mass, windows)[:, :, None]  # [B, W, 1, F + n · L]
    at_means = [] if at_means is None else [joined(x)[:, :, None] for x in at_means]  # [B, W, 1, C]

    shape = None, None, query.shape[2], None, query.shape[4], width
    own, *near = (pl.BlockSpec(shape, place) for place in _places(windows))
    far = pl.BlockSpec(
        (None, far_key.shape[1], width), lambda image, lanes, row, column: (image, 0, lanes)
    )
    of_window = lambda image, lanes, row, column: (image, row * windows.cut[1] + column, 0, lanes)
    of_masses = lambda image, lanes, *at: (*of_window(image, lanes, *at)[:3], 0)
    line = lambda size, place: pl.BlockSpec((None, None, 1, size), place)
    out = pl.pallas_call(
        functools.partial(_kernel, scale=scale, head_dim=head_dim, num_near=len(near)),
        grid=(query.shape[0], query.shape[-1] // width, *windows.cut),
        in_specs=[own, *near, *near, far, far, line(mass.shape[-1], of_masses)]
        + len(at_means) * [line(width, of_window)],
        out_specs=own,
        out_shape=output_like(query, query.shape, value.dtype),
        **how,
    )(query, *len(near) * [key], *len(near) * [value], far_key, far_value, mass, *at_means)
    return windows.put_together(out[..., : _window_shape(windows)[1], :])


def program_width(num_heads, head_dim, num_far, dtype, windows):
    """How many lanes of C a program takes, or None: heads do not fill registers, or memory is full.

    Args:
      num_heads, head_dim, num_far: H, D and F.
      dtype: of queries, keys and values.
      windows: `Windows`.
    """
    lanes, size = max(head_dim, LANES), num_heads * head_dim
    if lanes % head_dim or lanes % LANES or size % lanes or lanes // head_dim > ROWS:
        return None
    down, across = _window_shape(windows)
    num_rows = down * whole(across, ROWS)
    num_keys = windows.neighbours().shape[1] * num_rows + whole(num_far, PACKED)
    of_lane = 4 * dtype.itemsize * (num_rows + num_keys)  # of all blocks, the next ones, too
    room = _VMEM - 8 * num_logits(num_rows, num_keys, lanes // head_dim)  # and their weights
    for width in range(size, 0, -lanes):
        if size % width == 0 and width <= _WIDTH and width * of_lane <= room:
            return width
    return None


def num_logits(num_rows, num_keys, num_heads):
    """Those of a window and of p heads, with the rows of the means."""
    return (num_heads * num_rows + PACKED) * num_keys


def _window_shape(windows):
    """Patches down and across of the largest window."""
    return [-(-size // parts) for size, parts in zip(windows.grid, windows.cut)]


def filled(x, axis, rows, fill=0):
    """x with an axis of whole registers."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = 0, whole(x.shape[axis], rows) - x.shape[axis]
    return jnp.pad(x, padding, constant_values=fill)


def masses_of(present, far_mass, windows):
    """Logarithms of the masses of a window's keys, first of those far away, `[B, W, F + n · L]`.

    Args:
      present: bool `[B, r, l, c, l']`.
      far_mass: `[B, W, F]`.
      windows: as in `window_attention`.
    """
    present = jnp.swapaxes(present, 2, 3).reshape(*far_mass.shape[:2], -1)
    near = jnp.where(take_windows(present, windows.neighbours()), 0, _NONE)
    far_mass = filled(jnp.maximum(far_mass, _NONE), 2, PACKED, fill=_NONE)
    return jnp.concatenate([far_mass, near.reshape(*far_mass.shape[:2], -1)], axis=-1)


def _places(windows):
    """Functions of a program's indices that tell its own window, and the windows near to it.

    Beyond the edge they tell some of the grid, whose masses are none there.
    """

    def place(down, across):
        def index(image, lanes, row, column):
            row = jnp.clip(row + down, 0, windows.cut[0] - 1) if down else row
            column = jnp.clip(column + across, 0, windows.cut[1] - 1) if across else column
            return image, row, 0, column, 0, lanes

        return index

    steps = range(-windows.near, windows.near + 1)
    return [place(0, 0)] + [place(down, across) for down in steps for across in steps]


def _kernel(query, *refs, scale, head_dim, num_near):
    """One window, p heads at a time."""
    out, lanes = refs[-1], max(head_dim, LANES)
    keys, values = refs[:num_near], refs[num_near : 2 * num_near]
    far_key, far_value, mass, *at_means = refs[2 * num_near : -1]
    num_rows, num_heads = query.shape[0] * query.shape[1], lanes // head_dim

    def step(index, carry):
        some = pl.ds(pl.multiple_of(index * lanes, lanes), lanes)
        # Only float32 has registers of as many rows as l' is a multiple of.
        flat = lambda ref: ref[:, :, some].astype(jnp.float32).reshape(-1, lanes)

        def take(far, near):
            near = jnp.concatenate([flat(ref) for ref in near], axis=0).astype(far.dtype)
            return jnp.concatenate([far[:, some], near], axis=0)

        states = flat(query), take(far_key, keys), take(far_value, values)
        lines = [ref[:, some].astype(jnp.float32) for ref in at_means]
        mine = attend_window(*states, mass[...], lines, scale=scale, head_dim=head_dim)
        out[:, :, some] = mine.reshape(*out.shape[:2], lanes).astype(out.dtype)
        return carry

    unrolled = num_logits(num_rows, mass.shape[-1], num_heads) <= _UNROLLED
    jax.lax.fori_loop(0, query.shape[2] // lanes, step, 0, unroll=unrolled)


def attend_window(query, key, value, mass, at_means, *, scale, head_dim):
    """What the queries of a window get of its keys, float32 `[L, lanes]`, p heads at a time.

    Those of each head are rows of one product, zero in the lanes of the other heads; what they get
    there is left out.

    Args:
      query: float32 `[L, lanes]`.
      key, value: `[F + n · L, lanes]`.
      mass: `[1, F + n · L]`, logarithms.
      at_means: the mean query and what it is to get, float32 `[1, lanes]` each; or none of them.
    """
    num_rows, lanes = query.shape
    num_heads = lanes // head_dim
    head = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // head_dim
    row = jax.lax.broadcasted_iota(jnp.int32, (PACKED, lanes), 0)
    rows = [jnp.where(head == i, query, 0) for i in range(num_heads)]
    if at_means:
        mean, exact = at_means
        rows.append(jnp.where(row == head, mean, 0))
    rows = jnp.concatenate(rows, axis=0).astype(key.dtype)
    logits = scale * product(rows, key, (((1,), (1,)), ((), ()))) + mass
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    sums = product(weights.astype(value.dtype), value, (((1,), (0,)), ((), ())))

    def of_heads(x):  # [p · L, ·] to [L, lanes], in its lanes of each head
        first, *others = (x[i * num_rows : (i + 1) * num_rows] for i in range(num_heads))
        for i, other in enumerate(others, 1):
            first = jnp.where(head == i, other, first)
        return first

    mine = of_heads(sums) / of_heads(total)
    if at_means:
        cheap = jnp.where(row == head, sums[-PACKED:] / total[-PACKED:], 0)
        mine += exact - jnp.sum(cheap, axis=0, keepdims=True)
    return mine
