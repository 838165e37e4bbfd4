"""Fast Nyström Attention in pure jax.numpy (arXiv 2507.16018)."""

from fna_jax.attention import (
    FastNystromAttention,
    exact_attention,
    fast_nystrom_attention,
    landmark_key_value,
    newton_schulz_inverse,
)
from fna_jax.config import FNAConfig
from fna_jax.landmarks import Landmarks, farthest_point_sampling, select_landmarks

__all__ = [  # noqa: RUF022, grouped by module
    # attention
    "FastNystromAttention",
    "exact_attention",
    "fast_nystrom_attention",
    "landmark_key_value",
    "newton_schulz_inverse",
    # config
    "FNAConfig",
    # landmarks
    "Landmarks",
    "farthest_point_sampling",
    "select_landmarks",
]

__version__ = "0.1.0"
