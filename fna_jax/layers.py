"""Centroid attention of one layer by its settings: the partition and the attention.

Shape letters: B batch, N tokens, C features of a token, H heads, D head dimension.
"""

from fna_jax.centroids import centroid_attention
from fna_jax.clusters import Clusters, assign_clusters, kmeans_clusters
from fna_jax.landmarks import layer_points, select_in_layer
from fna_jax.windows import Windows

LLOYD_STEPS = {"landmarks": 1, "kmeans": 3, "windows": 0}  # of a partition that is chosen here


def partition_in_layer(
    states, config, clusters, *, grid, num_prefix, key_mask=None, exclude=None, rng=None
) -> Clusters:
    """The clusters of a layer: chosen here, or those of the layer before, as they are or refined.

    Args:
      states: as in `select_in_layer`.
      config: `FNAConfig`, or what has its fields from `num_landmarks` on.
      clusters: of the layer before with these settings; None in the first.
      grid: patches down and across; of a video in time, down and across.
      num_prefix: tokens in front of them.
      key_mask, exclude, rng: as in `select_in_layer`.

    Raises:
      ValueError: as in `select_in_layer` and `assign_clusters`.
    """
    points = layer_points(states, config.features)
    if clusters is not None and not config.resample:
        return kmeans_clusters(points, clusters, steps=config.refine, key_mask=key_mask)
    if config.partition == "landmarks":
        alone = num_prefix if config.guarantee_prefix else 0
        landmarks = select_in_layer(
            states,
            config.features,
            config.num_landmarks,
            method=config.method,
            guarantee=tuple(range(alone)),
            key_mask=key_mask,
            exclude=exclude,
            rng=rng,
        )
        clusters = assign_clusters(points, landmarks, key_mask=key_mask, num_prefix=alone)
    else:
        windows = Windows.at_most(config.num_landmarks, grid, num_prefix=num_prefix)
        clusters = windows.clusters(points.shape[:-2])
    steps = LLOYD_STEPS[config.partition]
    return kmeans_clusters(points, clusters, steps=steps, key_mask=key_mask)


def attend_in_layer(query, key, value, clusters, config, *, grid, num_prefix, **options):
    """`centroid_attention` by settings: with a near field where they have windows.

    Arguments are those of `partition_in_layer` and, as options, of `centroid_attention`.
    """
    windows = None
    if config.windows is not None:
        windows = Windows.at_most(config.windows, grid, config.near, num_prefix)
    options = dict(windows=windows, residual=config.residual) | options
    return centroid_attention(query, key, value, clusters, **options)
