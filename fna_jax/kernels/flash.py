"""Softmax attention in one kernel for NVIDIA GPUs, which holds no logits in memory.

FlashAttention's running softmax (arXiv 2205.14135), with the keys split over programs where there
are few queries (as in Flash-Decoding). cuDNN's kernel is the faster one of many queries and keys,
but takes neither float32 nor masses of keys.

Shape letters: B batch, T queries, M keys, H heads, K key and value heads (a divisor of H), D head
dimension, P parts that the keys are split into.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_ROWS, _KEYS = 128, 64  # of a block
_PROGRAMS = 512  # that many fill the 132 multiprocessors of an H100
_NONE = -1e30  # in place of −∞, of which differences are NaN


def flash_attention(query, key, value, log_mass, *, scale, interpret=False):
    """`softmax(scale Q Kᵀ + log m) V`, `[B, T, H, D]`; zero where no key has mass.

    Args:
      query: `[B, T, H, D]`, of float32, bfloat16 or float16.
      key, value: `[B, M, K, D]`; values may have another head dimension.
      log_mass: float32 `[B, M]`; −∞ for keys that do not take part.
      scale: a number.
      interpret: run on any device, slowly.
    """
    num_dims = value.shape[-1]
    query, key, value = map(_whole_lanes, (query, key, value))
    batch, num_queries, num_heads, _ = query.shape
    num_keys, num_groups, width = value.shape[1:]
    rows = min(max(pl.next_power_of_2(num_queries), 16), _ROWS)
    row_blocks, key_blocks = pl.cdiv(num_queries, rows), pl.cdiv(num_keys, _KEYS)
    parts = pl.cdiv(_PROGRAMS, row_blocks * num_heads * batch)
    blocks = pl.cdiv(key_blocks, min(parts, key_blocks))  # of a part
    parts = pl.cdiv(key_blocks, blocks)

    of_head = lambda index, head, image: (image, 0, head, 0)
    of_group = lambda index, head, image: (image, 0, head * num_groups // num_heads, 0)
    part = lambda index, head, image: (image, index % parts, head, 0)
    whole = lambda x, index: pl.BlockSpec((None, x.shape[1], None, x.shape[3]), index)
    like = jax.ShapeDtypeStruct
    split = batch, parts * num_queries, num_heads
    out, total, peak = pl.pallas_call(
        functools.partial(_kernel, scale=scale, rows=rows, parts=parts, blocks=blocks),
        grid=(row_blocks * parts, num_heads, batch),
        in_specs=[
            whole(query, of_head),
            whole(key, of_group),
            whole(value, of_group),
            pl.BlockSpec((None, num_keys), lambda index, head, image: (image, 0)),
        ],
        out_specs=[pl.BlockSpec((None, num_queries, None, width), part)]
        + 2 * [pl.BlockSpec((None, num_queries, None), lambda *at: part(*at)[:3])],
        out_shape=[like((*split, width), value.dtype if parts == 1 else jnp.float32)]
        + 2 * [like(split, jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(query, key, value, log_mass)
    if parts > 1:
        out, total, peak = (
            x.reshape(batch, parts, num_queries, *x.shape[2:]) for x in (out, total, peak)
        )
        weights = total * jnp.exp(peak - jnp.max(peak, axis=1, keepdims=True))  # [B, P, T, H]
        weights /= jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        out = jnp.sum(weights[..., None] * out, axis=1).astype(value.dtype)
    return out[..., :num_dims]


def _kernel(query, key, value, log_mass, out, total, peak, *, scale, rows, parts, blocks):
    """A block of queries `[T, D]` against a part of the keys `[M, D]`."""
    index = pl.program_id(0)
    num_queries, num_keys = query.shape[0], key.shape[0]
    mine = pl.ds(index // parts * rows, rows)
    there = index // parts * rows + jnp.arange(rows) < num_queries
    states = triton.load(query.at[mine], mask=there[:, None], other=0)

    def step(block, carry):
        sums, total, peak = carry
        start = (index % parts * blocks + block) * _KEYS
        some = pl.ds(start, _KEYS)
        known = start + jnp.arange(_KEYS) < num_keys
        load = lambda ref: triton.load(ref.at[some], mask=known[:, None], other=0)
        mass = triton.load(log_mass.at[some], mask=known, other=-jnp.inf)
        logits = scale * triton.dot(states, load(key), trans_b=True) + mass[None]
        new = jnp.maximum(peak, jnp.max(logits, axis=1))
        weights = jnp.exp(logits - new[:, None])
        kept = jnp.exp(peak - new)
        values = load(value)
        sums = kept[:, None] * sums + triton.dot(weights.astype(values.dtype), values)
        return sums, kept * total + jnp.sum(weights, axis=1), new

    zeros = jnp.zeros((rows, value.shape[1]), jnp.float32)
    start = zeros, jnp.zeros(rows, jnp.float32), jnp.full(rows, _NONE, jnp.float32)
    sums, sum_of_weights, top = jax.lax.fori_loop(0, blocks, step, start)
    sums /= jnp.where(sum_of_weights == 0, 1, sum_of_weights)[:, None]
    triton.store(out.at[mine], sums.astype(out.dtype), mask=there[:, None])
    triton.store(total.at[mine], sum_of_weights, mask=there)
    triton.store(peak.at[mine], top, mask=there)


def _whole_lanes(x):
    """x with a last axis of a power of two, at least 16, filled up with zeros."""
    lanes = max(pl.next_power_of_2(x.shape[-1]), 16)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lanes - x.shape[-1])])
