"""FNA or centroid attention of one long sequence, its tokens split over devices of a mesh axis.

The functions run inside `jax.shard_map`, on each device's part of the tokens: n of them, in order,
so that token i of device p is token `p n + i`. What they communicate does not grow with n::

    mesh = jax.make_mesh((8,), ("tokens",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec(None, "tokens")


    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(split, split, split), out_specs=split)
    def attend(query, key, value):
        landmarks = select_landmarks(query.mean(axis=-2), 64, axis_name="tokens")
        return fast_nystrom_attention(query, key, value, landmarks, axis_name="tokens")

Centroid attention takes `assign_clusters(key.mean(axis=-2), landmarks, axis_name="tokens")` in
place of the landmarks. A sequence that does not divide is filled up, and the filling marked in
`key_mask` and `exclude`.

Shape letters: B batch, n tokens of this device, P devices, S landmarks, H heads, K key and value
heads (a divisor of H), D head dimension, C features of a token.
"""

import functools

import jax
import jax.numpy as jnp

from fna_jax.carries import per_token
from fna_jax.centroids import checked_inputs, through_means
from fna_jax.checks import check_qkv, checked_key_mask, spread_heads, zero_padding
from fna_jax.clusters import Clusters, checked_landmarks, lloyd_steps, nearest_center
from fna_jax.landmarks import Landmarks, checked_count, checked_mask
from fna_jax.nystrom import inverse_of_kernel, landmark_kernel
from fna_jax.softmax import softmax_attention
from fna_jax.tokens import attention_logits

_HIGHEST = jax.lax.Precision.HIGHEST


def select_landmarks(features, num_landmarks, *, axis_name, guarantee=None, exclude=None):
    """The landmarks that `fna_jax.select_landmarks` takes by farthest point sampling.

    Each of the S steps gathers one candidate, its C features included, from every device.

    Args:
      features: `[*B, n, C]`.
      num_landmarks: S, static.
      axis_name: the mesh axis.
      guarantee, exclude: bool `[*B, n]`, as in `fna_jax.select_landmarks`.

    Returns:
      `Landmarks` with positions among all tokens, the same on all devices.

    Raises:
      ValueError: as in `fna_jax.select_landmarks`.
    """
    features = jnp.asarray(features, jnp.float32)
    *batch, size, _ = features.shape
    num_landmarks = checked_count(num_landmarks, size * jax.lax.axis_size(axis_name))
    guarantee, exclude = (
        per_token(features, False, bool)
        if mask is None
        else checked_mask(mask, features.shape[:-1], name)
        for name, mask in (("guarantee", guarantee), ("exclude", exclude))
    )

    def select(features, guarantee, exclude):
        eligible = ~guarantee & ~exclude
        samples = _farthest_points(features, num_landmarks, eligible, axis_name)
        return _put_first(guarantee, samples, axis_name)

    for _ in batch:
        select = jax.vmap(select)
    return Landmarks.from_indices(select(features, guarantee, exclude))


def fast_nystrom_attention(
    query, key, value, landmarks, *, axis_name, scale=None, key_mask=None, inverse_steps=6
):
    """This device's part of `fna_jax.fast_nystrom_attention`, `[*B, n, H, D]`.

    Communicated are the landmarks' queries and keys, and the sums of `BV` with their softmax's
    maximum and denominator.

    Args:
      query: `[*B, n, H, D]`.
      key, value: `[*B, n, K, D]`.
      landmarks: `Landmarks` with positions among all tokens, the same on all devices.
      axis_name: the mesh axis.
      key_mask: bool `[*B, n]`, as in `fna_jax.fast_nystrom_attention`.
      scale, inverse_steps: as there.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    check_qkv(query, key, value)
    key_mask = checked_key_mask(key_mask, key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (zero_padding(x, key_mask) for x in (query, key, value))

    take = lambda x: _take_tokens(x, landmarks.indices, axis_name)
    landmark_query, landmark_key = take(query), spread_heads(take(key), query.shape[-2])
    valid = _real_landmarks(landmarks, key_mask, key.shape[:-2], axis_name)

    kernel = landmark_kernel(landmark_query, landmark_key, valid, scale)  # A, on every device
    inverse = inverse_of_kernel(kernel, inverse_steps, query.dtype)  # Z
    of_keys = dict(scale=scale, key_mask=key_mask, axis_name=axis_name)
    summary = _summary(landmark_query, key, value, **of_keys)  # BV
    summary = jnp.where(valid[..., None, None], summary, 0)
    landmark_value = jnp.einsum("...hij,...jhd->...ihd", inverse, summary, precision=_HIGHEST)
    return softmax_attention(
        query, landmark_key, landmark_value.astype(value.dtype), scale=scale, key_mask=valid
    )


def assign_clusters(features, landmarks, *, axis_name, key_mask=None, num_prefix=0) -> Clusters:
    """This device's part of `fna_jax.assign_clusters`: the clusters of its n tokens.

    Communicated are the landmarks' features.

    Args:
      features: `[*B, n, C]`, what distances are measured on.
      landmarks: `Landmarks` or integers, positions among all tokens, the same on all devices.
      axis_name: the mesh axis.
      key_mask: bool `[*B, n]`, True on real tokens; padding is in no cluster.
      num_prefix: so many of all tokens, in front, are alone in their clusters.

    Raises:
      ValueError: as in `fna_jax.assign_clusters`.
    """
    features, landmarks, key_mask = checked_landmarks(features, landmarks, key_mask, num_prefix)
    valid = _real_landmarks(landmarks, key_mask, features.shape[:-1], axis_name)
    centers = _take_tokens(features[..., None], landmarks.indices, axis_name)[..., 0]
    assignment = nearest_center(features, centers, valid, num_prefix, axis_name=axis_name)
    return Clusters(assignment, centers.shape[-2], num_prefix).among(key_mask)


def kmeans_clusters(features, clusters, *, axis_name, steps=2, key_mask=None) -> Clusters:
    """This device's part of `fna_jax.kmeans_clusters`: the clusters of its n tokens.

    Communicated are, in each step, the sums of the clusters' features and their masses.

    Args:
      features: `[*B, n, C]`, what distances are measured on.
      clusters: of this device's tokens `[*B, n]`, where to start.
      axis_name: the mesh axis.
      steps, key_mask: as in `fna_jax.kmeans_clusters`.

    Raises:
      ValueError: as in `fna_jax.kmeans_clusters`.
    """
    return lloyd_steps(features, clusters, steps, key_mask, axis_name=axis_name)


def centroid_attention(
    query, key, value, clusters, *, axis_name, residual=True, scale=None, key_mask=None
):
    """This device's part of `fna_jax.centroid_attention`, `[*B, n, H, D]`.

    There is no near field: a window's neighbours may lie on another device. Communicated are the
    sums of the clusters' queries, keys and values with their masses, and the sums of the mean
    queries' exact attention with their softmax's maximum and denominator.

    Args:
      query: `[*B, n, H, D]`.
      key, value: `[*B, n, K, D]`.
      clusters: `Clusters` of this device's tokens, of `assign_clusters` or `kmeans_clusters`.
      axis_name: the mesh axis.
      key_mask: bool `[*B, n]`, as in `fna_jax.centroid_attention`.
      residual, scale: as there.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    inputs = checked_inputs(query, key, value, clusters, scale, key_mask)
    exact = functools.partial(_summary, axis_name=axis_name)
    return through_means(*inputs, residual=residual, exact=exact, axis_name=axis_name)


def _summary(landmark_query, key, value, *, scale, key_mask, axis_name):
    """`softmax(c Qs Kᵀ) V` over the keys of all devices, at least float32, `[*B, S, H, D]`.

    Head by head, so that few logits are held at a time; one log-sum-exp reduction for all heads.
    """
    groups = key.shape[-2]
    by_group = lambda x: jnp.moveaxis(x, -2, 0)[..., None, :]  # [K, *B, n, 1, D]
    queries = landmark_query.reshape(*landmark_query.shape[:-2], groups, -1, key.shape[-1])
    queries = jnp.moveaxis(queries, -3, 0)  # [K, *B, S, H/K, D]

    def partial_sums(states):
        query, key, value = states
        logits = attention_logits(query, key, scale=scale, key_mask=key_mask)  # [*B, H/K, S, n]
        peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        peak = jnp.where(jnp.isfinite(peak), peak, jnp.finfo(peak.dtype).min)  # none take part
        weights = jnp.exp(logits - peak)
        values = value[..., 0, :].astype(weights.dtype)
        return (
            peak,
            jnp.sum(weights, -1, keepdims=True),
            jnp.einsum("...hsn,...nd->...hsd", weights, values),
        )

    peak, total, summary = jax.lax.map(partial_sums, (queries, by_group(key), by_group(value)))
    rescale = jnp.exp(peak - jax.lax.pmax(peak, axis_name))
    total, summary = jax.lax.psum((total * rescale, summary * rescale), axis_name)
    summary = summary / jnp.where(total == 0, 1, total)  # [K, *B, H/K, S, D]
    summary = jnp.moveaxis(summary, 0, -4)
    return jnp.swapaxes(summary.reshape(*summary.shape[:-4], -1, *summary.shape[-2:]), -2, -3)


def _farthest_points(points, num_samples, eligible, axis_name):
    """Of points `[n, C]` the positions among all devices' in the order found, int32 `[S]`."""
    size = points.shape[0]
    position = jax.lax.axis_index(axis_name) * size + jnp.arange(size)
    start = jnp.where(eligible, jnp.inf, -jnp.inf)

    def take_farthest(distance, _):
        mine = jnp.argmax(distance)
        # One message: score, position (a float holds it up to 2²⁴ tokens of a device), features.
        candidate = jnp.concatenate([jnp.stack([distance[mine], mine]), points[mine]])
        candidates = jax.lax.all_gather(candidate, axis_name, to="invarying")  # [P, 2 + C]
        device = jnp.argmax(candidates[:, 0])  # of equal ones the first
        score, index = candidates[device, 0], candidates[device, 1].astype(jnp.int32)
        index += device * size
        to_index = jnp.sum(jnp.square(points - candidates[device, 2:]), axis=-1)
        distance = jnp.where(to_index < distance, to_index, distance)
        distance = jnp.where(position == index, -jnp.inf, distance)
        return distance, jnp.where(score > -jnp.inf, index, -1)

    return jax.lax.scan(take_farthest, start, length=num_samples)[1]


def _put_first(guarantee, samples, axis_name):
    """Guaranteed tokens of all devices, ascending, then samples; `[n]` and `[S]` to `[S]`."""
    size, num_landmarks = guarantee.shape[0], samples.shape[0]
    position = jax.lax.axis_index(axis_name) * size + jnp.arange(size)
    beyond = jnp.iinfo(jnp.int32).max
    mine = jnp.sort(jnp.where(guarantee, position, beyond))[:num_landmarks]
    first = jnp.sort(jax.lax.all_gather(mine, axis_name, tiled=True, to="invarying"))
    first = jnp.pad(first, (0, num_landmarks), constant_values=beyond)[:num_landmarks]
    # Slot j holds guaranteed token j, or sample j - (number of guaranteed tokens).
    shift = jnp.arange(num_landmarks) - jnp.sum(first < beyond)
    return jnp.where(first < beyond, first, samples[jnp.maximum(shift, 0)]).astype(jnp.int32)


def _real_landmarks(landmarks, key_mask, shape, axis_name):
    """Which landmarks are valid and no padding, bool `[*B, S]`; the tokens here are `[*B, n]`."""
    real = jnp.ones(shape, jnp.int32) if key_mask is None else key_mask.astype(jnp.int32)
    taken = _take_tokens(real[..., None, None], landmarks.indices, axis_name)[..., 0, 0]
    return landmarks.valid & (taken > 0)


def _take_tokens(x, indices, axis_name):
    """Tokens `[*B, S, …]` of x `[*B, n, …]` by their positions `[*B, S]` among all devices'."""
    size = x.shape[-3]
    local = indices - jax.lax.axis_index(axis_name) * size
    here = ((local >= 0) & (local < size))[..., None, None]
    mine = jnp.take_along_axis(x, jnp.clip(local, 0, size - 1)[..., None, None], axis=-3)
    return jax.lax.psum(jnp.where(here, mine, 0), axis_name)
