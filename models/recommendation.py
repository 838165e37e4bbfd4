"""Which attention to take for a model and a number of tokens, as measured on a real one."""

import functools
import operator

from fna_jax import FNAConfig

from .configs import EncoderConfig
from .registry import family_of, vision_config

_LEAST_TOKENS = 1000  # the fewest that were measured
_LEAST_SHARE = 0.2  # of attention in the blocks' arithmetic, for a gain of a tenth in half of them
_MANY_TOKENS = 2500  # below, 3 × 3 of 144 windows are small products, which take long


def recommended(model, num_tokens, *, error=0.25) -> tuple[FNAConfig, ...]:
    """Settings for `models.with_attention`, or none where exact attention is the one to take.

    The fastest of four whose error is below a ceiling. All of them are centroid attention on keys,
    with clusters that are handed on from block to block and refined by a Lloyd step. In the first
    half of the blocks attention is local, and they have a near field there:

    - 0.25: 64 clusters in all blocks, near in the first half the own of 64 windows;
    - 0.2, from 2,500 tokens on: 64 in the second half, in the first 144 by k-means from as many
      windows, near the 3 × 3 around;
    - 0.1: 64 clusters in the second half, exact attention in the first;
    - 0.06: 128 clusters in the second half.

    Read off `results/recommended.csv` (`python -m benchmarks.recommended`), which has the errors of
    a DINOv2 ViT-S/14's class token and patch tokens at 1,025, 4,097 and 16,130 tokens: the settings
    were chosen on some photographs, the ceilings set once the errors on six others had been seen;
    at 16,130 tokens it is 0.2004 for 0.2. What holds for another model,
    `main.py --config pretrained.py` tells; `--config tune.py` finds what suits it.

    Args:
      model: of this zoo.
      num_tokens: N of an image, class token and registers included. Exact attention is the faster
        one below 1,000, and where it is less than a fifth of the blocks' arithmetic.
      error: the ceiling, of `‖approximate − exact‖ / ‖exact‖` of the model's tokens.

    Raises:
      TypeError: a model from elsewhere, or a number of tokens that is no integer.
      ValueError: less than one token.
    """
    family_of(model)
    num_tokens = operator.index(num_tokens)
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
    return recommended_for(vision_config(model.config).encoder, num_tokens, error)


def recommended_for(encoder: EncoderConfig, num_tokens, error) -> tuple[FNAConfig, ...]:
    """`recommended`, for the encoder of a vision tower."""
    if num_tokens < _LEAST_TOKENS or encoder.attention_share(num_tokens) < _LEAST_SHARE:
        return ()
    middle = encoder.depth // 2
    first, later = f"0:{middle}", f"{middle}:{encoder.depth}"
    settings = functools.partial(FNAConfig, features="k", approximation="centroid", refine=1)
    if error >= 0.25 and middle:
        return settings(first, 64, windows=64), settings(later, 64)
    if error >= 0.2 and middle and num_tokens >= _MANY_TOKENS:
        near = settings(first, 144, partition="kmeans", windows=144, near=1)
        return near, settings(later, 64)
    if error >= 0.1:
        return (settings(later, 64),)
    return (settings(later, 128),) if error >= 0.06 else ()
