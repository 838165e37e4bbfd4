"""Fast Nyström Attention in pure jax.numpy (arXiv 2507.16018)."""

from fna_jax.attention import (
    FastNystromAttention,
    exact_attention,
    fast_nystrom_attention,
    landmark_key_value,
    newton_schulz_inverse,
)
from fna_jax.centroids import (
    CentroidKeyValue,
    Clusters,
    Windows,
    assign_clusters,
    centroid_attention,
    centroid_key_value,
    kmeans_clusters,
)
from fna_jax.config import FNAConfig
from fna_jax.landmarks import Landmarks, farthest_point_sampling, select_landmarks
from fna_jax.masking import (
    Masking,
    masked_attention,
    masked_nystrom_attention,
    removed_entries,
    suppression_correction,
)
from fna_jax.runs import causal_centroid_attention
from fna_jax.swap import swap_attention
from fna_jax.tokens import (
    artifact_tokens,
    attention_sinks,
    class_token_proxy,
    incoming_attention,
    massive_by_attention,
    massive_by_norm,
    suppression_matrix,
)

__all__ = [  # noqa: RUF022, grouped by module
    # attention
    "FastNystromAttention",
    "exact_attention",
    "fast_nystrom_attention",
    "landmark_key_value",
    "newton_schulz_inverse",
    # centroids
    "CentroidKeyValue",
    "Clusters",
    "Windows",
    "assign_clusters",
    "centroid_attention",
    "centroid_key_value",
    "kmeans_clusters",
    # config
    "FNAConfig",
    # landmarks
    "Landmarks",
    "farthest_point_sampling",
    "select_landmarks",
    # masking
    "Masking",
    "masked_attention",
    "masked_nystrom_attention",
    "removed_entries",
    "suppression_correction",
    # runs
    "causal_centroid_attention",
    # swap
    "swap_attention",
    # tokens
    "artifact_tokens",
    "attention_sinks",
    "class_token_proxy",
    "incoming_attention",
    "massive_by_attention",
    "massive_by_norm",
    "suppression_matrix",
]

__version__ = "0.1.0"
