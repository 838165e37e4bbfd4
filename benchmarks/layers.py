"""One attention layer as people would run it: the arms that accelerators are asked about.

Shape letters: B batch, N tokens, S landmarks or clusters, H heads, D head dimension. Tokens are
those of a square grid of patches behind a class token, N = g² + 1.
"""

import functools
import math

import jax

from benchmarks import attention
from fna_jax import FNAConfig, exact_attention, fast_nystrom_attention
from fna_jax.centroids import Windows, centroid_attention
from fna_jax.layers import attend_in_layer, partition_in_layer


def functions(num_tokens, num_landmarks, num_windows) -> dict:
    """What each arm computes from query, key, value, inputs and indices, by name.

    The arms of `attention.functions`, and centroid attention with as many clusters, which it
    chooses on the keys averaged over heads: by k-means from windows, or from farthest points; and
    with a near field of so many windows.

    Args:
      num_tokens: N, one more than a square.
      num_landmarks: S.
      num_windows: at most so many windows of the near field.
    """
    side = math.isqrt(num_tokens - 1)
    of_layer = dict(grid=(side, side), num_prefix=1)
    centroid = functools.partial(FNAConfig, (0,), num_landmarks, "k", approximation="centroid")
    configs = {
        "centroid, k-means from windows": centroid(partition="kmeans"),
        "centroid, farthest points": centroid(),
        "centroid, k-means, near field": centroid(partition="kmeans", windows=num_windows),
    }

    def attend(query, key, value, inputs, indices, *, config):
        clusters = partition_in_layer({"k": key}, config, None, **of_layer)
        return attend_in_layer(query, key, value, clusters, config, **of_layer)

    arms = {name: functools.partial(attend, config=config) for name, config in configs.items()}
    return attention.functions(num_landmarks) | arms


def given_functions(num_tokens, num_landmarks) -> dict:
    """What is computed from query, key, value and landmarks `[B, S]`, by name.

    Clusters are windows of the grid, at most S, and the near field those windows.
    """
    side = math.isqrt(num_tokens - 1)
    windows = Windows.at_most(num_landmarks, (side, side), num_prefix=1)

    def centroid(query, key, value, landmarks, **options):
        clusters = windows.clusters(query.shape[:1])
        return centroid_attention(query, key, value, clusters, **options)

    return {
        "exact": lambda q, k, v, _: exact_attention(q, k, v),
        "exact, xla": lambda q, k, v, _: exact_attention(q, k, v, implementation="xla"),
        "FNA, landmarks given": fast_nystrom_attention,
        "centroid, windows": centroid,
        "centroid, windows, near field": functools.partial(centroid, windows=windows),
    }


def shapes(batch, num_tokens, num_heads, head_dim, num_landmarks, dtype, sharding=None) -> list:
    """Arguments of those functions as `jax.ShapeDtypeStruct`."""
    state = batch, num_tokens, num_heads, head_dim
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    inputs = array((batch, num_tokens, num_heads * head_dim), dtype)
    return [*[array(state, dtype)] * 3, inputs, array((batch, num_landmarks), "int32")]
