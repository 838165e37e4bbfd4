"""Which attention to take for a model and a number of tokens, as measured on a real one."""

import functools
import operator

from fna_jax import FNAConfig

from .configs import EncoderConfig
from .registry import family_of, vision_config

_LEAST_TOKENS = 1000  # the fewest that were measured
_LEAST_SHARE = 0.2  # of attention in the blocks' arithmetic, for a gain of a tenth in half of them
_FEW_TOKENS = 2500  # below, 3 × 3 of 144 windows are small products that take long


def recommended(model, num_tokens, *, error=0.2) -> tuple[FNAConfig, ...]:
    """Settings for `models.with_attention`, or none where exact attention is the one to take.

    The fastest of four whose error is below a ceiling. All of them are centroid attention on keys,
    with clusters that are handed on from block to block and refined by a Lloyd step. In the first
    half of the blocks attention is local, and they have a near field there:

    - 0.16: 64 clusters in all blocks, near in the first half the own of 64 windows;
    - 0.12: the same below 2,500 tokens; above, in the first half 144 clusters by k-means from as
      many windows, near the 3 × 3 around;
    - 0.06: 64 clusters in the second half, exact attention in the first;
    - 0.03: 128 clusters in the second half.

    Read off `results/recommended.csv` (`python -m benchmarks.recommended`), which has the errors of
    a DINOv2 ViT-S/14's class token and patch tokens on photographs. How far they hold for another
    model, `main.py --config pretrained.py` tells, and `--config tune.py` finds what is best for it.

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
    settings = dict(features="k", approximation="centroid", refine=1)
    later = functools.partial(FNAConfig, f"{middle}:{encoder.depth}", **settings)
    if error >= 0.12 and middle:
        near = dict(num_landmarks=144, partition="kmeans", windows=144, near=1)
        if error >= 0.16 or num_tokens < _FEW_TOKENS:
            near = dict(num_landmarks=64, windows=64)
        return FNAConfig(f"0:{middle}", **near, **settings), later(64)
    if error >= 0.06:
        return (later(64),)
    return (later(128),) if error >= 0.03 else ()
