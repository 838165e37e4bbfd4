"""Massive tokens, attention sinks, artifact tokens, suppression (arXiv 2507.16018).

A *massive* token is a patch whose residual norm explodes and which then draws attention from all
others. An *artifact* token is a patch that takes over as attention sink once the massive tokens are
masked. Both suppress each other's growth through attention.

The tokens in front of the patches (class token, registers) are never candidates: `num_prefix` is
their number, the class token the first of them.

Shape letters: B batch, N tokens, H heads, K key and value heads (a divisor of H), D head dimension,
C width.
"""

import math

import jax
import jax.numpy as jnp

from fna_jax.carries import full_of
from fna_jax.checks import check_qk, check_suppression, checked_key_mask, spread_heads, zero_padding
from fna_jax.softmax import map_row_blocks, softmax_weights

_HIGHEST = jax.lax.Precision.HIGHEST


def incoming_attention(query, key, *, scale=None, key_mask=None):
    """Attention that each token receives, averaged over heads and queries, float32 `[*B, N]`.

    By blocks of queries: no attention matrix is kept.

    Args:
      query: `[*B, N, H, D]`.
      key: `[*B, N, K, D]`.
      scale: multiplies the logits; `1/sqrt(D)` by default.
      key_mask: bool `[*B, N]`, the tokens that take part, as keys and in the average over queries.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    return _received_and_own(query, key, scale, key_mask)[0]


def class_token_proxy(query, key, *, has_class_token=True, scale=None, key_mask=None):
    """Attention from the class token over its attention to itself, float32 `[*B, N]`.

    `a[cls→i] / a[cls→cls]`, both averaged over heads first: what tells massive tokens and sinks.
    For a model without a class token, all queries stand in for it: the attention that i receives on
    average, over that which a token pays to itself on average. Finite also where what the class
    token pays itself is below what float32 holds.

    Args:
      query, key, scale, key_mask: as in `incoming_attention`.
      has_class_token: whether token 0 is one.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    if has_class_token:
        weights = attention_weights(query[..., :1, :, :], key, scale=scale, key_mask=key_mask)
        received = jnp.mean(weights[..., 0, :], axis=-2)  # [*B, N]
        own = received[..., 0]
    else:
        received, own = _received_and_own(query, key, scale, key_mask)
    return received / jnp.maximum(own, jnp.finfo(own.dtype).tiny)[..., None]


def massive_by_attention(proxy, *, num_prefix, threshold=0.3):
    """Patches that draw the class token's attention, bool `[*B, N]` (detector A).

    It presumes that the class token attends to itself: where it hardly does, every patch passes.

    Args:
      proxy: `[*B, N]`, of `class_token_proxy`.
      num_prefix: tokens in front of the patches.
      threshold: of the proxy; 0.3 at block 13 of CLIP ViT-L/14.
    """
    return (proxy > threshold) & _is_patch(proxy.shape, num_prefix)


def massive_by_norm(norms, *, num_prefix, min_ratio=2.0):
    """Patches above the largest gap between the log norms of an image, bool `[*B, N]` (detector B).

    Only gaps above the median count, for massive tokens are few. None of the image's tokens is
    massive unless the gap is clear: the smallest massive norm at least `min_ratio` times the
    largest normal one, and the gap at least twice any gap between the median and it.

    Args:
      norms: `[*B, N]`, of the residual stream.
      num_prefix: tokens in front of the patches.
      min_ratio: least factor across the gap.
    """
    is_patch = _is_patch(norms.shape, num_prefix)
    norms = norms.astype(jnp.float32)
    logs = jnp.log(jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))
    ordered = jnp.sort(logs[..., num_prefix:], axis=-1)[..., (norms.shape[-1] - num_prefix) // 2 :]
    if ordered.shape[-1] < 2:
        return jnp.zeros(norms.shape, bool)
    gaps = jnp.diff(ordered, axis=-1)
    cut = jnp.argmax(gaps, axis=-1, keepdims=True)
    largest = jnp.take_along_axis(gaps, cut, axis=-1)
    below = jnp.where(_positions(gaps.shape) < cut, gaps, 0)
    clear = largest >= jnp.maximum(math.log(min_ratio), 2 * jnp.max(below, axis=-1, keepdims=True))
    least = jnp.take_along_axis(ordered, cut + 1, axis=-1)
    return clear & (logs >= least) & is_patch


def attention_sinks(proxy_given, shape, *, num_prefix, max_sinks=64):
    """Rank of each attention sink, int32 `[*B, N]`: the round that found it, 0 for other tokens.

    In every round no query may read the sinks found so far, and the patch with the largest proxy is
    added if that exceeds 1, the class token's own; an image is done when nothing is added. A
    `lax.while_loop` runs until all images are done.

    Args:
      proxy_given: the class-token proxy `[*B, N]` of a pass in which the tokens marked in its
        argument, bool `[*B, N]`, are read by none.
      shape: `[*B, N]`.
      num_prefix: tokens in front of the patches.
      max_sinks: most rounds.
    """
    is_patch = _is_patch(shape, num_prefix)
    tokens = _positions(shape)

    def unfinished(state):
        _, number, searching = state
        return (number <= max_sinks) & jnp.any(searching)

    def search(state):
        rank, number, searching = state
        proxy = jnp.where(is_patch & (rank == 0), proxy_given(rank > 0), -jnp.inf)
        found = searching & (jnp.max(proxy, axis=-1) > 1)
        strongest = tokens == jnp.argmax(proxy, axis=-1, keepdims=True)
        return jnp.where(found[..., None] & strongest, number, rank), number + 1, found

    max_sinks = min(max_sinks, shape[-1] - num_prefix)
    none = full_of(proxy_given, jnp.zeros(shape, bool), fill=0, dtype=jnp.int32)
    start = none, jnp.int32(1), jnp.all(none == 0, axis=-1)
    return jax.lax.while_loop(unfinished, search, start)[0]


def artifact_tokens(rank, massive):
    """Attention sinks that are not massive, bool `[*B, N]`.

    Args:
      rank: int `[*B, N]`, of `attention_sinks`.
      massive: bool `[*B, N]`.
    """
    return (rank > 0) & ~massive


def suppression_matrix(x, value, out_kernel):
    """What reading token j adds to token i along its own direction, `[*B, H, N, N]`.

    `S[h, i, j] = ⟨x_i / ‖x_i‖, W_Oʰ v_jʰ⟩`, for one unit of attention: negative where reading j
    shrinks i. At least float32, and quadratic in N.

    Args:
      x: `[*B, N, C]`, the block's input before its layer norm.
      value: `[*B, N, K, D]`.
      out_kernel: `[H, D, C]`, W_O of each head, without bias, with LayerScale where there is one.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_suppression(x, value, out_kernel)
    pull = along_itself(x, out_kernel)
    value = spread_heads(value.astype(pull.dtype), pull.shape[-2])
    return jnp.einsum("...ihd,...jhd->...hij", pull, value, precision=_HIGHEST)


def attention_weights(query, key, *, scale=None, key_mask=None):
    """The attention matrix `softmax(scale Q Kᵀ)`, at least float32, `[*B, H, T, M]`; for a look.

    Args:
      query: `[*B, T, H, D]`.
      key: `[*B, M, K, D]`.
      scale: multiplies the logits; `1/sqrt(D)` by default.
      key_mask: bool `[*B, M]`, True on keys that take part. Without any a row is zero.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    weights, total = softmax_weights(attention_logits(query, key, scale=scale, key_mask=key_mask))
    return weights / total


def attention_logits(query, key, *, scale, key_mask):
    """`scale Q Kᵀ`, at least float32, `[*B, H, T, M]`, −∞ at keys that do not take part."""
    check_qk(query, key)
    key_mask = checked_key_mask(key_mask, key)
    key = spread_heads(zero_padding(key, key_mask), query.shape[-2])
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...thd,...mhd->...htm", query, key, preferred_element_type=dtype)
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale)
    return logits if key_mask is None else jnp.where(key_mask[..., None, None, :], logits, -jnp.inf)


def along_itself(x, out_kernel):
    """`W_Oʰᵀ x_i / ‖x_i‖`, `[*B, N, H, D]`: times a value, what that adds along x."""
    unit = direction(x)
    return jnp.einsum("...nc,hdc->...nhd", unit, out_kernel.astype(unit.dtype), precision=_HIGHEST)


def direction(x):
    """x `[..., C]` at length one, at least float32; zero, with a finite gradient, where x is."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square == 0, 1, square))


def _received_and_own(query, key, scale, key_mask):
    """Attention received `[*B, N]`, and paid to oneself `[*B]`, means over heads and queries."""
    check_qk(query, key)
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"this is about self-attention, got {query.shape[-3]} queries, {key.shape[-3]} keys"
        )
    *batch, num_tokens, _, _ = query.shape
    flat = lambda x: x.reshape(math.prod(batch), *x.shape[len(batch) :])
    key_mask = jnp.ones(key.shape[:-2], bool) if key_mask is None else key_mask
    key_mask = checked_key_mask(key_mask, key)
    query, key, key_mask = flat(zero_padding(query, key_mask)), flat(key), flat(key_mask)

    def rows(block):
        query, positions, takes_part = block
        weights = attention_weights(query, key, scale=scale, key_mask=key_mask)
        weights = jnp.mean(weights, axis=1) * takes_part[..., None]  # [B, T, N]
        own = jnp.take_along_axis(weights, positions[..., None], axis=-1)
        return jnp.sum(weights, axis=1)[:, None], jnp.sum(own, axis=1)

    positions = jnp.broadcast_to(jnp.arange(num_tokens), key.shape[:2])
    takes_part = key_mask.astype(jnp.float32)  # zero also in rows that fill up a block
    received, own = map_row_blocks(rows, (query, positions, takes_part), num_tokens)
    count = jnp.maximum(jnp.sum(takes_part, axis=1), 1)
    received, own = jnp.sum(received, axis=1) / count[:, None], jnp.sum(own, axis=1) / count
    return received.reshape(*batch, num_tokens), own.reshape(batch)


def _is_patch(shape, num_prefix):
    """For tokens `[*B, N]`, bool `[1, …, N]`."""
    if not 0 <= num_prefix < shape[-1]:
        raise ValueError(f"num_prefix must lie in 0..{shape[-1] - 1}, got {num_prefix}")
    return _positions(shape) >= num_prefix


def _positions(shape):
    """Positions along the last axis of an array of this shape, `[1, …, N]`."""
    return jnp.expand_dims(jnp.arange(shape[-1]), range(len(shape) - 1))
