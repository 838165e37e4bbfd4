"""Softmax attention in one kernel for TPUs, which holds no logits in memory.

FlashAttention's running softmax (arXiv 2205.14135). Tokens lie along a register's lanes, as XLA
lays out heads of fewer than 128 numbers by itself, so that nothing is copied or filled up on the
way; the keys of a head are read once.

Shape letters: B batch, T queries, M keys, H heads, K key and value heads (a divisor of H), D head
dimension, R queries of a program.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES, _PACKED = 128, 16  # of a register; its rows in half precision
_NONE = -1e30  # in place of −∞, of which differences are NaN


def row_attention(query, key, value, log_mass=None, *, scale, rows=512, chunk=1024, **how):
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
    rows, chunk = _even(num_queries, rows), _even(num_keys, chunk)
    size = -(-num_keys // chunk) * chunk
    block = lambda x, size, index: pl.BlockSpec((None, None, x.shape[2], size), index)
    of_head = lambda image, head, index: (image, head, 0, index)
    of_group = lambda image, head, index: (image, head * num_groups // num_heads, 0, 0)
    masses, of_mass = [], []
    if log_mass is not None:
        log_mass = jnp.pad(log_mass, [(0, 0), (0, size - num_keys)], constant_values=_NONE)
        masses = [jnp.maximum(log_mass, _NONE)[:, None]]
        of_mass = [pl.BlockSpec((None, 1, size), lambda image, *_: (image, 0, 0))]
    out = pl.pallas_call(
        functools.partial(
            _kernel, scale=scale, chunk=chunk, num_queries=num_queries, num_keys=num_keys
        ),
        grid=(batch, num_heads, pl.cdiv(num_queries, rows)),
        in_specs=[block(query, rows, of_head), block(key, size, of_group)]
        + [block(value, size, of_group), *of_mass],
        out_specs=block(value, rows, of_head),
        out_shape=jax.ShapeDtypeStruct((batch, num_heads, num_dims, num_queries), value.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3, vmem_limit_bytes=64 * 2**20
        ),
        **how,
    )(query, key, value, *masses)
    return jnp.transpose(out, (0, 3, 1, 2))


def _even(size, most):
    """Lanes of a block, so that blocks of at most so many fill up little."""
    tiles, most = -(-size // _LANES), most // _LANES
    if tiles <= most:
        return tiles * _LANES
    of = min(range(most, most // 2 - 1, -1), key=lambda some: -(-tiles // some) * some)
    return of * _LANES


def _kernel(query, key, value, *refs, scale, chunk, num_queries, num_keys):
    """R queries `[D, R]` of a head against all its keys `[D, M]`, some at a time."""
    *mass, out = refs
    rows = min(query.shape[1], -(-num_queries // _PACKED) * _PACKED)
    turned = lambda x: jnp.swapaxes(x.astype(jnp.float32), 0, 1)
    states = turned(query[...])[:rows].astype(query.dtype)  # [R, D]
    product = functools.partial(
        jax.lax.dot_general,
        precision=jax.lax.Precision.DEFAULT,  # exact in half precision
        preferred_element_type=jnp.float32,
    )
    num_chunks = key.shape[1] // chunk

    def step(index, carry, ragged=False):
        sums, total, peak = carry
        some = pl.ds(pl.multiple_of(index * chunk, chunk), chunk)
        values = value[:, some]
        logits = scale * product(states, key[:, some], (((1,), (0,)), ((), ())))
        for masses in mass:
            logits += masses[:, some]
        if ragged:
            known = index * chunk + jax.lax.broadcasted_iota(jnp.int32, (1, chunk), 1) < num_keys
            logits = jnp.where(known, logits, _NONE)
            values = jnp.where(known, values, jnp.zeros_like(values))
        new = jnp.maximum(peak, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp(logits - new)
        kept = jnp.exp(peak - new)
        sums = kept * sums + product(weights.astype(values.dtype), values, (((1,), (1,)), ((), ())))
        return sums, kept * total + jnp.sum(weights, axis=1, keepdims=True), new

    carry = jnp.zeros((rows, value.shape[0]), jnp.float32), jnp.zeros((rows, 1), jnp.float32)
    carry = *carry, jnp.full((rows, 1), _NONE, jnp.float32)
    ragged = num_keys % chunk > 0
    carry = jax.lax.fori_loop(0, num_chunks - ragged, step, carry)
    sums, total, _ = step(num_chunks - 1, carry, ragged=True) if ragged else carry
    sums /= jnp.where(total == 0, 1, total)
    if rows < query.shape[1]:
        sums = jnp.pad(sums, [(0, query.shape[1] - rows), (0, 0)])
    out[...] = turned(sums).astype(out.dtype)
