"""Partitions of the tokens into clusters, for centroid attention.

Shape letters: B batch, N tokens, S clusters, C features of a token.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fna_jax.landmarks import Landmarks, checked_mask

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clusters:
    """One partition of the tokens of every image, shared by all heads.

    Attributes:
      assignment: int32 `[*B, N]`, the cluster of each token, from 0 to S − 1; -1 for padding.
      num_clusters: S, static. A cluster without tokens carries no weight anywhere.
      num_prefix: so many tokens in front (class token, registers) are each alone in the cluster of
        their own number; static.
    """

    assignment: jax.Array
    num_clusters: int = dataclasses.field(metadata=dict(static=True))
    num_prefix: int = dataclasses.field(default=0, metadata=dict(static=True))

    def among(self, key_mask) -> "Clusters":
        """These clusters less the padding: what is False in the mask bool `[*B, N]`, or None."""
        if key_mask is None:
            return self
        return dataclasses.replace(self, assignment=jnp.where(key_mask, self.assignment, -1))

    def one_hot(self, dtype) -> jax.Array:
        """1 where a token is in a cluster, otherwise 0, `[*B, N, S]`."""
        return jax.nn.one_hot(self.assignment, self.num_clusters, dtype=dtype)


def assign_clusters(features, landmarks, *, key_mask=None, num_prefix=0) -> Clusters:
    """Every token in the cluster of its nearest landmark, by Euclidean distance in float32.

    Ties go to the lowest slot. Empty slots, and landmarks that are padding, get no token.

    Args:
      features: `[*B, N, C]`, what distances are measured on.
      landmarks: `Landmarks`, or integers `[*B, S]` below N; a negative one marks an empty slot.
      key_mask: bool `[*B, N]`, True on real tokens; padding is in no cluster.
      num_prefix: so many tokens in front are alone in their clusters. They must be the first
        landmarks, as `select_landmarks` puts them where they are guaranteed.

    Raises:
      ValueError: shapes or dtypes that do not fit, or a prefix that leaves no cluster to the rest.
    """
    features, landmarks, key_mask = checked_landmarks(features, landmarks, key_mask, num_prefix)
    landmarks = landmarks.among(key_mask)
    centers = jnp.take_along_axis(features, landmarks.indices[..., None], axis=-2)
    assignment = nearest_center(features, centers, landmarks.valid, num_prefix)
    return Clusters(assignment, centers.shape[-2], num_prefix).among(key_mask)


def kmeans_clusters(features, clusters, *, steps=2, key_mask=None) -> Clusters:
    """The partition after some steps of Lloyd's algorithm: means, then the nearest mean.

    Clusters that are empty stay so, ties go to the lowest one, and the prefix keeps its own.

    Args:
      features: `[*B, N, C]`, what distances are measured on.
      clusters: `[*B, N]`, where to start.
      steps: how many; 0 changes nothing.
      key_mask: bool `[*B, N]`, True on real tokens; padding is in no cluster.

    Raises:
      ValueError: shapes or dtypes that do not fit, or a negative number of steps.
    """
    return lloyd_steps(features, clusters, steps, key_mask)


def lloyd_steps(features, clusters, steps, key_mask, *, axis_name=None) -> Clusters:
    """`kmeans_clusters`; the tokens may be split over a mesh axis, as in `fna_jax.sharded`."""
    features, key_mask = _checked(features, key_mask)
    if clusters.assignment.shape != features.shape[:-1]:
        raise ValueError(
            f"clusters must be {list(features.shape[:-1])} for features of shape {features.shape}, "
            f"got {clusters.assignment.shape}"
        )
    if steps < 0:
        raise ValueError(f"the number of Lloyd steps must be at least 0, got {steps}")
    clusters = clusters.among(key_mask)
    real = clusters.assignment >= 0
    for _ in range(steps):
        (centers,), masses = cluster_means(clusters, features, axis_name=axis_name)
        prefix = clusters.num_prefix
        assignment = nearest_center(features, centers, masses > 0, prefix, axis_name=axis_name)
        clusters = dataclasses.replace(clusters, assignment=assignment).among(real)
    return clusters


def cluster_means(clusters, *features, axis_name=None):
    """The means of each cluster's features, and the clusters' masses, float32 `[*B, S]`.

    The mean of a cluster without tokens is zero.

    Args:
      clusters: `[*B, N]`.
      *features: arrays `[*B, N, C]`, each with means float32 `[*B, S, C]`.
      axis_name: the mesh axis that the tokens are split over, if they are.
    """

    def sums(features):
        # 0 and 1 are exact in any dtype, and sums are float32: only float32 needs precision.
        return jnp.einsum(
            "...ns,...nc->...sc",
            clusters.one_hot(features.dtype),
            features,
            precision=_HIGHEST,
            preferred_element_type=jnp.float32,
        )

    masses = jnp.sum(clusters.one_hot(features[0].dtype), axis=-2, dtype=jnp.float32)
    totals = [sums(some) for some in features], masses
    totals, masses = totals if axis_name is None else jax.lax.psum(totals, axis_name)
    return [total / jnp.maximum(masses, 1)[..., None] for total in totals], masses


def token_means(clusters, *states, axis_name=None):
    """Means of states `[*B, N, H, D]` by cluster, `[*B, S, H, D]` in their dtypes, and masses."""
    joined = [x.reshape(*x.shape[:-2], -1) for x in states]
    means, masses = cluster_means(clusters, *joined, axis_name=axis_name)
    of_heads = lambda mean, x: mean.reshape(*mean.shape[:-1], *x.shape[-2:]).astype(x.dtype)
    return [of_heads(mean, x) for mean, x in zip(means, states)], masses


def nearest_center(features, centers, taken, num_prefix, *, axis_name=None):
    """The nearest of the centers that are `taken` and not the prefix's, int32 `[*B, N]`.

    The prefix is each in its own. -1 where there is none.

    Args:
      features: `[*B, N, C]`.
      centers: `[*B, S, C]`.
      taken: bool `[*B, S]`.
      num_prefix: so many tokens in front have the centers of their own number.
      axis_name: the mesh axis that the tokens are split over, if they are.
    """
    # |x − c|² without |x|². Both are measured from the centers' mean: from far away, differences
    # would be lost in rounding.
    numbers = lambda x: jnp.expand_dims(jnp.arange(x.shape[-1], dtype=jnp.int32), range(x.ndim - 1))
    taken &= numbers(taken) >= num_prefix
    weights = taken[..., None].astype(centers.dtype)
    origin = jnp.sum(weights * centers, axis=-2) / jnp.maximum(jnp.sum(weights, axis=-2), 1)
    origin = jax.lax.stop_gradient(origin)[..., None, :]
    centers = centers - origin
    products = jnp.einsum("...nc,...sc->...ns", features - origin, centers, precision=_HIGHEST)
    distances = jnp.sum(jnp.square(centers), axis=-1)[..., None, :] - 2 * products
    distances = jnp.where(taken[..., None, :], distances, jnp.inf)
    nearest = jnp.argmin(distances, axis=-1).astype(jnp.int32)
    nearest = jnp.where(jnp.any(taken, axis=-1, keepdims=True), nearest, -1)
    positions = numbers(nearest)
    if axis_name is not None:
        positions += jax.lax.axis_index(axis_name) * nearest.shape[-1]
    return jnp.where(positions < num_prefix, positions, nearest)


def checked_landmarks(features, landmarks, key_mask, num_prefix):
    """Features and mask as `_checked`, and `Landmarks` that fit them and leave room to the rest."""
    features, key_mask = _checked(features, key_mask)
    if not isinstance(landmarks, Landmarks):
        landmarks = Landmarks.from_indices(landmarks)
    if landmarks.indices.shape[:-1] != features.shape[:-2]:
        raise ValueError(
            f"landmarks must be {[*features.shape[:-2], 'S']} for features of shape "
            f"{features.shape}, got {landmarks.indices.shape}"
        )
    num_clusters = landmarks.indices.shape[-1]
    if not 0 <= num_prefix < max(num_clusters, 1):
        raise ValueError(
            f"num_prefix must lie in 0..{num_clusters - 1}, so that one of the {num_clusters} "
            f"clusters is left to the other tokens, got {num_prefix}"
        )
    return features, landmarks, key_mask


def _checked(features, key_mask):
    """Features as float32 without what padding holds, and the mask as an array or None."""
    features = jnp.asarray(features)
    if features.ndim < 2:
        raise ValueError(f"features must be [*B, N, C], got shape {features.shape}")
    features = features.astype(jnp.float32)
    if key_mask is None:
        return features, None
    key_mask = checked_mask(key_mask, features.shape[:-1], "key_mask")
    return jnp.where(key_mask[..., None], features, 0), key_mask
