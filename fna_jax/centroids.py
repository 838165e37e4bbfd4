"""Centroid attention: the means of clusters of tokens stand for the tokens, with their mass.

Not from the FNA paper; related to clustered attention (arXiv 2007.04825) and to proportional
attention in token merging (arXiv 2210.09461). Linear in N, without an inverse, and the rows of the
matrix that it stands for sum to one.

Shape letters: B batch, N tokens, S clusters, P prefix tokens, W windows of the grid, L patches of a
window, M near tokens of a window, H heads, K key and value heads (a divisor of H), D head
dimension. Layout is Flax's, `[*B, N, H, D]`.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp

from fna_jax.checks import check_qkv, checked_key_mask, zero_padding
from fna_jax.clusters import Clusters, assign_clusters, cluster_means, kmeans_clusters
from fna_jax.softmax import (
    flash_obstacle,
    joint_softmax_weights,
    map_row_blocks,
    over_heads,
    softmax_attention,
)
from fna_jax.windows import Windows

_HIGHEST = jax.lax.Precision.HIGHEST

__all__ = [
    "CentroidKeyValue",
    "Clusters",
    "Windows",
    "assign_clusters",
    "centroid_attention",
    "centroid_key_value",
    "kmeans_clusters",
]


class CentroidKeyValue(typing.NamedTuple):
    """What a cache of centroid attention holds.

    Attributes:
      key, value: `[*B, S, K, D]`, the means of each cluster.
      log_mass: float32 `[*B, S]`, logarithms of the numbers of tokens; −∞ for an empty cluster.
      residual: `[*B, S, H, D]`, what attention to the means lacks at the mean queries.
    """

    key: jax.Array
    value: jax.Array
    log_mass: jax.Array
    residual: jax.Array


def centroid_attention(
    query, key, value, clusters, *, windows=None, residual=True, scale=None, key_mask=None
):
    """Self-attention through the means of clusters, `[*B, N, H, D]`.

    `P(q) = softmax(c q K̄ᵀ + log m) V̄` is the attention to the means, `R = softmax(c Q̄ Kᵀ) V − P(Q̄)`
    what it lacks at the mean query of each cluster, and token i of cluster a gets `P(qᵢ) + Rₐ`.

    With windows, tokens near to a query's window are attended exactly, and leave their clusters'
    masses: `P(q) = softmax over {c q Kⱼᵀ : j near} ∪ {c q K̄ₛᵀ + log(mₛ − nₛ)}`, where nₛ of the
    near tokens are in cluster s. R is then one per window. Prefix tokens are near to all, and get
    exact attention themselves.

    Exact if every token is its own cluster. Rows of the implied matrix sum to one.

    Args:
      query: `[*B, N, H, D]`.
      key, value: `[*B, N, K, D]`; fewer heads than `query` is grouped-query attention.
      clusters: `Clusters` of the N tokens.
      windows: `Windows` of the N tokens; None for no near field.
      residual: whether R is added. It costs an exact attention of S (or W) queries.
      scale: c, multiplies every logit; `1/sqrt(D)` by default.
      key_mask: bool `[*B, N]`, True on real tokens. Padding is in no cluster and never attended to;
        the outputs there are finite and mean nothing.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    inputs = checked_inputs(query, key, value, clusters, scale, key_mask)
    if windows is not None:
        _check_windows(windows, query)
        return _near_and_far(*inputs, windows=windows, residual=residual)
    return through_means(*inputs, residual=residual)


def centroid_key_value(query, key, value, clusters, *, scale=None, key_mask=None):
    """The clusters' means, masses and residuals, as `CentroidKeyValue`.

    `softmax(c q keyᵀ + log_mass) value`, plus the residual of the token's cluster, is
    `centroid_attention` without windows, whose arguments and errors these are.
    """
    inputs = checked_inputs(query, key, value, clusters, scale, key_mask)
    return CentroidKeyValue(*_means_and_residual(*inputs, residual=True))


def through_means(query, key, value, clusters, scale, real, *, residual, **over):
    """Centroid attention of `checked_inputs` without a near field, `[*B, N, H, D]`."""
    inputs = query, key, value, clusters, scale, real
    key, value, log_mass, lacking = _means_and_residual(*inputs, residual=residual, **over)
    # Padding gets anything.
    added = None if lacking is None else (lacking, jnp.maximum(clusters.assignment, 0))
    return softmax_attention(query, key, value, scale=scale, log_mass=log_mass, added=added)


def _means_and_residual(
    query, key, value, clusters, scale, real, *, residual, exact=softmax_attention, axis_name=None
):
    """K̄ and V̄ `[*B, S, K, D]`, log m `[*B, S]`, and R `[*B, S, H, D]` or None.

    Where tokens are split over the mesh axis `axis_name`, `exact` attends to those of all devices.
    """
    states = (key, value, query) if residual else (key, value)
    (mean_key, mean_value, *of_query), masses = _token_means(clusters, *states, axis_name=axis_name)
    log_mass = jnp.log(masses)
    if not residual:
        return mean_key, mean_value, log_mass, None
    (mean_query,) = of_query
    cheap = softmax_attention(mean_query, mean_key, mean_value, scale=scale, log_mass=log_mass)
    lacking = exact(mean_query, key, value, scale=scale, key_mask=real) - cheap
    return mean_key, mean_value, log_mass, lacking.astype(value.dtype)


def _token_means(clusters, *states, axis_name=None):
    """Means of states `[*B, N, H, D]` by cluster, `[*B, S, H, D]` in their dtypes, and masses."""
    joined = [x.reshape(*x.shape[:-2], -1) for x in states]
    means, masses = cluster_means(clusters, *joined, axis_name=axis_name)
    of_heads = lambda mean, x: mean.reshape(*mean.shape[:-1], *x.shape[-2:]).astype(x.dtype)
    return [of_heads(mean, x) for mean, x in zip(means, states)], masses


def _near_and_far(query, key, value, clusters, scale, real, *, windows, residual):
    """Centroid attention with a near field, `[*B, N, H, D]`."""
    batch, prefix = query.shape[:-3], windows.num_prefix
    flat = lambda x: x.reshape(math.prod(batch), *x.shape[len(batch) :])
    query, key, value, real = map(flat, (query, key, value, real))
    clusters = Clusters(flat(clusters.assignment), clusters.num_clusters)
    of_windows = lambda x: windows.split(x[:, prefix:])

    # Prefix tokens are near to all: further keys beside the means of the clusters.
    (mean_key, mean_value), masses = _token_means(clusters, key, value)
    far_key = jnp.concatenate([key[:, :prefix], mean_key], axis=1)  # [B, P + S, K, D]
    far_value = jnp.concatenate([value[:, :prefix], mean_value], axis=1)
    left = masses[:, None] - _near_counts(clusters.one_hot(jnp.float32), windows)
    ones = jnp.broadcast_to(real[:, None, :prefix], (*left.shape[:2], prefix))
    far_mass = jnp.log(jnp.concatenate([ones, left], axis=-1))  # [B, W, P + S]

    present = of_windows(real)
    near_keys = of_windows(key), of_windows(value), present
    near_queries, queries = of_windows(query), query[:, :prefix]
    if residual:  # of each window one more query, the mean of its own
        means = _window_means(near_queries, present)  # [B, W, H, D]
        near_queries = jnp.concatenate([near_queries, means[:, :, None]], axis=2)
        queries = jnp.concatenate([queries, means], axis=1)
    exact = softmax_attention(queries, key, value, scale=scale, key_mask=real)
    out = _window_attention(
        near_queries, *near_keys, far_key, far_value, far_mass, scale=scale, windows=windows
    )
    if residual:
        out = out[:, :, :-1] + (exact[:, prefix:, None] - out[:, :, -1:])
    out = jnp.concatenate([exact[:, :prefix], windows.join(out)], axis=1)
    return out.reshape(*batch, *out.shape[1:])


def _near_counts(one_hot, windows):
    """How many tokens near to each window are in each cluster, `[B, W, S]`, of `[B, N, S]`."""
    own = jnp.sum(windows.split(one_hot[:, windows.num_prefix :]), axis=2)
    near = jnp.sum(_take_windows(own, windows.neighbours()), axis=2)
    return near + jnp.sum(one_hot[:, None, : windows.num_prefix], axis=2)


def _take_windows(x, indices):
    """Of x `[B, W, …]` the windows `indices` `[V, m]`, `[B, V, m, …]`; zeros where negative."""
    taken = x[:, jnp.maximum(indices, 0)]
    there = (indices >= 0).reshape(1, *indices.shape, *[1] * (x.ndim - 2))
    return jnp.where(there, taken, jnp.zeros_like(taken))


def _take_near(x, indices):
    """Of x `[B, W, L, …]` the tokens of the windows `indices` `[V, m]`, `[B, V, m · L, …]`."""
    taken = _take_windows(x, indices)
    return taken.reshape(*taken.shape[:2], -1, *taken.shape[4:])


def _window_means(x, present):
    """Means of x `[B, W, L, H, D]` over the patches that are present, `[B, W, H, D]`."""
    weights = present / jnp.maximum(jnp.sum(present, axis=-1, keepdims=True), 1)
    return jnp.einsum("bwl,bwlhd->bwhd", weights, x, precision=_HIGHEST).astype(x.dtype)


def _window_attention(query, key, value, present, far_key, far_value, far_mass, *, scale, windows):
    """One softmax over the near keys of each window and the far ones, `[B, W, T, H, D]`.

    Args:
      query: `[B, W, T, H, D]`.
      key, value: `[B, W, L, K, D]`.
      present: bool `[B, W, L]`, False on padding.
      far_key, far_value: `[B, F, K, D]`.
      far_mass: `[B, W, F]`, logarithms.
    """
    if flash_obstacle(query, key, value, scale, None) is None:
        # The kernel takes keys that lie together, and holds no logits.
        near = lambda x: _take_near(x, windows.neighbours())
        spread = lambda x: jnp.broadcast_to(x[:, None], (*far_mass.shape[:2], *x.shape[1:]))
        together = lambda near, far: jnp.concatenate([near, far], axis=2)
        masses = together(jnp.where(near(present), 0, -jnp.inf), far_mass)
        states = together(near(key), spread(far_key)), together(near(value), spread(far_value))
        return softmax_attention(query, *states, scale=scale, log_mass=masses)
    num_rows, num_groups, num_far = query.shape[2], key.shape[-2], far_key.shape[1]
    # Query heads that share a key head are further queries of one head: [B, W, T · H/K, K, D].
    query = query.reshape(*query.shape[:3], num_groups, -1, query.shape[-1])
    query = jnp.swapaxes(query, 3, 4).reshape(*query.shape[:2], -1, num_groups, query.shape[-1])
    neighbours = windows.neighbours()  # [W, m]
    num_logits = query.shape[2] * (neighbours.shape[1] * key.shape[2] + num_far)  # of a window
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=accumulate)

    def attend(query, key, value, far_key, far_value, of_images):
        present, far_mass = of_images

        def rows(block):
            query, far_mass, neighbours = block  # of some windows
            near = scale * product("bwtkd,bwmkd->bkwtm", query, _take_near(key, neighbours[0]))
            there = _take_near(present, neighbours[0])[:, None, :, None]
            near = jnp.where(there, near, -jnp.inf)
            far = scale * product("bwtkd,bfkd->bkwtf", query, far_key)
            far += far_mass[:, None, :, None]
            (near, far), total = joint_softmax_weights(near, far)
            near, far = near.astype(value.dtype), far.astype(value.dtype)
            out = product("bkwtm,bwmkd->bkwtd", near, _take_near(value, neighbours[0]))
            out += product("bkwtf,bfkd->bkwtd", far, far_value)
            return jnp.moveaxis(out / total, 1, 3).astype(value.dtype)

        of_windows = query, far_mass, jnp.asarray(neighbours)[None]
        return map_row_blocks(rows, of_windows, num_logits, least=1)

    states = query, key, value, far_key, far_value
    of_images = present, far_mass
    num_logits *= query.shape[1]
    out = over_heads(attend, states, of_images, num_logits=num_logits, in_blocks=True)
    out = out.reshape(*out.shape[:2], num_rows, -1, *out.shape[3:])
    return jnp.swapaxes(out, 3, 4).reshape(*out.shape[:3], -1, out.shape[-1])


def checked_inputs(query, key, value, clusters, scale, key_mask):
    """The inputs, fit together: padding is zero and in no cluster; and which tokens are real."""
    check_qkv(query, key, value)
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(
            "centroid attention is self-attention, got "
            f"{query.shape[-3]} queries and {key.shape[-3]} keys"
        )
    if not isinstance(clusters, Clusters):
        raise ValueError(f"clusters must be Clusters, got {type(clusters).__name__}")
    if clusters.assignment.shape != query.shape[:-2]:
        raise ValueError(
            f"clusters must be {list(query.shape[:-2])} for a query of shape {query.shape}, "
            f"got {clusters.assignment.shape}"
        )
    key_mask = checked_key_mask(key_mask, key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (zero_padding(x, key_mask) for x in (query, key, value))
    clusters = clusters.among(key_mask)
    return query, key, value, clusters, scale, clusters.assignment >= 0


def _check_windows(windows, query):
    if query.shape[-3] != windows.num_tokens:
        raise ValueError(
            f"the windows are of {windows.num_tokens} tokens ({windows.num_prefix} in front of a "
            f"grid of {windows.grid}), but there are {query.shape[-3]}"
        )
