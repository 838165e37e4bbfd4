"""Softmax attention in one kernel for TPUs, which holds no logits in memory.

FlashAttention's running softmax (arXiv 2205.14135). Tokens lie along the lanes of a register, as
XLA lays out heads of fewer numbers than lanes by itself, so that nothing is copied or filled up on
the way, and the keys of a head are read once.

Shape letters: B batch, T queries, M keys, H heads, K key and value heads (a divisor of H), D head
dimension, R queries of a program.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fna_jax.kernels.tpu import LANES, PACKED, output_like, product, vector_memory, whole

_ROWS, _KEYS = 12, 16  # registers of lanes that queries of a program, and keys of a step, take
_UNROLLED = 2**23  # logits of a program; more take the compiler minutes
_TO_BITS = math.log2(math.e)  # powers of two are what there is an instruction for


def row_attention(query, key, value, log_mass=None, *, scale, **how):
    """`softmax(scale Q Kᵀ + log m) V`, `[B, T, H, D]`; zero where no key has mass.

    Args:
      query: `[B, T, H, D]`, of float32 or bfloat16.
      key, value: `[B, M, K, D]`; values may have another head dimension.
      log_mass: float32 `[B, M]`, −∞ for keys that do not take part; None for one each.
      scale: a number.
      how: options of `pl.pallas_call`.
    """
    query, key, value = (jnp.transpose(x, (0, 2, 3, 1)) for x in (query, key, value))
    batch, num_heads, _, num_queries = query.shape
    num_groups, num_dims, num_keys = value.shape[1:]
    most = program_rows(num_keys, query.shape[2] + num_dims, value.dtype)
    rows, keys = _block(num_queries, most), _block(num_keys, _KEYS)
    size = whole(num_keys, keys)
    block = lambda x, size, index: pl.BlockSpec((None, None, x.shape[2], size), index)
    of_head = lambda image, head, index: (image, head, 0, index)
    of_group = lambda image, head, index: (image, head * num_groups // num_heads, 0, 0)
    masses, of_masses = [], []
    if log_mass is not None:
        filled = [(0, 0), (0, size - num_keys)]
        masses.append(jnp.pad(_TO_BITS * log_mass, filled, constant_values=-jnp.inf)[:, None])
        of_masses.append(pl.BlockSpec((None, 1, size), lambda image, *_: (image, 0, 0)))
    out = pl.pallas_call(
        functools.partial(_kernel, scale=scale, sizes=(num_queries, num_keys), keys=keys),
        grid=(batch, num_heads, pl.cdiv(num_queries, rows)),
        in_specs=[block(query, rows, of_head), block(key, size, of_group)]
        + [block(value, size, of_group), *of_masses],
        out_specs=block(value, rows, of_head),
        out_shape=output_like(query, (batch, num_heads, num_dims, num_queries), value.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3, vmem_limit_bytes=vector_memory()
        ),
        **how,
    )(query, key, value, *masses)
    return jnp.transpose(out, (0, 3, 1, 2))


def program_rows(num_keys, num_dims, dtype):
    """How many registers of queries a program has at most, or None: keys fill the memory.

    Args:
      num_keys: M.
      num_dims: head dimensions of keys and values together.
      dtype: of both.
    """
    keys = _block(num_keys, _KEYS)
    size = whole(num_keys, keys)
    taken = 2 * size * (num_dims * dtype.itemsize + 8 * 4)  # with masses, and those to come
    of_row = 10 * keys + 2 * num_dims * dtype.itemsize + 3 * 4 * (num_dims + LANES)
    most = (vector_memory() - taken) // (LANES * of_row)
    return min(most, _ROWS) if most > 0 else None


def _block(size, most):
    """Lanes of a block, so that blocks of so many registers at most are filled up little."""
    registers = pl.cdiv(size, LANES)
    if registers <= most:
        return registers * LANES
    some = min(range(most, most // 2, -1), key=lambda some: whole(registers, some))
    return some * LANES


def _kernel(query, key, value, *refs, scale, sizes, keys):
    """R queries `[D, R]` of a head against all its keys `[D, M]`, so many at a time."""
    *mass, out = refs
    num_queries, num_keys = sizes
    num_dims, num_steps = value.shape[0], key.shape[1] // keys
    rows = min(query.shape[1], whole(num_queries, PACKED))
    turned = lambda x: jnp.swapaxes(x.astype(jnp.float32), 0, 1)
    states = turned(query[...])[:rows].astype(query.dtype)  # [R, D]

    def step(index, carry, last=False):
        sums, peak = carry
        some = pl.ds(pl.multiple_of(index * keys, keys), keys)
        logits = scale * _TO_BITS * product(states, key[:, some], (((1,), (0,)), ((), ())))
        for masses in mass:
            logits += masses[:, some]
        values = value[:, some]
        if last and num_keys < key.shape[1]:  # behind the last key there is anything
            known = jax.lax.broadcasted_iota(jnp.int32, (1, keys), 1) < num_keys - index * keys
            logits = jnp.where(known, logits, -jnp.inf)
            values = jnp.where(known, values, jnp.zeros_like(values))
        # The weights' sum is one more row of the product, which has room for it.
        values = jnp.concatenate([values, jnp.ones((PACKED, keys), values.dtype)], axis=0)
        new = jnp.maximum(peak, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp2(logits - new).astype(values.dtype)
        sums = jnp.exp2(peak - new) * sums + product(weights, values, (((1,), (1,)), ((), ())))
        return sums, new

    # A finite peak, for differences of infinite ones are NaN.
    lowest = jnp.full((rows, 1), jnp.finfo(jnp.float32).min)
    carry = jnp.zeros((rows, num_dims + PACKED), jnp.float32), lowest
    unroll = rows * key.shape[1] <= _UNROLLED
    carry = jax.lax.fori_loop(0, num_steps - 1, step, carry, unroll=unroll)
    sums, _ = step(num_steps - 1, carry, last=True)
    total = sums[:, num_dims : num_dims + 1]
    mean = sums[:, :num_dims] / jnp.where(total == 0, 1, total)
    mean = jnp.pad(mean, [(0, query.shape[1] - rows), (0, 0)])
    out[...] = turned(mean).astype(out.dtype)
