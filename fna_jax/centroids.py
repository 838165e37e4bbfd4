"""Centroid attention: the means of clusters of tokens stand for the tokens, with their mass.

Not from the FNA paper; related to clustered attention (arXiv 2007.04825) and to proportional
attention in token merging (arXiv 2210.09461). Linear in N, without an inverse, and the rows of the
matrix that it stands for sum to one.

Shape letters: B batch, N tokens, S clusters, W windows, H heads, K key and value heads (a divisor
of H), D head dimension. Layout is Flax's, `[*B, N, H, D]`.
"""

import typing

import jax
import jax.numpy as jnp

from fna_jax.checks import check_qkv, checked_key_mask, zero_padding
from fna_jax.clusters import Clusters, assign_clusters, kmeans_clusters, token_means
from fna_jax.near_field import near_and_far
from fna_jax.softmax import softmax_attention
from fna_jax.windows import Windows

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
        return near_and_far(*inputs, windows=windows, residual=residual)
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
    (mean_key, mean_value, *of_query), masses = token_means(clusters, *states, axis_name=axis_name)
    log_mass = jnp.log(masses)
    if not residual:
        return mean_key, mean_value, log_mass, None
    (mean_query,) = of_query
    cheap = softmax_attention(mean_query, mean_key, mean_value, scale=scale, log_mass=log_mass)
    lacking = exact(mean_query, key, value, scale=scale, key_mask=real) - cheap
    return mean_key, mean_value, log_mass, lacking.astype(value.dtype)


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
